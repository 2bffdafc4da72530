//! LoRA: the product of two thin matrices is added to a weight, and only the two are trained (Hu et al., 2021).

use super::select::{Beside, Weight};
use crate::expr::Expr;
use crate::expr::rewrite::Here;
use crate::graph::Loaded;
use crate::onnx::{ElementType, GraphProto, NodeProto, TensorProto, attribute, canonical_domain};
use crate::rules::properties::IntegerLayer;
use crate::rules::{Integers, Moves, Rule, newest};
use crate::weights::Form;
use anyhow::{Context, Error, Result, ensure};
use serde::{Deserialize, Serialize};

/// A weight with its two matrices: `weight + scale (left · right)`, in the weight's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Adapter {
    /// The weight.
    pub weight: String,
    /// The shape of the weight.
    pub shape: Vec<i64>,
    /// The matrix of shape `[rows, rank]`.
    pub left: String,
    /// The matrix of shape `[rank, columns]`.
    pub right: String,
    /// The shapes of the two matrices.
    pub shapes: [[i64; 2]; 2],
    /// α / rank
    pub scale: f64,
    /// Whether `left` is on the side of the layer's input: that one starts with random numbers, the other with zeros.
    pub left_first: bool,
    /// The layer whose output gets the product, where the weight holds integers and stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Beside>,
}

/// The layer that takes a tensor of integers as its weight, with the rows and columns of the matrix and the type of
/// what comes out; `None` where there is none to whose output a product could be added.
pub fn beside(graph: &GraphProto, loaded: &Loaded, name: &str) -> Option<(Beside, [i64; 2], ElementType)> {
    let produces = |wanted: &str| graph.node.iter().find(|n| n.output.iter().any(|o| o == wanted));
    let takes = |n: &&NodeProto, wanted: &str| n.input.iter().any(|i| i == wanted);
    let row = |n: &NodeProto| newest(canonical_domain(n.domain()), n.op_type());
    let user = |wanted: &str, is: fn(&Rule) -> bool| {
        graph.node.iter().find(|n| takes(n, wanted) && row(n).is_some_and(is))?.output.first().map(String::as_str)
    };
    let fact = |wanted: &str| loaded.names.get(wanted).map(|&id| loaded.graph.fact(id).clone());
    let node = graph.node.iter().find(|n| takes(n, name))?;
    let (first, y) = (node.input.first()?.as_str(), node.output.first()?.as_str());
    let sizes = |wanted: &str| -> Option<Vec<i64>> { fact(wanted)?.shape?.iter().map(|d| d.known()).collect() };
    let int = |name: &str| attribute::get_int(&node.attribute, name);
    let matrix = || int("K").zip(int("N")).map(|(k, n)| [k, n]).or_else(|| <[i64; 2]>::try_from(sizes(name)?).ok());
    // The numbers that were quantized for the layer.
    let real = || {
        let before = produces(first).filter(|n| row(n).is_some_and(|r| r.integers == Integers::Rounded))?;
        before.input.first().map(String::as_str)
    };
    let (input, output, shape, lookup) = match row(node).map(|r| r.integer_layer).unwrap_or_default() {
        IntegerLayer::Bare => {
            let cast = user(y, |r| r.moves == Moves::InOrder)?;
            (real()?, user(cast, Rule::scales)?, matrix()?, false)
        }
        IntegerLayer::Scaled => (real()?, y, matrix()?, false),
        IntegerLayer::Whole => (first, y, matrix()?, false),
        IntegerLayer::Table(axis) => {
            let dims = sizes(name).filter(|dims| axis.of(&node.attribute, dims.len()) == Some(0))?;
            // Several numbers may lie in a byte: what comes out says how many columns there are.
            let (&[rows, _], columns) = (dims.as_slice(), fact(y)?.shape?.last()?.known()?) else { return None };
            (node.input.get(1)?.as_str(), y, [rows, columns], true)
        }
        IntegerLayer::No => return None,
    };
    let element = fact(output)?.element.filter(|e| e.is_float())?;
    Some((Beside { input: input.to_owned(), output: output.to_owned(), lookup }, shape, element))
}

