//! Tensors out of nothing, and control flow.

use super::{Builder, Expr};
use crate::graph::{Dim, Fact, NewNode, Origin, ScopeId, Shape, ValueId};
use crate::onnx::{AttributeProto, CONSTANT, ElementType, TensorProto, attribute};
use anyhow::{Result, bail, ensure};

/// Above this many steps a recurrence is not written out step by step.
const MAX_UNROLLED: i64 = 512;

/// No axis is longer than 2 to this power.
const MAX_DOUBLINGS: u32 = 40;

impl Builder {
    /// A tensor that is written into the graph, if there is one.
    pub(in crate::expr) fn tensor(&self, tensor: Result<TensorProto>) -> Expr<'_> {
        match tensor {
            Ok(tensor) => self.emit(CONSTANT, &[], vec![attribute::tensor("value", tensor)]),
            Err(error) => self.fail(error),
        }
    }

    /// Integers or truth values that are written into the graph. Before version 9 a Constant holds floating-point
    /// numbers alone: then they are cast, of numbers that stand for them exactly.
    pub(in crate::expr) fn whole(&self, element: ElementType, dims: &[i64], values: &[i64]) -> Expr<'_> {
        let tensor = TensorProto::from_ints(element, dims, values);
        let exact = values.iter().all(|v| v.unsigned_abs() <= 1 << f64::MANTISSA_DIGITS);
        if self.opset() >= 9 || !exact || tensor.is_err() {
            return self.tensor(tensor);
        }
        let numbers: Vec<f64> = values.iter().map(|&v| v as f64).collect();
        let numbers = self.tensor(TensorProto::from_floats(ElementType::Double, dims, &numbers));
        self.emit("Cast", &[Some(numbers)], vec![attribute::int("to", element as i64)])
    }

    /// Whether a node is how a constant is written, and nothing to fold.
    pub(in crate::expr) fn writes_constant(&self, op: &str, inputs: &[Option<ValueId>]) -> bool {
        let of_constant = || {
            let graph = self.graph();
            let producer = inputs.first().copied().flatten().and_then(|i| graph.producer(i));
            producer.is_some_and(|(node, _)| {
                let node = graph.node(node);
                node.is_constant() && node.origin != Origin::Model
            })
        };
        op == CONSTANT || (op == "Cast" && self.opset() < 9 && of_constant())
    }

    /// A tensor of integers.
    pub fn ints(&self, values: &[i64]) -> Expr<'_> {
        self.whole(ElementType::Int64, &[values.len() as i64], values)
    }

    /// An integer without dimensions.
    pub fn int(&self, value: i64) -> Expr<'_> {
        self.whole(ElementType::Int64, &[], &[value])
    }

    /// A number without dimensions, of any numeric or boolean type.
    pub fn scalar(&self, value: f64, element: ElementType) -> Expr<'_> {
        self.numbers(&[value], &[], element)
    }

    /// A tensor of numbers, of any numeric or boolean type.
    pub fn numbers(&self, values: &[f64], dims: &[i64], element: ElementType) -> Expr<'_> {
        match element.is_float() {
            true => self.tensor(TensorProto::from_floats(element, dims, values)),
            false => self.whole(element, dims, &values.iter().map(|&v| v as i64).collect::<Vec<_>>()),
        }
    }

    /// A tensor with `value` in every place, of a shape that is a list of integers, computed or not.
    pub fn full<'g>(&'g self, shape: Expr<'g>, value: f64, element: ElementType) -> Expr<'g> {
        let known = shape.ints();
        if known.as_ref().is_some_and(Vec::is_empty) {
            return self.scalar(value, element);
        }
        if self.opset() >= 9 {
            return match TensorProto::from_numbers(element, &[1], &[value]) {
                Ok(tensor) => self.emit("ConstantOfShape", &[Some(shape)], vec![attribute::tensor("value", tensor)]),
                Err(error) => self.fail(error),
            };
        }
        let scalar = self.scalar(value, element);
        if self.opset() == 8 {
            return self.emit("Expand", &[Some(scalar), Some(shape)], vec![]);
        }
        match shape.fact().shape.as_deref() {
            Some(&[Dim::Known(rank)]) => scalar.reshape_to(&vec![1; rank as usize]).tile(shape),
            _ => self.too_old("a tensor of computed rank", 8),
        }
    }

    /// The integers from 0 up to a size.
    pub fn range<'g>(&'g self, size: Expr<'g>) -> Expr<'g> {
        if let Some([n]) = size.ints().as_deref()
            && *n <= 1 << 16
        {
            return self.ints(&(0..*n).collect::<Vec<i64>>());
        }
        if self.opset() >= 11 {
            return self.emit("Range", &[Some(self.int(0)), Some(size), Some(self.int(1))], vec![]);
        }
        let places = match self.opset() {
            // The trip numbers of a loop, which has to carry something.
            ..9 => {
                let scalar = |element| Fact::tensor(Some(element), Some([].into()));
                let [int, bool] = [ElementType::Int64, ElementType::Bool].map(scalar);
                let (body, inputs) = self.open(vec![int.clone(), bool, int]);
                let outputs: Vec<_> = [1, 2, 0].iter().filter_map(|&i| inputs.get(i).copied()).collect();
                self.close(body, &outputs, inputs.len());
                self.loop_(Some(size), None, &[self.int(0)], body).last().copied().unwrap_or(size)
            }
            // The places of the elements of a list of ones that are not zero.
            _ => self.full(size.reshape_to(&[1]), 1.0, ElementType::Float).non_zero().flattened(),
        };
        if let Some(&[count]) = size.fact().dims().as_deref() {
            self.graph_mut().fact_mut(places.id()).shape = Some([count].into());
        }
        places
    }

    /// One of two results, computed by the branches, which are scopes without inputs.
    pub fn if_<'g>(&'g self, condition: Expr<'g>, then: ScopeId, otherwise: ScopeId) -> Vec<Expr<'g>> {
        let outputs = self.graph().scope(then).outputs.len();
        self.emit_many(
            "If",
            &[Some(condition)],
            vec![],
            vec![("then_branch", then), ("else_branch", otherwise)],
            outputs,
        )
    }

    /// A loop whose body takes the trip number, a condition and the states, and returns a condition, the states, and
    /// what is stacked.
    pub fn loop_<'g>(
        &'g self,
        trips: Option<Expr<'g>>,
        condition: Option<Expr<'g>>,
        states: &[Expr<'g>],
        body: ScopeId,
    ) -> Vec<Expr<'g>> {
        let mut inputs = vec![trips, condition];
        inputs.extend(states.iter().copied().map(Some));
        let outputs = self.graph().scope(body).outputs.len().saturating_sub(1);
        self.emit_many("Loop", &inputs, vec![], vec![("body", body)], outputs)
    }

    /// A Scan whose body takes the states and a slice of each tensor `along` which it runs, and returns the states and
    /// what is stacked: of each of `stacked` the axis, and whether the first step comes last.
    pub fn scan<'g>(
        &'g self,
        states: &[Expr<'g>],
        along: &[Along<'g>],
        stacked: &[(i64, bool)],
        body: ScopeId,
    ) -> Vec<Expr<'g>> {
        let outputs = states.len() + stacked.len();
        if self.opset() < 9 {
            return vec![self.too_old("Scan without a batch axis", 9); outputs];
        }
        let inputs: Vec<_> = states.iter().copied().chain(along.iter().map(|a| a.tensor)).map(Some).collect();
        let mut attributes = vec![attribute::int("num_scan_inputs", along.len() as i64)];
        let lists = [
            ("scan_input_axes", along.iter().map(|a| a.axis).collect::<Vec<i64>>()),
            ("scan_input_directions", along.iter().map(|a| a.reverse.into()).collect()),
            ("scan_output_axes", stacked.iter().map(|&(axis, _)| axis).collect()),
            ("scan_output_directions", stacked.iter().map(|&(_, reverse)| reverse.into()).collect()),
        ];
        let given = lists.into_iter().filter(|(_, list)| list.iter().any(|&n| n != 0));
        attributes.extend(given.map(|(name, list)| attribute::ints(name, &list)));
        self.emit_many("Scan", &inputs, attributes, vec![("body", body)], outputs)
    }

    /// What `step` makes of states at the distances 1, 2, 4 and so on below a size, an int64 without dimensions: it
    /// takes a distance, an int64 without dimensions, and the states, and returns as many of the same shapes. Where the
    /// size is known the steps are written one after the other, else as a Loop.
    ///
    /// # Errors
    /// The number of states changes.
    pub fn doubling<'g>(
        &'g self,
        size: Expr<'g>,
        states: &[Expr<'g>],
        step: impl Fn(Expr<'g>, &[Expr<'g>]) -> Vec<Expr<'g>>,
    ) -> Result<Vec<Expr<'g>>> {
        let distances = (0..MAX_DOUBLINGS).map(|i| 1i64 << i);
        if let Some(&[size]) = size.ints().as_deref() {
            let below = distances.take_while(|&d| d < size);
            return Ok(below.fold(states.to_vec(), |states, d| step(self.int(d), &states)));
        }
        let distances: Vec<i64> = distances.collect();
        let trips = self.ints(&distances).less(size).cast(ElementType::Int64).sum_out(&[0]);
        let number = |element| Fact::tensor(Some(element), Some([].into()));
        let head = [number(ElementType::Int64), number(ElementType::Bool), number(ElementType::Int64)];
        let (body, inputs) = self.open(head.into_iter().chain(states.iter().map(|s| s.fact())).collect());
        let [_, going, distance, before @ ..] = &inputs[..] else { bail!("a loop without a distance") };
        let outputs = self.within(body, || [vec![*going, *distance * 2], step(*distance, before)].concat());
        ensure!(outputs.len() == inputs.len() - 1, "a loop that loses a state");
        self.close(body, &outputs, inputs.len());
        let first: Vec<_> = [self.int(1)].into_iter().chain(states.iter().copied()).collect();
        Ok(self.loop_(Some(trips), None, &first, body).split_off(1))
    }

    /// Carries states along the first axis of some tensors: `step` takes the states and a slice of each, and returns
    /// the states and what is stacked. A Scan, or where the model is too old for it the steps one after the other.
    ///
    /// # Errors
    /// What `step` fails with; the model is too old, and the number of steps is not known or large.
    pub fn run_along<'g>(
        &'g self,
        states: &[Expr<'g>],
        tensors: &[Expr<'g>],
        reverse: bool,
        step: impl Fn(&[Expr<'g>], &[Expr<'g>]) -> Result<(Vec<Expr<'g>>, Vec<Expr<'g>>)>,
    ) -> Result<(Vec<Expr<'g>>, Vec<Expr<'g>>)> {
        let along = |&tensor| Along { tensor, axis: 0, reverse };
        self.run(states, &tensors.iter().map(along).collect::<Vec<_>>(), step)
    }

    /// As [`Builder::run_along`], along any axis of each tensor, in either direction. What is stacked lies as the first
    /// tensor does.
    ///
    /// # Errors
    /// As for [`Builder::run_along`].
    pub fn run<'g>(
        &'g self,
        states: &[Expr<'g>],
        along: &[Along<'g>],
        step: impl Fn(&[Expr<'g>], &[Expr<'g>]) -> Result<(Vec<Expr<'g>>, Vec<Expr<'g>>)>,
    ) -> Result<(Vec<Expr<'g>>, Vec<Expr<'g>>)> {
        if self.opset() < 9 {
            return self.unrolled(states, along, step);
        }
        let slice = |a: &Along<'g>| {
            let fact = a.tensor.fact();
            let others =
                |s: &Shape| s.iter().enumerate().filter(|(i, _)| *i as i64 != a.axis).map(|(_, &d)| d).collect();
            Fact { shape: fact.shape.as_ref().map(others), ..fact }
        };
        let facts = states.iter().map(|e| e.fact()).chain(along.iter().map(slice)).collect();
        let (body, inputs) = self.open(facts);
        let (before, now) = inputs.split_at(states.len());
        let (after, mut outputs) = self.within(body, || step(before, now))?;
        let (carried, laid) = (after.len(), along.first().map_or((0, false), |a| (a.axis, a.reverse)));
        let stacked = vec![laid; outputs.len()];
        outputs.splice(0..0, after);
        self.close(body, &outputs, inputs.len());
        let mut last = self.scan(states, along, &stacked, body);
        let all = last.split_off(carried.min(last.len()));
        Ok((last, all))
    }

    fn unrolled<'g>(
        &'g self,
        states: &[Expr<'g>],
        along: &[Along<'g>],
        step: impl Fn(&[Expr<'g>], &[Expr<'g>]) -> Result<(Vec<Expr<'g>>, Vec<Expr<'g>>)>,
    ) -> Result<(Vec<Expr<'g>>, Vec<Expr<'g>>)> {
        let known = |a: &Along<'g>| a.tensor.known_dim(a.axis as usize);
        let steps = along.iter().find_map(known).filter(|n| (1..=MAX_UNROLLED).contains(n));
        let Some(steps) = steps else {
            bail!(
                "a recurrence over a number of steps that is not known, or above {MAX_UNROLLED}, needs opset 9, and the \
                 model is at {}; convert the model to opset 9 or newer",
                self.opset()
            )
        };
        let (axis, reverse) = along.first().map_or((0, false), |a| (a.axis as usize, a.reverse));
        let mut states = states.to_vec();
        let mut all: Vec<Vec<Expr<'g>>> = Vec::new();
        for i in 0..steps {
            let slice = |a: &Along<'g>| {
                let (axis, i) = (a.axis as usize, if a.reverse { steps - 1 - i } else { i });
                a.tensor.narrow(axis, i, i + 1).squeeze(&[axis])
            };
            let (after, stacked) = step(&states, &along.iter().map(slice).collect::<Vec<_>>())?;
            all.push(stacked.iter().map(|e| e.unsqueeze(&[axis])).collect());
            states = after;
        }
        if reverse {
            all.reverse();
        }
        let count = all.first().map_or(0, Vec::len);
        let stack = |k: usize| Expr::concat(&all.iter().map(|parts| parts[k]).collect::<Vec<_>>(), axis);
        Ok((states, (0..count).map(stack).collect()))
    }
}

