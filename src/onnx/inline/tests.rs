//! Calls of model-local functions, written out.

use crate::onnx::ModelProto;
use crate::onnx::inline::inline_functions;
use crate::onnx::proto::{NodeDeviceConfigurationProto, StringStringEntryProto};
use crate::onnx::text::{parse, print_graph, print_nodes};

fn entry(key: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some("v".into()) }
}

fn inlined(text: &str) -> anyhow::Result<ModelProto> {
    inline_functions(&parse(text).unwrap(), &|_| true)
}

fn nodes(text: &str) -> String {
    print_nodes(&inlined(text).unwrap().graph.unwrap().node)
}

#[track_caller]
fn refused(text: &str, message: &str) {
    let error = format!("{:#}", inlined(text).unwrap_err());
    assert!(error.contains(message), "{error}");
}

const HEADER: &str = r#"<ir_version: 10, opset_import: ["" : 18, "m" : 1]> "#;

#[test]
fn calls_become_bodies() {
    let model = format!(
        r#"{HEADER} g (x) => (y) {{ [first] h = m.Twice <alpha = 0.5> (x) [second] y = m.Twice (h) }}
            <domain: "m", opset_import: ["" : 18]>
            Twice <alpha: float = 0.25, beta> (a) => (c) {{
                [act] b = LeakyRelu <alpha: float = @alpha> (a)
                c = Pad <axis: int = @beta> (b)
            }}"#
    );
    let text = "[\"first/act\"] \"first/b\" = LeakyRelu <alpha = 0.5> (x)\nh = Pad (\"first/b\")\n\
                [\"second/act\"] \"second/b\" = LeakyRelu <alpha = 0.25> (h)\ny = Pad (\"second/b\")\n";
    // An attribute without default that the call leaves out is left out of the body.
    assert_eq!(nodes(&model.replace(", beta>", ">").replace("Twice <alpha: ", "Twice <beta, alpha: ")), text);
    assert_eq!(inlined(&model).unwrap().functions.len(), 1);
}

#[test]
fn only_the_wanted_calls_become_bodies_with_all_that_they_call() {
    let model = parse(&format!(
        r#"{HEADER} g (x) => (y) {{ a = m.F (x) b = m.F:two (a) y = m.G (b) }}
            <domain: "m", opset_import: ["" : 18, "m" : 1]> F (u) => (v) {{ v = Relu (u) }}
            <domain: "m", overload: "two", opset_import: ["" : 18]> F (u) => (v) {{ v = Tanh (u) }}
            <domain: "m", opset_import: ["" : 18, "m" : 1]> G (u) => (v) {{ w = m.F (u) v = m.F:two (w) }}"#
    ))
    .unwrap();
    assert_eq!(inline_functions(&model, &|_| false).unwrap(), model);
    let result = inline_functions(&model, &|n| n.op_type() == "G" || n.overload() == "two").unwrap();
    assert_eq!(
        print_nodes(&result.graph.unwrap().node),
        "a = m.F (x)\nb = Tanh (a)\n\"y/w\" = Relu (b)\ny = Tanh (\"y/w\")\n"
    );
    assert_eq!(result.functions, model.functions);
}

#[test]
fn inputs_and_outputs_may_be_left_out() {
    let text = nodes(&format!(
        r#"{HEADER} g (x) => (y) {{ [c] , y = m.F (x) }}
            <domain: "m", opset_import: ["" : 18]>
            F (a, min, max) => (first, second, third) {{ first = Clip (a, min, max) second = Relu (first) third = Abs (a) }}"#
    ));
    assert_eq!(text, "\"c/first\" = Clip (x, \"\", \"\")\ny = Relu (\"c/first\")\n\"c/third\" = Abs (x)\n");
}

#[test]
fn an_input_may_be_an_output() {
    let text = nodes(&format!(
        r#"{HEADER} g (x) => (p, q, r) {{ [c] p, q, r = m.F (x) }}
            <domain: "m", opset_import: ["" : 18]> F (a) => (a, b, b) {{ b = Relu (a) }}"#
    ));
    assert_eq!(text, "q = Relu (x)\n[\"c/Identity\"] p = Identity (x)\n[\"c/Identity_1\"] r = Identity (q)\n");
}

