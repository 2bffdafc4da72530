//! `+ - * /` and unary minus between expressions, and with numbers.
//!
//! A number takes the element type of the expression that it meets: `0.5 * x` halves a float16 tensor in float16.

use super::Expr;
use std::ops::{Add, Div, Mul, Neg, Sub};

macro_rules! operator {
    ($trait:ident, $method:ident, $emit:ident) => {
        impl<'g> $trait for Expr<'g> {
            type Output = Expr<'g>;
            fn $method(self, other: Expr<'g>) -> Expr<'g> {
                self.$emit(other)
            }
        }
        impl<'g> $trait<f64> for Expr<'g> {
            type Output = Expr<'g>;
            fn $method(self, other: f64) -> Expr<'g> {
                self.$emit(self.like(other))
            }
        }
        impl<'g> $trait<Expr<'g>> for f64 {
            type Output = Expr<'g>;
            fn $method(self, other: Expr<'g>) -> Expr<'g> {
                other.like(self).$emit(other)
            }
        }
        impl<'g> $trait<i64> for Expr<'g> {
            type Output = Expr<'g>;
            fn $method(self, other: i64) -> Expr<'g> {
                self.$emit(self.like(other as f64))
            }
        }
        impl<'g> $trait<Expr<'g>> for i64 {
            type Output = Expr<'g>;
            fn $method(self, other: Expr<'g>) -> Expr<'g> {
                other.like(self as f64).$emit(other)
            }
        }
    };
}

operator!(Add, add, plus);
operator!(Sub, sub, minus);
operator!(Mul, mul, times);
operator!(Div, div, over);

impl<'g> Neg for Expr<'g> {
    type Output = Expr<'g>;
    fn neg(self) -> Expr<'g> {
        self.negated()
    }
}

impl<'g> Expr<'g> {
    /// A number of this tensor's element type, without dimensions.
    pub fn like(self, value: f64) -> Expr<'g> {
        self.builder.attempt(|| Ok(self.builder.scalar(value, self.element()?)))
    }
}
