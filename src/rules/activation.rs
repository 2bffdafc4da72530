//! Activations that other operators have behind them: their slopes from the results alone, so that nothing is computed
//! again.

use crate::expr::Expr;
use anyhow::{Context, Result, bail, ensure};

/// The gradient of what an activation takes, from its result and its gradient: of an operator by its name, with its
/// parameters in the order of its attributes. At the bounds of Clip it is 0, elsewhere as the activation has it on its
/// own.
///
/// It is an error on record that the activation is not known, that a parameter is missing, and that the result does not
/// tell which slope it is of.
pub fn before<'g>(activation: &str, parameters: &[f64], y: Expr<'g>, dy: Expr<'g>) -> Expr<'g> {
    y.builder().attempt(|| slope(activation, parameters, y, dy))
}

fn slope<'g>(activation: &str, parameters: &[f64], y: Expr<'g>, dy: Expr<'g>) -> Result<Expr<'g>> {
    let parameter = |i: usize| {
        let found = parameters.get(i).copied();
        found.with_context(|| format!("activation {activation} lacks its parameter {i}"))
    };
    // The sign of the result is that of what the activation takes.
    let alpha = || -> Result<f64> {
        let alpha = parameter(0)?;
        ensure!(alpha >= 0.0, "activation {activation} with alpha = {alpha} has no gradient: alpha is negative");
        Ok(alpha)
    };
    Ok(match activation {
        "" => dy,
        "Relu" => dy.where_(y.above(0.0)),
        "LeakyRelu" => dy * y.above(0.0).choose(1.0, alpha()?, y),
        "Elu" => y.below(0.0).select(dy * (y + alpha()?), dy),
        "Celu" => y.below(0.0).select(dy * (y / alpha()? + 1.0), dy),
        "Selu" => {
            let (alpha, gamma) = (alpha()?, parameter(1)?);
            y.below(0.0).select(dy * (y + gamma * alpha), gamma * dy)
        }
        "Clip" => dy.where_(y.above(parameter(0)?).and(y.below(parameter(1)?))),
        "HardSigmoid" => (parameter(0)? * dy).where_(y.above(0.0).and(y.below(1.0))),
        "Sigmoid" => dy * y * (1.0 - y),
        "Tanh" => dy * (1.0 - y * y),
        "Softplus" => dy * (1.0 - (-y).exp()),
        "Softsign" => dy * (1.0 - y.abs()).square(),
        "ThresholdedRelu" => dy.where_(y.above(alpha()?)),
        _ => bail!("activation {activation} has no gradient here; write it as a node of its own"),
    })
}
