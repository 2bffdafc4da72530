//! What an operator takes: a row, and a case that shows that the row is right.

mod common;

use onnx_gradients::internals;
use onnx_gradients::rule::Rule;

/// The operators of the standard, by domain and name, with the versions of the domain that changed them.
fn standard() -> Vec<(String, String, Vec<i64>)> {
    let list = std::fs::read_to_string(common::folder("tests/operators.txt")).unwrap();
    let lines = list.lines().filter(|l| !l.starts_with('#'));
    let operator = |line: &str| {
        let mut words = line.split(' ');
        let name = words.next().unwrap();
        let (domain, op) = name.rsplit_once('.').unwrap_or(("", name));
        (domain.to_owned(), op.to_owned(), words.map(|v| v.parse().unwrap()).collect())
    };
    lines.map(operator).collect()
}

/// The operators that are no functions of their inputs: `grad --lower` writes others in the places of their nodes.
const LOWERED: &[&str] = &["Gradient"];

#[test]
fn every_operator_of_the_standard_has_a_row_with_facts() {
    let missing: Vec<String> = standard()
        .into_iter()
        .filter(|(domain, op, _)| {
            !LOWERED.contains(&op.as_str()) && !internals::newest(domain, op).is_some_and(Rule::has_facts)
        })
        .map(|(domain, op, _)| format!("{domain} {op}"))
        .collect();
    assert!(missing.is_empty(), "operators of the standard without a row that says their facts: {missing:#?}");
}

/// The newest opset that most models have, and the newest of all.
#[test]
fn every_operator_has_a_row_at_its_newest_version() {
    let missing: Vec<String> = standard()
        .into_iter()
        .filter(|(_, op, _)| !LOWERED.contains(&op.as_str()))
        .filter(|(domain, op, versions)| internals::find(domain, op, *versions.last().unwrap()).is_none())
        .map(|(domain, op, versions)| format!("{domain} {op} at {}", versions.last().unwrap()))
        .collect();
    assert!(missing.is_empty(), "no row holds for the newest version of: {missing:#?}");
}

#[test]
fn no_row_is_for_an_operator_that_does_not_exist() {
    let known = standard();
    let strangers: Vec<String> = internals::all()
        .filter(|r| r.domain != "com.microsoft" && r.op != "SimplifiedLayerNormalization")
        .filter(|r| !known.iter().any(|(domain, op, _)| domain == r.domain && op == r.op))
        .map(Rule::name)
        .collect();
    assert!(strangers.is_empty(), "rows for operators that the standard does not have: {strangers:#?}");
}

/// What a made-up operator takes: a row, and a case. Nothing else names it: here stand two of each.
#[cfg(feature = "validate")]
mod made_up {
    use onnx_gradients::onnx::{ElementType, TensorProto, text};
    use onnx_gradients::rule::Slot::{Formula, Together, Unary};
    use onnx_gradients::rule::{Rule, rule, tensor};
    use onnx_gradients::{Gradients, Model};

    /// The cube of each element. Its facts follow from the kind of its slot.
    const CUBE: Rule = rule("Cube", "dx = 3 dy x²", &[Unary(|x, _y, dy| 3.0 * dy * x * x)]).domain("made.up");
    /// The products of neighbours along the one axis: one element less than x has, which it says itself.
    const NEIGHBOURS: Rule = rule(
        "Neighbours",
        "dxᵢ = dyᵢ xᵢ₊₁ + dyᵢ₋₁ xᵢ₋₁",
        &[Formula(|c| {
            let (x, dy, one) = (c.x(), c.dy(), c.builder().ints(&[1]));
            let none = c.builder().ints(&[0]);
            let (first, second) = (x.crop(none, one), x.crop(one, none));
            (dy * second).pad_axis(0, none, one) + (dy * first).pad_axis(0, one, none)
        })],
    )
    .domain("made.up")
    .facts(|c| {
        let shape = c.shape(0).and_then(|s| s.first()).map(|&n| vec![c.dims().sub(n, 1.into())]);
        Ok(vec![tensor(c.element(0), shape)])
    });

    type Function = fn(&[f64]) -> f64;

    /// x with a function of it, and the gradient of its sum at the values of x.
    const CASES: [(&str, Function); 2] = [
        ("g (float[5] x) => (y) { z = made.up.Cube(x)  y = ReduceSum(z) }", |x| x.iter().map(|x| x.powi(3)).sum()),
        ("g (float[5] x) => (y) { z = made.up.Neighbours(x)  y = ReduceSum(z) }", |x| {
            x.windows(2).map(|p| p[0] * p[1]).sum()
        }),
    ];

    #[test]
    fn a_made_up_operator_takes_a_row_and_a_case() {
        let at = [0.5, -1.5, 2.0, 0.25, -0.75];
        for (graph, function) in CASES {
            let text = format!("<ir_version: 8, opset_import: [\"\": 18, \"made.up\": 1]>\n{graph}");
            let model: Model = text::parse(&text).unwrap().into();
            let mut output = Gradients::new(["y"], ["x"]).rule(CUBE).rule(NEIGHBOURS).build(&model).unwrap();
            // No engine has the operator; its gradient is made of the standard's.
            output.drop_model_outputs();
            let proto = &output.model.proto;
            assert!(proto.graph.as_ref().unwrap().node.iter().all(|n| n.domain().is_empty()), "{graph}");
            let x = TensorProto::from_floats(ElementType::Float, &[5], &at).unwrap();
            let computed = onnx_gradients::validate::run(proto, &[("x".to_owned(), x)].into()).unwrap();
            let gradient = computed[output.gradients[0].name.as_ref().unwrap()].floats().unwrap();
            for (i, gradient) in gradient.into_iter().enumerate() {
                let moved = |by: f64| {
                    let mut x = at;
                    x[i] += by;
                    function(&x)
                };
                let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
                assert!((gradient - slope).abs() < 1e-4, "{graph}: element {i} of dx is {gradient}, the slope {slope}");
            }
        }
    }

    /// Its second formula reads an input that the node does not have.
    const LACKING: Rule =
        rule("Odd", "none", &[Together(|c| Ok(c.cotangents().input(0, || c.dy()).input(1, || c.input(7))))])
            .domain("made.up");
    /// Its second formula has another shape than the input.
    const MISSHAPEN: Rule =
        rule("Odd", "none", &[Together(|c| Ok(c.cotangents().input(0, || c.dy()).input(1, || c.dy().sum_all())))])
            .domain("made.up");

    #[test]
    fn an_error_of_a_formula_for_all_inputs_names_its_input() {
        let graph = "g (float[5] a, float[5] b) => (y) { y = made.up.Odd(a, b) }";
        let text = format!("<ir_version: 8, opset_import: [\"\": 18, \"made.up\": 1]>\n{graph}");
        let model: Model = text::parse(&text).unwrap().into();
        for (row, what) in [(LACKING, "input 7 is missing"), (MISSHAPEN, "shape")] {
            let row = row.facts(|c| Ok(vec![c.like(0)]));
            let error = Gradients::new(["y"], ["a", "b"]).rule(row).build(&model).unwrap_err();
            assert!(error.to_string().contains("input 1 'b'") && error.to_string().contains(what), "{error}");
            assert_eq!(error.details().input.as_deref(), Some("b"));
            Gradients::new(["y"], ["a"]).rule(row).build(&model).unwrap();
        }
    }
}
