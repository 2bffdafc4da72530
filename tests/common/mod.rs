//! The cases of `tests/cases`: small models, each with what its operator needs to be differentiated well.
//!
//! A case is a line `## Title` and a graph in ONNX's text syntax. Behind the title stand settings, separated by commas:
//! `opsets 7 13` (17 without it), `order 1` (second order without it), `x from 0.1 to 2` (the range of a random input),
//! `P is 3` (the size of a symbolic dimension, for those that follow from others),
//! `domain com.microsoft` (an operator set besides the standard's), `straight-through` (rounding counts as the identity).
#![allow(dead_code)]

pub mod process;

use onnx_gradients::onnx::proto::OperatorSetIdProto;
use onnx_gradients::onnx::proto::{tensor_shape_proto::dimension, type_proto};
use onnx_gradients::onnx::{ElementType, ModelProto, TensorProto, ValueInfoProto, text};
use onnx_gradients::{Gradients, Model, Output, Seed};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The sizes of symbolic dimensions: all different, none of them 1.
pub const SIZES: [(&str, i64); 5] = [("N", 2), ("M", 3), ("K", 4), ("H", 5), ("W", 6)];

/// One case at one opset.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file, without its ending.
    pub family: String,
    pub title: String,
    pub opset: i64,
    pub order: usize,
    pub straight_through: bool,
    pub ranges: BTreeMap<String, (f64, f64)>,
    /// The sizes of symbolic dimensions.
    pub sizes: BTreeMap<String, i64>,
    pub model: ModelProto,
}

/// A folder of this project, also from a crate inside of it.
pub fn folder(name: &str) -> PathBuf {
    let mut places = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|place| place.join(name));
    places.find(|place| place.exists()).unwrap_or_else(|| name.into())
}

/// Every case, a file after the other.
pub fn all() -> Vec<Case> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder("tests/cases")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files.iter().flat_map(|f| read(f)).collect()
}

fn read(path: &Path) -> Vec<Case> {
    let family = path.file_stem().unwrap().to_string_lossy().into_owned();
    let content = std::fs::read_to_string(path).unwrap();
    let mut cases = Vec::new();
    for block in content.split("\n## ").map(|b| b.trim_start_matches("## ")).filter(|b| b.contains("=>")) {
        let (header, graph) = block.split_once('\n').unwrap();
        let (mut title, mut opsets, mut order, mut ranges, mut domains) =
            (vec![], vec![17], 2, BTreeMap::new(), vec![]);
        let mut straight_through = false;
        let mut sizes: BTreeMap<String, i64> = SIZES.iter().map(|&(name, size)| (name.to_owned(), size)).collect();
        for part in header.split(", ").map(str::trim) {
            match part.split(' ').collect::<Vec<_>>()[..] {
                ["opsets", ref list @ ..] => opsets = list.iter().map(|o| o.parse().unwrap()).collect(),
                ["order", n] => order = n.parse().unwrap(),
                ["straight-through"] => straight_through = true,
                ["domain", domain] => domains.push(domain.to_owned()),
                [x, "from", low, "to", high] => {
                    ranges.insert(x.to_owned(), (low.parse().unwrap(), high.parse().unwrap()));
                }
                [name, "is", size] => {
                    sizes.insert(name.to_owned(), size.parse().unwrap());
                }
                _ => title.push(part),
            }
        }
        for opset in opsets {
            let ir = if opset < 10 { 4 } else { 8 };
            let text = format!("<ir_version: {ir}, opset_import: [\"\": {opset}]>\n{graph}");
            let mut model = text::parse(&text).unwrap_or_else(|e| panic!("{family}, {header}: {e:#}"));
            model
                .opset_import
                .extend(domains.iter().map(|d| OperatorSetIdProto { domain: Some(d.clone()), version: Some(1) }));
            let (title, ranges, sizes) = (title.join(", "), ranges.clone(), sizes.clone());
            let family = family.clone();
            cases.push(Case { family, title, opset, order, straight_through, ranges, sizes, model });
        }
    }
    cases
}

