//! Tests over the table of rules itself, and over what its rules emit for the cases of `tests/cases`.

mod common;

use onnx_gradients::internals;
use onnx_gradients::onnx::proto::type_proto::Value;
use onnx_gradients::onnx::{ElementType, GraphProto, text};
use onnx_gradients::rule::{Integers, Rule, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// Whether a row gives a gradient to any input.
fn differentiates(rule: &Rule) -> bool {
    rule.slots.iter().any(|s| !matches!(s, Slot::Stop(_) | Slot::Zero | Slot::Rounding(_)))
}

#[test]
fn no_two_rows_hold_for_one_version() {
    let rows: Vec<&Rule> = internals::all().collect();
    for (i, a) in rows.iter().enumerate() {
        for b in &rows[i + 1..] {
            let overlap = a.since <= b.until && b.since <= a.until;
            assert!(!(a.op == b.op && a.domain == b.domain && overlap), "{} has two rows", a.name());
        }
    }
}

#[test]
fn every_row_with_a_gradient_has_a_case() {
    let mut covered: BTreeSet<(String, String, i64)> = BTreeSet::new();
    for case in common::all() {
        for (domain, op) in case.operators() {
            if let Some(rule) = internals::find(&domain, &op, case.model.opset(&domain).unwrap_or(1)) {
                covered.insert((domain, op, rule.since));
            }
        }
    }
    let missing =
        internals::all().filter(|r| differentiates(r) && !covered.contains(&(r.domain.into(), r.op.into(), r.since)));
    let missing: Vec<String> = missing.map(|r| format!("{} ({})", r.name(), r.versions())).collect();
    assert!(missing.is_empty(), "rows without a case in tests/cases: {}", missing.join(", "));
}

#[test]
fn what_rules_emit_has_rules() {
    let mut missing: BTreeMap<String, String> = BTreeMap::new();
    for case in common::all() {
        let output = case.differentiate().unwrap_or_else(|e| panic!("{}, opset {}: {e:#}", case.title, case.opset));
        let graph = output.model.proto.graph.as_ref().unwrap();
        for op in emitted(graph, case.model.graph.as_ref().unwrap().node.len()) {
            if internals::find("", &op, case.opset).is_none() {
                missing.insert(op, format!("{} at opset {}", case.title, case.opset));
            }
        }
    }
    assert!(missing.is_empty(), "emitted, but without a row: {missing:?}");
}

/// The operators of the nodes from a place on, and of those in their bodies.
fn emitted(graph: &GraphProto, from: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for node in &graph.node[from..] {
        assert_eq!(node.domain(), "", "{} is no operator of the standard", node.op_type());
        found.insert(node.op_type().to_owned());
        node.attribute.iter().filter_map(|a| a.g.as_ref()).for_each(|body| found.extend(emitted(body, 0)));
    }
    found
}

/// Before version 9 a Constant holds floating-point numbers only, which onnx.checker looks at.
#[test]
fn old_constants_are_numbers() {
    for case in common::all().iter().filter(|c| c.opset < 9) {
        let output = case.differentiate().unwrap_or_else(|e| panic!("{}, opset {}: {e:#}", case.title, case.opset));
        let own = case.model.graph.as_ref().unwrap().node.len();
        for node in output.model.proto.graph.as_ref().unwrap().node.iter().skip(own) {
            for held in node.attribute.iter().filter_map(|a| a.t.as_ref()).filter(|_| node.op_type() == "Constant") {
                let element = held.element_type();
                assert!(element.is_float(), "{}, opset {}: a Constant of {}", case.title, case.opset, element.name());
            }
        }
    }
}

#[test]
fn the_reference_is_up_to_date() {
    let path = common::folder("docs/operators.md");
    let now = internals::markdown();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == now, "docs/operators.md is out of date: run this test with UPDATE=1");
}

