//! Changes of models that leave most of them models: of attributes, operators, wiring, tensors, types, control flow, functions.

use crate::common;
use onnx_gradients::onnx::proto::tensor_shape_proto::{Dimension, dimension::Value as Size};
use onnx_gradients::onnx::proto::type_proto::{Optional, Sequence, Value as Kind};
use onnx_gradients::onnx::proto::{OperatorSetIdProto, StringStringEntryProto};
use onnx_gradients::onnx::{
    AttributeProto, ElementType, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto,
    ValueInfoProto, attribute,
};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// splitmix64
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn pick<T: Clone>(&mut self, list: &[T]) -> Option<T> {
        list.get(self.below(list.len())).cloned()
    }

    fn place<'a, T>(&mut self, list: &'a mut [T]) -> Option<&'a mut T> {
        let at = self.below(list.len());
        list.get_mut(at)
    }

    fn int(&mut self) -> i64 {
        const EDGES: [i64; 16] = [
            i64::MIN,
            i64::MIN + 1,
            -(1 << 62),
            -(1 << 40),
            -(1 << 31),
            -65,
            63,
            64,
            255,
            1 << 16,
            (1 << 31) - 1,
            1 << 31,
            1 << 40,
            1 << 53,
            1 << 62,
            i64::MAX,
        ];
        if self.below(4) == 0 { EDGES[self.below(EDGES.len())] } else { self.below(9) as i64 - 3 }
    }

    fn float(&mut self) -> f32 {
        const EDGES: [f32; 10] = [0.0, -0.0, 1.0, -1.0, 0.5, 1e30, 1e-30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        EDGES[self.below(EDGES.len())]
    }

    fn name(&mut self) -> String {
        format!("f{}", self.next() % 100_000)
    }
}

/// What mutations take from: the models of the cases, their nodes with the small constants that these take, and words.
struct Pool {
    models: Vec<ModelProto>,
    nodes: Vec<(NodeProto, Vec<TensorProto>)>,
    operators: Vec<String>,
    attributes: Vec<String>,
    strings: Vec<Vec<u8>>,
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let models: Vec<ModelProto> = common::all().into_iter().map(|case| case.model).collect();
        let (mut operators, mut attributes, mut strings) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut nodes = Vec::new();
        for graph in models.iter().filter_map(|m| m.graph.as_ref()) {
            for node in &graph.node {
                operators.insert(node.op_type().to_owned());
                attributes.extend(node.attribute.iter().map(|a| a.name().to_owned()));
                strings.extend(node.attribute.iter().filter_map(|a| Some(a.s.as_ref()?.to_vec())));
                let small = |t: &&TensorProto| {
                    node.input.iter().any(|i| i == t.name()) && t.element_count().is_some_and(|n| n < 64)
                };
                nodes.push((node.clone(), graph.initializer.iter().filter(small).cloned().collect()));
            }
        }
        attributes.extend(["axis", "axes", "xs", "zs", "y", "body", "value_ints", "unknown"].map(str::to_owned));
        strings.extend(["", "->", "i,i", "...ij,jk->ik", "aaaaaaaaaaaaaaaa,a->", "ij->ijj"].map(|s| s.into()));
        strings.insert(vec![0xff, 0xfe, 0]);
        Pool {
            models,
            nodes,
            operators: operators.into_iter().collect(),
            attributes: attributes.into_iter().collect(),
            strings: strings.into_iter().collect(),
        }
    })
}

/// One of the cases.
pub fn case(r: &mut Random) -> ModelProto {
    r.pick(&pool().models).unwrap_or_default()
}

/// Changes one thing.
pub fn mutate(r: &mut Random, model: &mut ModelProto) {
    match r.below(20) {
        0 => {
            let version = if r.below(3) == 0 { r.int() } else { 1 + r.below(26) as i64 };
            model.opset_import.iter_mut().for_each(|o| o.version = Some(version));
        }
        1 => model.ir_version = Some(r.below(14) as i64),
        2 | 3 => enclose_in_function(r, model),
        4 => {
            if let Some(function) = r.place(&mut model.functions) {
                let mut graph = GraphProto { node: std::mem::take(&mut function.node), ..Default::default() };
                in_graph(r, &mut graph, &function.input);
                function.node = graph.node;
            }
        }
        5 => record(r, model),
        _ => {
            let Some(graph) = &mut model.graph else { return };
            if r.below(3) > 0 {
                return in_graph(r, graph, &[]);
            }
            let outside = names(graph);
            let bodies = graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.g.as_deref_mut());
            let mut bodies: Vec<&mut GraphProto> = bodies.collect();
            match r.place(&mut bodies) {
                Some(body) => in_graph(r, body, &outside),
                None => in_graph(r, graph, &[]),
            }
        }
    }
    // What mutations bring in has a domain that is imported.
    let used = model.graph.iter().flat_map(|g| &g.node).map(|n| n.domain().to_owned());
    for domain in used.collect::<BTreeSet<_>>() {
        if model.opset(&domain).is_none() {
            model.opset_import.push(OperatorSetIdProto { domain: Some(domain), version: Some(1) });
        }
    }
}

