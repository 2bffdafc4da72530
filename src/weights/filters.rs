//! Numbers that a formula of signal processing gives, and training never leaves: waves, windows, mirrored kernels.
//!
//! A row of a Fourier or constant-Q transform is a wave under a window. Under a Hann, Hamming or Blackman window, or
//! under none, it is the sum of three waves at most, and so is such a window by itself. Sums of three waves, and these
//! alone, obey a linear recurrence that reads the same in both directions, r(n-3) + r(n+3) + a (r(n-2) + r(n+2)) +
//! b (r(n-1) + r(n+1)) + c r(n) = 0, which three numbers fit to the rounding of the row. What training leaves misses it
//! by a tenth of its size and more (random rows of 16 numbers by 0.12 at least, of 32 by 0.44).

/// How far what is rounded to float32 may miss the recurrence, as a part of the row's size.
const ROUNDING: f64 = 1e-4;
/// The fewest numbers that tell.
const FEWEST: usize = 16;

/// Whether, along one of the axes, there stand waves of several frequencies, as in a transform to frequencies.
pub fn are_waves(dims: &[i64], values: &[f64]) -> bool {
    let Some(sizes) = sizes(dims, values) else { return false };
    (0..sizes.len()).any(|axis| sizes[axis] >= FEWEST && are_waves_along(&sizes, values, axis))
}

fn are_waves_along(sizes: &[usize], values: &[f64], axis: usize) -> bool {
    /// Fewer numbers than this say nothing beside the three that are fitted.
    const SHORTEST: usize = 10;
    let inner: usize = sizes[axis + 1..].iter().product();
    let size = sizes[axis];
    let (mut known, mut varied): (Option<Fit>, bool) = (None, false);
    let mut line = Vec::with_capacity(size);
    for first in (0..values.len() / size).map(|k| k / inner * inner * size + k % inner) {
        line.clear();
        line.extend(values.iter().skip(first).step_by(inner).take(size));
        let row = trimmed(&line);
        if row.is_empty() {
            // The sine of frequency zero.
            continue;
        }
        let Some(fit) = Fit::of(row).filter(|f| row.len() >= SHORTEST && f.misses(row) <= ROUNDING) else {
            return false;
        };
        let turns = row.windows(2).filter(|pair| pair[0] * pair[1] < 0.0).count();
        if row.len() >= FEWEST && turns >= 3 {
            varied |= known.as_ref().is_some_and(|known| known.misses(row) > 10.0 * ROUNDING);
            known = known.or(Some(fit));
        }
    }
    // Rows of one frequency are what a formula of somebody's test fills weights with.
    varied
}

/// Whether these are one window: a row along one axis that is smooth, or a wave, and not constant.
pub fn is_window(dims: &[i64], values: &[f64]) -> bool {
    let one_axis = dims.iter().filter(|&&d| d != 1).count() == 1;
    let row = trimmed(values);
    one_axis
        && values.len() >= FEWEST
        && row.len() >= FEWEST - 4
        && row.iter().any(|v| Some(v) != row.first())
        && Fit::of(row).is_some_and(|fit| fit.misses(row) <= ROUNDING)
}

/// Whether these are places along one axis, each as far from the next, eight of them at least.
pub fn are_steps(dims: &[i64], values: &[f64]) -> bool {
    let one_axis = dims.iter().filter(|&&d| d != 1).count() == 1;
    let [first, second, ..] = *values else { return false };
    let (step, most) = (second - first, values.iter().fold(0.0_f64, |m, v| m.max(v.abs())));
    let even = |pair: &[f64]| (pair[1] - pair[0] - step).abs() <= 1e-5 * most;
    one_axis && values.len() >= 8 && step != 0.0 && values.windows(2).all(even)
}

