//! Choices: an If whose branches compute the branch again and differentiate it.

use super::Slot::*;
use super::{Call, Cotangents, Rule, rule};
use crate::expr::Expr;
use crate::graph::{Bodies, ScopeId, ValueId};
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[rule(
    "If",
    "d capture = if the condition then its gradient through one branch else through the other",
    &[Together(if_)],
)
.bodies(Bodies::Branches)
.attributes("then_branch else_branch")
.note("a branch that does not use a captured tensor contributes zeros; branches are computed again")];

fn if_<'g>(c: &Call<'g>) -> Result<Cotangents<'g>> {
    let b = c.builder();
    let wanted = c.wanted_captures();
    let through = |name: &str| {
        let replay = c.replay(c.body(name)?, &[])?;
        // Where this branch is taken, what arrives has the shape of what it computes, whatever is known of the other's.
        let in_shape = |y: Expr<'g>, dy: Expr<'g>| {
            let (own, known) = (y.fact().rank(), dy.fact().rank());
            if own == known { dy } else { dy.reshape_like(y) }
        };
        let pairs = replay.outputs.iter().zip(c.dys()).filter_map(|(y, dy)| Some((*y, (*dy)?)));
        let seeds: Vec<_> = pairs.map(|(y, dy)| (y, in_shape(y, dy))).collect();
        replay.gradients(&seeds, &wanted)
    };
    let (then, otherwise) = (c.body("then_branch")?, c.body("else_branch")?);
    let bodies = [("then_branch".into(), then), ("else_branch".into(), otherwise)];
    let known = b.graph().taken(Some(c.input(0).id()), &bodies);
    if let Some(known) = known {
        let known = known == then;
        let (taken, other) = if known { ("then_branch", "else_branch") } else { ("else_branch", "then_branch") };
        repeatable(c, c.body(taken)?)?;
        let dxs = through(taken)?.into_iter().zip(&wanted);
        let zero = |x: &Expr<'g>| reaches_an_output(c, other, *x).map(|reaches| reaches.then(|| x.zeros_like()));
        let dxs = dxs.map(|(dx, x)| Ok((x.id(), dx.map_or_else(|| zero(x), |dx| Ok(Some(dx)))?)));
        let dxs: Vec<(ValueId, Option<Expr<'g>>)> = dxs.collect::<Result<_>>()?;
        return Ok(c.cotangents().values(dxs.into_iter().filter_map(|(x, dx)| Some((x, dx?)))));
    }
    let mut branches = Vec::new();
    for name in ["then_branch", "else_branch"] {
        let (scope, _) = b.open(vec![]);
        branches.push((scope, b.within(scope, || through(name))?));
    }
    let connected = |i: &usize| branches.iter().any(|(_, dxs)| dxs[*i].is_some());
    let connected: Vec<usize> = (0..wanted.len()).filter(connected).collect();
    if connected.is_empty() {
        return Ok(c.cotangents());
    }
    for (scope, dxs) in &branches {
        let dx = |&i: &usize| dxs[i].unwrap_or_else(|| wanted[i].zeros_like());
        let outputs: Vec<_> = b.within(*scope, || connected.iter().map(dx).collect());
        close(c, *scope, &outputs, 0)?;
    }
    let dxs = b.if_(c.input(0), branches[0].0, branches[1].0);
    Ok(c.cotangents().values(connected.into_iter().map(|i| wanted[i].id()).zip(dxs)))
}

/// Whether a body leads from a captured tensor to one of its outputs.
fn reaches_an_output(c: &Call<'_>, body: &str, x: Expr<'_>) -> Result<bool> {
    let scope = c.builder().graph().scope(c.body(body)?).clone();
    let live = c.live(&scope.nodes, &[x.id()]);
    Ok(scope.outputs.iter().any(|o| live.contains(o)))
}

/// Closes a scope in which a body has been computed again.
///
/// # Errors
/// What is computed again is random.
pub fn close<'g>(c: &Call<'g>, scope: ScopeId, outputs: &[Expr<'g>], inputs: usize) -> Result<()> {
    c.builder().close(scope, outputs, inputs);
    repeatable(c, scope)
}

/// Ensures that a body computes the same when it is computed again.
///
/// # Errors
/// What it computes is random.
pub fn repeatable(c: &Call<'_>, scope: ScopeId) -> Result<()> {
    let graph = c.builder().graph();
    let random = graph.scope(scope).nodes.iter().find_map(|&id| super::drawing(&graph, id));
    ensure!(
        random.is_none(),
        "its body holds {}, which draws other numbers when the body is computed again for the gradient; draw them outside \
         and let the body capture them",
        random.unwrap_or_default()
    );
    Ok(())
}
