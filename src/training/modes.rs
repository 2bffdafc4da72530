//! Operators that do something else in training: BatchNormalization and Dropout. Nothing changes unless it is asked for.

use super::draft::{Draft, node};
use crate::graph::Loaded;
use crate::onnx::{AttributeProto, ElementType, ModelProto, NodeProto, TensorProto, attribute};
use anyhow::{Context, Result, bail, ensure};

/// A statistic of a BatchNormalization in training mode: it is fed, and comes out updated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistic {
    /// Its name in the model.
    pub name: String,
    /// The tensor that holds the updated one.
    pub updated: String,
}

fn batch_norms(model: &ModelProto) -> impl Iterator<Item = &NodeProto> {
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    nodes.filter(|n| n.op_type() == "BatchNormalization" && n.domain().is_empty())
}

/// What the report says of the modes of a model.
pub fn decisions(model: &ModelProto, batch_norm_train: bool, dropouts: &[(String, f64)]) -> Vec<String> {
    let mut said = Vec::new();
    let nodes = || model.graph.iter().flat_map(|g| &g.node);
    let count = batch_norms(model).count();
    let own_mode = |n: &&NodeProto| attribute::get_int(&n.attribute, "training_mode").unwrap_or(0) != 0;
    let already = batch_norms(model).filter(own_mode).count();
    match (count - already, batch_norm_train) {
        (0, _) if already > 0 => {}
        (0, _) => {
            let biased = |n: &&NodeProto| n.op_type() == "Conv" && n.input.get(2).is_some_and(|b| !b.is_empty());
            let normalized = nodes().any(|n| n.op_type().ends_with("Normalization"));
            let convolutions = nodes().filter(biased).count();
            if convolutions > 0 && !normalized {
                said.push(format!(
                    "no BatchNormalization is in the model; if it was trained with it, it has been folded into the weights and biases of {convolutions} Conv, and is trained as a part of them"
                ));
            }
        }
        (n, false) => said.push(format!(
            "{n} BatchNormalization stay in inference mode: their statistics are constant (--batch-norm train changes that)"
        )),
        (n, true) => said.push(format!(
            "{n} BatchNormalization are in training mode: they normalize with the statistics of the batch, and the running statistics are state"
        )),
    }
    if already > 0 {
        said.push(format!(
            "{already} BatchNormalization are in training mode in the model itself (training_mode = 1): they normalize with the statistics of the batch, in evaluation too"
        ));
    }
    let random = nodes().filter(|n| n.op_type() == "Dropout" && n.input.len() > 2 && !n.input[2].is_empty()).count();
    if random > 0 {
        said.push(format!(
            "{random} Dropout say by an input of their own whether they are in training mode: where it is true, they drop out at random in evaluation too"
        ));
    }
    let own = nodes().filter(|n| n.op_type() == "Dropout").count() - random;
    if own > 0 && dropouts.is_empty() {
        said.push(format!("{own} Dropout stay in inference mode, where they do nothing (--dropout changes that)"));
    }
    said.extend(dropouts.iter().map(|(name, ratio)| format!("'{name}' is dropped out with ratio {ratio} in training")));
    said
}

/// The names of the running statistics of all BatchNormalization.
///
/// # Errors
/// One that is not constant.
pub fn statistics(model: &ModelProto, loaded: &Loaded) -> Result<Vec<String>> {
    let (mut names, mut seen) = (Vec::new(), std::collections::HashSet::new());
    for node in batch_norms(model) {
        for i in [3, 4] {
            let name =
                node.input.get(i).with_context(|| format!("node '{}' has no running statistics", node.name()))?;
            let id = loaded.names.get(name.as_str()).copied();
            ensure!(
                id.is_some_and(|id| super::select::is_initializer(loaded, id)),
                "the running statistic '{name}' of node '{}' is no initializer",
                node.name()
            );
            ensure!(seen.insert(name.clone()), "two BatchNormalization share the running statistic '{name}'");
            names.push(name.clone());
        }
    }
    Ok(names)
}

/// Appends a node of an operator with inputs and attributes, and returns its output, named after what it is.
type Emit<'a> = dyn FnMut(&str, &[&str], &str, Vec<AttributeProto>) -> String + 'a;

