//! Steps of optimizers.

use super::{Array, Call, Element, Row, row};
use anyhow::{Context, Result, ensure};

const TRAINING: &str = "ai.onnx.preview.training";

pub const ROWS: &[Row] = &[
    row("Adagrad", adagrad).domain(TRAINING),
    row("Adam", adam).domain(TRAINING),
    row("Momentum", momentum).domain(TRAINING),
];

fn number(c: &Call, i: usize) -> Result<f64> {
    c.input(i)?.values.first().copied().context("an empty number")
}

/// The new value and the new states of each element, from the value, the gradient with its decay, and the states.
fn update(c: &Call, states: usize, f: impl Fn(f64, f64, &[f64]) -> (f64, Vec<f64>)) -> Result<Vec<Array>> {
    let tensors = c.inputs.len().saturating_sub(2);
    ensure!(tensors.is_multiple_of(states + 2), "{tensors} tensors are not groups of {}", states + 2);
    let (count, decay) = (tensors / (states + 2), c.float("norm_coefficient", 0.0));
    let mut outputs = Vec::new();
    for group in 0..=states {
        for i in 0..count {
            // Tensors, gradients, and the states.
            let place = |group: usize| 2 + group * count + i;
            let (x, g) = (c.input(place(0))?, c.input(place(1))?);
            let of: Vec<&Array> = (0..states).map(|s| c.input(place(2 + s))).collect::<Result<_>>()?;
            ensure!(of.iter().chain([&g]).all(|a| a.dims == x.dims), "a gradient or a state of another shape");
            let mut output = x.clone().of(Element::Like(place(if group == 0 { 0 } else { group + 1 })));
            for (at, value) in output.values.iter_mut().enumerate() {
                let before: Vec<f64> = of.iter().map(|a| a.values[at]).collect();
                let (new, after) = f(*value, g.values[at] + decay * *value, &before);
                *value = if group == 0 { new } else { after[group - 1] };
            }
            outputs.push(output);
        }
    }
    Ok(outputs)
}

fn adagrad(c: &Call) -> Result<Vec<Array>> {
    let rate = number(c, 0)? / (1.0 + number(c, 1)? * c.float("decay_factor", 0.0));
    let epsilon = c.float("epsilon", 1e-6);
    update(c, 1, |x, g, states| {
        let h = states[0] + g * g;
        (x - rate * g / (h.sqrt() + epsilon), vec![h])
    })
}

fn adam(c: &Call) -> Result<Vec<Array>> {
    let (rate, t) = (number(c, 0)?, number(c, 1)?);
    let (alpha, beta, epsilon) = (c.float("alpha", 0.9), c.float("beta", 0.999), c.float("epsilon", 1e-6));
    let rate = if t > 0.0 { rate * (1.0 - beta.powf(t)).sqrt() / (1.0 - alpha.powf(t)) } else { rate };
    update(c, 2, |x, g, states| {
        let (v, h) = (alpha * states[0] + (1.0 - alpha) * g, beta * states[1] + (1.0 - beta) * g * g);
        let new = x - rate * v / (h.sqrt() + epsilon);
        ((1.0 - c.float("norm_coefficient_post", 0.0)) * new, vec![v, h])
    })
}

fn momentum(c: &Call) -> Result<Vec<Array>> {
    let (rate, first) = (number(c, 0)?, number(c, 1)? <= 0.0);
    let (alpha, beta) = (c.float("alpha", 0.0), if first { 1.0 } else { c.float("beta", 0.0) });
    let nesterov = c.string("mode", "standard") == "nesterov";
    update(c, 1, |x, g, states| {
        let v = alpha * states[0] + beta * g;
        (x - rate * if nesterov { g + alpha * v } else { v }, vec![v])
    })
}
