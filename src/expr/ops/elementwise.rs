//! Elementwise operators: arithmetic, functions, comparisons, selections, casts.

use super::Expr;
use crate::graph::Dim;
use crate::onnx::ElementType;
use crate::onnx::attribute::int;

/// Along a last axis of so many elements repeating a number pays off.
const SHORT: i64 = 8;

/// Up to so many elements one node is faster than several fast ones.
const SMALL: i64 = 2048;

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident = $op:literal since $since:literal;)*) => {
        impl<'g> Expr<'g> {
            $($(#[$doc])* pub fn $name(self) -> Expr<'g> {
                self.since($since, $op, || self.builder.emit($op, &[Some(self)], vec![]))
            })*
        }
    };
}

unary! {
    /// `eˣ`
    exp = "Exp" since 1;
    /// `ln x`
    log = "Log" since 1;
    /// `√x`
    sqrt = "Sqrt" since 1;
    /// `1 / x`
    reciprocal = "Reciprocal" since 1;
    /// `|x|`
    abs = "Abs" since 1;
    /// `⌊x⌋`
    floor = "Floor" since 1;
    /// `⌈x⌉`
    ceil = "Ceil" since 1;
    /// The nearest integer, halves to the even one.
    round = "Round" since 11;
    /// `sin x`
    sin = "Sin" since 7;
    /// `cos x`
    cos = "Cos" since 7;
    /// `tan x`
    tan = "Tan" since 7;
    /// `arctan x`
    atan = "Atan" since 7;
    /// `sinh x`
    sinh = "Sinh" since 9;
    /// `cosh x`
    cosh = "Cosh" since 9;
    /// `tanh x`
    tanh = "Tanh" since 1;
    /// `1 / (1 + e⁻ˣ)`
    sigmoid = "Sigmoid" since 1;
    /// `ln(1 + eˣ)`
    softplus = "Softplus" since 1;
    /// `max(x, 0)`
    relu = "Relu" since 1;
    /// `2/√π ∫₀ˣ e^(-t²) dt`
    erf = "Erf" since 9;
    /// Logical not.
    logical_not = "Not" since 1;
    /// Whether each element is not a number.
    is_nan = "IsNaN" since 9;
    /// The indices of the elements that are not zero, of shape `[rank, count]`.
    non_zero = "NonZero" since 9;
    /// The determinants of the matrices in the last two dimensions.
    det = "Det" since 11;
}

