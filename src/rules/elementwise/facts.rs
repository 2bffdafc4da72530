//! Facts of operators that compute each element of the output from one element of each input.

use crate::graph::Fact;
use crate::graph::facts::Known;
use crate::graph::facts::value::{self, Calculator, Function};
use crate::onnx::ElementType;
use crate::rules::facts::{broadcasting, unknown};
use anyhow::Result;

/// The output is the first input.
pub fn identity(c: &Known) -> Result<Vec<Fact>> {
    Ok(c.input(0).cloned().into_iter().collect())
}

pub fn map(c: &Known, f: Function) -> Result<Vec<Fact>> {
    broadcasting(c, 1, c.element(0), f)
}

/// Every operand has the element type of the result.
pub fn binary(c: &Known, f: Function) -> Result<Vec<Fact>> {
    broadcasting(c, 2, c.element(0).or(c.element(1)), f)
}

/// The exponent may have another element type than the result.
pub fn power(c: &Known) -> Result<Vec<Fact>> {
    broadcasting(c, 2, c.element(0), value::pow)
}

pub fn variadic(c: &Known, f: Function) -> Result<Vec<Fact>> {
    let element = (0..c.inputs.len()).find_map(|i| c.element(i));
    broadcasting(c, c.inputs.len(), element, f)
}

pub fn compare(c: &Known, f: Function) -> Result<Vec<Fact>> {
    broadcasting(c, c.inputs.len(), Some(ElementType::Bool), f)
}

pub fn predicate(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: Some(ElementType::Bool), ..c.like(0) }])
}

pub fn cast(c: &Known, element: Option<ElementType>) -> Result<Vec<Fact>> {
    let mut facts = broadcasting(c, 1, element, value::cast)?;
    if element.is_none() {
        facts.iter_mut().for_each(|f| f.value = None);
    }
    Ok(facts)
}

pub fn bit_cast(c: &Known) -> Result<Vec<Fact>> {
    Ok(vec![Fact { element: c.type_attribute("to"), ..c.like(0) }])
}

/// With `fmod` the remainder has the sign of the dividend.
pub fn modulo(c: &Known) -> Result<Vec<Fact>> {
    binary(c, if c.flag("fmod") { unknown } else { value::modulo })
}

pub fn relu(c: &Known) -> Result<Vec<Fact>> {
    map(c, |c, x| {
        let zero = match x.first()? {
            crate::graph::Scalar::Int(_) => c.int(0)?,
            crate::graph::Scalar::Float(_) => c.float(0.0)?,
        };
        value::max(c, &[*x.first()?, zero])
    })
}

/// The bounds are inputs since version 11, attributes before.
pub fn clip(c: &Known) -> Result<Vec<Fact>> {
    let mut fact = c.like(0);
    if !c.has("min")
        && !c.has("max")
        && let (Some(element), Some(x)) = (c.element(0), c.input(0))
    {
        let calculator = Calculator { dims: c.dims(), element };
        fact.value = x.value.clone();
        for (i, f) in [(1, value::max as Function), (2, value::min)] {
            if let (Some(bound), true) = (c.input(i), fact.value.is_some()) {
                let so_far = Fact { value: fact.value.take(), ..fact.clone() };
                fact.value = value::elementwise(&calculator, so_far.shape.as_deref(), &[&so_far, bound], f);
            }
        }
    }
    Ok(vec![fact])
}

pub fn choose(c: &Known) -> Result<Vec<Fact>> {
    broadcasting(c, 3, c.element(1).or(c.element(2)), value::choose)
}
