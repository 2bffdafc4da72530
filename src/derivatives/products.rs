//! Products of derivatives with vectors, which are new inputs of the model: Jacobian times vector, vector times
//! Jacobian, Hessian times vector.

use super::claim::{Claim, Kind};
use super::workspace::Workspace;
use super::{Derived, Entry};
use crate::backward::Gradients;
use crate::expr::Expr;
use crate::graph::ValueId;
use crate::model::Model;
use anyhow::Result;

macro_rules! request {
    ($($(#[$doc:meta])* $name:ident called $default:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(Gradients);

        impl From<Gradients> for $name {
            /// The product of these ys with respect to these xs, with the stops and options that are given there.
            fn from(call: Gradients) -> Self {
                $name(call.named_by_default($default))
            }
        }

        builds!(
            $name, "the products",
            "Names of no tensor, ys or xs that are not real, xs that depend on each other, operators without a gradient"
            "between them."
        );

        impl $name {
            fn derived(&self, model: Model) -> Result<Derived> {
                self.write(Workspace::open(&self.0, model)?)
            }
        }
    )*};
}

request! {
    /// Jacobian times vector: for each y the tensor `Σ J u` over the xs, of y's shape, where the `u`, one for each x
    /// and of its shape, are new inputs `<name>/v/<x>`. It costs the model and one more pass of the same kind.
    Jvp called "jvp";
    /// Vector times Jacobian: for each x the tensor `Σ v J` over the ys, of x's shape, where the `v`, one for each y
    /// and of its shape, are new inputs `<name>/v/<y>`. It is the gradient with seeds that are inputs.
    Vjp called "vjp";
    /// Hessian times vector, the Hessian being that of the sum of all elements of the ys: for each x a tensor of its
    /// shape; the vectors, one for each x, are new inputs `<name>/v/<x>`. It is the gradient of `Σ <gradient, v>`, held
    /// `v` constant.
    Hvp called "hvp";
}

impl Jvp {
    fn write(&self, w: Workspace) -> Result<Derived> {
        let (ys, xs) = w.names();
        let mut outputs = Vec::new();
        let (entries, vectors) = {
            let (us, vectors) = w.vectors("v", &w.xs(), &xs);
            let products = w.forward(&w.ys(), &w.xs())?.at(&us);
            (
                entries(&w, &mut outputs, &products, &w.ys(), &ys, |y, name| Entry {
                    y: Some(y),
                    name,
                    ..Entry::default()
                }),
                vectors,
            )
        };
        w.finish(outputs, entries, vectors, Claim::of(Kind::Jvp))
    }
}

impl Vjp {
    fn write(&self, w: Workspace) -> Result<Derived> {
        let (ys, xs) = w.names();
        let mut outputs = Vec::new();
        let (entries, vectors) = {
            let (vs, vectors) = w.vectors("v", &w.ys(), &ys);
            let seeds: Vec<_> = w.ys().into_iter().zip(vs).collect();
            let products = w.gradients(&seeds, &w.xs())?;
            (entries(&w, &mut outputs, &products, &w.xs(), &xs, of_x), vectors)
        };
        w.finish(outputs, entries, vectors, Claim::of(Kind::Vjp))
    }
}

impl Hvp {
    fn write(&self, w: Workspace) -> Result<Derived> {
        let (_, xs) = w.names();
        let mut outputs = Vec::new();
        let (entries, vectors) = {
            let (vs, vectors) = w.vectors("v", &w.xs(), &xs);
            let gradients = w.gradients_of_sum()?;
            let seeds: Vec<_> = gradients.iter().zip(vs).filter_map(|(g, v)| Some(((*g)?, v))).collect();
            let products = w.gradients(&seeds, &w.xs())?;
            (entries(&w, &mut outputs, &products, &w.xs(), &xs, of_x), vectors)
        };
        w.finish(outputs, entries, vectors, Claim::of(Kind::Hvp))
    }
}

/// A derivative with respect to x.
pub(super) fn of_x(x: String, name: Option<String>) -> Entry {
    Entry { x: Some(x), name, ..Entry::default() }
}

/// Makes outputs of derivatives, each of the shape and type of a tensor and named after it.
pub(super) fn entries(
    w: &Workspace,
    outputs: &mut Vec<(ValueId, String)>,
    derivatives: &[Option<Expr<'_>>],
    like: &[Expr<'_>],
    names: &[String],
    entry: impl Fn(String, Option<String>) -> Entry,
) -> Vec<Entry> {
    let each = derivatives.iter().zip(like).zip(names);
    each.map(|((d, like), name)| {
        let d = d.or_else(|| w.fills_unconnected().then(|| like.zeros_like()));
        entry(name.clone(), d.map(|d| w.output(outputs, d, name, like.fact())))
    })
    .collect()
}