/// Writes every BatchNormalization as training mode computes it, in operators that every runtime has.
///
/// y = (x - mean) / √(var + ε) scale + bias with the mean and the variance of the batch, over all axes but the channels; the
/// running statistics become `momentum old + (1 - momentum) new`, the variance being that of the population (ONNX, opset 15).
///
/// # Errors
/// The rank of an input is not known.
pub fn train_batch_norm(draft: &mut Draft, loaded: &Loaded) -> Result<Vec<Statistic>> {
    let opset = draft.model.opset("").unwrap_or(1);
    let nodes = std::mem::take(&mut draft.graph()?.node);
    let (mut result, mut statistics) = (Vec::with_capacity(nodes.len()), Vec::new());
    for old in nodes {
        if old.op_type() != "BatchNormalization" || !old.domain().is_empty() {
            result.push(old);
            continue;
        }
        ensure!(
            attribute::get_int(&old.attribute, "training_mode").unwrap_or(0) == 0,
            "node '{}' is in training mode in the model itself (training_mode = 1): leave out --batch-norm train, or set it to 0",
            old.name()
        );
        let [x, scale, bias, mean, var, ..] = old.input.as_slice() else {
            bail!("node '{}' has too few inputs", old.name())
        };
        let y = old.output.first().context("a BatchNormalization without outputs")?;
        let fact = loaded.names.get(x.as_str()).map(|&id| loaded.graph.fact(id).clone()).unwrap_or_default();
        let (rank, element) = fact.rank().zip(fact.element).with_context(|| {
            format!(
                "the rank or type of '{x}' is not known, so its BatchNormalization cannot be trained; add value_info"
            )
        })?;
        ensure!(rank >= 2, "the BatchNormalization of '{x}' has no axis of channels");
        let axes: Vec<i64> = (0..rank as i64).filter(|&a| a != 1).collect();
        let epsilon = attribute::get_float(&old.attribute, "epsilon").unwrap_or(1e-5);
        let momentum = attribute::get_float(&old.attribute, "momentum").unwrap_or(0.9);
        let mut shape = vec![1; rank];
        shape[1] = -1;
        let ints = |v: &[i64]| TensorProto::from_int64(&[v.len() as i64], v);
        let number = |v: f64| TensorProto::from_floats(element, &[], &[v]);
        let columns = draft.constant(&format!("{y}/channels"), ints(&shape));
        let flat = draft.constant(&format!("{y}/flat"), ints(&[-1]));
        let axes_input = draft.constant(&format!("{y}/axes"), ints(&axes));
        let epsilon = draft.constant(&format!("{y}/epsilon"), number(epsilon.into())?);
        let keep = draft.constant(&format!("{y}/momentum"), number(momentum.into())?);
        let take = draft.constant(&format!("{y}/rest"), number(1.0 - f64::from(momentum))?);
        let mut emit = |op: &str, inputs: &[&str], what: &str, attributes: Vec<AttributeProto>| {
            let output = if what.is_empty() { y.clone() } else { draft.unique(&format!("{y}/{what}")) };
            result.push(node(op, inputs, &output, attributes));
            output
        };
        let average = |emit: &mut Emit<'_>, x: &str, what: &str| match opset >= 18 {
            true => emit("ReduceMean", &[x, &axes_input], what, vec![attribute::int("keepdims", 1)]),
            false => {
                let attributes = vec![attribute::ints("axes", &axes), attribute::int("keepdims", 1)];
                emit("ReduceMean", &[x], what, attributes)
            }
        };
        let mu = average(&mut emit, x, "mean");
        let centered = emit("Sub", &[x, &mu], "centered", vec![]);
        let squares = emit("Mul", &[&centered, &centered], "squares", vec![]);
        let variance = average(&mut emit, &squares, "variance");
        let shifted = emit("Add", &[&variance, &epsilon], "shifted", vec![]);
        let deviation = emit("Sqrt", &[&shifted], "deviation", vec![]);
        let normal = emit("Div", &[&centered, &deviation], "normal", vec![]);
        let scale = emit("Reshape", &[scale, &columns], "scale", vec![]);
        let bias = emit("Reshape", &[bias, &columns], "bias", vec![]);
        let scaled = emit("Mul", &[&normal, &scale], "scaled", vec![]);
        emit("Add", &[&scaled, &bias], "", vec![]);
        for (running, batch) in [(mean, &mu), (var, &variance)] {
            let new = emit("Reshape", &[batch, &flat], "batch_statistic", vec![]);
            let new = emit("Mul", &[&new, &take], "batch_part", vec![]);
            let kept = emit("Mul", &[running, &keep], "running_part", vec![]);
            let updated = emit("Add", &[&kept, &new], "running", vec![]);
            statistics.push(Statistic { name: running.clone(), updated });
        }
    }
    draft.graph()?.node = result;
    Ok(statistics)
}

/// The same with the draft that gives the output its name.
type EmitInto<'a> = dyn FnMut(&mut Draft, &str, &[&str], Vec<AttributeProto>) -> String + 'a;

/// The prime below which the pseudo-random numbers of dropout lie: squares of them fit into 64 bits.
const PRIME: i64 = (1 << 31) - 1;