/// What the first case of each operator makes of it, in ONNX's text syntax, for readers: `tests/snapshots/<operator>.txt`.
#[test]
fn snapshots_are_up_to_date() {
    let mut snapshots: BTreeMap<String, String> = BTreeMap::new();
    for case in common::all() {
        let nodes = &case.model.graph.as_ref().unwrap().node;
        let [node] = nodes.as_slice() else { continue };
        let name = if node.domain().is_empty() {
            node.op_type().to_owned()
        } else {
            format!("{}.{}", node.domain(), node.op_type())
        };
        if snapshots.contains_key(&name) || case.order == 0 {
            continue;
        }
        let output = case.differentiate().unwrap_or_else(|e| panic!("{}, opset {}: {e:#}", case.title, case.opset));
        let all = &output.model.proto.graph.as_ref().unwrap().node;
        let (forward, backward) = all.split_at(1);
        let list: Vec<String> = output
            .gradients
            .iter()
            .map(|g| format!("# d{} = {}\n", g.x, g.name.as_deref().unwrap_or("none")))
            .collect();
        let header = format!("# {}: {} at opset {}\n", name, case.title, case.opset);
        snapshots.insert(
            name,
            format!("{header}{}\n{}\n{}", list.concat(), text::print_nodes(forward), text::print_nodes(backward)),
        );
    }
    let folder = common::folder("tests/snapshots");
    if std::env::var_os("UPDATE").is_some() {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        snapshots.iter().for_each(|(name, text)| std::fs::write(folder.join(format!("{name}.txt")), text).unwrap());
    }
    let changed: Vec<&String> = snapshots
        .iter()
        .filter(|(name, text)| {
            std::fs::read_to_string(folder.join(format!("{name}.txt"))).is_ok_and(|t| t == **text).eq(&false)
        })
        .map(|(name, _)| name)
        .collect();
    assert!(
        changed.is_empty(),
        "snapshots that have changed: {changed:?}; look at them, then run this test with UPDATE=1"
    );
}

#[test]
fn properties_fit_the_slots() {
    let mut wrong = Vec::new();
    for rule in internals::all() {
        let stops = |i: usize| matches!(rule.slot(i), Some(Slot::Stop(_)));
        // The operators that differentiate one formula for all of their inputs have no slots of their own for integers.
        let through = |i: usize| {
            matches!(rule.slot(i), Some(Slot::Through(_) | Slot::Together(_) | Slot::Each(_) | Slot::TryEach(_)))
        };
        for index in rule.indices {
            if !stops(index.input) && !through(index.input) {
                wrong.push(format!(
                    "{}: input {} is an index, but not one that passes no gradient",
                    rule.name(),
                    index.input
                ));
            }
        }
        for &input in rule.weights {
            if rule.slot(input).is_none() || stops(input) {
                wrong.push(format!("{}: input {input} is a weight, but has no gradient", rule.name()));
            }
        }
        for (input, slot) in rule.slots.iter().enumerate() {
            if matches!(slot, Slot::Stop("indices")) && rule.index(input).is_none() {
                wrong.push(format!("{}: nothing says what the indices of input {input} are", rule.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A row that computes in float32 takes half precision for any of the numbers and gives each gradient its input's type.
#[test]
fn rows_in_float32_take_half_precision() {
    let mut taken = BTreeSet::new();
    for mut case in common::all() {
        let opset = |domain: &str| case.model.opset(domain).unwrap_or(1);
        let Ok([(domain, op)]) = <[_; 1]>::try_from(case.operators()) else { continue };
        let row = internals::find(&domain, &op, opset(&domain)).filter(|r| r.in_float32 && domain != "ai.onnx.ml");
        let Some(row) = row.filter(|_| case.order > 0) else { continue };
        let graph = case.model.graph.as_mut().unwrap();
        for value in graph.input.iter_mut().chain(&mut graph.output) {
            let tensor = value.r#type.as_mut().and_then(|t| match t.value.as_mut()? {
                Value::TensorType(tensor) => Some(tensor),
                _ => None,
            });
            if let Some(tensor) = tensor.filter(|t| t.elem_type == Some(ElementType::Float as i32)) {
                tensor.elem_type = Some(ElementType::Float16 as i32);
            }
        }
        let output = case.differentiate().unwrap_or_else(|e| panic!("{}, opset {}: {e:#}", case.title, case.opset));
        let graph = output.model.proto.graph.as_ref().unwrap();
        let element = |name: &str| {
            let found = graph.input.iter().chain(&graph.output).find(|v| v.name() == name).unwrap();
            match found.r#type.as_ref().unwrap().value.as_ref().unwrap() {
                Value::TensorType(tensor) => tensor.elem_type,
                _ => None,
            }
        };
        for gradient in output.gradients.iter().filter(|_| !case.straight_through) {
            let Some(name) = &gradient.name else { continue };
            assert_eq!(element(name), element(&gradient.x), "{}, opset {}: d{}", case.title, case.opset, gradient.x);
        }
        taken.insert(row.name());
    }
    // What rounds to integers stands beside its inverse in all cases.
    let marked =
        internals::all().filter(|r| r.in_float32 && r.domain != "ai.onnx.ml" && r.integers != Integers::Rounded);
    let missing: Vec<String> = marked.map(Rule::name).filter(|name| !taken.contains(name)).collect();
    assert!(missing.is_empty(), "rows in float32 without a case of one node: {}", missing.join(", "));
}

#[test]
fn every_row_says_what_is_known_of_its_outputs() {
    let silent: Vec<String> = internals::all().filter(|r| !r.has_facts()).map(Rule::name).collect();
    assert!(silent.is_empty(), "rows without facts (.facts, .values, .bodies): {silent:#?}");
}
