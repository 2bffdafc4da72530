//! BatchNormalization: in inference by statistics that are given, in training by those of the batch.

use super::Normalized;
use crate::expr::Expr;
use crate::rules::{Call, Cotangents};
use anyhow::{Result, ensure};

/// The statistics are those of the batch in training, and given in inference. Those of a batch reach y, the running
/// statistics, of which they are what `momentum` leaves, and in old versions outputs of their own.
pub fn batch<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let (x, dy, scale, rank) = (c.x(), c.dy(), c.input(1), c.x().rank()?);
    ensure!(rank >= 2, "the input of rank {rank} has no channels");
    // Old models may have statistics for every place, not only every channel.
    let own = if c.flag("spatial", true) { 2 } else { rank };
    let axes: Vec<usize> = [0].into_iter().chain(own..rank).collect();
    let total = |e: Expr<'g>| e.sum_out(&axes);
    // A statistic as a factor of x: the summed axes, but for the first, have size 1.
    let spread = |e: Expr<'g>| e.unsqueeze(&(own - 1..rank - 1).collect::<Vec<_>>());
    let training = c.flag("training_mode", (1..c.output_count()).any(|i| c.output(i).is_some()));
    let [mean, var] = match training {
        true => [x.mean(&axes), (x - x.mean(&axes)).square().mean(&axes)].map(|e| e.squeeze(&axes)),
        false => [c.input(3), c.input(4)],
    };
    let r = (var + c.float("epsilon", 1e-5)).sqrt().reciprocal();
    let centered = x - spread(mean);
    if !training {
        // Σ dy x̂, of which r is a factor of the sum.
        let deviation = || total(dy * centered) * r;
        let found = c.cotangents().input(0, || dy * spread(scale * r)).input(1, deviation).input(2, || total(dy));
        let found = found.input(3, || -(total(dy) * scale * r));
        return Ok(found.input(4, || deviation() * scale * r.square() * -0.5));
    }
    let n = Normalized { x_hat: centered * spread(r), r: spread(r), axes: axes.clone(), centered: true };
    let momentum = c.float("momentum", 0.9);
    let dx = || {
        let count = x.count(&axes, x);
        let [dm, dv] = [1, 2].map(|i| c.dy_of(i) * (1.0 - momentum) + c.dy_of(i + 2));
        n.dx(dy * spread(scale)) + spread(dm / count).expand_like(x) + spread(2.0 * dv / count / r) * n.x_hat
    };
    let found = c.cotangents().input(0, dx).input(1, || total(dy * n.x_hat)).input(2, || total(dy));
    Ok(found.input(3, || c.dy_of(1) * momentum).input(4, || c.dy_of(2) * momentum))
}
