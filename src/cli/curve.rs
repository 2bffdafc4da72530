//! Curves of numbers: a line of text, and a drawing.

use std::fmt::Write;

/// One character a number, higher for larger ones.
pub fn line(values: &[f64]) -> String {
    static BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let (low, high) = range(values.iter().copied());
    let bar = |v: &f64| BARS[(((v - low) / (high - low) * 7.0).round() as usize).min(7)];
    // No more characters than a terminal is wide.
    let step = values.len().div_ceil(80).max(1);
    values.iter().step_by(step).map(bar).collect()
}

/// The least and the greatest, apart.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low < high { (low, high) } else { (low.min(0.0), low.max(0.0) + 1.0) }
}

/// Lines with their names, as an SVG image.
pub fn svg(lines: &[(&str, Vec<f64>)]) -> String {
    let (width, height, margin) = (640.0, 360.0, 48.0);
    const COLOURS: [&str; 3] = ["#1f77b4", "#d62728", "#2ca02c"];
    let (_, high) = range(lines.iter().flat_map(|(_, v)| v.iter().copied()));
    let count = lines.iter().map(|(_, v)| v.len()).max().unwrap_or(0);
    let x = |i: usize| margin + (width - 2.0 * margin) * i as f64 / (count.max(2) - 1) as f64;
    let y = |v: f64| height - margin - (height - 2.0 * margin) * v / high;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' font-family='sans-serif' font-size='12'>\n\
         <rect width='100%' height='100%' fill='white'/>\n"
    );
    for i in 0..=4 {
        let v = high * f64::from(i) / 4.0;
        let _ = writeln!(
            svg,
            "<path d='M{margin} {0:.1}H{1}' stroke='#ddd'/><text x='{2}' y='{3:.1}' text-anchor='end'>{v:.3}</text>",
            y(v),
            width - margin,
            margin - 6.0,
            y(v) + 4.0
        );
    }
    let _ =
        writeln!(svg, "<text x='{}' y='{}' text-anchor='middle'>epoch 1 to {count}</text>", width / 2.0, height - 16.0);
    for (k, (name, values)) in lines.iter().enumerate().filter(|(_, (_, v))| !v.is_empty()) {
        let colour = COLOURS[k % COLOURS.len()];
        let points: Vec<String> = values.iter().enumerate().map(|(i, &v)| format!("{:.1},{:.1}", x(i), y(v))).collect();
        let _ = writeln!(
            svg,
            "<polyline fill='none' stroke='{colour}' stroke-width='2' points='{}'/><text x='{}' y='{}' fill='{colour}' text-anchor='end'>{name} loss</text>",
            points.join(" "),
            width - margin,
            20 + 16 * k
        );
    }
    svg + "</svg>\n"
}