#[test]
fn names_never_collide() {
    let text = nodes(&format!(
        r#"{HEADER} g (x, "c/b", b) => (y, z) {{ [c] y = m.F (x) [c] z = m.F (b) [d] u = m.F (y) }}
            <domain: "m", opset_import: ["" : 18]> F (a) => (c) {{ b = Relu (a) c = Relu (b) }}"#
    ));
    assert_eq!(
        text,
        "\"c/b_1\" = Relu (x)\ny = Relu (\"c/b_1\")\n\"c/b_2\" = Relu (b)\nz = Relu (\"c/b_2\")\n\
         \"d/b\" = Relu (y)\nu = Relu (\"d/b\")\n"
    );
}

#[test]
fn subgraphs_of_bodies_are_renamed_and_subgraphs_hold_calls() {
    let model = inlined(&format!(
        r#"{HEADER} g (x, cond) => (y) {{
                y = If (cond) <then_branch = t () => (o) {{ [c] o = m.F (x, cond) }}, else_branch = e () => (x) {{ }}>
            }}
            <domain: "m", opset_import: ["" : 18]> F (a, k) => (z) {{
                b = Relu (a)
                [if] z = If (k) <then_branch = t () => (float[N,2] p) <float w = {{1}}> {{ p = Add (b, w) }},
                                 else_branch = e () => (q) {{ b = Neg (a) q = Add (b, b) }}>
            }}"#
    ))
    .unwrap();
    assert_eq!(
        print_graph(&model.graph.unwrap()),
        r#"g (x, cond) => (y) {
   y = If (cond) <then_branch = t () => (o) {
      "c/b" = Relu (x)
      ["c/if"] o = If (cond) <then_branch = t () => (float[?,2] "c/p") <
         float "c/w" = {1}
      > {
         "c/p" = Add ("c/b", "c/w")
      }, else_branch = e () => ("c/q") {
         "c/b_1" = Neg (x)
         "c/q" = Add ("c/b_1", "c/b_1")
      }>
   }, else_branch = e () => (x) {
   }>
}
"#
    );
}

#[test]
fn a_graph_in_an_attribute_keeps_the_names_of_the_caller() {
    let text = nodes(&format!(
        r#"{HEADER} g (x, k) => (y) {{ [c] y = m.F (k) <body = t () => (b) {{ b = Relu (x) }}> }}
            <domain: "m", opset_import: ["" : 18]> F <body> (k) => (z) {{
                z = If (k) <then_branch: graph = @body, else_branch: graph = @body> }}"#
    ));
    assert_eq!(text.matches("b = Relu (x)").count(), 2, "{text}");
}

#[test]
fn metadata_and_devices_come_from_the_call() {
    let mut model = parse(&format!(
        r#"{HEADER} g (x) => (y) {{ [c] y = m.F (x) }}
            <domain: "m", opset_import: ["" : 18]> F (a) => (c) {{ b = Relu (a) c = Relu (b) }}"#
    ))
    .unwrap();
    let call = &mut model.graph.as_mut().unwrap().node[0];
    call.metadata_props.push(entry("call"));
    let spec =
        |name: &str| crate::onnx::proto::ShardingSpecProto { tensor_name: Some(name.into()), ..Default::default() };
    call.device_configurations
        .push(NodeDeviceConfigurationProto { sharding_spec: vec![spec("x"), spec("y")], ..Default::default() });
    model.functions[0].node[1].metadata_props.push(entry("own"));
    let nodes = inline_functions(&model, &|_| true).unwrap().graph.unwrap().node;
    assert_eq!(nodes[0].metadata_props, [entry("call")]);
    assert_eq!(nodes[1].metadata_props, [entry("own")]);
    assert_eq!(nodes[0].device_configurations[0].sharding_spec, [spec("x")]);
    assert_eq!(nodes[1].device_configurations[0].sharding_spec, [spec("y")]);
}

