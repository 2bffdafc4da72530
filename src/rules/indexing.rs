//! Operators that pick elements out by indices, and that put elements into places.

mod facts;

use super::Slot::*;
use super::properties::Axis::*;
use super::properties::Counts::*;
use super::properties::Moves::*;
use super::properties::{Index, read, written};
use super::{Call, Rule, Slot, rule};
use super::{ml, source};
use crate::expr::{Expr, View};
use crate::onnx::ElementType;
use crate::rules::facts::same;
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule("Gather", "dx = dy, added up in the places of the indices", &[Try(gather), Stop("indices")])
        .facts(facts::gather)
        .moves(Parts)
        .indices(&[read(1, Along(0, Named("axis", 0))).from_end()])
        .weights(&[0])
        .layer()
        .view(View::Along("axis", 0))
        .attributes("axis"),
    rule("GatherElements", "dx = dy, added up in the places of the indices", &[Try(gather_elements), Stop("indices")])
        .facts(facts::gather_elements)
        .moves(Parts)
        .indices(&[read(1, Along(0, Named("axis", 0))).from_end()])
        .attributes("axis"),
    GATHER_ND,
    GATHER_ND.domain(MICROSOFT),
    rule("Scatter", "dx = dy, zero in the places; dupdates = dy in the places", ALONG_AXIS)
        .facts(same)
        .indices(WRITTEN_ALONG_AXIS)
        .attributes("axis"),
    rule("ScatterElements", SCATTERED, ALONG_AXIS)
        .facts(same)
        .compares()
        .indices(WRITTEN_ALONG_AXIS)
        .attributes("axis reduction")
        .note(TIES),
    rule("ScatterND", SCATTERED, BY_TUPLES)
        .facts(same)
        .compares()
        .indices(&[written(1, Tuples(0, ""))])
        .attributes("reduction")
        .note(TIES),
    rule(
        "TensorScatter",
        "dx = dy, zero in the places; dupdates = dy in the places",
        &[Formula(tensor_scatter_cache), Try(tensor_scatter_update), Stop("indices")],
    )
    .facts(same)
    .indices(&[read(2, Length(0, Named("axis", -2)))])
    .attributes("axis mode"),
    rule("OneHot", "doff = Σ dy [not hit], don = Σ dy [hit]", &[Stop("indices"), Stop("a size"), Formula(one_hot)])
        .facts(facts::one_hot)
        .indices(&[read(0, Below(1)).from_end()])
        .attributes("axis"),
    RANGE,
    RANGE.domain(MICROSOFT),
    rule(
        "ArrayFeatureExtractor",
        "dx = dy, added up in the places of the indices",
        &[Try(array_feature_extractor), Stop("indices")],
    )
    .facts(ml::facts::extract)
    .moves(Parts)
    .indices(&[read(1, Along(0, At(-1)))])
    .domain("ai.onnx.ml"),
];

const MICROSOFT: &str = "com.microsoft";
const GATHER_ND: Rule =
    rule("GatherND", "dx = dy, added up in the places of the indices", &[Try(gather_nd), Stop("indices")])
        .facts(facts::gather_nd)
        .moves(Parts)
        .indices(&[read(1, Tuples(0, "batch_dims"))])
        .attributes("batch_dims");
const RANGE: Rule = rule(
    "Range",
    "dstart = Σ dyᵢ, ddelta = Σ i dyᵢ",
    &[Formula(|c| c.dy().sum_all().reshape_like(c.x())), Stop("it sets the length alone"), Formula(range_delta)],
)
.facts(source::range)
.attributes("stash_type");
const SCATTERED: &str = "none: dx = dy, zero in the places, dupdates = dy in the places; add: dx = dy; \
                         mul: dx = dy y / x; max, min: dx = dy [x = y] / Σ [x = y]";
const ALONG_AXIS: &[Slot] = &[
    Try(|c| Ok(scatter_data(c, Places::along_axis(c)?))),
    Stop("indices"),
    Try(|c| Ok(scatter_updates(c, Places::along_axis(c)?))),
];
const WRITTEN_ALONG_AXIS: &[Index] = &[written(1, Along(0, Named("axis", 0))).from_end()];
const BY_TUPLES: &[Slot] = &[
    Formula(|c| scatter_data(c, Places::by_tuples(c))),
    Stop("indices"),
    Formula(|c| scatter_updates(c, Places::by_tuples(c))),
];
const TIES: &str = "of updates in one place the last stays; ties of max and min share equally, as in TensorFlow; mul is exact with zeros";

fn gather<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, indices, dy, axis) = (c.x(), c.input(1), c.dy(), c.axis(0)?);
    let Some(known) = indices.ints() else { return Ok(x.ungather(indices, dy, axis)) };
    // Constant indices that follow one another cut out a part: its gradient is that part with zeros around.
    let rank = indices.rank()?;
    let follows = |pair: &[i64]| matches!(pair, [a, b] if a.checked_add(1) == Some(*b) && *b != 0);
    match known.first() {
        Some(&first) if rank <= 1 && known.windows(2).all(follows) => {
            let part = if rank == 0 { dy.unsqueeze(&[axis]) } else { dy };
            let b = c.builder();
            let count = known.len() as i64;
            let (before, after) = match first.checked_add(count) {
                Some(end) if first >= 0 => (b.ints(&[first]), x.dims([axis]) - end),
                Some(end) => (x.dims([axis]) + first, b.ints(&[-end])),
                None => return Ok(x.ungather(indices, dy, axis)),
            };
            Ok(part.pad_axis(axis, before, after))
        }
        _ => Ok(x.ungather(indices, dy, axis)),
    }
}

