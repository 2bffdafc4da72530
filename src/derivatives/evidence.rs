//! How a claim is checked: what it says of any derivative is said of gradients, which compare with finite differences.

use super::claim::{Claim, Kind};
use super::matrices::Units;
use super::workspace::Workspace;
use super::{Entry, batch_axis};
use crate::backward::{Gradients, Seed};
use crate::error::Error;
use crate::expr::Expr;
use crate::model::Model;
use crate::record::{Gradient, Record, SeedOf};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// A model whose gradients say what its derivatives claim.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Evidence {
    /// The model with what it takes to say so.
    pub model: Model,
    /// The gradients, each with the name of the request that it is about.
    pub records: Vec<Record>,
    /// What it may mean that a request fails, by the name of the request.
    pub hints: BTreeMap<String, String>,
}

/// What the derivatives of a model claim, said of gradients: those of [`Record::all`], and for each [`Claim`]
///
/// * `Ju` is the gradient of `<wJ, u>` with respect to `w`, and `wJ` a gradient with the seed `w`;
/// * `vJ` is the gradient with the seed `v`;
/// * `Hv` is the gradient of the gradient with the seed `v`, since a Hessian is symmetric;
/// * a Jacobian, or Hessian, makes of a vector what the gradient makes of it as a seed;
/// * the gradients of the first sample are those of the model on that sample;
/// * an element of a diagonal stands in its place in what a Hessian makes of a unit vector.
///
/// # Errors
/// Metadata that are not ours; tensors that are no longer in the model, as the ys after `--only-gradients`.
pub fn evidence(model: &Model) -> Result<Evidence, Error> {
    Ok(found(model)?)
}

fn found(model: &Model) -> Result<Evidence> {
    let claims = Claim::all(&model.proto)?;
    let records = Record::all(&model.proto)?;
    let mut evidence = Evidence { records, model: model.clone(), hints: BTreeMap::new() };
    for claim in &claims {
        claim.support(&mut evidence).with_context(|| format!("what '{}' claims cannot be checked", claim.name))?;
    }
    Ok(evidence)
}

impl Claim {
    fn gradients(&self) -> Gradients {
        Gradients::new(&self.ys, &self.xs)
            .stop(&self.stops)
            .straight_through(self.straight_through)
            .name(format!("{}/evidence", self.name))
    }

    fn record(&self, seeds: Vec<SeedOf>, gradients: Vec<Gradient>) -> Record {
        Record {
            name: self.name.clone(),
            gradients,
            seeds,
            stops: self.stops.clone(),
            straight_through: self.straight_through,
        }
    }

    fn support(&self, evidence: &mut Evidence) -> Result<()> {
        let vector = |of: &str| self.vectors.iter().find(|v| v.of == of).map(|v| v.name.clone());
        match self.kind {
            Kind::Jvp => {
                let transposed = self.gradients().seeds(vec![Seed::Input(None); self.ys.len()]);
                let output = transposed.build(&evidence.model)?;
                let seeds = output.gradients.iter();
                let seeds = seeds.filter_map(|g| Some(SeedOf::tensor(g.name.as_deref()?, &vector(&g.x)?))).collect();
                let product = |y: &str| self.outputs.iter().find(|e| e.y.as_deref() == Some(y))?.name.clone();
                let gradients = output.seeds.iter();
                let gradients = gradients.filter_map(|s| Some(Gradient { x: s.seed.clone()?, name: product(&s.y) }));
                evidence.records.push(Record { stops: vec![], ..self.record(seeds, gradients.collect()) });
                evidence.records.push(Record { name: self.name.clone(), ..output.record });
                evidence.model = output.model;
            }
            Kind::Vjp => {
                let seeds = self.vectors.iter().map(|v| SeedOf::tensor(&v.of, &v.name)).collect();
                evidence.records.push(self.record(seeds, self.with_respect_to_xs()));
            }
            Kind::Hvp => {
                let output = self.gradients().build(&evidence.model)?;
                let seeds = output.gradients.iter();
                let seeds = seeds.filter_map(|g| Some(SeedOf::tensor(g.name.as_deref()?, &vector(&g.x)?))).collect();
                evidence.records.push(self.record(seeds, self.with_respect_to_xs()));
                evidence.records.push(Record { name: self.name.clone(), ..output.record });
                evidence.model = output.model;
            }
            Kind::Jacobian => self.support_matrices(evidence, &self.ys, &self.ys)?,
            Kind::Hessian => {
                let output = self.gradients().build(&evidence.model)?;
                let gradient = |x: &String| output.gradients.iter().find(|g| g.x == *x)?.name.clone();
                let rows = self.xs.iter().filter_map(|x| Some((x.clone(), gradient(x)?)));
                let (xs, rows): (Vec<String>, Vec<String>) = rows.unzip();
                evidence.model = output.model;
                match rows.is_empty() {
                    // A tensor without a gradient has no Hessian either.
                    true => evidence.records.push(self.record(vec![], vec![])),
                    false => self.support_matrices(evidence, &rows, &xs)?,
                }
            }
            Kind::HessianDiagonal => self.support_diagonal(evidence)?,
            Kind::PerSample => self.support_samples(evidence)?,
            // That it runs is all that can be said.
            Kind::Explanation | Kind::Attack => evidence.records.push(self.record(vec![], vec![])),
        }
        if let Some(axis) = self.batch.filter(|_| self.kind != Kind::PerSample) {
            let hint = format!(
                "if samples mix along axis {axis} (statistics of a batch, attention across it), no sample has derivatives of \
                 its own: leave --batch out"
            );
            evidence.hints.insert(self.name.clone(), hint);
        }
        Ok(())
    }