impl Case {
    /// The floating-point inputs and initializers.
    pub fn xs(&self) -> Vec<String> {
        let graph = self.model.graph.as_ref().unwrap();
        let inputs = graph.input.iter().filter(|i| element(i).is_some_and(ElementType::is_float)).map(|i| i.name());
        let initializers = graph.initializer.iter().filter(|t| t.element_type().is_float()).map(|t| t.name());
        inputs.chain(initializers).map(str::to_owned).collect()
    }

    /// The floating-point outputs.
    pub fn ys(&self) -> Vec<String> {
        let outputs = &self.model.graph.as_ref().unwrap().output;
        let named = outputs.iter().filter(|o| element(o).is_none_or(ElementType::is_float));
        named.map(|o| o.name().to_owned()).collect()
    }

    /// The model with its gradients, each y with a seed that is an input.
    pub fn differentiate(&self) -> anyhow::Result<Output> {
        self.gradients(&Model::from(self.model.clone()), self.ys())
    }

    /// The gradients of ys of a model that comes of the case, each with a seed that is an input.
    pub fn gradients(&self, model: &Model, ys: Vec<String>) -> anyhow::Result<Output> {
        let seeds = vec![Seed::Input(None); ys.len()];
        Ok(Gradients::new(ys, self.xs()).seeds(seeds).straight_through(self.straight_through).build(model)?)
    }

    /// The operators that the case is about.
    pub fn operators(&self) -> Vec<(String, String)> {
        let nodes = &self.model.graph.as_ref().unwrap().node;
        nodes.iter().map(|n| (n.domain().to_owned(), n.op_type().to_owned())).collect()
    }

    /// Values for the inputs that the case gives a range.
    pub fn inputs(&self) -> BTreeMap<String, TensorProto> {
        let graph = self.model.graph.as_ref().unwrap();
        let ranged = graph.input.iter().filter_map(|i| Some((i, *self.ranges.get(i.name())?)));
        ranged.map(|(input, range)| (input.name().to_owned(), self.spread(input, range))).collect()
    }

    /// Values for the seeds of outputs whose sizes follow from others: as inputs of a model they have any size.
    pub fn seeds(&self, output: &Output) -> BTreeMap<String, TensorProto> {
        let outputs = &self.model.graph.as_ref().unwrap().output;
        let own = |value: &&ValueInfoProto| {
            let given = |(name, size): (&String, &i64)| !SIZES.contains(&(name.as_str(), *size));
            self.sizes.iter().any(given) && element(value).is_some_and(ElementType::is_float)
        };
        let named = output.record.seeds.iter().filter_map(|s| {
            let y = outputs.iter().filter(own).find(|o| o.name() == s.y)?;
            Some((s.seed.clone()?, self.spread(y, (-1.0, 1.0))))
        });
        named.collect()
    }

    fn spread(&self, value: &ValueInfoProto, (low, high): (f64, f64)) -> TensorProto {
        let dims = dims(value, &self.sizes);
        let count = dims.iter().product::<i64>() as u64;
        // An irrational rotation: spread over the range, no two alike.
        let at = |i: u64| low + (high - low) * ((i as f64 + 0.5) * 0.618_033_988_749_895).fract();
        let values: Vec<f64> = (0..count).map(at).collect();
        TensorProto::from_floats(element(value).unwrap(), &dims, &values).unwrap()
    }
}

fn element(value: &ValueInfoProto) -> Option<ElementType> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(t) => Some(ElementType::from_number(t.elem_type())),
        _ => None,
    }
}

fn dims(value: &ValueInfoProto, sizes: &BTreeMap<String, i64>) -> Vec<i64> {
    let Some(type_proto::Value::TensorType(t)) = value.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return vec![];
    };
    let size = |d: &dimension::Value| match d {
        dimension::Value::DimValue(n) => *n,
        dimension::Value::DimParam(name) => sizes[name],
    };
    t.shape.iter().flat_map(|s| &s.dim).map(|d| size(d.value.as_ref().unwrap())).collect()
}
