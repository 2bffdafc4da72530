//! LoRA: the product of two thin matrices is added to a weight, and only the two are trained (Hu et al., 2021).

use super::select::Weight;
use crate::expr::Expr;
use crate::expr::rewrite::Here;
use crate::onnx::{ElementType, TensorProto};
use anyhow::{Context, Error, Result, ensure};
use serde::{Deserialize, Serialize};

/// A weight with its two matrices: `weight + scale (left · right)`, in the weight's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
}

/// The adapter of a weight; `None` where it is no factor of a matrix product or convolution.
pub fn adapter(weight: &Weight, rank: i64, alpha: f64) -> Option<Adapter> {
    let product = weight.product.as_ref()?;
    let dims = &weight.value.dims;
    let shapes = match (product.op.as_str(), dims.as_slice()) {
        ("Conv", [out, rest @ ..]) => [[*out, rank], [rank, rest.iter().product()]],
        ("MatMul" | "Gemm", &[rows, columns]) => [[rows, rank], [rank, columns]],
        _ => return None,
    };
    let left_first = product.op != "Conv" && product.second != product.transposes;
    let name = &weight.name;
    Some(Adapter {
        weight: name.clone(),
        shape: dims.clone(),
        left: format!("{name}.lora_left"),
        right: format!("{name}.lora_right"),
        shapes,
        scale: alpha / rank as f64,
        left_first,
    })
}

impl Adapter {
    /// What the two matrices start with: uniform in ±1/√fan-in, and zeros.
    ///
    /// # Errors
    /// An element type that is not of floating point.
    pub fn initial(&self, element: ElementType, random: &mut super::state::Random) -> Result<[TensorProto; 2]> {
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

    /// The sum that every node takes in the place of the weight w. The matrices are tensors of their names before it.
    ///
    /// # Errors
    /// They are not there.
    pub fn sum<'g>(&self, here: &Here<'g>, w: Expr<'g>) -> Result<Expr<'g>> {
        let matrix = |name: &str| Ok::<_, Error>(here.tensor(name)?.cast_like(w));
        let product = matrix(&self.left)?.matmul(matrix(&self.right)?);
        Ok(w + (product * self.scale).reshape_to(&self.shape))
    }

    /// The weight with the product added.
    ///
    /// # Errors
    /// Tensors of other shapes.
    pub fn merged(&self, weight: &[f64], left: &[f64], right: &[f64]) -> Result<Vec<f64>> {
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
