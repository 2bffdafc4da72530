//! Gradients that users give as ONNX functions, for operators of their own or in place of the table's.

use super::{Flow, Pass};
use crate::expr::Expr;
use crate::graph::write::value_info;
use crate::graph::{Node, ValueId, load_body};
use crate::onnx::inline::inline_functions;
use crate::onnx::proto::OperatorSetIdProto;
use crate::onnx::{FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, canonical_domain};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use prost::Message;

/// The functions of a file: of a FunctionProto, or of a model that holds functions.
///
/// # Errors
/// The bytes are neither.
pub fn read_functions(bytes: Bytes) -> Result<Vec<FunctionProto>> {
    if let Ok(model) = ModelProto::decode(bytes.clone())
        && !model.functions.is_empty()
    {
        return Ok(model.functions);
    }
    match FunctionProto::decode(bytes) {
        Ok(function) if !function.name().is_empty() && !function.node.is_empty() => Ok(vec![function]),
        _ => bail!("it holds neither a FunctionProto nor a model with functions"),
    }
}

impl<'g> Pass<'g> {
    /// The user's gradient of a node's operator: a function of the same domain and name.
    pub(super) fn own_function(&self, node: &Node) -> Option<&'g FunctionProto> {
        let same = |f: &&FunctionProto| f.name() == &*node.op_type && canonical_domain(f.domain()) == &*node.domain;
        self.own_functions.iter().find(same)
    }

    /// What the node's inputs get from the function, which takes the node's inputs, its outputs and their gradients,
    /// and returns the gradients of the inputs.
    pub(super) fn apply_function(
        &self,
        function: &FunctionProto,
        node: &Node,
        flows: &[Option<Flow<'g>>],
        wanted: &[ValueId],
    ) -> Result<Vec<(ValueId, Flow<'g>)>> {
        let b = self.builder;
        let (inputs, outputs) = (node.inputs.len(), node.outputs.len());
        ensure!(
            function.input.len() == inputs + 2 * outputs,
            "its gradient function takes {} inputs; the node's {inputs} inputs, {outputs} outputs and their gradients make {}",
            function.input.len(),
            inputs + 2 * outputs
        );
        ensure!(
            function.output.len() <= inputs,
            "its gradient function returns more gradients than the node has inputs"
        );
        let dy = |(output, flow): (&Option<ValueId>, &Option<Flow<'g>>)| match (output, flow) {
            (_, Some(Flow::Value(dy))) => Some(*dy),
            (Some(y), _) => Some(b.expr(*y).zeros_like()),
            (None, _) => None,
        };
        let values = node.inputs.iter().chain(&node.outputs).map(|v| v.map(|v| b.expr(v)));
        let arguments: Vec<Option<Expr<'g>>> = values.chain(node.outputs.iter().zip(flows).map(dy)).collect();
        let formals = function.input.iter().zip(&arguments);
        let given: Vec<(String, Expr<'g>)> =
            formals.clone().filter_map(|(name, a)| Some((name.clone(), (*a)?))).collect();
        let call = NodeProto {
            op_type: function.name.clone(),
            domain: function.domain.clone(),
            overload: function.overload.clone(),
            input: formals.map(|(name, a)| a.map_or_else(String::new, |_| name.clone())).collect(),
            output: (0..function.output.len()).map(|i| format!("d{i}")).collect(),
            attribute: node.attributes.iter().filter(|a| takes(function, a.name())).cloned().collect(),
            ..NodeProto::default()
        };
        let facts: Vec<_> = given.iter().map(|(_, e)| e.fact()).collect();
        let graph = self.written_out(function, call, node, &given)?;
        let scope = load_body(&mut b.graph_mut(), &graph, &facts)?;
        let arguments: Vec<Expr<'g>> = given.into_iter().map(|(_, e)| e).collect();
        let (gradients, _) = b.splice(scope, &arguments);
        let inputs = node.inputs.iter().zip(gradients);
        Ok(inputs.filter_map(|(x, dx)| Some(((*x)?, Flow::Value(dx)))).filter(|(x, _)| wanted.contains(x)).collect())
    }

    /// A graph of the nodes that a call of a function stands for, its inputs the tensors that are given by name.
    fn written_out(
        &self,
        function: &FunctionProto,
        call: NodeProto,
        node: &Node,
        given: &[(String, Expr<'g>)],
    ) -> Result<GraphProto> {
        let graph = self.builder.graph();
        let import =
            |domain: String, of: &str| OperatorSetIdProto { domain: Some(domain), version: Some(graph.opset(of)) };
        let output = |name: &String| ValueInfoProto { name: Some(name.clone()), ..Default::default() };
        let model = ModelProto {
            opset_import: vec![import(String::new(), ""), import(function.domain().to_owned(), &node.domain)],
            graph: Some(GraphProto {
                input: given.iter().map(|(name, e)| value_info(&graph, name, graph.fact(e.id()))).collect(),
                output: call.output.iter().map(output).collect(),
                node: vec![call],
                ..GraphProto::default()
            }),
            functions: vec![function.clone()],
            ..ModelProto::default()
        };
        inline_functions(&model, &|_| true)?.graph.context("no graph")
    }
}

/// Whether a function has the attribute, with a default or without.
fn takes(function: &FunctionProto, name: &str) -> bool {
    function.attribute.iter().any(|a| a == name) || function.attribute_proto.iter().any(|a| a.name() == name)
}