fn gather_elements<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    Ok(Places::along_axis(c)?.add(c.dy().zeros_shaped(c.x()), c.dy()))
}

fn gather_nd<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, indices, dy) = (c.x(), c.input(1).cast(ElementType::Int64), c.dy());
    let batch = usize::try_from(c.int("batch_dims", 0)).unwrap_or(usize::MAX);
    if batch == 0 {
        return Ok(dy.zeros_shaped(x).scatter_nd_add(indices, dy));
    }
    let (rank, index_rank) = (x.rank()?, indices.rank()?);
    ensure!(batch < rank.min(index_rank), "batch_dims {batch} for ranks {rank} and {index_rank}");
    // The common dimensions as part of the indices.
    let b = c.builder();
    let column = indices.slice(&[index_rank - 1], &[0], &[1], &[1]).shape();
    let mut tuples = Vec::new();
    for axis in 0..batch {
        let mut place = vec![1; index_rank];
        place[axis] = -1;
        tuples.push(b.range(x.dim(axis)).reshape_to(&place).expand(column));
    }
    tuples.push(indices);
    Ok(dy.zeros_shaped(x).scatter_nd_add(Expr::concat(&tuples, index_rank - 1), dy))
}

/// The places that a ScatterElements or ScatterND names.
struct Places<'g> {
    indices: Expr<'g>,
    /// Along an axis, which is counted from the front where the rank is known, or by tuples.
    axis: Option<i64>,
}

impl<'g> Places<'g> {
    fn along_axis(c: &Call<'g>) -> Result<Self> {
        let axis = match c.x().fact().rank() {
            Some(_) => c.axis(0)? as i64,
            None => c.int("axis", 0),
        };
        Ok(Places { indices: c.input(1), axis: Some(axis) })
    }

    fn by_tuples(c: &Call<'g>) -> Self {
        Places { indices: c.input(1), axis: None }
    }

    /// What stands in the places.
    fn read(&self, from: Expr<'g>) -> Expr<'g> {
        match self.axis {
            Some(axis) => from.gather_elements_along(self.indices, axis),
            None => from.gather_nd(self.indices, 0),
        }
    }

    /// The tensor with other elements in the places.
    fn write(&self, to: Expr<'g>, updates: Expr<'g>) -> Expr<'g> {
        match self.axis {
            Some(axis) => to.scatter_elements_along(self.indices, updates, axis),
            None => to.scatter_nd(self.indices, updates),
        }
    }

    fn add(&self, to: Expr<'g>, updates: Expr<'g>) -> Expr<'g> {
        match self.axis {
            Some(axis) => to.scatter_elements_add_along(self.indices, updates, axis),
            None => to.scatter_nd_add(self.indices, updates),
        }
    }

    /// Whether no place is named twice, as far as the indices are known.
    fn are_distinct(&self, x: Expr<'g>, updates: Expr<'g>) -> bool {
        let distinct = || {
            let (indices, dims) = (self.indices.ints()?, self.indices.fact().known_shape()?);
            let places: Option<Vec<Vec<i64>>> = match self.axis {
                Some(axis) => {
                    // An index for each place of the updates, of which the other coordinates tell them apart.
                    let axis = usize::try_from(axis).ok()?;
                    let (n, inner) = (*dims.get(axis)?, dims.get(axis + 1..)?.iter().product::<i64>());
                    let size = x.known_dim(axis);
                    let place = |(i, &at): (usize, &i64)| {
                        let i = i as i64;
                        Some(vec![i / (n * inner).max(1), i % inner.max(1), positive(at, size)?])
                    };
                    indices.iter().enumerate().map(place).collect()
                }
                None => {
                    let depth = usize::try_from(*dims.last()?).ok().filter(|&d| d > 0)?;
                    let place = |(i, &at): (usize, &i64)| positive(at, x.known_dim(i));
                    indices.chunks(depth).map(|tuple| tuple.iter().enumerate().map(place).collect()).collect()
                }
            };
            let mut places = places?;
            let all = places.len();
            places.sort_unstable();
            places.dedup();
            Some(places.len() == all)
        };
        updates.fact().element_count() == Some(1) || distinct().unwrap_or(false)
    }

    fn multiply(&self, to: Expr<'g>, updates: Expr<'g>) -> Expr<'g> {
        match self.axis {
            Some(axis) => to.scatter_elements_mul_along(self.indices, updates, axis),
            None => to.scatter_nd_mul(self.indices, updates),
        }
    }
}

/// An index counted from the front, where that is known.
fn positive(index: i64, size: Option<i64>) -> Option<i64> {
    if index < 0 { index.checked_add(size?) } else { Some(index) }
}

