//! What a call made, as a model's metadata keeps it: which tensor is the gradient of what.

use crate::onnx::ModelProto;
use crate::onnx::proto::StringStringEntryProto;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
#[cfg(feature = "validate")]
use std::collections::HashMap;
use std::collections::HashSet;

/// One call of `grad`: enough to check its gradients later, from the model alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// The scope of the call's names: `gradients`, `gradients_1`.
    pub name: String,
    /// The gradients, in the order of the xs.
    pub gradients: Vec<Gradient>,
    /// The seeds, in the order of the ys; a y that is named twice has two.
    pub seeds: Vec<SeedOf>,
    /// The tensors that no gradient passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stops: Vec<String>,
    /// Whether rounding counted as the identity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub straight_through: bool,
}

/// The gradient with respect to one x.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Gradient {
    /// The tensor with respect to which is differentiated.
    pub x: String,
    /// The name of the tensor that holds the gradient; `None` where no y depends on x.
    #[serde(rename = "gradient")]
    pub name: Option<String>,
}

/// The gradient that a y starts with: a tensor, or else one number in every place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SeedOf {
    /// The tensor that is differentiated.
    pub y: String,
    /// The tensor of the model, maybe one of its inputs, that holds the seed.
    #[serde(default)]
    pub seed: Option<String>,
    /// The number that stands in every place of the seed.
    #[serde(default)]
    pub fill: Option<f64>,
}

/// The metadata of a model hold one record a call, each under this prefix and the call's name.
const KEY: &str = "onnx-gradients/";

impl Gradient {
    /// The gradient with respect to `x`, held by the tensor of that name.
    pub fn new(x: &str, name: Option<&str>) -> Self {
        Gradient { x: x.to_owned(), name: name.map(str::to_owned) }
    }
}

impl SeedOf {
    /// A tensor of the model as the seed of `y`.
    pub fn tensor(y: &str, seed: &str) -> Self {
        SeedOf { y: y.to_owned(), seed: Some(seed.to_owned()), fill: None }
    }

    /// One number in every place of the seed of `y`.
    pub fn fill(y: &str, fill: f64) -> Self {
        SeedOf { y: y.to_owned(), seed: None, fill: Some(fill) }
    }
}

impl Record {
    /// A call of that name, for gradients that the model has from somebody else: what it says of stops and rounding is
    /// in fields.
    pub fn new(name: &str, seeds: Vec<SeedOf>, gradients: Vec<Gradient>) -> Self {
        Record { name: name.to_owned(), gradients, seeds, ..Record::default() }
    }

    /// The record with each gradient once, and for each of its own gradients which of those it is.
    #[cfg(feature = "validate")]
    pub(crate) fn distinct(&self) -> (Record, Vec<usize>) {
        let (mut seen, mut gradients) = (HashMap::new(), Vec::new());
        let places = self.gradients.iter().map(|g| {
            *seen.entry((&g.x, &g.name)).or_insert_with(|| {
                gradients.push(g.clone());
                gradients.len() - 1
            })
        });
        let places = places.collect();
        (Record { gradients, ..self.clone() }, places)
    }

    /// Adds the record to a model's metadata.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn attach(&self, model: &mut ModelProto) -> Result<()> {
        let entry = StringStringEntryProto {
            key: Some(format!("{KEY}{}", self.name)),
            value: Some(serde_json::to_string(self)?),
        };
        model.metadata_props.push(entry);
        Ok(())
    }

    /// The records of a model, in the order of the calls.
    ///
    /// # Errors
    /// An entry is not one that [`Record::attach`] has written; two speak of one call, of which only one can be true.
    pub fn all(model: &ModelProto) -> Result<Vec<Record>> {
        let ours = model.metadata_props.iter().filter(|p| p.key().starts_with(KEY));
        let records: Vec<Record> = ours
            .map(|p| {
                let record = serde_json::from_str(p.value());
                record.with_context(|| format!("metadata '{}' is not a record of a call of grad", p.key()))
            })
            .collect::<Result<_>>()?;
        let mut names = HashSet::new();
        for record in &records {
            ensure!(
                names.insert(&record.name),
                "the metadata hold two records of one call of grad, '{}', and only one can be true; remove the other",
                record.name
            );
        }
        Ok(records)
    }
}
