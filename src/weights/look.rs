//! How the elements of a tensor look that is no weight: what masks, tables of positions and neutral scales hold.

use super::filters;
use crate::onnx::{ElementType, TensorProto};

/// How elements that are no weights look.
pub struct Look {
    /// They hold infinities, or numbers that no weight has.
    pub huge: bool,
    /// They are zero, or so far below that nothing is left of what they are added to.
    pub hides: bool,
    /// They are zeros and ones, both.
    pub bits: bool,
    /// They are one whole number.
    pub filling: bool,
    /// They are zero.
    pub zeros: bool,
    /// They are a window: one smooth row, which is not constant.
    pub window: bool,
    /// They are places along one axis, in equal steps.
    pub steps: bool,
    /// They are places or sizes of pixels: whole numbers and halves, many, which are not all the same.
    pub grid: bool,
    /// They are one row that grows, or falls, from each number to the next.
    pub ordered: bool,
    /// Some are above zero and some below.
    pub signs: bool,
    /// Along each row the numbers grow or fall by equal steps.
    pub lines: bool,
    /// Along the rows stand sines and cosines of the same angles, beside one another or one half behind the other.
    pub circles: bool,
    /// They change nothing as a scale, all ones, or as a bias, all zeros.
    pub neutral: bool,
    /// The first of the rows is all ones or all zeros, as that of position 0, and the others are sines or cosines.
    pub sines: bool,
}

impl Look {
    /// `None` where the elements lie elsewhere or cannot be read.
    pub fn at(tensor: &TensorProto) -> Option<Look> {
        let values = tensor.floats().ok().filter(|v| !v.is_empty())?;
        let all = |f: &dyn Fn(f64) -> bool| values.iter().all(|&v| f(v));
        let any = |f: &dyn Fn(f64) -> bool| values.iter().any(|&v| f(v));
        let columns = tensor.dims.last().and_then(|&d| usize::try_from(d).ok()).unwrap_or(1).clamp(1, values.len());
        let row = |number: f64| values.iter().take(columns).all(|&v| v == number);
        Some(Look {
            huge: any(&|v| !v.is_finite() || v.abs() >= 1e30),
            hides: all(&|v| v == 0.0 || v <= -1e3) && any(&|v| v != 0.0),
            bits: all(&|v| v == 0.0 || v == 1.0) && any(&|v| v == 0.0) && any(&|v| v == 1.0),
            filling: all(&|v| values.first() == Some(&v) && v.fract() == 0.0),
            zeros: all(&|v| v == 0.0),
            window: filters::is_window(&tensor.dims, &values),
            steps: filters::are_steps(&tensor.dims, &values),
            grid: values.len() >= 16
                && all(&|v| (2.0 * v).fract() == 0.0 && v.abs() < 1e6)
                && any(&|v| Some(&v) != values.first())
                && any(&|v| v.abs() > 1.0),
            ordered: are_ordered(&tensor.dims, &values),
            signs: any(&|v| v > 0.0) && any(&|v| v < 0.0),
            lines: are_lines(&values, columns),
            circles: are_circles(&values, columns),
            neutral: all(&|v| v == 1.0) || all(&|v| v == 0.0),
            sines: all(&|v| v.abs() <= 1.0)
                && (row(0.0) || row(1.0))
                && values.len() > columns
                && doubles(&values, columns),
        })
    }
}

/// Whether these are one row, of eight numbers at least, that grows or falls from each to the next.
fn are_ordered(dims: &[i64], values: &[f64]) -> bool {
    let one_axis = dims.iter().filter(|&&d| d != 1).count() == 1;
    let pairs = || values.windows(2);
    one_axis && values.len() >= 8 && (pairs().all(|p| p[0] < p[1]) || pairs().all(|p| p[0] > p[1]))
}

/// Whether rows, of three numbers at least, grow or fall by equal steps, as what is added for distances does.
fn are_lines(values: &[f64], columns: usize) -> bool {
    /// The part of a step by which numbers in half precision may be off.
    const ROUNDING: f64 = 1e-2;
    let line = |row: &[f64]| {
        let step = row[1] - row[0];
        let even = |pair: &[f64]| (pair[1] - pair[0] - step).abs() <= ROUNDING * step.abs();
        step != 0.0 && row.windows(2).all(even)
    };
    columns >= 3 && values.chunks_exact(columns).all(line)
}

/// Whether rows, of four numbers at least, hold sines and cosines of angles, which are not all the same.
fn are_circles(values: &[f64], columns: usize) -> bool {
    /// Tables may be rounded to half precision.
    const ROUNDING: f64 = 5e-3;
    if columns < 4 || !columns.is_multiple_of(2) || values.len() <= columns {
        return false;
    }
    let circle = |a: f64, b: f64| (a * a + b * b - 1.0).abs() < ROUNDING;
    let half = columns / 2;
    let beside = |row: &[f64]| row.chunks_exact(2).all(|pair| circle(pair[0], pair[1]));
    let behind = |row: &[f64]| row.iter().zip(&row[half..]).all(|(&a, &b)| circle(a, b));
    let rows = || values.chunks_exact(columns);
    let varied = rows().any(|row| row != &values[..columns]);
    varied && (rows().all(beside) || rows().all(behind))
}

/// Whether the row of position 2 has the sines or cosines of the doubled angles of position 1, if there are so many
/// rows. A table of words whose first one is padding begins with zeros as well.
fn doubles(values: &[f64], columns: usize) -> bool {
    /// Tables may be rounded to half precision.
    const ROUNDING: f64 = 2e-2;
    let mut rows = values.chunks_exact(columns).skip(1);
    let (Some(first), Some(second)) = (rows.next(), rows.next()) else { return true };
    first.iter().zip(second).all(|(&s, &t)| {
        let sine = (t * t - 4.0 * s * s * (1.0 - s * s)).abs() < ROUNDING;
        sine || (t - (2.0 * s * s - 1.0)).abs() < ROUNDING
    })
}

/// Whether of two single numbers, a scale and a shift, training has left one: a formula is written with few digits, or
/// with roots, fractions and logarithms of small numbers, or scales by what it then takes away.
pub fn are_learned(one: &TensorProto, other: &TensorProto) -> bool {
    let number = |t: &TensorProto| t.floats().ok()?.first().copied();
    let (Some(a), Some(b)) = (number(one), number(other)) else { return false };
    let of_formula = |v: f64, t: &TensorProto| is_of_a_formula(v, t.element_type() == ElementType::Double);
    a.abs() != b.abs() && !(of_formula(a, one) && of_formula(b, other))
}

/// Whether a number is one that people write.
fn is_of_a_formula(v: f64, double: bool) -> bool {
    use std::f64::consts::{LN_2, LN_10, PI};
    /// As many digits as people write.
    const DIGITS: usize = 5;
    let written = if double { format!("{v:e}") } else { format!("{:e}", v as f32) };
    let mantissa = written.split('e').next().unwrap_or_default();
    if !v.is_finite() || mantissa.chars().filter(char::is_ascii_digit).count() <= DIGITS {
        return true;
    }
    let fraction = |v: f64| {
        (1..=64).any(|n| (v * f64::from(n) - (v * f64::from(n)).round()).abs() <= 2e-7 * v.abs() * f64::from(n))
    };
    let simple = |v: f64| (fraction(v) && v.abs() < 1e5) || (fraction(1.0 / v) && v.abs() > 1e-5);
    [1.0, PI, LN_2, LN_10].iter().any(|unit| simple(v / unit) || simple(v * unit))
        || simple(v * v)
        || simple(v * v * PI)
}
