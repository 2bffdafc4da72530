//! A loss that another model computes: its nodes become nodes of the model, by way of a function that is called and
//! inlined.

use crate::onnx::inline::inline_functions;
use crate::onnx::proto::OperatorSetIdProto;
use crate::onnx::{FunctionProto, ModelProto, NodeProto, canonical_domain};
use anyhow::{Context, Result, ensure};
use std::collections::HashSet;

/// The name of the call, and so the scope of all names of the loss.
pub const SCOPE: &str = "loss_model";

/// Adds a model of a loss; returns the tensor with its first output, and what has been connected.
///
/// Its inputs are the tensors of `model` of those names, or else new inputs.
///
/// # Errors
/// None of its inputs is a tensor of the model; the two are of different opsets; names that stand in the way.
pub fn attach(model: &mut ModelProto, loss: &ModelProto) -> Result<(String, String)> {
    let graph = loss.graph.as_ref().context("the loss model holds no graph")?;
    for opset in &loss.opset_import {
        let own = model.opset(opset.domain());
        ensure!(
            own.is_none_or(|v| v == opset.version()),
            "the loss model is at opset {}, the model at {}: convert one of them",
            opset.version(),
            own.unwrap_or_default()
        );
        if own.is_none() {
            model.opset_import.push(opset.clone());
        }
    }
    let constants: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    let inputs: Vec<_> = graph.input.iter().filter(|i| !constants.contains(i.name())).collect();
    ensure!(graph.sparse_initializer.is_empty(), "the loss model has sparse initializers");
    let mut nodes: Vec<_> = (graph.initializer.iter()).map(|t| NodeProto::constant(t.name(), t.clone())).collect();
    nodes.extend(graph.node.iter().cloned());
    let result = graph.output.first().context("the loss model has no output")?.name();
    let function = FunctionProto {
        name: Some(SCOPE.to_owned()),
        domain: Some(SCOPE.to_owned()),
        input: inputs.iter().map(|i| i.name().to_owned()).collect(),
        output: vec![result.to_owned()],
        node: nodes,
        opset_import: loss.opset_import.clone(),
        ..FunctionProto::default()
    };
    let main = model.graph.as_mut().context("the model holds no graph")?;
    let computed = main.node.iter().flat_map(|n| &n.output).map(String::as_str);
    let known: HashSet<String> = computed.chain(main.input.iter().map(|i| i.name())).map(str::to_owned).collect();
    let (taken, new): (Vec<_>, Vec<_>) = inputs.into_iter().partition(|i| known.contains(i.name()));
    ensure!(!taken.is_empty(), "no input of the loss model is called as a tensor of the model");
    let name = format!("{SCOPE}/result");
    ensure!(!known.contains(&name), "the model has a tensor called '{name}' already");
    let names = |list: &[&crate::onnx::ValueInfoProto]| {
        list.iter().map(|i| format!("'{}'", i.name())).collect::<Vec<_>>().join(", ")
    };
    let mut said = format!("the loss model takes {}", names(&taken));
    if !new.is_empty() {
        said += &format!(", and as new inputs {}", names(&new));
    }
    main.input.extend(new.into_iter().cloned());
    let arguments: Vec<&str> = function.input.iter().map(String::as_str).collect();
    let mut call = NodeProto::new(SCOPE, &arguments, &name, vec![]);
    call.domain = Some(SCOPE.to_owned());
    call.name = Some(SCOPE.to_owned());
    main.node.push(call);
    model.functions.extend(loss.functions.iter().cloned());
    model.functions.push(function);
    model.opset_import.push(OperatorSetIdProto { domain: Some(SCOPE.to_owned()), version: Some(1) });
    let mut inlined = inline_functions(model, &|_| true)?;
    inlined.functions.clear();
    inlined.opset_import.retain(|o| canonical_domain(o.domain()) != SCOPE);
    *model = inlined;
    Ok((name, said))
}