    /// For each x the sum of vectors, which are new inputs, times the matrices of `rows`, as a gradient of these. The
    /// matrices are called after `keys`: those of a Hessian, whose rows are gradients, after xs.
    fn support_matrices(&self, evidence: &mut Evidence, rows: &[String], keys: &[String]) -> Result<()> {
        let w = self.workspace(evidence, rows)?;
        let mut outputs = Vec::new();
        let (seeds, gradients) = {
            let (vectors, named) = w.vectors("v", &w.ys(), rows);
            let row = |e: &Entry| if self.kind == Kind::Hessian { e.x.clone() } else { e.y.clone() };
            let column = |e: &Entry| if self.kind == Kind::Hessian { e.second.clone() } else { e.x.clone() };
            let mut gradients = Vec::new();
            for (name, x) in self.xs.iter().zip(w.xs()) {
                let mut sum: Option<Expr<'_>> = None;
                for (key, v) in keys.iter().zip(&vectors) {
                    let of = |e: &&Entry| row(e).as_ref() == Some(key) && column(e).as_ref() == Some(name);
                    let Some(matrix) = self.outputs.iter().find(of).and_then(|e| e.name.as_deref()) else { continue };
                    let term = contracted(*v, w.tensor(matrix)?, x, self.batch)?;
                    sum = Some(sum.map_or(term, |sum| sum + term));
                }
                let output = sum.map(|sum| w.output(&mut outputs, sum, name, x.fact()));
                gradients.push(Gradient { x: name.clone(), name: output });
            }
            (named.iter().map(|v| SeedOf::tensor(&v.of, &v.name)).collect(), gradients)
        };
        evidence.model = w.write(outputs)?.0;
        evidence.records.push(self.record(seeds, gradients));
        Ok(())
    }

    /// What a Hessian makes of the last unit vector, with the element of the diagonal in its place.
    fn support_diagonal(&self, evidence: &mut Evidence) -> Result<()> {
        let w = self.workspace(evidence, &self.ys)?;
        let mut outputs = Vec::new();
        let mut found = Vec::new();
        for (e, (x, g)) in self.outputs.iter().zip(w.xs().into_iter().zip(w.gradients_of_sum()?)) {
            let (Some(diagonal), Some(name), Some(g)) = (&e.name, &e.x, g) else { continue };
            let units = Units::new(x, self.batch)?;
            let unit = units.at(units.last());
            let product = w.gradients(&[(g, unit)], &[x])?.first().copied().flatten().unwrap_or_else(|| x.zeros_like());
            let placed = unit.is_nonzero().select(w.tensor(diagonal)?, product);
            let [g, unit, placed] = [("gradient", g), ("unit", unit), ("product", placed)]
                .map(|(what, e)| w.output(&mut outputs, e, &format!("{what}/{name}"), x.fact()));
            found.push((SeedOf::tensor(&g, &unit), Gradient { x: name.clone(), name: Some(placed) }));
        }
        evidence.model = w.write(outputs)?.0;
        evidence.records.extend(found.into_iter().map(|(seed, gradient)| self.record(vec![seed], vec![gradient])));
        Ok(())
    }

