//! Tensors of float64 elements and what the kernels do with them.

use crate::onnx::ElementType;
use anyhow::{Context, Result, ensure};

/// A kernel does not make tensors of more elements than this.
const MAX_ELEMENTS: usize = 1 << 28;

/// The element type of a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Element {
    /// The element type of the input with this number.
    Like(usize),
    /// This one.
    Is(ElementType),
}

/// A tensor, its elements in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
    /// What the elements become when the kernel is done.
    pub element: Element,
}

impl Array {
    /// The tensor whose elements a function of the index says.
    pub fn from_fn(dims: &[usize], mut f: impl FnMut(&[usize]) -> f64) -> Result<Array> {
        let mut array = Array::filled(dims, 0.0)?;
        let mut i = 0;
        each_index(dims, |index| {
            array.values[i] = f(index);
            i += 1;
        });
        Ok(array)
    }

    /// A tensor of equal elements.
    pub fn filled(dims: &[usize], value: f64) -> Result<Array> {
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_ELEMENTS);
        let count = count.with_context(|| format!("a tensor of dimensions {dims:?} is too large"))?;
        Ok(Array { dims: dims.to_vec(), values: vec![value; count], element: Element::Like(0) })
    }

    /// A tensor without dimensions.
    pub fn scalar(value: f64) -> Array {
        Array { dims: vec![], values: vec![value], element: Element::Like(0) }
    }

    /// These elements, of another element type in the end.
    pub fn of(self, element: Element) -> Array {
        Array { element, ..self }
    }

    /// These elements in other dimensions.
    pub fn reshaped(self, dims: &[usize]) -> Result<Array> {
        ensure!(self.values.len() == dims.iter().product::<usize>(), "{:?} cannot be {dims:?}", self.dims);
        Ok(Array { dims: dims.to_vec(), ..self })
    }

    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The size of a dimension; 1 where there is none.
    pub fn dim(&self, axis: usize) -> usize {
        self.dims.get(axis).copied().unwrap_or(1)
    }

    fn offset(&self, index: &[usize]) -> usize {
        index.iter().zip(&self.dims).fold(0, |offset, (i, d)| offset * d + i)
    }

    /// The element at an index of as many numbers as there are dimensions.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.values[self.offset(index)]
    }

    /// The element at an index that may lie outside; zero there.
    pub fn at_or_zero(&self, index: &[i64]) -> f64 {
        let inside = index
            .iter()
            .zip(&self.dims)
            .try_fold(0usize, |offset, (&i, &d)| usize::try_from(i).ok().filter(|&i| i < d).map(|i| offset * d + i));
        inside.map_or(0.0, |offset| self.values[offset])
    }

    /// The element at an index, to be changed.
    pub fn at_mut(&mut self, index: &[usize]) -> &mut f64 {
        let offset = self.offset(index);
        &mut self.values[offset]
    }

    /// The element that stands at an index of a larger shape to which this one broadcasts.
    pub fn broadcast_at(&self, index: &[usize]) -> f64 {
        let skipped = index.len().saturating_sub(self.rank());
        let inner = index[skipped..].iter().zip(&self.dims);
        self.values[inner.fold(0, |offset, (&i, &d)| offset * d + if d == 1 { 0 } else { i })]
    }

    /// The elements as integers.
    pub fn integers(&self) -> Vec<i64> {
        self.values.iter().map(|&v| v as i64).collect()
    }

    /// Function of each element.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Array {
        Array { dims: self.dims.clone(), values: self.values.iter().map(|&v| f(v)).collect(), element: self.element }
    }

    /// Function of each element, in their order.
    pub fn map_with(&self, mut f: impl FnMut(f64) -> f64) -> Array {
        Array { dims: self.dims.clone(), values: self.values.iter().map(|&v| f(v)).collect(), element: self.element }
    }

    /// The dimensions in another order.
    pub fn transposed(&self, perm: &[usize]) -> Result<Array> {
        let dims: Vec<usize> = perm.iter().map(|&p| self.dims[p]).collect();
        let mut source = vec![0; perm.len()];
        Array::from_fn(&dims, |index| {
            perm.iter().zip(index).for_each(|(&p, &i)| source[p] = i);
            self.at(&source)
        })
    }
}

/// The shape that shapes broadcast to.
pub fn broadcast(shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut dims = vec![1; rank];
    for shape in shapes {
        for (d, &n) in dims[rank - shape.len()..].iter_mut().zip(*shape) {
            ensure!(*d == n || *d == 1 || n == 1, "{shapes:?} do not broadcast");
            if *d == 1 {
                *d = n;
            }
        }
    }
    Ok(dims)
}

/// Calls `f` for each index of a shape, in row-major order.
pub fn each_index(dims: &[usize], mut f: impl FnMut(&[usize])) {
    if dims.contains(&0) {
        return;
    }
    let mut index = vec![0; dims.len()];
    loop {
        f(&index);
        let Some(axis) = (0..dims.len()).rev().find(|&a| index[a] + 1 < dims[a]) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}
