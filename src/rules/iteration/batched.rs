//! The first Scan, with a batch in front of everything: its outputs, written out step by step.

use super::body::{list, scanned};
use crate::expr::Expr;
use crate::rules::{Call, Cotangents};
use anyhow::{Context, Result, ensure};

/// More steps than this are not written out.
const MAX_STEPS: i64 = 1024;

/// The gradients of what is written out.
pub fn batched_scan<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let outputs = outputs(c)?;
    let ys: Vec<_> = outputs.into_iter().enumerate().filter_map(|(i, y)| Some((y?, c.opt_dy(i)?))).collect();
    let wanted = c.inputs_from(1).into_iter().filter(|x| c.wants(x.id())).chain(c.wanted_captures());
    let mut gradients: Vec<_> = c.differentiate(&ys, &wanted.collect::<Vec<_>>())?.into_iter().collect();
    gradients.sort_unstable_by_key(|&(x, _)| x);
    Ok(c.cotangents().values(gradients))
}

/// The outputs, stacked from those of each entry of the batch.
fn outputs<'g>(c: &Call<'g>) -> Result<Vec<Option<Expr<'g>>>> {
    ensure!(
        c.opt(0).is_none(),
        "a Scan with sequence_lens has no gradient; convert the model to Scan 9, which has none"
    );
    let inputs = c.inputs_from(1);
    let scanned = scanned(c, inputs.len())?;
    let directions = list(c, "directions", scanned)?;
    let (states, along) = inputs.split_at(inputs.len() - scanned);
    let size = |axis| {
        along[0]
            .known_dim(axis)
            .with_context(|| "batch and length of a Scan 8 must be known; convert the model to Scan 9".to_owned())
    };
    let (batch, steps) = (size(0)?, size(1)?);
    let few = batch.checked_mul(steps).is_some_and(|n| (1..=MAX_STEPS).contains(&n));
    ensure!(few, "a Scan 8 of {batch} by {steps} steps is too long to be written out; convert the model to Scan 9");
    let mut outputs: Vec<Vec<Expr<'g>>> = vec![Vec::new(); c.output_count()];
    for entry in 0..batch {
        let at = |e: &Expr<'g>| part(*e, entry);
        let (states, along): (Vec<_>, Vec<_>) = (states.iter().map(at).collect(), along.iter().map(at).collect());
        let all = one_scan(c, states, &along, &directions, steps)?;
        outputs.iter_mut().zip(all).for_each(|(entries, y)| entries.push(y.unsqueeze(&[0])));
    }
    Ok(outputs.iter().map(|entries| (!entries.is_empty()).then(|| Expr::concat(entries, 0))).collect())
}

fn part(e: Expr<'_>, i: i64) -> Expr<'_> {
    e.narrow(0, i, i + 1).squeeze(&[0])
}

/// The last states of one entry of the batch, and what its steps give, stacked.
fn one_scan<'g>(
    c: &Call<'g>,
    mut states: Vec<Expr<'g>>,
    along: &[Expr<'g>],
    directions: &[i64],
    steps: i64,
) -> Result<Vec<Expr<'g>>> {
    let mut stacked: Vec<Vec<Expr<'g>>> = Vec::new();
    for step in 0..steps {
        let slice = |(x, &direction): (&Expr<'g>, &i64)| part(*x, if direction == 0 { step } else { steps - 1 - step });
        let arguments: Vec<_> = states.iter().copied().chain(along.iter().zip(directions).map(slice)).collect();
        let mut after = c.replay(c.body("body")?, &arguments)?.outputs;
        ensure!(after.len() >= states.len(), "its body has {} outputs", after.len());
        let new = after.split_off(states.len());
        stacked.resize(new.len(), Vec::new());
        stacked.iter_mut().zip(new).for_each(|(all, new)| all.push(new.unsqueeze(&[0])));
        states = after;
    }
    states.extend(stacked.iter().map(|parts| Expr::concat(parts, 0)));
    Ok(states)
}
