//! An operator on tensors of unknown rank, as the same operator on views that have few axes.
//!
//! What is computed along one axis does not ask how many lie before and behind it: they are one axis each.

use super::{Builder, Expr};
use crate::graph::{NewNode, Node, Origin};
use crate::onnx::attribute::{self, int, ints};

/// How an operator can be computed where the rank of what it takes is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Along an axis of the first input, which the attribute of that name says, else the number.
    Along(&'static str, i64),
    /// Over all axes of the first input from the one on that the attribute of that name says, else the number.
    From(&'static str, i64),
    /// As [`View::Along`], of all inputs.
    Joined(&'static str, i64),
    /// Over axes of the first input that are all counted from one end: `axes`, an attribute or input.
    Over,
    /// A part along such axes of the first input, as Slice says it.
    Part,
    /// The rows along the last axis of the first input, which the second multiplies.
    Rows,
}

/// A view asks for the size of each axis before or behind: no tensor that anybody runs has more axes than this.
const MOST: u64 = 64;

/// A view keeps no more axes apart than this.
const SEPARATE: i64 = 8;

/// The inputs that are viewed, along which axes, and how the node says it in the view.
struct Plan {
    first: i64,
    /// How many axes from the first on stay as they are.
    count: i64,
    /// The axes that the node is about, as the view counts them.
    axes: Vec<i64>,
    all: bool,
    rows: bool,
    attribute: Option<(&'static str, bool)>,
    input: Option<usize>,
}

impl Builder {
    /// The outputs of a node, computed of views of its inputs: of the shapes that they have. `None` where the rank of
    /// its first input is known, or the node is not of a form that views compute.
    pub(crate) fn through_view<'g>(&'g self, node: &Node, view: View) -> Option<Vec<Option<Expr<'g>>>> {
        let inputs: Vec<Option<Expr<'g>>> = node.inputs.iter().map(|i| i.map(|i| self.expr(i))).collect();
        let unknown = |e: &Expr<'g>| e.fact().rank().is_none();
        let near = |plan: &Plan| plan.first.unsigned_abs() <= MOST && plan.count.unsigned_abs() <= MOST;
        let plan = plan(node, view, &inputs).filter(near)?;
        let viewed = |i: usize| if plan.all { true } else { i == 0 };
        if !inputs.iter().enumerate().any(|(i, e)| viewed(i) && e.as_ref().is_some_and(unknown)) {
            return None;
        }
        let own = |(i, e): (usize, Option<Expr<'g>>)| match e? {
            e if viewed(i) && plan.rows => Some(e.rows()),
            e if viewed(i) => Some(e.around(plan.first, plan.count)),
            _ if plan.input == Some(i) => Some(self.ints(&plan.axes)),
            e => Some(e),
        };
        let mut operands: Vec<Option<Expr<'g>>> = inputs.into_iter().enumerate().map(own).collect();
        let mut attributes = node.attributes.to_vec();
        if let Some((name, list)) = plan.attribute {
            attributes.retain(|a| a.name() != name);
            attributes.push(if list { ints(name, &plan.axes) } else { int(name, 1) });
        }
        if let Some(i) = plan.input.filter(|&i| i >= operands.len()) {
            operands.resize(i, None);
            operands.push(Some(self.ints(&plan.axes)));
        }
        let new = self.append(NewNode {
            op_type: node.op_type.clone(),
            domain: node.domain.clone(),
            inputs: operands.iter().map(|e| e.map(Expr::id)).collect(),
            outputs: node.outputs.iter().map(|o| o.map(|_| None)).collect(),
            attributes: attributes.into(),
            origin: Origin::Backward(self.forward.get()),
            ..NewNode::default()
        });
        let outputs = self.graph().node(new).outputs.clone();
        let shaped = |(y, of): (Option<_>, &Option<_>)| Some(self.expr(y?).reshape_like(self.expr((*of)?)));
        Some(outputs.into_iter().zip(&node.outputs).map(shaped).collect())
    }
}

fn plan(node: &Node, view: View, inputs: &[Option<Expr<'_>>]) -> Option<Plan> {
    let alone = Plan { first: 0, count: 1, axes: vec![1], all: false, rows: false, attribute: None, input: None };
    let known = |i: usize| inputs.get(i).copied().flatten().map(|e| e.ints());
    Some(match view {
        View::Along(name, default) | View::Joined(name, default) => Plan {
            first: attribute::get_int(&node.attributes, name).unwrap_or(default),
            all: matches!(view, View::Joined(..)),
            attribute: (!name.is_empty()).then_some((name, false)),
            ..alone
        },
        View::From(name, default) => {
            let first = attribute::get_int(&node.attributes, name).unwrap_or(default);
            Plan { first, count: 0, attribute: Some((name, false)), ..alone }
        }
        View::Over => {
            let own = attribute::get_ints(&node.attributes, "axes").map(<[i64]>::to_vec);
            let (by_attribute, axes) = (own.is_some(), own.or_else(|| known(1)?)?);
            let attribute = by_attribute.then_some(("axes", true));
            alone.along(&axes, attribute, (!by_attribute).then_some(1))?
        }
        View::Part => {
            let own = attribute::get_ints(&node.attributes, "axes").map(<[i64]>::to_vec);
            let attribute = node.inputs.len() == 1;
            let starts = || attribute::get_ints(&node.attributes, "starts").map(<[i64]>::len);
            let count = if attribute { starts()? } else { inputs.get(1).copied().flatten()?.known_dim(0)? as usize };
            let axes = match (attribute, known(3)) {
                (true, _) => own.unwrap_or_else(|| (0..count as i64).take(SEPARATE as usize + 1).collect()),
                (false, Some(axes)) => axes?,
                (false, None) => (0..i64::try_from(count).ok().filter(|&n| n <= SEPARATE)?).collect(),
            };
            let plan = alone.along(&axes, attribute.then_some(("axes", true)), (!attribute).then_some(3))?;
            plan.filter(count == axes.len())?
        }
        View::Rows => {
            let last = attribute::get_int(&node.attributes, "axis").unwrap_or(-1) == -1;
            let vectors = inputs.get(1).copied().flatten()?.fact().rank()? <= 2;
            Plan { rows: true, ..alone }.filter(last && vectors)?
        }
    })
}

impl Plan {
    /// About these axes, which are all counted from the same end.
    fn along(self, axes: &[i64], attribute: Option<(&'static str, bool)>, input: Option<usize>) -> Option<Self> {
        let (first, last) = (*axes.iter().min()?, *axes.iter().max()?);
        let count = last.checked_sub(first)?.checked_add(1)?;
        let axes = axes.iter().map(|a| a - first + 1).collect();
        Plan { first, count, axes, attribute, input, ..self }.filter((first < 0) == (last < 0) && count <= SEPARATE)
    }

    fn filter(self, holds: bool) -> Option<Self> {
        holds.then_some(self)
    }
}

impl<'g> Expr<'g> {
    /// The elements as a matrix: all axes but the last are one.
    fn rows(self) -> Expr<'g> {
        let b = self.builder();
        self.reshape(b.joined(&[b.ints(&[-1]), self.shape().gather(b.ints(&[-1]), 0)]))
    }

    /// The elements with `count` axes from `first` on as they are, one axis for all before them and one for all behind.
    fn around(self, first: i64, count: i64) -> Expr<'g> {
        let (b, shape) = (self.builder(), self.shape());
        let rest = b.ints(&[-1]);
        let product = |axes: std::ops::Range<i64>| {
            let sizes = axes.map(|a| shape.gather(b.ints(&[a]), 0));
            sizes.reduce(|a, b| a * b).unwrap_or_else(|| b.ints(&[1]))
        };
        let end = first + count;
        let (before, behind) = if first < 0 { (rest, product(end..0)) } else { (product(0..first), rest) };
        let middle = (first..end).map(|a| product(a..a + 1));
        let sizes: Vec<_> = [before].into_iter().chain(middle).chain([behind]).collect();
        self.reshape(b.joined(&sizes))
    }
}