impl<'g> Expr<'g> {
    pub(in crate::expr) fn binary(self, op: &'static str, other: Expr<'g>) -> Expr<'g> {
        let left = self.once_for(other);
        let right = if left == self { other.once_for(self) } else { other };
        let (left, right) = (left.ranked_for(right), right.ranked_for(left));
        self.builder.emit(op, &[Some(left), Some(right)], vec![])
    }

    /// What this repeats, where it is an Expand that the pass has written and `other` has its shape: the operator
    /// broadcasts by itself, in half the time.
    fn once_for(self, other: Expr<'g>) -> Expr<'g> {
        match self.operands_of_expand() {
            Some((once, _)) if self.builder.opset() >= 8 && self != other && self.same_shape(other) => once,
            _ => self,
        }
    }

    /// A number without dimensions, with as many of size 1 as `other` has where the last of those is short. What
    /// broadcasts is the same, but engines repeat a number along the last axis only, and step through all others one by
    /// one.
    fn ranked_for(self, other: Expr<'g>) -> Expr<'g> {
        let short = |shape: &[Dim]| matches!(shape, [_, .., last] if last.known().is_none_or(|n| n < SHORT));
        let rank = match (self.fact().shape.as_deref(), other.fact().shape.as_deref()) {
            (Some([]), Some(shape)) if short(shape) => shape.len(),
            _ => return self,
        };
        match (self.constant(), other.fact().element_count()) {
            (Some(value), _) => {
                self.builder.attempt(|| Ok(self.builder.numbers(&[value], &vec![1; rank], self.element()?)))
            }
            // A reshape costs as much as a few elements.
            (None, Some(few)) if few < 64 => self,
            _ => self.reshape_to(&vec![1; rank]),
        }
    }

    pub(in crate::expr) fn plus(self, other: Expr<'g>) -> Expr<'g> {
        if self.is_sequence() {
            return self.plus_sequence(other);
        }
        self.simplify_sum(other).unwrap_or_else(|| self.plus_node(other))
    }

    /// The sum as a node, whatever is known of the terms.
    pub(crate) fn plus_node(self, other: Expr<'g>) -> Expr<'g> {
        if self.is_sequence() {
            return self.plus_sequence(other);
        }
        match self.builder.without_zeros(&[self, other]).as_deref() {
            Some(&[only]) => only,
            _ => self.binary("Add", other),
        }
    }

    /// The sum of tensors of one shape, as one node.
    ///
    /// # Panics
    /// Without terms.
    pub(crate) fn add_n(terms: &[Expr<'g>]) -> Expr<'g> {
        let [first, rest @ ..] = terms else { panic!("a sum without terms") };
        if first.is_sequence() {
            return rest.iter().fold(*first, |sum, term| sum.plus_sequence(*term));
        }
        let rest = first.builder.without_zeros(terms);
        match rest.as_deref().unwrap_or(terms) {
            &[only] => only,
            several => {
                // One of them has the shape of the sum, the others need not be repeated to it.
                let whole = several.iter().position(|term| term.operands_of_expand().is_none()).unwrap_or(0);
                let each = several.iter().enumerate();
                let once = each.map(|(i, term)| if i == whole { *term } else { term.once_for(several[whole]) });
                first.builder.emit("Sum", &once.map(Some).collect::<Vec<_>>(), vec![])
            }
        }
    }

    pub(in crate::expr) fn minus(self, other: Expr<'g>) -> Expr<'g> {
        self.simplify_difference(other).unwrap_or_else(|| match self.builder.without_zeros(&[self, other]).as_deref() {
            Some(&[subtracted]) if self.is_zero() && !other.is_zero() => -subtracted,
            Some(&[only]) => only,
            _ => self.binary("Sub", other),
        })
    }

    pub(in crate::expr) fn times(self, other: Expr<'g>) -> Expr<'g> {
        self.simplify_product(other).unwrap_or_else(|| self.binary("Mul", other))
    }

    pub(in crate::expr) fn over(self, other: Expr<'g>) -> Expr<'g> {
        self.simplify_quotient(other).unwrap_or_else(|| self.binary("Div", other))
    }

    pub(in crate::expr) fn negated(self) -> Expr<'g> {
        self.simplify_negation().unwrap_or_else(|| self.builder.emit("Neg", &[Some(self)], vec![]))
    }
    /// `selfᵉ` of two tensors of one floating-point type, which broadcast (ONNX Pow).
    pub fn pow(self, exponent: Expr<'g>) -> Expr<'g> {
        self.binary("Pow", exponent)
    }

    /// `x²`, in this tensor's type.
    pub fn square(self) -> Expr<'g> {
        self * self
    }

    /// This value as the output of a node of its own: for what needs a name that is not taken yet.
    pub fn identity(self) -> Expr<'g> {
        self.builder.emit("Identity", &[Some(self)], vec![])
    }

    /// Whether each element equals the other's: bool, of the shape that the two broadcast to (ONNX Equal).
    pub fn equal(self, other: Expr<'g>) -> Expr<'g> {
        match self.is_float() && self.builder.opset() < 11 {
            true => self.less(other).or(other.less(self)).logical_not().and(self.is_number()).and(other.is_number()),
            false => self.binary("Equal", other),
        }
    }

    /// `self < other`: bool, of the shape that the two, of one type, broadcast to (ONNX Less).
    pub fn less(self, other: Expr<'g>) -> Expr<'g> {
        match self.builder.opset() < 9 && !self.is_float() {
            // Before opset 9 only floating-point numbers are ordered.
            true => self.cast(ElementType::Double).binary("Less", other.cast(ElementType::Double)),
            false => self.binary("Less", other),
        }
    }

    /// `self > other`: bool, of the shape that the two, of one type, broadcast to (ONNX Greater).
    pub fn greater(self, other: Expr<'g>) -> Expr<'g> {
        other.less(self)
    }

    /// `self <= other`: bool, of the shape that the two, of one type, broadcast to.
    pub fn less_or_equal(self, other: Expr<'g>) -> Expr<'g> {
        match self.builder.opset() < 12 {
            true => self.less(other).or(self.equal(other)),
            false => self.binary("LessOrEqual", other),
        }
    }

    /// `self >= other`: bool, of the shape that the two, of one type, broadcast to.
    pub fn greater_or_equal(self, other: Expr<'g>) -> Expr<'g> {
        other.less_or_equal(self)
    }

    /// `self > bound`: bool, of this tensor's shape.
    pub fn above(self, bound: f64) -> Expr<'g> {
        self.greater(self.like(bound))
    }

    /// `self < bound`: bool, of this tensor's shape.
    pub fn below(self, bound: f64) -> Expr<'g> {
        self.less(self.like(bound))
    }

    /// Whether each element is something else than zero; so are those that are not numbers.
    pub fn is_nonzero(self) -> Expr<'g> {
        self.cast(ElementType::Bool)
    }

    /// -1, 0 or 1
    pub fn sign(self) -> Expr<'g> {
        match self.builder.opset() < 9 {
            true => self.above(0.0).cast_like(self) - self.below(0.0).cast_like(self),
            false => self.builder.emit("Sign", &[Some(self)], vec![]),
        }
    }

    /// Logical and of two tensors of bool, which broadcast (ONNX And).
    pub fn and(self, other: Expr<'g>) -> Expr<'g> {
        self.binary("And", other)
    }

    /// Logical or of two tensors of bool, which broadcast (ONNX Or).
    pub fn or(self, other: Expr<'g>) -> Expr<'g> {
        self.binary("Or", other)
    }

    /// Whether each element is a number: not NaN.
    fn is_number(self) -> Expr<'g> {
        match self.builder.opset() < 9 {
            true => self.less(self.like(0.0)).or(self.like(0.0).less(self + 1.0)),
            false => self.is_nan().logical_not(),
        }
    }

    /// Whether Max and Min cannot: before opset 12 they take floating-point numbers only, before 8 they do not
    /// broadcast.
    fn compares_to_choose(self, other: Expr<'g>) -> bool {
        match self.is_float() {
            true => self.builder.opset() < 8 && !self.same_shape(other),
            false => self.builder.opset() < 12,
        }
    }

    /// The larger of two elements, of tensors of one type, which broadcast (ONNX Max).
    pub fn max(self, other: Expr<'g>) -> Expr<'g> {
        match self.compares_to_choose(other) {
            true => self.less(other).select(other, self),
            false => self.binary("Max", other),
        }
    }

    /// The smaller of two elements, of tensors of one type, which broadcast (ONNX Min).
    pub fn min(self, other: Expr<'g>) -> Expr<'g> {
        match self.compares_to_choose(other) {
            true => self.less(other).select(self, other),
            false => self.binary("Min", other),
        }
    }

    /// `self` limited to `[low, high]`.
    pub fn clamp(self, low: f64, high: f64) -> Expr<'g> {
        self.max(self.like(low)).min(self.like(high))
    }

    /// The remainder of the division of integers, with the divisor's sign; the two are of one type and broadcast (ONNX
    /// Mod).
    pub fn modulo(self, divisor: Expr<'g>) -> Expr<'g> {
        match self.builder.opset() < 10 {
            // For indices and sizes, which are not negative, division rounds as the remainder needs it.
            true => self - (self / divisor) * divisor,
            false => self.binary("Mod", divisor),
        }
    }

    /// `then` where this condition holds, `otherwise` where not, broadcasting.
    pub fn select(self, then: Expr<'g>, otherwise: Expr<'g>) -> Expr<'g> {
        if then == otherwise && then.fact().rank() >= self.fact().rank() && then.same_shape(self) {
            return then;
        }
        if let Some(chosen) = self.simplify_select(then, otherwise) {
            return chosen;
        }
        if self.multiplies_to_choose(then, otherwise) {
            return then.where_(self) + otherwise.unless(self);
        }
        if self.builder.opset() >= 9 {
            let [then, otherwise] = [then, otherwise].map(|e| e.ranked_for(self));
            return self.builder.emit("Where", &[Some(self), Some(then), Some(otherwise)], vec![]);
        }
        self.builder.attempt(|| {
            let element = then.element()?;
            let bounded = |e: Expr<'g>| !element.is_float() || e.constant().is_some_and(f64::is_finite);
            let chosen = |e: Expr<'g>, condition: Expr<'g>| match bounded(e) {
                true => e * condition.cast(element),
                false => e.limited(condition, element),
            };
            let is_zero = |e: Expr<'g>| e.constant() == Some(0.0) && e.fact().rank() == Some(0);
            Ok(match (is_zero(then), is_zero(otherwise)) {
                (_, true) => chosen(then, self),
                (true, _) => chosen(otherwise, self.logical_not()),
                _ => chosen(then, self) + chosen(otherwise, self.logical_not()),
            })
        })
    }

    /// Whether a choice is written as a sum of products with zeros and ones, which take engines a third of the time of
    /// a Where: between two tensors that are large, and cannot be infinite.
    fn multiplies_to_choose(self, then: Expr<'g>, otherwise: Expr<'g>) -> bool {
        let fast =
            |e: Expr<'g>| e.is_tame() && e.constant().is_none() && e.fact().element_count().is_none_or(|n| n > SMALL);
        self.builder.opset() >= 9 && fast(then) && fast(otherwise)
    }

    /// One of two numbers, where the condition holds and where not, of the element type of `like`.
    pub fn choose(self, then: f64, otherwise: f64, like: Expr<'g>) -> Expr<'g> {
        match then == 1.0 && (0.0..1.0).contains(&otherwise) && self.builder.opset() >= 9 {
            true => self.cast_like(like).max(like.like(otherwise)),
            false => self.select(like.like(then), like.like(otherwise)),
        }
    }

    /// This where the condition holds, zero where not, before Where: within limits that are ±∞ there and 0 elsewhere,
    /// since a product of infinity with 0 is no number. The limits come first: in a tie with 0 nothing passes to this
    /// tensor.
    fn limited(self, condition: Expr<'g>, element: ElementType) -> Expr<'g> {
        let mut limit = condition.cast(element) / condition.logical_not().cast(element);
        let mut own = self;
        if self.builder.opset() < 8 && !self.same_shape(condition) {
            // Min and Max do not broadcast, sums do: that no number is below itself makes zeros of any shape.
            let zeros = |e: Expr<'g>| e.less(e).cast(element);
            (limit, own) = (limit + zeros(self), self + zeros(limit));
        }
        (-limit).binary("Max", limit.binary("Min", own))
    }

    /// This where the condition holds, zero where not. What cannot be infinite is multiplied by zeros and ones, which
    /// takes engines an eighth of the time.
    pub fn where_(self, condition: Expr<'g>) -> Expr<'g> {
        match self.is_tame() && self.builder.opset() >= 9 {
            true => self * condition.cast_like(self),
            false => condition.select(self, self.like(0.0)),
        }
    }

    /// This tensor where a condition of its shape holds, 1 elsewhere: what can be divided by, and has a logarithm.
    pub fn or_one(self, condition: Expr<'g>) -> Expr<'g> {
        condition.select(self, self.like(1.0))
    }

    /// This where two numbers are equal, zero where not.
    pub fn where_equal(self, a: Expr<'g>, b: Expr<'g>) -> Expr<'g> {
        match self.builder.opset() < 11 {
            true => self.unless(a.less(b).or(b.less(a))),
            false => self.where_(a.equal(b)),
        }
    }

    /// This where the condition does not hold, zero where it does.
    pub fn unless(self, condition: Expr<'g>) -> Expr<'g> {
        match self.is_tame() && self.builder.opset() >= 9 {
            true => self * condition.logical_not().cast_like(self),
            false => condition.select(self.like(0.0), self),
        }
    }

    /// The elements in another type, in the same shape (ONNX Cast); nothing is written where they are of that type.
    pub fn cast(self, element: ElementType) -> Expr<'g> {
        if self.fact().element == Some(element) {
            return self;
        }
        // What is cast before it is repeated is cast once.
        if let Some((once, shape)) = self.operands_of_expand() {
            return self.builder.emit("Expand", &[Some(once.cast(element)), Some(shape)], vec![]);
        }
        self.builder.emit("Cast", &[Some(self)], vec![int("to", element as i64)])
    }

    /// Half precision as float32, other types as they are: what long sums are computed in. What the pass has rounded to
    /// half precision is taken as it was before.
    pub fn widened(self) -> Expr<'g> {
        match self.fact().element {
            Some(ElementType::Float16 | ElementType::Bfloat16) if !self.is_sequence() => {
                let exact = self.operand_of("Cast").filter(|e| e.fact().element == Some(ElementType::Float));
                exact.unwrap_or_else(|| self.cast(ElementType::Float))
            }
            _ => self,
        }
    }

    /// The elements in the type of another tensor, in this tensor's shape (ONNX Cast).
    pub fn cast_like(self, other: Expr<'g>) -> Expr<'g> {
        self.builder.attempt(|| Ok(self.cast(other.element()?)))
    }
}
