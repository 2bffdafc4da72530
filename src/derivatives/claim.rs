//! What a request says that it has written, as the model's metadata keep it, and how that is checked: a claim about any
//! derivative becomes claims about gradients, which compare with finite differences.

use super::{Entry, Vector};
use crate::backward::{Gradients, Seed};
use crate::model::Model;
use crate::onnx::ModelProto;
use crate::onnx::proto::StringStringEntryProto;
use crate::record::{Gradient, Record, SeedOf};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What has been written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Jacobian times vector.
    #[default]
    Jvp,
    /// Vector times Jacobian.
    Vjp,
    /// Hessian times vector.
    Hvp,
}

/// One request: enough to check its outputs later, from the model alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// The scope of the request's names.
    pub name: String,
    /// What has been written.
    pub kind: Kind,
    /// The tensors that are differentiated.
    pub ys: Vec<String>,
    /// The tensors with respect to which is differentiated.
    pub xs: Vec<String>,
    /// The tensors that count as constants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stops: Vec<String>,
    /// Whether rounding counted as the identity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub straight_through: bool,
    /// The derivatives.
    pub outputs: Vec<Entry>,
    /// The new inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vectors: Vec<Vector>,
}

/// The metadata of a model hold one claim a request, each under this prefix and the request's name.
const KEY: &str = "onnx-gradients-derivative/";

impl Claim {
    /// A claim of which the rest follows from the request.
    pub(super) fn of(kind: Kind) -> Self {
        Claim { kind, ..Claim::default() }
    }

    /// Adds the claim to a model's metadata.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn attach(&self, model: &mut ModelProto) -> Result<()> {
        let (key, value) = (format!("{KEY}{}", self.name), serde_json::to_string(self)?);
        model.metadata_props.push(StringStringEntryProto { key: Some(key), value: Some(value) });
        Ok(())
    }

    /// The claims of a model, in the order of the requests.
    ///
    /// # Errors
    /// An entry is not one that [`Claim::attach`] has written.
    pub fn all(model: &ModelProto) -> Result<Vec<Claim>> {
        let ours = model.metadata_props.iter().filter(|p| p.key().starts_with(KEY));
        ours.map(|p| {
            serde_json::from_str(p.value()).with_context(|| format!("metadata '{}' is not a claim of ours", p.key()))
        })
        .collect()
    }

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
}

/// A model whose gradients say what its derivatives claim.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The model with what it takes to say so.
    pub model: Model,
    /// The gradients, each with the name of the request that it is about.
    pub records: Vec<Record>,
}

/// What the derivatives of a model claim, said of gradients: those of [`Record::all`], and for each [`Claim`]
///
/// * `Ju` is the gradient of `<wJ, u>` with respect to `w`, and `wJ` a gradient with the seed `w`;
/// * `vJ` is the gradient with the seed `v`;
/// * `Hv` is the gradient of the gradient with the seed `v`, since a Hessian is symmetric.
///
/// # Errors
/// Metadata that are not ours; tensors that are no longer in the model, as the ys after `--only-gradients`.
pub fn evidence(model: &Model) -> Result<Evidence> {
    let claims = Claim::all(&model.proto)?;
    let mut evidence = Evidence { records: Record::all(&model.proto)?, model: model.clone() };
    for claim in &claims {
        claim.support(&mut evidence).with_context(|| format!("what '{}' claims cannot be checked", claim.name))?;
    }
    Ok(evidence)
}

fn seed(y: &str, seed: &str) -> SeedOf {
    SeedOf { y: y.to_owned(), seed: Some(seed.to_owned()), fill: None }
}

impl Claim {
    fn support(&self, evidence: &mut Evidence) -> Result<()> {
        let vector = |of: &str| self.vectors.iter().find(|v| v.of == of).map(|v| v.name.clone());
        match self.kind {
            Kind::Jvp => {
                let transposed = self.gradients().seeds(vec![Seed::Input(None); self.ys.len()]);
                let output = transposed.build(&evidence.model)?;
                let seeds = output.gradients.iter();
                let seeds = seeds.filter_map(|g| Some(seed(g.name.as_deref()?, &vector(&g.x)?))).collect();
                let product = |y: &str| self.outputs.iter().find(|e| e.y.as_deref() == Some(y))?.name.clone();
                let gradients = output.seeds.iter();
                let gradients = gradients.filter_map(|s| Some(Gradient { x: s.seed.clone()?, name: product(&s.y) }));
                evidence.records.push(Record { stops: vec![], ..self.record(seeds, gradients.collect()) });
                evidence.records.push(Record { name: self.name.clone(), ..output.record });
                evidence.model = output.model;
            }
            Kind::Vjp => {
                let seeds = self.vectors.iter().map(|v| seed(&v.of, &v.name)).collect();
                evidence.records.push(self.record(seeds, self.with_respect_to_xs()));
            }
            Kind::Hvp => {
                let output = self.gradients().build(&evidence.model)?;
                let seeds = output.gradients.iter();
                let seeds = seeds.filter_map(|g| Some(seed(g.name.as_deref()?, &vector(&g.x)?))).collect();
                evidence.records.push(self.record(seeds, self.with_respect_to_xs()));
                evidence.records.push(Record { name: self.name.clone(), ..output.record });
                evidence.model = output.model;
            }
        }
        Ok(())
    }

    fn with_respect_to_xs(&self) -> Vec<Gradient> {
        let gradient = |e: &Entry| Some(Gradient { x: e.x.clone()?, name: e.name.clone() });
        self.outputs.iter().filter_map(gradient).collect()
    }
}