/// Whether a kernel over the axes behind the first two is its own mirror image, or the negative of that, for every pair
/// of channels: smoothing, derivatives, filters of linear phase.
pub fn is_mirrored(dims: &[i64], values: &[f64]) -> bool {
    /// As large as a Sobel filter.
    const SMALLEST: usize = 9;
    let Some(sizes) = sizes(dims, values).filter(|s| s.len() >= 3) else { return false };
    let size: usize = sizes[2..].iter().product();
    if size < SMALLEST {
        return false;
    }
    let mirrored = |kernel: &[f64], sign: f64| {
        let most = kernel.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        kernel.iter().zip(kernel.iter().rev()).all(|(a, b)| (a - sign * b).abs() <= 1e-6 * most)
    };
    // One number in the middle, or the same everywhere, is what training begins with; equal steps are somebody's test.
    let tells = |kernel: &[f64]| {
        let varied = kernel.iter().any(|v| Some(v) != kernel.first());
        varied && kernel.iter().filter(|&&v| v != 0.0).count() > 1 && !are_steps(&[size as i64], kernel)
    };
    let mut kernels = values.chunks_exact(size);
    kernels.clone().any(tells) && kernels.all(|k| mirrored(k, 1.0) || mirrored(k, -1.0))
}

/// The sizes of axes, if they are those of so many values.
fn sizes(dims: &[i64], values: &[f64]) -> Option<Vec<usize>> {
    let sizes: Vec<usize> = dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    (!values.is_empty() && sizes.iter().product::<usize>() == values.len()).then_some(sizes)
}

/// A row without the zeros before and behind it.
fn trimmed(row: &[f64]) -> &[f64] {
    let first = row.iter().position(|&v| v != 0.0).unwrap_or(row.len());
    let last = row.iter().rposition(|&v| v != 0.0).map_or(first, |k| k + 1);
    row.get(first..last).unwrap_or_default()
}

/// The a, b and c of a recurrence of three waves, in the order c, b, a.
struct Fit([f64; 3]);

impl Fit {
    /// What stands beside c, b, a and 1.
    fn terms(w: &[f64]) -> [f64; 4] {
        [w[3], w[2] + w[4], w[1] + w[5], w[0] + w[6]]
    }

    /// The recurrence that fits a row best, by least squares.
    fn of(row: &[f64]) -> Option<Fit> {
        let mut sums = [[0.0; 4]; 3];
        for window in row.windows(7) {
            let t = Self::terms(window);
            for (i, line) in sums.iter_mut().enumerate() {
                for (j, sum) in line.iter_mut().enumerate() {
                    *sum += t[i] * t[j];
                }
            }
        }
        // Fewer waves than three fit many recurrences: the smallest one is taken.
        let least = 1e-12 * (sums[0][0] + sums[1][1] + sums[2][2]);
        for (i, line) in sums.iter_mut().enumerate() {
            line[i] += least;
        }
        solved(sums).map(Fit)
    }

    /// By which part of its size a row misses the recurrence.
    fn misses(&self, row: &[f64]) -> f64 {
        let [c, b, a] = self.0;
        let missed = |w: &[f64]| {
            let t = Self::terms(w);
            c * t[0] + b * t[1] + a * t[2] + t[3]
        };
        let error: f64 = row.windows(7).map(|w| missed(w).powi(2)).sum();
        let size: f64 = row.iter().map(|v| v * v).sum();
        match size.is_finite() && size > 0.0 {
            true => (error / (size * (1.0 + a * a + b * b + c * c))).sqrt(),
            false => f64::INFINITY,
        }
    }
}

/// x with A x = -b, where the rows are those of A, which is positive, with b behind each.
fn solved(mut rows: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    for k in 0..3 {
        let pivot = rows[k][k];
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        for i in k + 1..3 {
            let factor = rows[i][k] / pivot;
            let above = rows[k];
            rows[i].iter_mut().zip(above).skip(k).for_each(|(v, a)| *v -= factor * a);
        }
    }
    let z = -rows[2][3] / rows[2][2];
    let y = (-rows[1][3] - rows[1][2] * z) / rows[1][1];
    let x = (-rows[0][3] - rows[0][1] * y - rows[0][2] * z) / rows[0][0];
    Some([x, y, z])
}

#[cfg(test)]
mod tests {
    use super::{are_waves, is_mirrored, is_window};
    use std::f64::consts::TAU;

    fn rounded(values: impl Iterator<Item = f64>) -> Vec<f64> {
        values.map(|v| f64::from(v as f32)).collect()
    }