/// Drops elements of tensors: with the ratio each is zero, else divided by 1 - ratio.
///
/// Which ones, follows from the place of the element, the site and the number of the step alone, by integer arithmetic that
/// is the same on every runtime: the step stays a pure function, and a training that is resumed repeats itself.
///
/// # Errors
/// Tensors that are not there, of which the type is not known, and opsets before 11.
pub fn drop_out(draft: &mut Draft, loaded: &Loaded, sites: &[(String, f64)], step: &str) -> Result<()> {
    if sites.is_empty() {
        return Ok(());
    }
    let opset = draft.model.opset("").unwrap_or(1);
    ensure!(opset >= 9, "dropout needs opset 9; the model is at {opset}: convert the model to a newer opset");
    let number = |v: i64| TensorProto::from_int64(&[], &[v]);
    for (site, (name, ratio)) in sites.iter().enumerate() {
        ensure!((0.0..1.0).contains(ratio), "the dropout ratio of '{name}' is not in 0 .. 1");
        let element = loaded.names.get(name.as_str()).and_then(|&id| loaded.graph.fact(id).element);
        let element = element.with_context(|| format!("no tensor of a known type is called '{name}'"))?;
        ensure!(element.is_float(), "'{name}' is of type {}, which is not dropped out", element.name());
        let constant = |draft: &mut Draft, v: i64| draft.constant(&format!("{name}/dropout/constant"), number(v));
        let [zero, one] = [0, 1].map(|v| constant(draft, v));
        let prime = constant(draft, PRIME);
        let minus = TensorProto::from_int64(&[1], &[-1]);
        let list = draft.constant(&format!("{name}/dropout/list"), minus);
        let [a, b, c] = [48271, 69621, 40503].map(|v| constant(draft, v));
        let offset = constant(draft, 12_345 + 7919 * site as i64);
        let bound = constant(draft, (ratio * PRIME as f64) as i64);
        let scale = TensorProto::from_floats(element, &[], &[1.0 / (1.0 - ratio)])?;
        let scale = draft.constant(&format!("{name}/dropout/scale"), scale);
        let mut nodes = Vec::new();
        let mut emit = |draft: &mut Draft, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>| {
            let output = draft.unique(&format!("{name}/dropout/{op}"));
            nodes.push(node(op, inputs, &output, attributes));
            output
        };
        let to = |e: ElementType| vec![attribute::int("to", e as i64)];
        let shape = emit(draft, "Shape", &[name], vec![]);
        let size = emit(draft, "Size", &[name], vec![]);
        // Some engines know sizes as symbols, and would compute with a symbol for each place.
        let size = emit(draft, "Cast", &[&size], to(ElementType::Int64));
        let places = match opset >= 11 {
            true => emit(draft, "Range", &[&zero, &size, &one], vec![]),
            // The places of the elements of a list of ones that are not zero.
            false => {
                let size = emit(draft, "Reshape", &[&size, &list], vec![]);
                let ones = emit(draft, "Expand", &[&one, &size], vec![]);
                let places = emit(draft, "NonZero", &[&ones], vec![]);
                emit(draft, "Reshape", &[&places, &list], vec![])
            }
        };
        let modulo = |draft: &mut Draft, emit: &mut EmitInto<'_>, x: &str| match opset >= 10 {
            true => emit(draft, "Mod", &[x, &prime], vec![]),
            false => {
                let times = emit(draft, "Div", &[x, &prime], vec![]);
                let whole = emit(draft, "Mul", &[&times, &prime], vec![]);
                emit(draft, "Sub", &[x, &whole], vec![])
            }
        };
        // h ← (a h + k) mod p and h ← (h² + k) mod p by turns.
        let turn = emit(draft, "Mul", &[step, &c], vec![]);
        let key = emit(draft, "Add", &[&turn, &offset], vec![]);
        let mut h = emit(draft, "Add", &[&places, &key], vec![]);
        h = modulo(draft, &mut emit, &h);
        for factor in [&a, &b] {
            let linear = emit(draft, "Mul", &[&h, factor], vec![]);
            let linear = emit(draft, "Add", &[&linear, &key], vec![]);
            let linear = modulo(draft, &mut emit, &linear);
            let square = emit(draft, "Mul", &[&linear, &linear], vec![]);
            let square = emit(draft, "Add", &[&square, &offset], vec![]);
            h = modulo(draft, &mut emit, &square);
        }
        let dropped = emit(draft, "Less", &[&h, &bound], vec![]);
        let kept = emit(draft, "Not", &[&dropped], vec![]);
        let mask = emit(draft, "Cast", &[&kept], to(element));
        let mask = emit(draft, "Reshape", &[&mask, &shape], vec![]);
        let masked = emit(draft, "Mul", &[name, &mask], vec![]);
        let result = emit(draft, "Mul", &[&masked, &scale], vec![]);
        let taken = draft.graph()?.node.iter().any(|n| n.takes(name));
        ensure!(taken, "no node takes '{name}', so dropping it out changes nothing");
        draft.redirect(name, &result);
        draft.behind(name, nodes);
    }
    Ok(())
}

/// The model's own Dropout nodes that have a ratio: what is dropped out, and the ratio.
pub fn own_dropouts(
    model: &ModelProto,
    constants: &std::collections::HashMap<String, TensorProto>,
) -> Vec<(String, f64)> {
    let nodes = model.graph.iter().flat_map(|g| &g.node).filter(|n| n.op_type() == "Dropout");
    let site = |n: &NodeProto| {
        // The attribute is a float32: the decimal number that was meant is the one that it is printed as.
        let input = n.input.get(1).and_then(|r| constants.get(r)).and_then(|r| r.floats().ok()?.first().copied());
        let ratio =
            input.or_else(|| attribute::get_float(&n.attribute, "ratio")?.to_string().parse().ok()).unwrap_or(0.5);
        Some((n.output.first()?.clone(), ratio))
    };
    nodes.filter_map(site).collect()
}
