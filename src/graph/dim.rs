//! Sizes of dimensions, known or symbolic, with arithmetic that recognizes equal sizes.
//!
//! A symbolic size is a polynomial with integer coefficients over atoms: names that the model gives (`batch`), sizes of
//! which nothing is known, and quotients, maxima and the like that are no polynomials. Polynomials are kept in one
//! normal form and each is stored once, so equal symbols are equal sizes and comparing two is comparing two numbers:
//! `(H + 2 - 3) / 1 + 1` is `H`.

use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::HashMap;

/// The size of a dimension, or an integer that is computed from sizes. Comparable only within one [`Dims`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number.
    Known(i64),
    /// A size that is known at run time only.
    Symbol(Symbol),
}

/// A symbolic size in the table of a [`Dims`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(u32);

impl Dim {
    /// The number, where it is one.
    pub fn known(self) -> Option<i64> {
        match self {
            Dim::Known(n) => Some(n),
            Dim::Symbol(_) => None,
        }
    }
}

impl From<i64> for Dim {
    fn from(n: i64) -> Self {
        Dim::Known(n)
    }
}

/// A product of atoms, sorted; empty for the constant term.
type Monomial = SmallVec<[u32; 2]>;
/// Monomials with their coefficients, sorted by monomial, none of them zero.
type Polynomial = Vec<(Monomial, i64)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Operation {
    /// Rounded towards minus infinity, as sizes are divided.
    FloorDiv,
    Mod,
    Max,
    Min,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Atom {
    Named(String),
    Fresh(u32),
    Operation(Operation, Dim, Dim),
}

/// A polynomial that has grown beyond this many terms says nothing that is worth its cost.
const MAX_TERMS: usize = 16;
const MAX_DEGREE: usize = 8;
/// Quotients of quotients that are nested deeper are not evaluated.
const MAX_NESTING: usize = 256;

#[derive(Clone, Debug, Default)]
struct Table {
    atoms: Vec<Atom>,
    atom_ids: HashMap<Atom, u32>,
    polynomials: Vec<Polynomial>,
    polynomial_ids: HashMap<Polynomial, u32>,
}

/// The table of all symbolic sizes of a graph.
#[derive(Clone, Debug, Default)]
pub struct Dims(RefCell<Table>);

impl Dims {
    /// The size that the model calls `name`.
    pub fn named(&self, name: &str) -> Dim {
        self.0.borrow_mut().atom(Atom::Named(name.to_owned()))
    }

    /// A size of which nothing is known: it equals itself only.
    pub fn fresh(&self) -> Dim {
        let mut table = self.0.borrow_mut();
        let atom = Atom::Fresh(table.atoms.len() as u32);
        table.atom(atom)
    }

    /// Whether the size is one of which nothing is known.
    pub fn is_fresh(&self, dim: Dim) -> bool {
        let Dim::Symbol(symbol) = dim else { return false };
        let table = self.0.borrow();
        match table.polynomials[symbol.0 as usize].as_slice() {
            [(monomial, 1)] if monomial.len() == 1 => matches!(table.atoms[monomial[0] as usize], Atom::Fresh(_)),
            _ => false,
        }
    }

    /// The name of a size that the model gave; `None` for computed ones.
    pub fn name(&self, dim: Dim) -> Option<String> {
        let Dim::Symbol(symbol) = dim else { return None };
        let table = self.0.borrow();
        match table.polynomials[symbol.0 as usize].as_slice() {
            [(monomial, 1)] if monomial.len() == 1 => match &table.atoms[monomial[0] as usize] {
                Atom::Named(name) => Some(name.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    /// A shape for messages: `[N, 3, ?]`.
    pub fn display(&self, shape: &[Dim]) -> String {
        let dim = |&d: &Dim| match d {
            Dim::Known(n) => n.to_string(),
            Dim::Symbol(_) => self.name(d).unwrap_or_else(|| "?".to_owned()),
        };
        format!("[{}]", shape.iter().map(dim).collect::<Vec<_>>().join(", "))
    }

    /// `a + b`
    pub fn add(&self, a: Dim, b: Dim) -> Dim {
        self.combine(a, b, |p, q| {
            let mut sum = p.clone();
            sum.extend(q.iter().cloned());
            normal(sum)
        })
    }

    /// `a - b`
    pub fn sub(&self, a: Dim, b: Dim) -> Dim {
        self.add(a, self.mul(b, Dim::Known(-1)))
    }

    /// `a * b`
    pub fn mul(&self, a: Dim, b: Dim) -> Dim {
        self.combine(a, b, |p, q| {
            let mut product = Vec::with_capacity(p.len() * q.len());
            for (m, c) in p {
                for (n, d) in q {
                    let mut monomial: Monomial = m.iter().chain(n).copied().collect();
                    monomial.sort_unstable();
                    product.push((monomial, c.checked_mul(*d)?));
                }
            }
            normal(product)
        })
    }

    /// The product of all.
    pub fn product(&self, dims: impl IntoIterator<Item = Dim>) -> Dim {
        dims.into_iter().fold(Dim::Known(1), |a, b| self.mul(a, b))
    }

    /// `⌊a / b⌋`; a fresh size where `b` is zero.
    pub fn floor_div(&self, a: Dim, b: Dim) -> Dim {
        match (a, b) {
            (_, Dim::Known(0)) => self.fresh(),
            (Dim::Known(a), Dim::Known(b)) => {
                Dim::Known(a.wrapping_div_euclid(b) - i64::from(b < 0 && a.wrapping_rem_euclid(b) != 0))
            }
            (a, b) if a == b => Dim::Known(1),
            _ => self.exact_quotient(a, b).unwrap_or_else(|| self.operation(Operation::FloorDiv, a, b)),
        }
    }

    /// `⌈a / b⌉`
    pub fn ceil_div(&self, a: Dim, b: Dim) -> Dim {
        self.floor_div(self.add(a, self.sub(b, Dim::Known(1))), b)
    }

    /// The remainder of [`Dims::floor_div`].
    pub fn modulo(&self, a: Dim, b: Dim) -> Dim {
        match (a, b) {
            (Dim::Known(a), Dim::Known(b)) if b > 0 => Dim::Known(a.rem_euclid(b)),
            _ if a == b => Dim::Known(0),
            _ => self.operation(Operation::Mod, a, b),
        }
    }

    /// The larger.
    pub fn max(&self, a: Dim, b: Dim) -> Dim {
        match (a, b) {
            (Dim::Known(a), Dim::Known(b)) => Dim::Known(a.max(b)),
            _ if a == b => a,
            _ => self.operation(Operation::Max, a, b),
        }
    }

    /// The smaller.
    pub fn min(&self, a: Dim, b: Dim) -> Dim {
        match (a, b) {
            (Dim::Known(a), Dim::Known(b)) => Dim::Known(a.min(b)),
            _ if a == b => a,
            _ => self.operation(Operation::Min, a, b),
        }
    }

    /// Whether the size is certainly not negative: sizes of tensors never are, nor are their sums and products.
    pub fn is_non_negative(&self, dim: Dim) -> bool {
        match dim {
            Dim::Known(n) => n >= 0,
            Dim::Symbol(symbol) => {
                let table = self.0.borrow();
                table.polynomials[symbol.0 as usize].iter().all(|(monomial, c)| {
                    *c >= 0 && monomial.iter().all(|&a| !matches!(table.atoms[a as usize], Atom::Operation(..)))
                })
            }
        }
    }

    /// The number that a size is where the named ones are what `named` says; `None` where it depends on any other, or
    /// is too large.
    pub fn evaluate(&self, dim: Dim, named: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        self.evaluate_within(dim, named, MAX_NESTING)
    }

    fn evaluate_within(&self, dim: Dim, named: &dyn Fn(&str) -> Option<i64>, nesting: usize) -> Option<i64> {
        let symbol = match dim {
            Dim::Known(n) => return Some(n),
            Dim::Symbol(symbol) => symbol,
        };
        let polynomial = self.0.borrow().polynomials[symbol.0 as usize].clone();
        polynomial.into_iter().try_fold(0i64, |sum, (monomial, coefficient)| {
            let term = monomial.into_iter().try_fold(coefficient, |product, atom| {
                let atom = self.0.borrow().atoms[atom as usize].clone();
                let value = match atom {
                    Atom::Named(name) => named(&name)?,
                    Atom::Fresh(_) => return None,
                    Atom::Operation(operation, a, b) => {
                        let nesting = nesting.checked_sub(1)?;
                        let a = self.evaluate_within(a, named, nesting)?;
                        let b = self.evaluate_within(b, named, nesting)?;
                        match operation {
                            Operation::FloorDiv => a.checked_div_euclid(b)?,
                            Operation::Mod => a.checked_rem_euclid(b)?,
                            Operation::Max => a.max(b),
                            Operation::Min => a.min(b),
                        }
                    }
                };
                product.checked_mul(value)
            })?;
            sum.checked_add(term)
        })
    }

    /// `a / b` where it is a polynomial again: every term divides by the number, or by the product of symbols, that `b`
    /// is.
    fn exact_quotient(&self, a: Dim, b: Dim) -> Option<Dim> {
        let mut table = self.0.borrow_mut();
        let (p, q) = (table.polynomial(a), table.polynomial(b));
        let [(divisor, coefficient)] = q.as_slice() else { return None };
        let mut quotient = Polynomial::new();
        for (monomial, c) in p {
            if c.checked_rem(*coefficient) != Some(0) {
                return None;
            }
            let mut rest = monomial;
            for atom in divisor {
                let at = rest.iter().position(|a| a == atom)?;
                rest.remove(at);
            }
            quotient.push((rest, c / coefficient));
        }
        quotient.sort_unstable();
        Some(table.intern(quotient))
    }

    fn operation(&self, operation: Operation, a: Dim, b: Dim) -> Dim {
        self.0.borrow_mut().atom(Atom::Operation(operation, a, b))
    }

    fn combine(&self, a: Dim, b: Dim, f: impl Fn(&Polynomial, &Polynomial) -> Option<Polynomial>) -> Dim {
        let mut table = self.0.borrow_mut();
        let (p, q) = (table.polynomial(a), table.polynomial(b));
        match f(&p, &q) {
            Some(result) => table.intern(result),
            None => {
                drop(table);
                self.fresh()
            }
        }
    }
}

impl Table {
    fn atom(&mut self, atom: Atom) -> Dim {
        let id = match self.atom_ids.get(&atom) {
            Some(&id) => id,
            None => {
                let id = self.atoms.len() as u32;
                self.atoms.push(atom.clone());
                self.atom_ids.insert(atom, id);
                id
            }
        };
        self.intern(vec![(Monomial::from_slice(&[id]), 1)])
    }

    fn polynomial(&self, dim: Dim) -> Polynomial {
        match dim {
            Dim::Known(0) => Polynomial::new(),
            Dim::Known(n) => vec![(Monomial::new(), n)],
            Dim::Symbol(symbol) => self.polynomials[symbol.0 as usize].clone(),
        }
    }

    fn intern(&mut self, polynomial: Polynomial) -> Dim {
        match polynomial.as_slice() {
            [] => return Dim::Known(0),
            [(monomial, n)] if monomial.is_empty() => return Dim::Known(*n),
            _ => (),
        }
        let id = match self.polynomial_ids.get(&polynomial) {
            Some(&id) => id,
            None => {
                let id = self.polynomials.len() as u32;
                self.polynomials.push(polynomial.clone());
                self.polynomial_ids.insert(polynomial, id);
                id
            }
        };
        Dim::Symbol(Symbol(id))
    }
}

/// Sorted, equal monomials added up, zeros left out; `None` where a coefficient overflows or the polynomial is too
/// large.
fn normal(mut terms: Polynomial) -> Option<Polynomial> {
    terms.sort_unstable();
    let mut result = Polynomial::with_capacity(terms.len());
    for (monomial, c) in terms {
        match result.last_mut() {
            Some((last, sum)) if *last == monomial => *sum = sum.checked_add(c)?,
            _ => result.push((monomial, c)),
        }
    }
    result.retain(|&(_, c)| c != 0);
    (result.len() <= MAX_TERMS && result.iter().all(|(m, _)| m.len() <= MAX_DEGREE)).then_some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sizes_are_recognized() {
        let d = Dims::default();
        let (h, n) = (d.named("H"), d.named("N"));
        let convolved = d.add(d.floor_div(d.sub(d.add(h, 2.into()), 3.into()), 1.into()), 1.into());
        assert_eq!(convolved, h);
        assert_eq!(d.floor_div(d.product([n, h, 4.into()]), d.mul(h, 2.into())), d.mul(n, 2.into()));
        assert_eq!(d.sub(d.mul(h, n), d.mul(n, h)), Dim::Known(0));
        assert_ne!(d.fresh(), d.fresh());
        assert_eq!(d.floor_div(h, 2.into()), d.floor_div(h, 2.into()));
        assert_ne!(d.floor_div(h, 2.into()), d.floor_div(n, 2.into()));
    }

    #[test]
    fn division_rounds_down() {
        let d = Dims::default();
        for (a, b) in [(7, 2), (-7, 2), (7, -2), (-7, -2), (6, 3), (-6, 3)] {
            assert_eq!(d.floor_div(a.into(), b.into()), Dim::Known((a as f64 / b as f64).floor() as i64), "{a} / {b}");
        }
    }

    #[test]
    fn sizes_follow_from_the_named_ones() {
        let d = Dims::default();
        let (h, n) = (d.named("H"), d.named("N"));
        let windows = d.add(d.floor_div(d.sub(h, 400.into()), 160.into()), 1.into());
        let size = |dim| d.evaluate(dim, &|name| (name == "H").then_some(240));
        assert_eq!((size(windows), size(d.mul(h, h)), size(d.mul(h, n))), (Some(0), Some(57600), None));
    }

    #[test]
    fn overflow_is_an_unknown_size() {
        let d = Dims::default();
        assert_eq!(d.mul(i64::MAX.into(), 2.into()).known(), None);
    }
}
