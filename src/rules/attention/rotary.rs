//! Positions as angles: pairs of elements that are turned.

use crate::expr::Expr;
use crate::rules::Slot::*;
use crate::rules::facts::same;
use crate::rules::properties::Counts::Along;
use crate::rules::properties::{Axis, read};
use crate::rules::{Call, Rule, rule};
use anyhow::{Result, ensure};

/// The rows.
pub const RULES: &[Rule] = &[
    rule(
        "RotaryEmbedding",
        ROTARY,
        &[
            Try(|c| Rotary::new(c, [1, 2, 3])?.dx(c)),
            Try(|c| Rotary::new(c, [1, 2, 3])?.dcache(c, 1)),
            Try(|c| Rotary::new(c, [1, 2, 3])?.dcache(c, 2)),
            Stop("positions"),
        ],
    )
    .facts(same)
    .attributes("interleaved num_heads rotary_embedding_dim")
    .indices(&[read(3, Along(1, Axis::At(0)))]),
    rule(
        "RotaryEmbedding",
        ROTARY,
        &[
            Try(|c| Rotary::new(c, [2, 3, 1])?.dx(c)),
            Stop("positions"),
            Try(|c| Rotary::new(c, [2, 3, 1])?.dcache(c, 2)),
            Try(|c| Rotary::new(c, [2, 3, 1])?.dcache(c, 3)),
        ],
    )
    .facts(same)
    .attributes("interleaved is_packed_batching num_heads rotary_embedding_dim scale")
    .indices(&[read(1, Along(2, Axis::At(0)))])
    .domain("com.microsoft"),
];

const ROTARY: &str = "each pair of x is turned by an angle, each pair of dx back: dx = dy turned with -sin; \
     dcos = Σ dy₁ x₁ + dy₂ x₂, dsin = Σ dy₂ x₁ - dy₁ x₂ over the heads";

/// Angles by which pairs of elements are turned: of tensors with four axes, of which the last is that of the pairs.
pub struct Turn<'g> {
    /// Cosines and sines that broadcast to half of what is turned.
    pub cos: Expr<'g>,
    pub sin: Expr<'g>,
    /// Whether the elements of a pair stand side by side, or half of what is turned apart.
    pub interleaved: bool,
    /// Whether some elements at the end stay.
    pub partial: bool,
}

impl<'g> Turn<'g> {
    /// The first and the second of each pair, and what stays.
    fn parts(&self, x: Expr<'g>) -> [Expr<'g>; 3] {
        let b = x.builder();
        let half = self.cos.dims([3]);
        let turned = half * b.int(2);
        let part = |start: Expr<'g>, end: Expr<'g>, step: i64| x.slice_at(b.ints(&[3]), start, end, b.ints(&[step]));
        let (zero, one, end) = (b.ints(&[0]), b.ints(&[1]), b.ints(&[i64::MAX]));
        let rest = part(turned, end, 1);
        match self.interleaved {
            true => [part(zero, turned, 2), part(one, turned, 2), rest],
            false => [part(zero, half, 1), part(half, turned, 1), rest],
        }
    }

    /// Pairs and what stays, put together again.
    fn whole(&self, pair: [Expr<'g>; 2], rest: Expr<'g>) -> Expr<'g> {
        let turned = match self.interleaved {
            true => Expr::concat(&pair.map(|e| e.unsqueeze(&[4])), 4).reshape_to(&[0, 0, 0, -1]),
            false => Expr::concat(&pair, 3),
        };
        if self.partial { Expr::concat(&[turned, rest], 3) } else { turned }
    }

    /// Each pair turned by its angle.
    pub fn turned(&self, x: Expr<'g>) -> Expr<'g> {
        let [first, second, rest] = self.parts(x);
        self.whole([first * self.cos - second * self.sin, second * self.cos + first * self.sin], rest)
    }

    /// The transpose of [`Turn::turned`]: x turned by the negated angles.
    fn turned_back(&self, x: Expr<'g>) -> Expr<'g> {
        let [first, second, rest] = self.parts(x);
        self.whole([first * self.cos + second * self.sin, second * self.cos - first * self.sin], rest)
    }
}

/// The turn of one call.
struct Rotary<'g> {
    turn: Turn<'g>,
    /// The positions that the angles are at in the caches.
    positions: Option<Expr<'g>>,
    /// Where the axis of heads is.
    heads: usize,
}

impl<'g> Rotary<'g> {
    /// Reads the angles from the inputs with the numbers `[cos, sin, positions]`.
    fn new(c: &Call<'g>, [cos, sin, positions]: [usize; 3]) -> Result<Self> {
        let x = c.x();
        let scale = c.float("scale", 1.0);
        ensure!(scale == 1.0, "engines differ in what scale = {scale} does");
        let heads = if x.rank()? == 4 { 1 } else { 2 };
        let mut positions = c.opt(positions);
        if let Some(first) = positions.filter(|p| p.rank().is_ok_and(|r| r == 1)) {
            let steps = x.dim(if heads == 1 { 2 } else { 1 });
            positions = Some(c.builder().range(steps).cast_like(first).unsqueeze(&[0]) + first.reshape_to(&[1, 1]));
        }
        let read = |cache: usize| -> Result<Expr<'g>> {
            let cache = c.input(cache);
            Ok(positions.map_or(cache, |p| cache.gather(p, 0)).unsqueeze(&[heads]))
        };
        let turn = Turn {
            cos: read(cos)?,
            sin: read(sin)?,
            interleaved: c.flag("interleaved", false),
            partial: c.int("rotary_embedding_dim", 0) > 0,
        };
        Ok(Rotary { turn, positions, heads })
    }

    /// x with an axis of heads.
    fn unpacked(&self, c: &Call<'g>, x: Expr<'g>) -> Result<Expr<'g>> {
        if x.rank()? == 4 {
            return Ok(x);
        }
        let heads = c.int("num_heads", 0);
        ensure!(heads > 0 || !self.turn.partial, "num_heads = {heads} is not positive");
        Ok(match heads {
            1.. => x.reshape_to(&[0, 0, heads, -1]),
            _ => {
                let b = c.builder();
                let size = self.turn.cos.dims([3]) * b.int(2);
                x.reshape(Expr::concat(&[x.dims([0, 1]), b.ints(&[-1]), size], 0))
            }
        })
    }

    fn dx(&self, c: &Call<'g>) -> Result<Expr<'g>> {
        Ok(self.turn.turned_back(self.unpacked(c, c.dy())?).reshape_like(c.x()))
    }

    /// The gradient of the cache of cosines, or of that of sines: of whichever of them input `i` is.
    fn dcache(&self, c: &Call<'g>, i: usize) -> Result<Expr<'g>> {
        let [x1, x2, _] = self.turn.parts(self.unpacked(c, c.x())?);
        let [dy1, dy2, _] = self.turn.parts(self.unpacked(c, c.dy())?);
        let cosines = i == if self.positions_first(c) { 2 } else { 1 };
        let d = if cosines { dy1 * x1 + dy2 * x2 } else { dy2 * x1 - dy1 * x2 };
        let (cache, d) = (c.input(i), d.sum_out(&[self.heads]));
        Ok(match self.positions {
            Some(p) => {
                // One row of positions may serve the whole batch.
                let read = cache.gather(p, 0);
                cache.ungather(p, d.unbroadcast(read), 0)
            }
            None => d.unbroadcast(cache),
        })
    }

    /// Whether the positions come before the caches: where the cosines are input 2.
    fn positions_first(&self, c: &Call<'g>) -> bool {
        c.opt(1).is_some_and(|p| !p.is_float())
    }
}