/// A node becomes the call of a function that holds it, of one that calls that, or of one that calls it twice.
fn enclose_in_function(r: &mut Random, model: &mut ModelProto) {
    let number = model.functions.len();
    let opsets = model.opset_import.clone();
    let Some(node) = model.graph.as_mut().and_then(|g| r.place(&mut g.node)) else { return };
    let name = format!("F{number}");
    let mut input: Vec<String> = node.input.iter().filter(|i| !i.is_empty()).cloned().collect();
    input.sort();
    input.dedup();
    let call = NodeProto {
        op_type: Some(name.clone()),
        domain: Some("m".into()),
        input: input.clone(),
        output: node.output.clone(),
        ..Default::default()
    };
    let held = std::mem::replace(node, call);
    let twin = NodeProto { output: held.output.iter().map(|o| format!("twin_{o}")).collect(), ..held.clone() };
    let nodes = if r.below(2) == 0 { vec![held.clone()] } else { vec![twin, held.clone()] };
    let function = FunctionProto {
        name: Some(name),
        domain: Some("m".into()),
        input,
        output: held.output,
        node: nodes,
        opset_import: opsets,
        ..Default::default()
    };
    model.functions.push(function);
}

/// The record of an earlier call, which is a lie.
fn record(r: &mut Random, model: &mut ModelProto) {
    let all = model.graph.as_ref().map(names).unwrap_or_default();
    let (Some(x), Some(y), Some(gradient)) = (r.pick(&all), r.pick(&all), r.pick(&all)) else { return };
    let value = format!(
        r#"{{"name":"g","gradients":[{{"x":{x:?},"gradient":{gradient:?}}}],"seeds":[{{"y":{y:?},"seed":null,"fill":1.0}}]}}"#
    );
    let entry = StringStringEntryProto { key: Some("onnx-gradients/g".into()), value: Some(value) };
    model.metadata_props.push(entry);
}

/// The tensors that a graph knows.
fn names(graph: &GraphProto) -> Vec<String> {
    let inputs = graph.input.iter().map(|i| i.name().to_owned());
    let initializers = graph.initializer.iter().map(|t| t.name().to_owned());
    let outputs = graph.node.iter().flat_map(|n| n.output.iter().cloned());
    inputs.chain(initializers).chain(outputs).filter(|name| !name.is_empty()).collect()
}