fn reduction(c: &Call<'_>) -> String {
    let reduction = c.string("reduction", "none");
    c.ensure_known("reduction", &reduction, &["none", "add", "mul", "max", "min"]);
    reduction
}

fn scatter_data<'g>(c: &Call<'g>, places: Places<'g>) -> Expr<'g> {
    let (x, updates, y, dy) = (c.x(), c.input(2), c.y(), c.dy());
    match &*reduction(c) {
        "none" => places.write(dy, updates.zeros_like()),
        "add" => dy,
        "mul" => places.multiply(dy, updates),
        _ => {
            let chosen = x.equal(y);
            (dy / ties(&places, x, updates, y)).where_(chosen)
        }
    }
}

fn scatter_updates<'g>(c: &Call<'g>, places: Places<'g>) -> Expr<'g> {
    let (x, updates, y, dy) = (c.x(), c.input(2), c.y(), c.dy());
    match &*reduction(c) {
        "none" => match places.are_distinct(x, updates) {
            true => places.read(dy),
            // Where several updates have the same place the last one stays, in the order in which runtimes go. Which
            // that is shows in what a scatter of the updates' numbers leaves.
            false => {
                let numbers = c.builder().range(updates.size()).reshape_like(updates);
                let left = places.read(places.write(c.builder().full(x.shape(), -1.0, ElementType::Int64), numbers));
                places.read(dy).where_(left.equal(numbers))
            }
        },
        "add" => places.read(dy),
        "mul" => {
            // The product of the element and all updates but this one: of those that are not zero a quotient, times the
            // zeros. A single zero stands for itself, for its slope: gradients of gradients need it.
            let zero = updates.equal(updates.like(0.0));
            let factors = zero.select(updates.like(1.0), updates);
            let quotient = places.read(places.multiply(x, factors)) / factors;
            let of_others = |e: Expr<'g>| places.read(places.add(x.zeros_like(), e)) - e;
            let zeros = of_others(zero.cast_like(updates));
            let single = of_others(updates.where_(zero)).where_(zeros.below(1.5));
            places.read(dy) * quotient * zeros.below(0.5).select(updates.like(1.0), single)
        }
        _ => {
            let chosen = updates.equal(places.read(y));
            (places.read(dy) / places.read(ties(&places, x, updates, y))).where_(chosen)
        }
    }
}

/// How many elements, of x and of the updates, are the one that was chosen.
fn ties<'g>(places: &Places<'g>, x: Expr<'g>, updates: Expr<'g>, y: Expr<'g>) -> Expr<'g> {
    places.add(x.equal(y).cast_like(x), updates.equal(places.read(y)).cast_like(x))
}

fn tensor_scatter_cache<'g>(c: &Call<'g>) -> Expr<'g> {
    let (update, dy) = (c.input(1), c.dy());
    let mode = c.string("mode", "linear");
    dy.tensor_scatter(update.zeros_like(), c.opt(2), c.int("axis", -2), &mode)
}

fn tensor_scatter_update<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, update, dy, axis, b) = (c.x(), c.input(1), c.dy(), c.axis(-2)?, c.builder());
    ensure!(axis > 0, "axis 0 is the batch");
    let mode = c.string("mode", "linear");
    c.ensure_known("mode", &mode, &["linear", "circular"]);
    // [batch, sequence]: where each slice of the update went.
    let steps = b.range(update.dim(axis)).unsqueeze(&[0]);
    let starts = match c.opt(2) {
        Some(starts) => starts.cast(ElementType::Int64).unsqueeze(&[1]),
        None => b.full(Expr::concat(&[update.dims([0]), b.ints(&[1])], 0), 0.0, ElementType::Int64),
    };
    let places = if mode == "circular" { (starts + steps).modulo(x.dim(axis)) } else { starts + steps };
    Ok(dy.move_axis(axis, 1).gather_nd(places.unsqueeze(&[2]), 1).move_axis(1, axis))
}

fn one_hot<'g>(c: &Call<'g>) -> Expr<'g> {
    let (indices, depth, values, dy) = (c.x(), c.input(1), c.input(2), c.dy());
    let hit = indices.one_hot(depth, c.int("axis", -1), values.like(1.0)).above(0.5);
    let sums = [dy.unless(hit).sum_all(), dy.where_(hit).sum_all()];
    Expr::concat(&sums.map(|s| s.reshape_to(&[1])), 0)
}

fn range_delta<'g>(c: &Call<'g>) -> Expr<'g> {
    let (delta, dy) = (c.input(2), c.dy());
    let steps = c.builder().range(dy.dim(0)).cast_like(dy);
    (dy * steps).sum_all().reshape_like(delta)
}

fn array_feature_extractor<'g>(c: &Call<'g>) -> Result<Expr<'g>> {
    let (x, indices, dy) = (c.x(), c.input(1).flattened(), c.dy());
    let last = x.rank()?.saturating_sub(1);
    let picked = dy.reshape(x.shape_with(last, indices.shape()));
    Ok(x.ungather(indices, picked, last))
}
