//! Sequences of tensors. Where the elements of one are known as tensors, what is made of it is made of those.

use super::{Builder, Expr};
use crate::expr::normalize_axis;
use crate::graph::{Container, Fact, Scalar};
use crate::onnx::attribute::int;
use crate::onnx::{AttributeProto, ElementType, attribute};
use anyhow::Result;

/// Sequences of more elements than this are not followed element by element.
const MAX_FOLLOWED: usize = 256;

impl<'g> Expr<'g> {
    /// Whether it is a sequence.
    pub fn is_sequence(self) -> bool {
        self.fact().container == Container::Sequence
    }

    /// The elements of a sequence that is put together of known tensors.
    pub fn elements(self) -> Option<Vec<Expr<'g>>> {
        // What is done to the sequence that is found at the end of the way, last first.
        let mut changes = Vec::new();
        let (graph, mut value) = (self.builder.graph(), self.id);
        let mut elements: Vec<Expr<'g>> = loop {
            let (id, _) = graph.producer(value)?;
            let node = graph.node(id);
            let input = |i: usize| node.inputs.get(i).copied().flatten();
            let place = |i: usize| match input(i) {
                None => Some(None),
                Some(at) => match graph.fact(at).uniform()? {
                    Scalar::Int(at) => Some(Some(at.known()?)),
                    Scalar::Float(_) => None,
                },
            };
            if !node.domain.is_empty() || changes.len() > MAX_FOLLOWED {
                return None;
            }
            match &*node.op_type {
                "SequenceConstruct" => break node.inputs.iter().flatten().map(|&e| self.builder.expr(e)).collect(),
                "SequenceEmpty" => break vec![],
                "SplitToSequence" => {
                    let parts = parts(graph.fact(input(0)?), input(1).map(|i| graph.fact(i)), &node.attributes)?;
                    drop(graph);
                    let split = self.builder.expr(value);
                    let part = |i| self.builder.emit("SequenceAt", &[Some(split), Some(self.builder.int(i))], vec![]);
                    break (0..parts).map(part).collect();
                }
                "Identity" => {}
                "SequenceInsert" => changes.push((place(2)?, input(1))),
                "SequenceErase" => changes.push((place(1)?, None)),
                _ => return None,
            }
            value = input(0)?;
        };
        while let Some((at, inserted)) = changes.pop() {
            let count = elements.len() as i64;
            let at = at.unwrap_or(if inserted.is_some() { count } else { count - 1 });
            let at = usize::try_from(if at < 0 { at.checked_add(count)? } else { at }).ok()?;
            match inserted {
                Some(e) if at <= elements.len() => elements.insert(at, self.builder.expr(e)),
                None if at < elements.len() => drop(elements.remove(at)),
                _ => return None,
            }
        }
        (elements.len() <= MAX_FOLLOWED).then_some(elements)
    }

    /// How many elements a sequence has, an int64 without dimensions (ONNX SequenceLength).
    pub fn sequence_length(self) -> Expr<'g> {
        match self.elements() {
            Some(elements) => self.builder.int(elements.len() as i64),
            None => self.builder.emit("SequenceLength", &[Some(self)], vec![]),
        }
    }

    /// The element at a place, an integer without dimensions that may count from the end (ONNX SequenceAt).
    pub fn sequence_at(self, at: Expr<'g>) -> Expr<'g> {
        let known = || {
            let (elements, at) = (self.elements()?, *at.ints()?.first()?);
            let at = if at < 0 { at.checked_add(elements.len() as i64)? } else { at };
            elements.get(usize::try_from(at).ok()?).copied()
        };
        known().unwrap_or_else(|| self.builder.emit("SequenceAt", &[Some(self), Some(at)], vec![]))
    }

    /// With another element before the one at a place; without a place at the end.
    pub fn sequence_insert(self, element: Expr<'g>, at: Option<Expr<'g>>) -> Expr<'g> {
        self.builder.emit("SequenceInsert", &[Some(self), Some(element), at], vec![])
    }

    /// The sequence without the element at a place; without a place, without the last one (ONNX SequenceErase).
    pub fn sequence_erase(self, at: Option<Expr<'g>>) -> Expr<'g> {
        self.builder.emit("SequenceErase", &[Some(self), at], vec![])
    }

    /// With another element in the place of one, which counts from the front.
    pub fn sequence_replace(self, at: Expr<'g>, element: Expr<'g>) -> Expr<'g> {
        if let (Some(mut elements), Some([at])) = (self.elements(), at.ints().as_deref())
            && let Some(old) = usize::try_from(*at).ok().and_then(|at| elements.get_mut(at))
        {
            *old = element;
            return self.builder.sequence(&elements, element.fact().element);
        }
        self.sequence_erase(Some(at)).sequence_insert(element, Some(at))
    }

    /// The elements, tensors of one type, joined along an axis, or stacked along a new one (ONNX ConcatFromSequence).
    pub fn concat_sequence(self, axis: i64, new_axis: bool) -> Expr<'g> {
        let attributes = vec![int("axis", axis), int("new_axis", new_axis.into())];
        self.builder.emit("ConcatFromSequence", &[Some(self)], attributes)
    }

    /// The parts along an axis, of given sizes or single slices without that axis.
    pub fn split_to_sequence(self, axis: i64, sizes: Option<Expr<'g>>) -> Expr<'g> {
        self.since(11, "SplitToSequence", || {
            let mut attributes = vec![int("axis", axis)];
            if sizes.is_none() {
                attributes.push(int("keepdims", 0));
            }
            self.builder.emit("SplitToSequence", &[Some(self), sizes], attributes)
        })
    }

    /// A sequence of tensors like this one's elements with `value` in every place.
    pub(in crate::expr) fn full_sequence(self, value: f64) -> Expr<'g> {
        let full = |elements: &[Expr<'g>]| Ok(elements.iter().take(1).map(|e| e.full_like(value)).collect());
        self.builder.map_sequences(&[self], full).first().copied().unwrap_or(self)
    }

    /// The sums of the elements of two sequences of one length.
    pub(in crate::expr) fn plus_sequence(self, other: Expr<'g>) -> Expr<'g> {
        let sum = |e: &[Expr<'g>]| match e {
            [a, b] => Ok(vec![*a + *b]),
            _ => Ok(vec![]),
        };
        self.builder.map_sequences(&[self, other], sum).first().copied().unwrap_or(self)
    }
}

/// In how many parts SplitToSequence cuts a tensor.
fn parts(x: &Fact, sizes: Option<&Fact>, attributes: &[AttributeProto]) -> Option<i64> {
    let axis = normalize_axis(attribute::get_int(attributes, "axis").unwrap_or(0), x.rank()?).ok()?;
    let size = || x.shape.as_ref()?.get(axis)?.known();
    let parts = match sizes {
        None => size()?,
        Some(sizes) if sizes.rank()? == 1 => sizes.known_shape()?.first().copied()?,
        Some(sizes) => {
            let part = sizes.ints()?.first().copied().filter(|&n| n > 0)?;
            size()?.checked_add(part - 1)? / part
        }
    };
    (0..=MAX_FOLLOWED as i64).contains(&parts).then_some(parts)
}

impl Builder {
    /// A sequence of tensors, of which only an empty one has to be told the element type.
    pub fn sequence<'g>(&'g self, elements: &[Expr<'g>], element: Option<ElementType>) -> Expr<'g> {
        if elements.is_empty() {
            let element = element.unwrap_or(ElementType::Float);
            return self
                .since(11, "SequenceEmpty", || self.emit("SequenceEmpty", &[], vec![int("dtype", element as i64)]));
        }
        let elements: Vec<_> = elements.iter().copied().map(Some).collect();
        self.since(11, "SequenceConstruct", || self.emit("SequenceConstruct", &elements, vec![]))
    }

    /// The sequences of what `formula` makes of the elements of sequences of one length; tensors among the inputs are
    /// the same for each. The formula uses nothing but its arguments.
    pub fn map_sequences<'g>(
        &'g self,
        inputs: &[Expr<'g>],
        formula: impl Fn(&[Expr<'g>]) -> Result<Vec<Expr<'g>>>,
    ) -> Vec<Expr<'g>> {
        match self.try_map(inputs, formula) {
            Ok(outputs) => outputs,
            Err(error) => vec![self.fail(error)],
        }
    }

    fn try_map<'g>(
        &'g self,
        inputs: &[Expr<'g>],
        formula: impl Fn(&[Expr<'g>]) -> Result<Vec<Expr<'g>>>,
    ) -> Result<Vec<Expr<'g>>> {
        let known: Option<Vec<_>> =
            inputs.iter().map(|e| if e.is_sequence() { e.elements().map(Ok) } else { Some(Err(*e)) }).collect();
        let lengths = known.iter().flatten().filter_map(|e| e.as_ref().ok()).map(Vec::len);
        if let (Some(known), Some(length)) = (known.as_ref(), lengths.clone().min())
            && (1..=MAX_FOLLOWED).contains(&length)
            && lengths.max() == Some(length)
        {
            let mut columns: Vec<Vec<Expr<'g>>> = Vec::new();
            for i in 0..length {
                let element = |e: &Result<Vec<Expr<'g>>, Expr<'g>>| match e {
                    Ok(elements) => elements[i],
                    Err(tensor) => *tensor,
                };
                let outputs = formula(&known.iter().map(element).collect::<Vec<_>>())?;
                columns.resize(outputs.len(), Vec::new());
                columns.iter_mut().zip(outputs).for_each(|(column, output)| column.push(output));
            }
            return Ok(columns.iter().map(|column| self.sequence(column, None)).collect());
        }
        let facts = |e: &Expr<'g>| Fact { container: Container::Tensor, ..e.fact() };
        if self.opset() >= 17 {
            let (body, elements) = self.open(inputs.iter().map(facts).collect());
            let outputs = self.within(body, || formula(&elements))?;
            self.close(body, &outputs, inputs.len());
            return Ok(self.sequence_map(inputs, body));
        }
        let Some(first) = inputs.iter().copied().find(|e| e.is_sequence()) else { return Ok(vec![]) };
        if self.opset() < 13 {
            return Ok(vec![self.too_old("a computation over the elements of a sequence", 13)]);
        }
        // The results are appended one by one; how many there are and of which type a first look at the formula tells.
        let (trial, elements) = self.open(inputs.iter().map(facts).collect());
        let outputs = self.within(trial, || formula(&elements))?;
        let outputs: Vec<Fact> = outputs.iter().map(|e| Fact { value: None, ..e.fact() }).collect();
        let sequence = |f: &Fact| Fact { container: Container::Sequence, ..f.clone() };
        let mut body_facts = vec![
            Fact::tensor(Some(ElementType::Int64), Some([].into())),
            Fact::tensor(Some(ElementType::Bool), Some([].into())),
        ];
        body_facts.extend(outputs.iter().map(sequence));
        let (body, arguments) = self.open(body_facts);
        let results = self.within(body, || {
            let element = |e: &Expr<'g>| if e.is_sequence() { e.sequence_at(arguments[0]) } else { *e };
            let new = formula(&inputs.iter().map(element).collect::<Vec<_>>())?;
            let appended = arguments[2..].iter().zip(new).map(|(so_far, new)| so_far.sequence_insert(new, None));
            anyhow::Ok(std::iter::once(arguments[1]).chain(appended).collect::<Vec<_>>())
        })?;
        self.close(body, &results, arguments.len());
        let empty: Vec<_> = outputs.iter().map(|f| self.sequence(&[], f.element)).collect();
        Ok(self.loop_(Some(first.sequence_length()), None, &empty, body))
    }

    /// A SequenceMap of a body that is there, which takes an element of each sequence and the tensors; the first input
    /// is a sequence.
    pub fn sequence_map<'g>(&'g self, inputs: &[Expr<'g>], body: crate::graph::ScopeId) -> Vec<Expr<'g>> {
        let outputs = self.graph().scope(body).outputs.len();
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.emit_many("SequenceMap", &inputs, vec![], vec![("body", body)], outputs)
    }
}