fn in_graph(r: &mut Random, graph: &mut GraphProto, outside: &[String]) {
    let all = [names(graph).as_slice(), outside].concat();
    let count = graph.node.len();
    let at = r.below(count);
    let named = |r: &mut Random| ValueInfoProto { name: r.pick(&all), ..Default::default() };
    match r.below(22) {
        0..=4 => {
            let Some(node) = graph.node.get_mut(at) else { return };
            match r.below(5) {
                0 => drop(node.attribute.pop()),
                1 => node.attribute.push(attribute::int(&r.pick(&pool().attributes).unwrap_or_default(), r.int())),
                _ => r.place(&mut node.attribute).map_or((), |_| ()),
            }
            let index = r.below(node.attribute.len());
            if let Some(attribute) = node.attribute.get_mut(index) {
                in_attribute(r, attribute);
            }
        }
        5 => {
            if let Some(node) = graph.node.get_mut(at) {
                node.op_type = r.pick(&pool().operators);
            }
        }
        6..=8 => {
            let (Some(node), Some(name)) = (graph.node.get_mut(at), r.pick(&all)) else { return };
            match (r.below(5), r.below(node.input.len())) {
                (0, _) => node.input.push(name),
                (1, i) if i < node.input.len() => drop(node.input.remove(i)),
                (2, i) if i < node.input.len() => node.input[i].clear(),
                (_, i) if i < node.input.len() => node.input[i] = name,
                _ => node.input.push(name),
            }
        }
        9 => {
            let Some(node) = graph.node.get_mut(at) else { return };
            match r.below(3) {
                0 => node.output.push(r.name()),
                1 => drop(node.output.pop()),
                _ => node.output.iter_mut().take(1).for_each(String::clear),
            }
        }
        10..=12 => splice(r, graph, &all, at),
        13 if count > 0 => drop(graph.node.remove(at)),
        14 if count > 1 => {
            let other = r.below(count);
            graph.node.swap(at, other);
        }
        15 => match r.place(&mut graph.initializer) {
            Some(tensor) => in_tensor(r, tensor),
            None => graph.initializer.extend(r.pick(&all).map(|name| tensor(r, &name))),
        },
        16 => match r.place(&mut graph.input) {
            Some(input) if r.below(4) > 0 => in_type(r, input),
            Some(_) => {
                // An input becomes a constant, whose value inference knows.
                let input = graph.input.swap_remove(0);
                graph.initializer.push(tensor(r, input.name()));
            }
            None => (),
        },
        17 => match r.place(&mut graph.output) {
            Some(output) if r.below(2) == 0 => in_type(r, output),
            _ => graph.output.push(named(r)),
        },
        18 => {
            let r#type = graph.input.first().and_then(|i| i.r#type.clone());
            let mut value = ValueInfoProto { r#type, ..named(r) };
            in_type(r, &mut value);
            graph.value_info.push(value);
        }
        19 => enclose_in_branches(r, graph, at),
        20 => {
            let (x, y) = (r.pick(&all).unwrap_or_default(), r.pick(&all).unwrap_or_default());
            let output = r.name();
            graph.node.push(NodeProto {
                op_type: Some("Gradient".into()),
                domain: Some("ai.onnx.preview.training".into()),
                input: vec![x.clone()],
                output: vec![output.clone()],
                attribute: vec![attribute::strings("xs", &[&x]), attribute::string("y", &y)],
                ..Default::default()
            });
            graph.output.push(ValueInfoProto { name: Some(output), ..Default::default() });
        }
        _ => {
            let stop = StringStringEntryProto { key: Some("stop_gradient".into()), value: Some("true".into()) };
            if let Some(node) = graph.node.get_mut(at) {
                node.metadata_props.push(stop);
            }
        }
    }
}

/// A node of another model, wired to what is here; its output becomes one of the graph, or stands for another tensor from there on.
fn splice(r: &mut Random, graph: &mut GraphProto, all: &[String], at: usize) {
    let Some((mut node, constants)) = r.pick(&pool().nodes) else { return };
    let tag = r.name();
    for input in node.input.iter_mut().filter(|i| !i.is_empty()) {
        match constants.iter().find(|t| t.name() == input) {
            Some(constant) => {
                *input = format!("{tag}_{input}");
                graph.initializer.push(TensorProto { name: Some(input.clone()), ..constant.clone() });
            }
            None => *input = r.pick(all).unwrap_or_default(),
        }
    }
    node.output.iter_mut().filter(|o| !o.is_empty()).for_each(|o| *o = format!("{tag}_{o}"));
    let output = node.output.first().cloned().unwrap_or_default();
    let place = if r.below(3) == 0 { at } else { graph.node.len() };
    graph.node.insert(place, node);
    if r.below(2) == 0 {
        graph.output.push(ValueInfoProto { name: Some(output), ..Default::default() });
        return;
    }
    let old = r.pick(all).unwrap_or_default();
    let later = graph.node.iter_mut().skip(place + 1).flat_map(|n| &mut n.input);
    later.filter(|i| **i == old).for_each(|i| *i = output.clone());
    graph.output.iter_mut().filter(|o| o.name() == old).for_each(|o| o.name = Some(output.clone()));
}

/// A node moves into both branches of an If.
fn enclose_in_branches(r: &mut Random, graph: &mut GraphProto, at: usize) {
    let Some(node) = graph.node.get_mut(at) else { return };
    let condition = r.name();
    let mut inner = node.clone();
    inner.output.iter_mut().filter(|o| !o.is_empty()).for_each(|o| *o = format!("in_{o}"));
    let outputs = inner.output.iter().filter(|o| !o.is_empty());
    let body = GraphProto {
        name: Some("branch".into()),
        output: outputs.map(|o| ValueInfoProto { name: Some(o.clone()), ..Default::default() }).collect(),
        node: vec![inner],
        ..Default::default()
    };
    *node = NodeProto {
        op_type: Some("If".into()),
        input: vec![condition.clone()],
        output: node.output.iter().filter(|o| !o.is_empty()).cloned().collect(),
        attribute: vec![attribute::graph("then_branch", body.clone()), attribute::graph("else_branch", body)],
        ..Default::default()
    };
    let Ok(value) = TensorProto::from_ints(ElementType::Bool, &[], &[1]) else { return };
    match r.below(2) {
        0 => graph.initializer.push(TensorProto { name: Some(condition), ..value }),
        _ => {
            let tensor = onnx_gradients::onnx::proto::type_proto::Tensor {
                elem_type: Some(ElementType::Bool as i32),
                shape: Some(Default::default()),
            };
            let r#type = Some(TypeProto { value: Some(Kind::TensorType(tensor)), ..Default::default() });
            graph.input.push(ValueInfoProto { name: Some(condition), r#type, ..Default::default() });
        }
    }
}

fn in_attribute(r: &mut Random, a: &mut AttributeProto) {
    match r.below(9) {
        0..=2 => a.i = Some(r.int()),
        3 | 4 => {
            let (at, value) = (r.below(a.ints.len() + 1), r.int());
            match a.ints.get_mut(at) {
                Some(place) => *place = value,
                None => a.ints.push(value),
            }
        }
        5 => drop(a.ints.pop()),
        6 => {
            a.f = Some(r.float());
            a.floats.push(r.float());
        }
        7 => a.s = r.pick(&pool().strings).map(Into::into),
        _ => match &mut a.t {
            Some(tensor) => in_tensor(r, tensor),
            None => a.r#type = Some(r.below(15) as i32),
        },
    }
}

fn tensor(r: &mut Random, name: &str) -> TensorProto {
    let count = r.below(5);
    let tensor = match r.below(4) {
        0 => {
            let values: Vec<f64> = (0..count).map(|_| f64::from(r.float())).collect();
            TensorProto::from_floats(ElementType::Float, &[count as i64], &values)
        }
        1 => TensorProto::from_ints(ElementType::Int64, &[], &[r.int()]),
        _ => {
            let values: Vec<i64> = (0..count).map(|_| r.int()).collect();
            TensorProto::from_ints(ElementType::Int64, &[count as i64], &values)
        }
    };
    TensorProto { name: Some(name.to_owned()), ..tensor.unwrap_or_default() }
}

fn in_tensor(r: &mut Random, t: &mut TensorProto) {
    match r.below(5) {
        0 => t.dims.push(r.int()),
        1 => drop(t.dims.pop()),
        2 => t.data_type = Some(r.below(28) as i32),
        3 => *t = tensor(r, t.name.as_deref().unwrap_or_default()),
        _ => {
            // The same elements in another shape.
            let count = t.element_count().unwrap_or(1) as i64;
            t.dims = r.pick(&[vec![count], vec![1, count], vec![count, 1, 1], vec![1; 4]]).unwrap_or_default();
        }
    }
}

fn in_type(r: &mut Random, value: &mut ValueInfoProto) {
    let choice = r.below(8);
    let Some(r#type) = &mut value.r#type else { return };
    match (choice, &mut r#type.value) {
        (0, _) => value.r#type = None,
        (1, Some(Kind::TensorType(t))) => t.shape = None,
        (2, Some(Kind::TensorType(t))) => t.elem_type = Some(r.below(26) as i32),
        (3, _) => {
            let elem_type = Some(Box::new(r#type.clone()));
            r#type.value = Some(match r.below(2) {
                0 => Kind::SequenceType(Box::new(Sequence { elem_type })),
                _ => Kind::OptionalType(Box::new(Optional { elem_type })),
            });
        }
        (_, Some(Kind::TensorType(t))) => {
            let dims = &mut t.shape.get_or_insert_default().dim;
            let size = match r.below(5) {
                0 => None,
                1 => r.pick(&["N", "M", "", "a*b", "é"]).map(|name| Size::DimParam(name.to_owned())),
                _ => Some(Size::DimValue(r.int())),
            };
            let at = r.below(dims.len() + 1);
            match dims.get_mut(at) {
                Some(dim) => dim.value = size,
                None if r.below(2) == 0 => drop(dims.pop()),
                None => dims.push(Dimension { value: size, denotation: None }),
            }
        }
        _ => (),
    }
}