impl<'g> Expr<'g> {
    /// Normal numbers of mean 0 and deviation 1 of this tensor's type and shape. Two of them are two nodes, whatever
    /// the seed.
    pub fn random_normal_like(self, seed: i64) -> Expr<'g> {
        self.drawn("RandomNormalLike", vec![attribute::float("seed", seed as f32)])
    }

    /// Numbers between two of this tensor's type and shape, each as likely. Two of them are two nodes, whatever the
    /// seed.
    pub fn random_uniform_like(self, seed: i64, low: f64, high: f64) -> Expr<'g> {
        let (low, high) = (attribute::float("low", low as f32), attribute::float("high", high as f32));
        self.drawn("RandomUniformLike", vec![low, high, attribute::float("seed", seed as f32)])
    }

    fn drawn(self, op: &'static str, attributes: Vec<AttributeProto>) -> Expr<'g> {
        let b = self.builder();
        let node = b.append(NewNode {
            op_type: b.string(op),
            inputs: [Some(self.id())].into_iter().collect(),
            outputs: [Some(None)].into_iter().collect(),
            attributes: attributes.into(),
            origin: Origin::Backward(b.forward.get()),
            ..NewNode::default()
        });
        let output = b.graph().node(node).outputs.iter().flatten().next().copied();
        output.map_or(self, |id| b.expr(id))
    }
}

/// A tensor that a Scan runs along, slice by slice.
#[derive(Clone, Copy, Debug)]
pub struct Along<'g> {
    /// The tensor.
    pub tensor: Expr<'g>,
    /// The axis.
    pub axis: i64,
    /// Whether the last slice comes first.
    pub reverse: bool,
}
