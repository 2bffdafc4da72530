//! Every tensor of a model, wherever it is: initializers, attributes, subgraphs, functions.

use super::super::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

/// The walk is written once for shared and for mutable references. It is as deep as the protobuf was.
macro_rules! walk {
    ($model:ident, $graph:ident, $nodes:ident, $attribute:ident, $iter:ident $(, $mut:tt)?) => {
        /// Calls `visit` for each tensor of the model.
        pub fn $model<E>(model: &$($mut)? ModelProto, visit: &mut dyn FnMut(&$($mut)? TensorProto) -> Result<(), E>) -> Result<(), E> {
            for graph in model.graph.$iter() {
                $graph(graph, visit)?;
            }
            for function in model.functions.$iter() {
                function.attribute_proto.$iter().try_for_each(|a| $attribute(a, visit))?;
                $nodes(&$($mut)? function.node, visit)?;
            }
            for training in model.training_info.$iter() {
                for graph in training.initialization.$iter().chain(training.algorithm.$iter()) {
                    $graph(graph, visit)?;
                }
            }
            Ok(())
        }

        fn $graph<E>(graph: &$($mut)? GraphProto, visit: &mut dyn FnMut(&$($mut)? TensorProto) -> Result<(), E>) -> Result<(), E> {
            graph.initializer.$iter().try_for_each(&mut *visit)?;
            for sparse in graph.sparse_initializer.$iter() {
                sparse.values.$iter().chain(sparse.indices.$iter()).try_for_each(&mut *visit)?;
            }
            $nodes(&$($mut)? graph.node, visit)
        }

        fn $nodes<E>(nodes: &$($mut)? [NodeProto], visit: &mut dyn FnMut(&$($mut)? TensorProto) -> Result<(), E>) -> Result<(), E> {
            nodes.$iter().flat_map(|node| node.attribute.$iter()).try_for_each(|a| $attribute(a, visit))
        }

        fn $attribute<E>(a: &$($mut)? AttributeProto, visit: &mut dyn FnMut(&$($mut)? TensorProto) -> Result<(), E>) -> Result<(), E> {
            a.t.$iter().map(|t| &$($mut)? **t).chain(a.tensors.$iter()).try_for_each(&mut *visit)?;
            let boxed = a.sparse_tensor.$iter().map(|s| &$($mut)? **s);
            for sparse in boxed.chain(a.sparse_tensors.$iter()) {
                sparse.values.$iter().chain(sparse.indices.$iter()).try_for_each(&mut *visit)?;
            }
            a.g.$iter().map(|g| &$($mut)? **g).chain(a.graphs.$iter()).try_for_each(|g| $graph(g, visit))
        }
    };
}

walk!(tensors, in_graph, in_nodes, in_attribute, iter);
walk!(tensors_mut, in_graph_mut, in_nodes_mut, in_attribute_mut, iter_mut, mut);