    /// The ys of the model on the first sample, and what the gradients of samples say of it. Norms and sums say
    /// nothing.
    fn support_samples(&self, evidence: &mut Evidence) -> Result<()> {
        let stacked = self.outputs.iter().all(|e| e.x.is_some());
        let axis = self.batch.filter(|_| stacked);
        let Some(axis) = axis else {
            evidence.records.push(self.record(vec![], vec![]));
            return Ok(());
        };
        let w = self.workspace(evidence, &self.ys)?;
        let mut outputs = Vec::new();
        let (seeds, gradients) = {
            let first = w.builder().ints(&[0]);
            let samples = self.samples.iter().map(|name| w.tensor(name));
            let samples = samples.map(|e| e.and_then(|e| Ok((e, e.gather(first, batch_axis(e, axis)?)))));
            let alone = w.again(&samples.collect::<Result<Vec<_>>>()?, &w.ys());
            let seed = |(y, name): (Expr<'_>, &String)| SeedOf {
                y: w.output(&mut outputs, y, &format!("first/{name}"), y.fact()),
                seed: None,
                fill: Some(1.0),
            };
            let seeds: Vec<SeedOf> = alone.into_iter().zip(&self.ys).map(seed).collect();
            let mut gradients = Vec::new();
            for (e, x) in self.outputs.iter().zip(w.xs()) {
                let Some(name) = e.x.clone() else { continue };
                let all = e.name.as_deref().map(|all| w.tensor(all)).transpose()?;
                let of_first = all.map(|all| all.gather(w.builder().int(0), 0));
                let output = of_first.map(|g| w.output(&mut outputs, g, &name, x.fact()));
                gradients.push(Gradient { x: name, name: output });
            }
            (seeds, gradients)
        };
        evidence.model = w.write(outputs)?.0;
        evidence.records.push(self.record(seeds, gradients));
        Ok(())
    }

    fn workspace(&self, evidence: &Evidence, ys: &[String]) -> Result<Workspace> {
        let call = Gradients::new(ys, &self.xs)
            .stop(&self.stops)
            .straight_through(self.straight_through)
            .name(format!("{}/evidence", self.name));
        Workspace::open(&call, evidence.model.clone())
    }

    fn with_respect_to_xs(&self) -> Vec<Gradient> {
        let gradient = |e: &Entry| Some(Gradient { x: e.x.clone()?, name: e.name.clone() });
        self.outputs.iter().filter_map(gradient).collect()
    }
}

/// A vector times a matrix of shape `v.shape + x.shape`; with a batch each sample's vector times its own.
fn contracted<'g>(v: Expr<'g>, matrix: Expr<'g>, x: Expr<'g>, batch: Option<i64>) -> Result<Expr<'g>> {
    let b = v.builder();
    let Some(batch) = batch else {
        let columns = x.size().reshape_to(&[1]);
        let rows = v.size().reshape_to(&[1]);
        let product = v.reshape_to(&[1, -1]).matmul(matrix.reshape(Expr::concat(&[rows, columns], 0)));
        return Ok(product.reshape_like(x));
    };
    let (of_v, of_x) = (batch_axis(v, batch)?, batch_axis(x, batch)?);
    let rest = |e: Expr<'g>, axis: usize| anyhow::Ok(e.dims((0..e.rank()?).filter(|&a| a != axis)));
    let samples = v.dims([of_v]);
    let (places, columns) = (rest(v, of_v)?, rest(x, of_x)?);
    let shape = |sizes: &[Expr<'g>]| Expr::concat(sizes, 0);
    let (m, n) = (places.product_of_list(), columns.product_of_list());
    let v = v.move_axis(of_v, 0).reshape(shape(&[samples, b.ints(&[1]), m]));
    let matrix = matrix.move_axis(of_v, 0).reshape(shape(&[samples, m, n]));
    let product = v.matmul(matrix).reshape(shape(&[samples, columns])).move_axis(0, of_x);
    Ok(product)
}