/// The adapter of a weight; `None` where it is no factor of a matrix product or convolution.
pub fn adapter(weight: &Weight, rank: i64, alpha: f64) -> Option<Adapter> {
    let name = &weight.name;
    let adapter = |shape: Vec<i64>, shapes, left_first, beside| Adapter {
        weight: name.clone(),
        shape,
        left: format!("{name}.lora_left"),
        right: format!("{name}.lora_right"),
        shapes,
        scale: alpha / rank as f64,
        left_first,
        beside,
    };
    if let Some((beside, [rows, columns])) = &weight.beside {
        let shapes = [[*rows, rank], [rank, *columns]];
        return Some(adapter(vec![*rows, *columns], shapes, !beside.lookup, Some(beside.clone())));
    }
    let product = weight.product.as_ref()?;
    let dims = &weight.value.dims;
    let shapes = match (product.form, dims.as_slice()) {
        (Form::Kernel, [out, rest @ ..]) => [[*out, rank], [rank, rest.iter().product()]],
        (Form::Matrix, &[rows, columns]) => [[rows, rank], [rank, columns]],
        _ => return None,
    };
    let left_first = product.form != Form::Kernel && product.second != product.transposes;
    Some(adapter(dims.clone(), shapes, left_first, None))
}

impl Adapter {
    /// What the two matrices start with: uniform in ±1/√fan-in, and zeros.
    ///
    /// # Errors
    /// An element type that is not of floating point.
    pub(crate) fn initial(&self, element: ElementType, random: &mut super::state::Random) -> Result<[TensorProto; 2]> {
        let fan_in = if self.left_first { self.shapes[0][0] } else { self.shapes[1][1] };
        let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
        let mut matrix = |i: usize, random_one: bool| {
            let count = self.shapes[i].iter().product::<i64>().max(0) as usize;
            let next = |_| if random_one { (2.0 * random.uniform() - 1.0) * bound } else { 0.0 };
            let values: Vec<f64> = (0..count).map(next).collect();
            TensorProto::from_floats(element, &self.shapes[i], &values)
        };
        Ok([matrix(0, self.left_first)?, matrix(1, !self.left_first)?])
    }

    /// The tensor to which the product is added: the weight, or the output of the layer that has integers for a weight.
    pub(crate) fn place(&self) -> &str {
        self.beside.as_ref().map_or(&self.weight, |b| &b.output)
    }

    /// The sum that every node takes in the place of [`Adapter::place`]. The matrices are tensors of their names before
    /// it.
    ///
    /// # Errors
    /// They are not there.
    pub(crate) fn sum<'g>(&self, here: &Here<'g>, w: Expr<'g>) -> Result<Expr<'g>> {
        let matrix = |name: &str| Ok::<_, Error>(here.tensor(name)?.cast_like(w));
        let (left, right) = (matrix(&self.left)?, matrix(&self.right)?);
        let Some(beside) = &self.beside else {
            return Ok(w + (left.matmul(right) * self.scale).reshape_to(&self.shape));
        };
        let x = here.tensor(&beside.input)?;
        let thin = if beside.lookup { left.gather(x, 0) } else { x.cast_like(w).matmul(left) };
        Ok(w + thin.matmul(right) * self.scale)
    }

    /// The weight with the product added.
    ///
    /// # Errors
    /// Tensors of other shapes.
    pub(crate) fn merged(&self, weight: &[f64], left: &[f64], right: &[f64]) -> Result<Vec<f64>> {
        let [[rows, rank], [_, columns]] = self.shapes.map(|s| s.map(|d| d.max(0) as usize));
        let fits = weight.len() == rows * columns && left.len() == rows * rank && right.len() == rank * columns;
        ensure!(fits, "the LoRA matrices of '{}' do not fit it", self.weight);
        let mut sum = weight.to_vec();
        for (row, out) in sum.chunks_exact_mut(columns.max(1)).enumerate() {
            let factors = left.get(row * rank..(row + 1) * rank).context("a row is missing")?;
            for (factor, line) in factors.iter().zip(right.chunks_exact(columns.max(1))) {
                out.iter_mut().zip(line).for_each(|(o, r)| *o += self.scale * factor * r);
            }
        }
        Ok(sum)
    }
}