    /// Numbers between -1 and 1 that follow no formula.
    fn random(count: usize, mut state: u64) -> Vec<f64> {
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn hann(n: usize, size: usize) -> f64 {
        0.5 - 0.5 * (TAU * n as f64 / size as f64).cos()
    }

    #[test]
    fn transforms_are_waves_along_either_axis() {
        let wave =
            |k: usize, n: usize| (TAU * (k * n) as f64 / 32.0 + if k.is_multiple_of(2) { 0.0 } else { 0.25 }).cos();
        let rows = rounded((0..17 * 32).map(|i| wave(i / 32, i % 32)));
        assert!(are_waves(&[17, 1, 32], &rows));
        let columns = rounded((0..32 * 17).map(|i| wave(i % 17, i / 17) * hann(i / 17, 32)));
        assert!(are_waves(&[32, 17], &columns));
        // Constant-Q: of each frequency as many turns, each row padded to the longest.
        let row = |k: usize, n: usize| {
            let size = 100 - 10 * k;
            let at = n.wrapping_sub(5 * k);
            if at < size { hann(at, size) * (TAU * 9.3 * at as f64 / size as f64).sin() } else { 0.0 }
        };
        let constant_q = rounded((0..5 * 100).map(|i| row(i / 100, i % 100)));
        assert!(are_waves(&[5, 1, 1, 100], &constant_q));
        let mut moved = constant_q;
        moved[130] += 0.01;
        assert!(!are_waves(&[5, 1, 1, 100], &moved), "a step of training");
    }

    #[test]
    fn what_training_leaves_is_no_wave() {
        for seed in 0..200 {
            assert!(!are_waves(&[4, 16], &random(64, seed)));
            assert!(!is_window(&[16], &random(16, seed)));
            assert!(!is_mirrored(&[2, 1, 3, 3], &random(18, seed)));
        }
        assert!(!are_waves(&[8, 32], &[1.0; 256]));
        let line: Vec<f64> = (0..256).map(|i| f64::from(i) * 0.1 + 0.3).collect();
        assert!(!are_waves(&[8, 32], &line));
        let one_frequency: Vec<f64> = (0..256).map(|i| (f64::from(i) * 0.7).sin()).collect();
        assert!(!are_waves(&[8, 32], &one_frequency), "weights of a test");
        assert!(!is_window(&[32], &[1.0; 32]));
    }

    #[test]
    fn windows_are_smooth() {
        for size in [16, 64, 400] {
            assert!(is_window(&[size as i64], &rounded((0..size).map(|n| hann(n, size)))));
            assert!(is_window(&[1, size as i64], &rounded((0..size).map(|n| hann(n, size - 1).sqrt()))));
            let padded = (0..size + 20).map(|n| if (10..size + 10).contains(&n) { hann(n - 10, size) } else { 0.0 });
            assert!(is_window(&[1, size as i64 + 20, 1], &rounded(padded)));
        }
        let gauss = |n: i32| (-0.5 * (f64::from(n) - 127.5).powi(2) / 1600.0).exp();
        assert!(is_window(&[256], &rounded((0..256).map(gauss))));
    }

    #[test]
    fn kernels_are_mirrored() {
        let sobel = [-1.0, 0.0, 1.0, -2.0, 0.0, 2.0, -1.0, 0.0, 1.0];
        assert!(is_mirrored(&[1, 1, 3, 3], &sobel));
        let sinc = |n: i32| (f64::from(n) - 15.5).sin() / (f64::from(n) - 15.5) * hann(n as usize, 31);
        assert!(is_mirrored(&[1, 1, 1, 32], &rounded((0..32).map(sinc))));
        let mut dirac = [0.0; 9];
        dirac[4] = 1.0;
        assert!(!is_mirrored(&[1, 1, 3, 3], &dirac) && !is_mirrored(&[1, 1, 3, 3], &[0.5; 9]));
        let steps = [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0];
        assert!(!is_mirrored(&[1, 1, 3, 3], &steps), "weights of a test");
        assert!(!is_mirrored(&[2, 2, 1, 1], &[1.0, 2.0, 2.0, 1.0]), "no kernel");
    }
}