#[test]
fn domains_are_imported_and_versions_agree() {
    let model = |opsets: &str| {
        format!(
            r#"{HEADER} g (x) => (y) {{ y = m.F (x) }}
                <domain: "m", opset_import: [{opsets}]> F (a) => (c) {{ b = ai.onnx.Relu (a) c = com.y.Op (b) }}"#
        )
    };
    let result = inlined(&model(r#""" : 18, "com.y" : 3, "com.z" : 1"#)).unwrap();
    assert_eq!((result.opset("com.y"), result.opset("com.z"), result.opset("")), (Some(3), None, Some(18)));
    refused(&model(r#""" : 17, "com.y" : 3"#), "version 17 of domain '' (Relu), the model uses version 18");
    assert!(inlined(&model(r#""" : 18, "com.y" : 3, "m" : 7"#)).is_ok(), "a version that no node uses may differ");
}

#[test]
fn what_cannot_be_inlined_is_an_error() {
    let with = |call: &str, functions: &str| format!("{HEADER} g (x) => (y) {{ {call} }} {functions}");
    let f = |text: &str| format!(r#"<domain: "m", opset_import: ["" : 18, "m" : 1]> {text} "#);
    let call = "[c] y = m.F (x)";
    let cycle = f("F (a) => (b) { b = m.G (a) }") + &f("G (a) => (b) { b = m.F (a) }");
    refused(&with(call, &cycle), "function 'm.F' calls itself: m.F -> m.G -> m.F");
    refused(&with("y = m.F (x, x)", &f("F (a) => (b) { b = Relu (a) }")), "2 inputs for a function of 1");
    refused(&with("y, z = m.F (x)", &f("F (a) => (b) { b = Relu (a) }")), "2 outputs for a function of 1");
    refused(&with(call, &f("F (a) => (b) { c = Relu (a) }")), "does not compute its output: 'b'");
    // A body does not see the graph around the call.
    refused(&with(call, &f("F (a) => (b) { b = Add (a, x) }")), "node 'c' (m.F), a call of a function: 'x'");
    refused(
        &with("y = m.F <k = 1> (x)", &f("F <k> (a) => (b) { b = LeakyRelu <alpha: float = @k> (a) }")),
        "attribute 'k' has another type",
    );
}

#[test]
fn growth_has_limits() {
    let header = r#"<domain: "m", opset_import: ["" : 18, "m" : 1]>"#;
    let doubling: String =
        (0..40).map(|i| format!("{header} F{i} (a) => (c) {{ b = m.F{0} (a) c = m.F{0} (b) }} ", i + 1)).collect();
    let last = format!("{header} F40 (a) => (b) {{ b = Relu (a) }}");
    let chain: String = (0..200).map(|i| format!("{header} F{i} (a) => (b) {{ b = m.F{} (a) }} ", i + 1)).collect();
    for (functions, message) in [(doubling + &last, "too large"), (chain, "nest deeper")] {
        let text = format!(
            r#"<ir_version: 10, opset_import: ["" : 18, "m" : 1]> g (x) => (y) {{ y = m.F0 (x) }} {functions}"#
        );
        let error = parse(&text).and_then(|model| inline_functions(&model, &|_| true)).map(|_| ());
        assert!(error.is_err_and(|e| format!("{e:#}").contains(message)), "{message}");
    }
}

/// What is copied to each node or call counts by its length: a constant, a name, metadata of the call.
#[test]
fn what_is_carried_is_counted() -> anyhow::Result<()> {
    let long = "n".repeat(50_000);
    let many = |input: &str| (0..200).map(|i| format!("b{i} = Add ({input}, a) ")).collect::<String>();
    for (call, body, calls) in [
        ("", format!("v = Constant <value_string = \"{long}\"> () b199 = Relu (a)"), 200),
        ("", format!("{long} = Relu (a) {}", many(&long)), 20),
        (&*long, many("a"), 1),
    ] {
        let calls: String = (0..calls).map(|k| format!("y{k} = m.F (x) ")).collect();
        let mut model = parse(&format!(
            r#"<ir_version: 10, opset_import: ["" : 18, "m" : 1]> g (x) => (y0) {{ {calls} }}
                <domain: "m", opset_import: ["" : 18]> F (a) => (b199) {{ {body} }}"#
        ))?;
        for node in model.graph.iter_mut().flat_map(|g| &mut g.node).filter(|_| !call.is_empty()) {
            node.metadata_props = vec![StringStringEntryProto { key: None, value: Some(call.to_owned()) }];
        }
        let error = inline_functions(&model, &|_| true).map(drop);
        assert!(error.is_err_and(|e| format!("{e:#}").contains("too large")));
    }
    Ok(())
}
