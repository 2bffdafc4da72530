//! The command line as users meet it: what it prints, where, and with which exit code.

use onnx_gradients::Model;
use onnx_gradients::onnx::text;
#[cfg(feature = "validate")]
use onnx_gradients::onnx::{TensorProto, npy};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn tool(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_onnx-gradients")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line that a failure prints.
fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let object: Value = serde_json::from_str(&stdout(output)).unwrap_or_default();
    assert!(stdout(output).is_empty() || text.trim().ends_with(object["message"].as_str().unwrap()), "{output:?}");
    text.trim().to_owned()
}

/// A folder with `model.onnx`.
fn folder(graph: &str) -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.onnx");
    let proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap();
    Model::from(proto).save(&path).unwrap();
    (folder, path.display().to_string())
}

fn out(folder: &TempDir) -> String {
    folder.path().join("out.onnx").display().to_string()
}

const SQUARE: &str = "g (float[N,2] x, float[2] w) => (float[N,2] y) { z = Mul(x, w) y = Mul(z, z) }";

#[test]
fn grad_prints_a_table() {
    let (folder, model) = folder(SQUARE);
    let output = tool(&["grad", &model, "-o", &out(&folder), "--ys", "y", "--xs", "x", "w", "--no-validate"]);
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    assert!(text.contains("gradients/x") && text.contains("float[N,2]") && text.contains("not validated"), "{text}");
}

#[test]
fn grad_passes_rounding_on_request() {
    let (folder, model) =
        folder("g (float[3] x, float s) => (float[3] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }");
    let gradient = |options: &[&str]| {
        let out = out(&folder);
        let common = ["grad", &model, "-o", &out, "--ys", "y", "--xs", "x", "--no-validate", "--json", "--force"];
        let output = tool(&[&common, options].concat());
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
        report["gradients"][0]["gradient"].clone()
    };
    assert_eq!(gradient(&[]), Value::Null);
    assert_eq!(gradient(&["--straight-through"]), "gradients/x");
}

#[test]
fn grad_lowers() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.onnx").display().to_string();
    let text = r#"<ir_version: 8, opset_import: ["": 17, "ai.onnx.preview.training": 1]>
        g (float x) => (float y, float dx) {
            y = Mul(x, x)
            [d] dx = ai.onnx.preview.training.Gradient<xs = ["x"], y = "y">(x)
        }"#;
    Model::from(text::parse(text).unwrap()).save(&path).unwrap();
    let output = tool(&["grad", &path, "-o", &out(&folder), "--lower", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["lowered"][0]["gradients"][0], serde_json::json!({ "x": "x", "gradient": "dx" }), "{report}");
    assert_eq!(report["lowered"][0]["node"], "d");
    let nodes = Model::load(out(&folder)).unwrap().proto.graph.unwrap().node;
    assert!(nodes.iter().all(|n| n.op_type() != "Gradient") && nodes.last().unwrap().output == ["dx"]);
    let output = tool(&["grad", &path, "-o", &out(&folder), "--lower", "--xs", "x"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
#[cfg(feature = "validate")]
fn grad_validates() {
    let (folder, model) = folder(SQUARE);
    let output = tool(&["grad", &model, "-o", &out(&folder), "--inputs", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["validation"]["status"], "passed", "{report}");
    let check = tool(&["check", &out(&folder), "--dim", "N=3", "--seed", "5"]);
    assert!(check.status.success() && stdout(&check).contains("2 of 2 gradients compared"), "{check:?}");
}

#[test]
#[cfg(feature = "validate")]
fn a_gradient_that_is_asked_for_often_is_compared_once() {
    let (folder, model) = folder(SQUARE);
    let xs: Vec<&str> = ["x", "w"].repeat(5000);
    let output = tool(&[&["grad", &model, "-o", &out(&folder), "--json", "--ys", "y", "--xs"], &*xs].concat());
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let gradients = report["validation"]["gradients"].as_array().unwrap();
    assert!(gradients.len() == 10_000 && report["validation"]["inputs"].as_u64() > Some(8), "{output:?}");
    assert!(gradients.iter().enumerate().all(|(i, g)| g["compared"] == true && g["x"] == xs[i]), "{output:?}");
}

#[test]
#[cfg(feature = "validate")]
fn only_gradients_are_validated_before_the_ys_go() {
    let (folder, model) = folder("g (float[2] x) => (float[2] y) { y = Neg(x) }");
    let output = tool(&["grad", &model, "-o", &out(&folder), "--inputs", "--only-gradients", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["validation"]["status"], "passed", "{report}");
    let written = Model::load(out(&folder)).unwrap().proto.graph.unwrap();
    assert_eq!(written.output.iter().map(|o| o.name()).collect::<Vec<_>>(), ["gradients/x"]);
}

#[test]
fn only_gradients_keep_what_these_are_computed_of() {
    // The gradient takes its size from y.
    let (folder, model) = folder("g (float[N,2] x, float[2,2] w) => (float[N,2] y) { y = MatMul(x, w) }");
    let to = out(&folder);
    let output = tool(&["grad", &model, "-o", &to, "--ys", "y", "--xs", "x", "--only-gradients", "--no-validate"]);
    assert!(output.status.success(), "{output:?}");
    let graph = Model::load(&to).unwrap().proto.graph.unwrap();
    assert_eq!(graph.output.iter().map(|o| o.name()).collect::<Vec<_>>(), ["gradients/x"]);
    let computed: Vec<&str> = graph.node.iter().flat_map(|n| &n.output).map(|o| o.as_str()).chain(["x", "w"]).collect();
    for input in graph.node.iter().flat_map(|n| &n.input) {
        assert!(computed.contains(&input.as_str()), "nothing computes '{input}'");
    }
}

#[test]
fn json_is_in_the_order_of_xs_and_ys() {
    let (folder, model) =
        folder("g (float a, float b) => (float y, float z) { y = Mul(a, b) z = Exp(a) unused = Exp(b) }");
    let arguments = ["grad", &model, "-o", &out(&folder), "--ys", "z", "y", "--xs", "b", "a", "unused"];
    let output = tool(&[&arguments[..], &["--grad-ys", "input:seed", "-3", "--json", "--no-validate"]].concat());
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let list = |what: &str, key: &str| {
        report[what].as_array().unwrap().iter().map(|e| e[key].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let named = |names: &[&str]| names.iter().map(|n| Some((*n).to_owned())).collect::<Vec<_>>();
    assert_eq!(list("gradients", "x"), named(&["b", "a", "unused"]));
    assert_eq!(list("gradients", "gradient")[2], None);
    assert_eq!(list("seeds", "y"), named(&["z", "y"]));
    assert_eq!(list("seeds", "seed")[0].as_deref(), Some("seed"));
    assert_eq!(report["validation"]["status"], "skipped");
    assert!(report["nodes_added"].as_u64().unwrap() > 0);
    assert!(report["warnings"].as_array().unwrap().is_empty());
}

#[test]
fn wildcards_and_names_with_colons_and_spaces() {
    let graph = "g (float \"layer 1:w\", float \"layer 2:w\", float x) => (float y) { p = Mul(\"layer 1:w\", x) y = Mul(p, \"layer 2:w\") }";
    let (folder, model) = folder(graph);
    let run = |xs: &str, seed: &str| {
        let output = tool(&["grad", &model, "-o", "-", "--xs", xs, "--grad-ys", seed, "--no-validate", "--json"]);
        let report: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        report["gradients"].as_array().unwrap().len()
    };
    assert_eq!(run("layer ?:w", "ones"), 2);
    assert_eq!(run("layer 1:w", "tensor:layer 2:w"), 1);
    assert_eq!(run("*", "input:a seed: of mine"), 5);
    drop(folder);
}

#[test]
fn through_pipes() {
    let (folder, model) = folder(SQUARE);
    let script = format!(
        "{tool} grad - -o - --ys y --xs x --no-validate < {model} > {out}",
        tool = env!("CARGO_BIN_EXE_onnx-gradients"),
        out = out(&folder)
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    let written = Model::load(out(&folder)).unwrap();
    assert_eq!(written.proto.graph.unwrap().output[1].name(), "gradients/x");
}

#[test]
fn files_are_safe() {
    let (folder, model) = folder(SQUARE);
    let grad =
        |out: &str, more: &[&str]| tool(&[&["grad", &model, "-o", out, "--xs", "x", "--no-validate"], more].concat());
    let before = std::fs::read(&model).unwrap();
    assert!(error(&grad(&model, &["--force"])).contains("never overwritten"));
    assert_eq!(std::fs::read(&model).unwrap(), before);
    assert!(grad(&out(&folder), &[]).status.success());
    assert!(error(&grad(&out(&folder), &[])).contains("--force"));
    assert!(grad(&out(&folder), &["--force"]).status.success());
    assert!(error(&grad("/nowhere/out.onnx", &[])).contains("there is no folder '/nowhere'"));
    let failed = grad(&folder.path().join("other.onnx").display().to_string(), &["--ys", "nothing"]);
    assert!(error(&failed).contains("no tensor is called 'nothing'"));
    let left: Vec<PathBuf> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 2, "nothing half-written stays: {left:?}");
}

#[test]
fn bad_files_are_answered_in_one_line() {
    let (folder, model) = folder(SQUARE);
    let bytes = std::fs::read(&model).unwrap();
    let grad = |path: &Path| tool(&["grad", path.to_str().unwrap(), "-o", &out(&folder), "--xs", "x", "--no-validate"]);
    assert!(error(&grad(Path::new("no/such.onnx"))).contains("no/such.onnx"));
    assert!(error(&grad(folder.path())).contains("directory"));
    for (name, content) in [("empty", &b""[..]), ("text", b"hello world"), ("truncated", &bytes[..bytes.len() / 2])] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        assert!(error(&grad(&path)).contains("not an ONNX model"), "{name}");
    }
}

#[test]
fn graphs_that_cannot_be() {
    for (graph, expected) in [
        ("g (float x) => (float y) { y = Add(x, z) z = Exp(y) }", "cyclic"),
        ("g (float x) => (float y) { y = Exp(x) y = Tanh(x) }", "'y' is the name of two tensors"),
        ("g (float x) => (float y) { z = Exp(x) }", "graph output 'y' is computed by no node"),
        ("g (float[2,3] x) => (float y) { y = MatMul(x, x) }", "MatMul"),
        ("g (float[2,3] x) => (float y) { [sum] y = Add(x, w) }", "sum"),
    ] {
        let (folder, model) =
            folder(&graph.replace("Add(x, w)", "Add(x, v) ").replace("{ [sum]", "{ v = Transpose(x) [sum]"));
        let output = tool(&["grad", &model, "-o", &out(&folder), "--xs", "x", "--no-validate"]);
        assert!(error(&output).contains(expected), "{graph}: {output:?}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let (folder, model) = folder(SQUARE);
    for arguments in [
        vec!["grad", &model, "-o", &out(&folder)],
        vec!["grad", &model, "-o", &out(&folder), "--xs", "x", "--grad-ys", "two"],
        vec!["grad", &model, "--xs", "x"],
        vec!["grad", &model, "-o", "o", "--xs", "x", "--unconnected-gradients", "nan"],
        vec!["gradient"],
        vec![],
    ] {
        assert_eq!(tool(&arguments).status.code(), Some(2), "{arguments:?}");
    }
    let output = tool(&["grad", &model, "-o", "o", "--xs", "x", "--unconnected-gradients", "nan"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("none, zero"));
}

#[test]
#[cfg(unix)]
fn readers_that_leave_and_full_disks() {
    let (folder, model) = folder(SQUARE);
    let shell = |script: &str| {
        let script = script.replace("TOOL", env!("CARGO_BIN_EXE_onnx-gradients")).replace("MODEL", &model);
        Command::new("bash").args(["-c", &script]).output().unwrap()
    };
    for command in ["inspect MODEL", "inspect MODEL --json", "ops", "ops --json", "ops --markdown", "completions bash"]
    {
        let left = shell(&format!("TOOL {command} | true; exit ${{PIPESTATUS[0]}}"));
        assert!(left.status.success() && left.stderr.is_empty(), "{command}: {left:?}");
        let full = shell(&format!("TOOL {command} > /dev/full"));
        assert!(error(&full).contains("No space left"), "{command}: {full:?}");
    }
    assert_eq!(shell("TOOL inspect nothing 2> /dev/full").status.code(), Some(1));
    assert_eq!(shell("TOOL inspect nothing 2>&-").status.code(), Some(1));
    let grad = "TOOL grad MODEL --xs x --no-validate --name a";
    assert!(error(&shell(&format!("{grad} -o /dev/full"))).contains("No space left"));
    let through = shell(&format!("{grad} -o /dev/stdout"));
    std::fs::write(out(&folder), &through.stdout).unwrap();
    assert_eq!(Model::load(out(&folder)).unwrap().proto.graph.unwrap().output[1].name(), "a/x");
}

#[test]
#[cfg(all(unix, feature = "validate"))]
fn what_went_into_a_device_is_validated() {
    let (_folder, model) = folder(SQUARE);
    let output = tool(&["grad", &model, "-o", "/dev/null", "--xs", "x", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["validation"]["status"], "passed", "{report}");
}

#[test]
fn seeds_are_finite_numbers_or_have_names() {
    let (folder, model) = folder(SQUARE);
    let grad = |spec: &str| {
        let out = out(&folder);
        tool(&["grad", &model, "-o", &out, "--xs", "x", "--grad-ys", spec, "--no-validate", "--json", "--force"])
    };
    for (spec, number) in [("-3", "-3"), ("-1e-3", "-0.001"), ("-2.5E2", "-250"), ("1e3", "1000")] {
        let report: Value = serde_json::from_str(&stdout(&grad(spec))).unwrap();
        assert_eq!(report["seeds"][0]["seed"], number, "{spec}");
    }
    for spec in ["inf", "nan", "1e999", "1e39"] {
        assert!(error(&grad(spec)).contains("no finite number of type float"), "{spec}");
    }
    for spec in ["input:", "tensor:", "file:", ""] {
        let output = grad(spec);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains("is no seed"), "{spec}: {text}");
        assert!(text.contains("onnx-gradients grad"), "{text}");
    }
}

#[test]
fn names_are_suggested_whatever_their_case() {
    let (folder, model) =
        folder("g (float x, float \"layers.0.weight\") => (float Loss) { Loss = Mul(x, \"layers.0.weight\") }");
    let output = tool(&["grad", &model, "-o", &out(&folder), "--ys", "loss", "--xs", "X", "weight", "q*"]);
    let text = error(&output);
    for expected in
        ["did you mean 'Loss'?", "did you mean 'x'?", "did you mean 'layers.0.weight'?", "no tensor matches 'q*'"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn names_with_line_feeds_stay_on_one_line() {
    let (folder, model) = folder(SQUARE);
    let mut proto = Model::load(&model).unwrap().proto;
    let graph = proto.graph.as_mut().unwrap();
    graph.input[0].name = Some("a\nb".to_owned());
    graph.node[0].input[0] = "a\nb".to_owned();
    let path = folder.path().join("feed.onnx").display().to_string();
    Model::from(proto).save(&path).unwrap();
    assert!(stdout(&tool(&["inspect", &path])).contains("a\\nb  float[N, 2]"));
    assert!(error(&tool(&["grad", &path, "-o", &out(&folder), "--xs", "a\nc"])).contains("'a\\nc'"));
}

#[test]
fn newer_opsets_are_read_with_a_warning() {
    let (_folder, model) = folder(SQUARE);
    let mut proto = Model::load(&model).unwrap().proto;
    proto.opset_import[0].version = Some(99);
    let newer = Path::new(&model).with_file_name("newer.onnx");
    Model::from(proto).save(&newer).unwrap();
    let report: Value = serde_json::from_str(&stdout(&tool(&["inspect", newer.to_str().unwrap(), "--json"]))).unwrap();
    assert!(report["warnings"][0].as_str().unwrap().contains("the model is at opset 99"), "{report}");
}

#[test]
#[cfg(feature = "validate")]
fn check_takes_only_what_the_model_has() {
    let (folder, model) = folder(SQUARE);
    assert!(tool(&["grad", &model, "-o", &out(&folder), "--xs", "x", "--no-validate"]).status.success());
    let file = |name: &str, tensor: TensorProto| {
        let path = folder.path().join(name);
        npy::write_npy(&tensor, &path, false).unwrap();
        format!("x={}", path.display())
    };
    let good = file("good.npy", TensorProto::from_float32(&[3, 2], &[1.0; 6]));
    let wide = file("wide.npy", TensorProto::from_float32(&[3, 3], &[1.0; 9]));
    let ints = file("ints.npy", TensorProto::from_int64(&[3, 2], &[1; 6]));
    let check = |arguments: &[&str]| tool(&[&["check", &out(&folder)], arguments].concat());
    assert!(check(&["--input", &good]).status.success());
    assert!(error(&check(&["--input", &wide])).contains("it is float[3, 3], the input float[N,2]"));
    assert!(error(&check(&["--input", &ints])).contains("it is int64[3, 2], the input float[N,2]"));
    assert!(error(&check(&["--input", &good.replace("x=", "X=")])).contains("did you mean 'x'?"));
    assert!(error(&check(&["--dim", "n=3"])).contains("did you mean 'N'?"));
    assert!(error(&check(&["--call", "gradient"])).contains("did you mean 'gradients'?"));
    for wrong in [["--dim", "N"], ["--dim", "N=0"], ["--dim", "N=x"], ["--input", "x"], ["--directions", "0"]] {
        assert_eq!(check(&wrong).status.code(), Some(2), "{wrong:?}");
    }
}

/// A loop that ends at one value of `z` only, beside what is quick to compare: the engine never answers.
#[test]
#[cfg(feature = "validate")]
fn what_was_compared_before_the_time_was_over_is_known() {
    let (folder, model) = folder(
        "g (float[2] x, float[2] z) => (float[2] y, float[2] gx, float[2] gz) {
            k = Constant<value = float[2] {0.5, 0.25}>() d = Sub(z, k) s = ReduceSumSquare<keepdims = 0>(d)
            zero = Constant<value = float {0.0}>() same = Equal(s, zero)
            one = Constant<value = int64 {1}>() many = Constant<value = int64 {4611686018427387904}>()
            trips = Where(same, one, many) go = Constant<value = bool {1}>()
            l = Loop(trips, go, z) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w) {
                d = Identity(c) w = Neg(v)
            }>
            h = Constant<value = float {1000.0}>() q = Mul(x, x) p = Mul(q, h) y = Add(p, l)
            t = Constant<value = float {2000.0}>() gx = Mul(x, t) n = Sub(z, z) o = Constant<value = float {1.0}>()
            gz = Sub(n, o) half = Mul(x, h)
        }",
    );
    let z = folder.path().join("z.npy");
    npy::write_npy(&TensorProto::from_float32(&[2], &[0.5, 0.25]), &z, false).unwrap();
    let z = format!("z={}", z.display());
    let judge = |gradients: [&str; 2]| {
        let given = ["--ys", "y", "--xs", "x", "z", "--gradients", gradients[0], gradients[1]];
        tool(&[&["check", &model, "--json", "--time", "6", "--input", &z], &given[..]].concat())
    };
    let output = judge(["gx", "gz"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let given = &report["given"];
    assert_eq!(given["status"], "passed", "{report:#}");
    assert_eq!(given["gradients"][0]["compared"], true, "{report:#}");
    assert_eq!(given["gradients"][1]["compared"], false, "{report:#}");
    let note = given["gradients"][1]["note"].as_str().unwrap();
    assert!(note.contains("has not answered within 6 seconds; --time"), "{report:#}");
    let output = judge(["half", "gz"]);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["given"]["status"], "skipped", "{report:#}");
    let note = report["given"]["gradients"][0]["note"].as_str().unwrap();
    assert!(note.contains("it is not the slope at one input"), "{report:#}");
}

#[test]
fn every_subcommand_has_examples() {
    for command in ["grad", "inspect", "ops", "completions"] {
        let help = stdout(&tool(&[command, "--help"]));
        assert!(help.contains("Example"), "{command}: {help}");
    }
}

#[test]
fn ops_lists_the_table() {
    let rows: Value = serde_json::from_str(&stdout(&tool(&["ops", "--json"]))).unwrap();
    let tanh = rows.as_array().unwrap().iter().find(|r| r["operator"] == "Tanh").unwrap();
    assert_eq!(tanh["formula"], "dx = dy (1 - y²)");
    assert!(stdout(&tool(&["ops"])).contains("dx = dy (1 - y²)"));
}

#[test]
fn inspect_says_what_stands_in_the_way() {
    let (_folder, model) =
        folder("g (float x, float w) => (float y, float z) { y = Mul(x, w) f = Floor(x) z = Exp(f) }");
    let report: Value = serde_json::from_str(&stdout(&tool(&["inspect", &model, "--json"]))).unwrap();
    assert_eq!(report["reach"][0]["xs"], serde_json::json!(["x", "w"]));
    assert_eq!(report["reach"][1]["xs"], serde_json::json!([]));
    assert_eq!(report["opset"], 17);
    assert!(stdout(&tool(&["inspect", &model])).contains("y depends on x, w"));
}

#[test]
fn inspect_says_what_training_does_and_what_is_shared() {
    let graph = "g (float[N,4] x, int64[N] labels) => (float[N,4] y, float[N,4] z) <float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[4] b = {0,0,0,0}, float[4] u = {1,2,3,4}, float eps = {0.5}> {
        [one] h = Gemm(x, w, b) [two] i = Gemm(h, w, b) [half] y = Mul(i, eps) [cut] q = Round(i) [deep] z = Exp(q) [lost] l = Mul(x, u) }";
    let (folder, model) = folder(graph);
    let report = |more: &[&str]| {
        let output = tool(&[&["inspect", &model, "--json"], more].concat());
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let open = report(&[]);
    let found = |list: &str, name: &str| {
        let list = open[list].as_array().unwrap().iter();
        list.clone().find(|e| e["name"] == name).unwrap_or_else(|| panic!("{open}")).clone()
    };
    let w = found("parameters", "w");
    let place = serde_json::json!({ "node": "one", "operator": "Gemm", "input": 1 });
    assert_eq!((&w["trained"], &w["place"]), (&true.into(), &place), "{w}");
    assert_eq!(found("constants", "eps")["trained"], false);
    assert_eq!(found("shared", "b")["places"], serde_json::json!(["one (Gemm, input 2)", "two (Gemm, input 2)"]));
    assert_eq!((&found("shared", "b")["merged"], &found("shared", "w")["merged"]), (&true.into(), &false.into()));
    assert_eq!(open["unused"]["nodes"], serde_json::json!(["lost"]));
    assert_eq!(open["unused"]["initializers"], serde_json::json!(["u"]));
    assert_eq!(open["unused"]["inputs"], serde_json::json!(["labels"]));
    assert_eq!((&open["stops"][0]["node"], &open["stops"][0]["operator"]), (&"cut".into(), &"Round".into()), "{open}");
    assert_eq!((&open["opsets"]["ai.onnx"], &open["memory"]["open"][0]), (&17.into(), &"N".into()));
    let memory = report(&["--dim", "N=100"])["memory"].clone();
    // What goes in, and two tensors of 100 by 4 at a time at least; the weights, and AdamW's two states of the 20 numbers trained.
    assert!(memory["forward"].as_u64().unwrap() >= 3 * 100 * 4 * 4, "{memory}");
    assert!(memory["backward"].as_u64().unwrap() >= memory["forward"].as_u64().unwrap(), "{memory}");
    assert_eq!((&memory["gradients"], &memory["weights"]), (&80.into(), &100.into()), "{memory}");
    assert_eq!(memory["optimizers"], serde_json::json!([["momentum", 80], ["adamw", 160]]));
    let text = stdout(&tool(&["inspect", &model, "--dim", "N=100"]));
    for expected in ["unused nodes: lost", "'b' stands in 2 places", "state of adamw 160 B", "not trained"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(error(&tool(&["inspect", &model, "--dim", "n=1"])).contains("did you mean 'N'?"));
    let page = folder.path().join("page.html").display().to_string();
    assert!(tool(&["inspect", &model, "--html", &page]).status.success());
    assert!(error(&tool(&["inspect", &model, "--html", &page])).contains("--force"));
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("<svg") && text.contains("gradient stops here") && !text.contains("http://"), "{text}");
}

/// Data that lay beside the model lie beside what `export` writes, at the same offsets, with what was said of them.
#[test]
fn export_keeps_external_data_external() {
    use onnx_gradients::onnx::proto::StringStringEntryProto;
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let graph =
        "g (float[1,2] x) => (float y) <float[2,2] w = {1, 2, 3, 4}, float[2] b = {5, 6}, float[2] c = {0.5, 0.25}> {
        h = Gemm(x, w, b) i = Mul(h, c) s = ReduceSum<keepdims = 0>(i) y = Mul(s, s) }";
    let mut proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap();
    let entry = |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
    let mut data = vec![0u8; 4096 + 16];
    for (tensor, offset) in proto.graph.as_mut().unwrap().initializer.iter_mut().zip([4096, 0]) {
        let values: Vec<u8> = tensor.float_data.drain(..).flat_map(f32::to_le_bytes).collect();
        let values = if values.is_empty() { tensor.raw_data.take().unwrap().to_vec() } else { values };
        data[offset..offset + values.len()].copy_from_slice(&values);
        let (at, length) = (offset.to_string(), values.len().to_string());
        tensor.external_data = vec![
            entry("location", "weights/all.bin"),
            entry("offset", &at),
            entry("length", &length),
            entry("own", "kept"),
        ];
        tensor.metadata_props = vec![entry("place", "here")];
        tensor.data_location = Some(1);
    }
    std::fs::create_dir(folder.path().join("weights")).unwrap();
    std::fs::write(folder.path().join("weights/all.bin"), &data).unwrap();
    std::fs::write(path("model.onnx"), prost::Message::encode_to_vec(&proto)).unwrap();
    let done = tool(&["trainable", &path("model.onnx"), "-o", &path("training"), "--loss", "y"]);
    assert!(done.status.success(), "{done:?}");
    // The copy of the model is the model, byte for byte, and so are its data.
    let same =
        |a: &str, b: &str| assert!(std::fs::read(path(a)).unwrap() == std::fs::read(path(b)).unwrap(), "{a}, {b}");
    same("training/inference.onnx", "model.onnx");
    same("training/weights/all.bin", "weights/all.bin");
    let export = |more: &[&str]| {
        let state = path("training/state.safetensors");
        tool(&[&["export", &path("training"), "-o", &path("out.onnx"), "--state", &state], more].concat())
    };
    assert!(export(&[]).status.success(), "{:?}", export(&["--force"]));
    same("out.weights.all.bin", "weights/all.bin");
    let difference: Value =
        serde_json::from_str(&stdout(&tool(&["diff", &path("model.onnx"), &path("out.onnx"), "--json"]))).unwrap();
    let changed: Vec<&str> =
        difference["changed"].as_array().unwrap().iter().map(|c| c["path"].as_str().unwrap()).collect();
    let location = |w: &str| format!("graph.initializer['{w}'].external_data['location'].value");
    assert_eq!(
        (changed, &difference["lost"]),
        (vec![location("w").as_str(), location("b").as_str()], &serde_json::json!([]))
    );
    // A file that is there already stays.
    let again = export(&[]);
    assert!(error(&again).contains("--force"), "{again:?}");
}

/// What the child that validates fails with has its code outside as well.
#[test]
#[cfg(feature = "validate")]
fn check_says_what_its_child_fails_with() {
    let folder = TempDir::new().unwrap();
    let text = folder.path().join("text.onnx");
    std::fs::write(&text, "no model").unwrap();
    for (path, code) in [(text.display().to_string(), "invalid-model"), ("missing.onnx".to_owned(), "io")] {
        let output = tool(&["check", &path, "--json"]);
        let object: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(object["code"], code, "{output:?}");
        assert!(error(&output).contains(&path));
    }
    let (folder, model) = self::folder(SQUARE);
    let grad = |more: &[&str]| {
        let out = out(&folder);
        let output = tool(&[&["grad", &model, "-o", &out, "--xs", "x"], more, &["--json"]].concat());
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    for option in [["--dim", "n=3"], ["--range", "X=0..1"], ["--shape", "X=2x2"], ["--input", "X=x.npy"]] {
        let object = grad(&option);
        assert_eq!((&object["code"], object["tensor"].is_string()), (&"unknown-name".into(), true), "{object}");
    }
}

/// Folders where files belong and files where folders belong.
#[test]
fn what_is_no_folder_is_said() {
    let (folder, model) =
        folder("g (float[2] x) => (float y) <float[2] w = {1, 2}> { z = Mul(x, w) y = ReduceSum<keepdims = 0>(z) }");
    let file = folder.path().join("text");
    std::fs::write(&file, "text").unwrap();
    let file = file.display().to_string();
    let missing = folder.path().join("no/where").display().to_string();
    for (arguments, expected) in [
        (vec!["export", &file, "-o", "o.onnx"], "it is no folder; `onnx-gradients trainable` writes one"),
        (vec!["export", &missing, "-o", "o.onnx"], "there is no such folder"),
        (vec!["trainable", &model, "-o", &file, "--loss", "y"], "it is no folder"),
        (vec!["trainable", &model, "-o", &missing, "--loss", "y"], "there is no folder"),
        (vec!["batch", &model, "-o", &file, "--", "inspect"], "it is no folder"),
        (vec!["inspect", &model, "--html", &missing], "there is no folder"),
    ] {
        let mut arguments = arguments;
        arguments.insert(1, "--json");
        let output = tool(&arguments);
        assert!(error(&output).contains(expected), "{output:?}");
        let object: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(object["code"], "io", "{object}");
    }
    let training = folder.path().join("training").display().to_string();
    let unknown = tool(&["trainable", &model, "-o", &training, "--loss", "mean", "--json"]);
    let object: Value = serde_json::from_str(&stdout(&unknown)).unwrap();
    assert_eq!((&object["code"], &object["tensor"]), (&"unknown-name".into(), &"mean".into()), "{object}");
}

#[test]
fn a_batch_takes_commands_of_commands() {
    let (folder, model) = folder("g (float[1,2] x) => (float[1,2] y) { y = Mul(x, x) }");
    let to = folder.path().join("out").display().to_string();
    let output =
        tool(&["batch", &model, "-o", &to, "--", "explain", "saliency", "--ys", "y", "--class", "1", "--no-validate"]);
    assert!(output.status.success(), "{output:?}");
    assert!(folder.path().join("out/model.onnx").is_file());
}

#[test]
fn a_table_that_is_empty_is_not_printed() {
    let (_folder, model) = folder(SQUARE);
    let text = stdout(&tool(&["inspect", &model]));
    assert!(!text.contains("constants") && !text.contains("parameters"), "{text}");
}

#[test]
fn the_picture_of_a_large_graph_is_of_layers() {
    let mut graph = "g (float[1,4] x) => (float[1,4] y) <float[4,4] \"<w>\" = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> { h0 = Exp(x) ".to_owned();
    let layers = 250;
    for n in 0..layers {
        graph += &format!("m{n} = MatMul(h{n}, \"<w>\") r{n} = Relu(m{n}) ");
        for k in 0..5 {
            let from = if k == 0 { format!("r{n}") } else { format!("t{n}_{}", k - 1) };
            graph += &format!("t{n}_{k} = Tanh({from}) ");
        }
        graph += &format!("h{} = Add(t{n}_4, h{n}) ", n + 1);
    }
    graph += &format!("y = Identity(h{layers}) }}");
    let (folder, model) = folder(&graph);
    let page = folder.path().join("page.html").display().to_string();
    let output = tool(&["inspect", &model, "--html", &page]);
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(&page).unwrap();
    let boxes = text.matches("<rect class=\"box\"").count();
    // Each layer, what stands before the first one, the input and the output.
    assert_eq!(boxes, layers + 3);
    assert_eq!(text.matches("<details id=\"g").count(), layers + 1);
    assert!(text.contains("Tanh ×5") && text.contains("2002 nodes in 251 boxes"), "{}", &text[..3000]);
    assert!(!text.contains("<w>"), "names are no markup");
}

/// With --json whatever fails is one object on stdout.
#[test]
fn failures_are_objects_with_codes() {
    let (folder, model) = folder("g (float[2] x, bool b) => (float[2] y) { [odd] z = com.own.Odd(x) y = Mul(z, z) }");
    let out = out(&folder);
    let missing = folder.path().join("missing.onnx").display().to_string();
    let text = folder.path().join("text.onnx");
    std::fs::write(&text, "no model").unwrap();
    let text = text.display().to_string();
    let grad = |model: &str, rest: &[&str]| {
        let arguments = ["grad", model, "-o", &out, "--json"];
        tool(&[&arguments, rest].concat())
    };
    let fields = |output: &Output, exit: i32, code: &str| {
        assert_eq!(output.status.code(), Some(exit), "{output:?}");
        let object: Value = serde_json::from_str(&stdout(output)).unwrap();
        assert_eq!(object["code"], code, "{object}");
        assert!(!object["message"].as_str().unwrap().is_empty());
        object
    };
    let no_rule = fields(&grad(&model, &["--xs", "x"]), 1, "unsupported-operator");
    assert_eq!((&no_rule["node"], &no_rule["operator"]), (&"odd".into(), &"com.own.Odd".into()));
    assert!(no_rule["remedy"].as_str().unwrap().contains("--stop-gradients"), "{no_rule}");
    let unknown = fields(&grad(&model, &["--xs", "xx"]), 1, "unknown-name");
    assert_eq!((&unknown["tensor"], &unknown["remedy"]), (&"xx".into(), &"did you mean 'x'?".into()));
    assert_eq!((&no_rule["file"], &unknown["file"]), (&model.as_str().into(), &model.as_str().into()));
    assert_eq!(fields(&grad(&missing, &["--xs", "x"]), 1, "io")["file"], missing.as_str());
    assert_eq!(fields(&grad(&text, &["--xs", "x"]), 1, "invalid-model")["file"], text.as_str());
    fields(&grad(&model, &["--xs", "y", "--grad-ys", "ones", "ones"]), 1, "usage");
    fields(&grad(&model, &["--xs", "y", "--grad-ys", &format!("file:{text}")]), 1, "invalid-data");
    fields(&grad(&model, &["--no-such-option"]), 2, "usage");
    fields(&grad(&model, &[]), 2, "usage");
    fields(&tool(&["inspect", &text, "--json"]), 1, "invalid-model");
    std::fs::write(&out, "").unwrap();
    fields(&grad(&model, &["--xs", "y"]), 1, "io");
}

/// Where the validation fails the report itself has the code.
#[test]
#[cfg(feature = "validate")]
fn a_failed_validation_is_one_object() {
    let (folder, model) = folder(SQUARE);
    let out = out(&folder);
    assert!(tool(&["grad", &model, "-o", &out, "--xs", "x"]).status.success());
    let mut wrong = Model::load(&out).unwrap();
    let graph = wrong.proto.graph.as_mut().unwrap();
    let node = graph.node.iter_mut().rev().find(|n| n.output.iter().any(|o| o == "gradients/x")).unwrap();
    node.op_type = Some("Add".into());
    wrong.write(Path::new(&out), true).unwrap();
    let output = tool(&["check", &out, "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let object: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&object["code"], &object["gradients"]["status"]), (&"validation-failed".into(), &"failed".into()));
}

#[test]
fn the_codes_are_documented() {
    let mut text = "# Errors\n\n\
        With `--json` whatever fails prints one object on stdout, from every subcommand: `code`, `message` (one line), and `node`,\n\
        `operator`, `input`, `tensor`, `file`, `remedy`, null where they say nothing. Where there is a report already, as of a validation\n\
        that has failed, it is that object, with these fields. The exit code is 1, for wrong usage 2. Codes never change; messages may.\n\
        In the library they are the kinds of `onnx_gradients::Error`, with `code()` and `details()`.\n\n\
        | code | what it says |\n| --- | --- |\n"
        .to_owned();
    for (code, about) in onnx_gradients::Error::CODES {
        text += &format!("| `{code}` | {about} |\n");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), text, "UPDATE=1 writes docs/errors.md");
}

#[test]
fn what_grad_writes_only_adds() {
    let (folder, model) = folder(SQUARE);
    let out = out(&folder);
    assert!(tool(&["grad", &model, "-o", &out, "--xs", "x", "--no-validate"]).status.success());
    let output = tool(&["diff", &model, &out]);
    assert!(output.status.success(), "{output:?}");
    assert!(stdout(&output).contains("added    graph.output: 1\n"), "{output:?}");
    let back = tool(&["diff", &out, &model, "--json"]);
    assert_eq!(back.status.code(), Some(1));
    let object: Value = serde_json::from_str(&stdout(&back)).unwrap();
    assert_eq!((&object["code"], &object["only_adds"]), (&"different".into(), &false.into()), "{object}");
    assert!(object["lost"].as_array().unwrap().contains(&"graph.output['gradients/x']".into()), "{object}");
}

/// The lines of a batch's report, by their models.
fn batch_report(out: &Path) -> Vec<(String, String, Value)> {
    let text = std::fs::read_to_string(out.join("report.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|l| (l["model"].as_str().unwrap().into(), l["code"].as_str().unwrap().into(), l)).collect()
}

#[test]
fn a_batch_runs_reports_and_goes_on() {
    let folder = TempDir::new().unwrap();
    let (models, out) = (folder.path().join("models"), folder.path().join("out"));
    std::fs::create_dir_all(models.join("sub folder")).unwrap();
    let save = |name: &str, graph: &str| {
        let proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap();
        Model::from(proto).write(&models.join(name), true).unwrap();
    };
    save("a.onnx", SQUARE);
    save("sub folder/b b.onnx", SQUARE);
    save("odd.onnx", "g (float[2] x) => (float[2] y) { [odd] z = com.own.Odd(x) y = Mul(z, z) }");
    std::fs::write(models.join("zz.onnx"), "no model").unwrap();
    std::fs::write(models.join("notes.txt"), "none").unwrap();
    let (from, to) = (models.display().to_string(), out.display().to_string());
    let run = |more: &[&str]| {
        let arguments = [&["batch", &from, "-o", &to, "--jobs", "2", "--round-trip"], more];
        tool(&[&arguments.concat()[..], &["--", "grad", "--xs", "x", "--no-validate"]].concat())
    };
    let first = run(&["--json"]);
    assert_eq!(first.status.code(), Some(1), "{first:?}");
    let object: Value = serde_json::from_str(&stdout(&first)).unwrap();
    assert_eq!(
        (&object["models"], &object["failed"], &object["resumed"]),
        (&4.into(), &2.into(), &0.into()),
        "{object}"
    );
    let report = batch_report(&out);
    let codes: Vec<(&str, &str)> = report.iter().map(|(m, c, _)| (m.as_str(), c.as_str())).collect();
    let wanted = [
        ("a.onnx", "ok"),
        ("odd.onnx", "unsupported-operator"),
        ("sub folder/b b.onnx", "ok"),
        ("zz.onnx", "invalid-model"),
    ];
    assert_eq!(codes, wanted);
    assert_eq!(report[1].2["report"]["operator"], "com.own.Odd");
    assert!(out.join("sub folder/b b.onnx").is_file());

    // Nothing is done twice; what has changed, and what a kill has cut off, is done again.
    assert_eq!(run(&[]).status.code(), Some(1), "a report is not overwritten");
    let text = std::fs::read_to_string(out.join("report.jsonl")).unwrap();
    let cut = text.len() - 20;
    std::fs::write(out.join("report.jsonl"), &text[..cut]).unwrap();
    save("a.onnx", "g (float[3] x) => (float[3] y) { y = Mul(x, x) }");
    let again = run(&["--resume", "--json", "--allow", "invalid-model", "unsupported-operator"]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    let object: Value = serde_json::from_str(&stdout(&again)).unwrap();
    assert_eq!((&object["resumed"], &object["failed"]), (&2.into(), &0.into()), "{object}");
    let resumed = batch_report(&out);
    assert_eq!(resumed.iter().map(|(m, c, _)| (m.as_str(), c.as_str())).collect::<Vec<_>>(), wanted);
    assert_eq!(resumed[2], report[2]);
    assert_ne!(resumed[0].2["key"], report[0].2["key"]);
}

#[test]
fn a_batch_has_limits_patterns_and_lists() {
    let (folder, model) = folder(SQUARE);
    let out = folder.path().join("out");
    let to = out.display().to_string();
    let list = folder.path().join("list.txt");
    std::fs::write(&list, "# one\nmodel.onnx\n\nmissing.onnx\n").unwrap();
    let run = |models: &str, more: &[&str]| {
        let arguments = [&["batch", models, "-o", &to, "--force"], more, &["--", "grad", "--xs", "x", "--no-validate"]];
        tool(&arguments.concat())
    };
    assert_eq!(run(&list.display().to_string(), &["--no-write"]).status.code(), Some(1));
    let report = batch_report(&out);
    assert_eq!((report[0].1.as_str(), report[1].1.as_str()), ("ok", "io"), "{report:?}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2, "the report alone");
    let pattern = folder.path().join("mod*.onnx").display().to_string();
    assert!(run(&pattern, &[]).status.success());
    assert!(out.join("model.onnx").is_file());
    if cfg!(target_os = "linux") {
        assert_eq!(run(&model, &["--memory", "4M"]).status.code(), Some(1));
        assert_eq!(batch_report(&out)[0].1, "out-of-memory");
    }
    for wrong in
        [vec!["batch", &model, "-o", &to, "--", "no-command"], vec!["batch", "no/such", "-o", &to, "--", "grad"]]
    {
        assert_eq!(tool(&wrong).status.code(), Some(1), "{wrong:?}");
    }
    assert_eq!(tool(&["batch", &model, "-o", &to]).status.code(), Some(2));
}

#[test]
fn a_batch_leaves_a_page_that_no_name_breaks() {
    let folder = TempDir::new().unwrap();
    let (models, out) = (folder.path().join("models"), folder.path().join("out"));
    std::fs::create_dir(&models).unwrap();
    let save = |name: &str, graph: &str| {
        let proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap();
        Model::from(proto).write(&models.join(name), true).unwrap();
    };
    save("fine.onnx", SQUARE);
    for name in ["odd 1.onnx", "odd 2.onnx"] {
        save(name, "g (float[2] x) => (float[2] y) { [odd] z = com.own.Odd(x) y = Mul(z, z) }");
    }
    // No path on Windows holds these.
    let hostile = if cfg!(unix) { "<script>alert(1)<\u{202e}'&\".onnx" } else { "&'.onnx" };
    std::fs::write(models.join(hostile), "no model").unwrap();
    let (from, to) = (models.display().to_string(), out.display().to_string());
    let arguments = ["batch", &from, "-o", &to, "--", "grad", "--xs", "x", "--no-validate"];
    assert_eq!(tool(&arguments).status.code(), Some(1));
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert_eq!(page.matches("<script>").count(), 1, "{page}");
    assert!(!page.contains('\u{202e}') && !page.contains("http://") && !page.contains("https://"), "{page}");
    let escaped =
        if cfg!(unix) { "&lt;script&gt;alert(1)&lt;\\u{202e}&#39;&amp;&quot;.onnx" } else { "&amp;&#39;.onnx" };
    assert!(page.contains(escaped), "{page}");
    let reason = "<tr><td class=\"message\">2 need a gradient of com.own.Odd</td>\
                  <td class=\"code bad\">unsupported-operator</td>";
    assert!(page.contains(reason), "{page}");
    assert!(page.contains("1 is no valid model: not an ONNX model"), "{page}");
    assert_eq!(page.matches("<details id=").count(), 4);
}

#[test]
fn models_of_a_batch_have_options_of_their_own() {
    let folder = TempDir::new().unwrap();
    let save = |name: &str, graph: &str| {
        let proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap();
        Model::from(proto).write(&folder.path().join(name), true).unwrap();
    };
    save("bert.v1.onnx", "g (float[2] x, float[2] w) => (float[2] y, float[2] z) { y = Mul(x, w) z = Mul(w, w) }");
    save("bert-2.onnx", "g (float[2] x, float[2] w) => (float[2] y) { y = Mul(x, w) }");
    let list = folder.path().join("list.txt");
    std::fs::write(&list, "bert.v1.onnx\nbert-2.onnx\n").unwrap();
    let settings = folder.path().join("list.toml");
    let out = folder.path().join("out");
    let (from, to) = (list.display().to_string(), out.display().to_string());
    let run = |text: &str| {
        std::fs::write(&settings, text).unwrap();
        let batch = ["batch", &from, "-o", &to, "--resume", "--json", "--"];
        let output = tool(&[&batch[..], &["grad", "--xs", "x", "w", "--no-validate"]].concat());
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let report = run(
        "[\"bert*\"]\nys = [\"y\"]\n\n# only w\n[\"bert.v1\"]\nys = \"z\"\nxs = [\"w\"]\nname = 'own'\n[no]\ninputs = true\n",
    );
    assert_eq!((&report["failed"], &report["resumed"]), (&0.into(), &0.into()), "{report}");
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(warning.ends_with("list.toml: line 9: 'no' matches no model"), "{warning}");
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("matches no model"), "{page}");
    let lines = batch_report(&out);
    let gradients = |n: usize| lines[n].2["report"]["gradients"].clone();
    assert_eq!(gradients(0), serde_json::json!([{ "x": "w", "gradient": "own/w" }]));
    assert_eq!(gradients(1).as_array().unwrap().len(), 2);
    assert_eq!(lines[1].2["command"], serde_json::json!(["grad", "--xs", "x", "w", "--no-validate", "--ys=y"]));
    assert_eq!(lines[0].2["operators"], serde_json::json!({ "Mul": 2 }));
    // Who gets other options is done again, and nobody else.
    let report = run("[\"bert*\"]\nys = [\"y\"]\n\n[\"bert.v1\"]\nys = \"z\"\n");
    assert_eq!((&report["failed"], &report["resumed"]), (&0.into(), &1.into()), "{report}");
    for (text, expected) in [
        (
            "[\"a\"]\n\nonly_gradient = true\n",
            "line 3: 'only_gradient': grad has no such option; did you mean 'only-gradients'?",
        ),
        ("[\"a\"]\nname = ['a', 'b']\n", "line 2: 'name': it has one value"),
        ("[\"a\"]\ninputs = 3\n", "line 2: 'inputs': it is true or false"),
        ("[\"a\"]\noutput = 'o'\n", "line 2: 'output': a batch says this itself"),
        ("\n[a.onnx]\nys = 'y'\n", "a name with a point in it is quoted: [\"a.onnx\"]"),
        ("ys = 'y'\n", "line 1: 'ys' stands outside of a model"),
        ("[\"a\"]\nys = \n", "line 2: "),
        ("[\"a\"]\naggregation-method = 'none'\n", "line 2: 'aggregation-method': invalid value 'none'"),
    ] {
        let report = run(text);
        assert_eq!(report["code"], "invalid-data", "{report}");
        let message = report["message"].as_str().unwrap();
        assert!(message.contains("list.toml: ") && message.contains(expected), "{expected}: {message}");
    }
    // Files stand beside the settings, and what they hold counts.
    let seed = folder.path().join("seed.npy");
    let write = |n: f32| {
        let tensor = onnx_gradients::onnx::TensorProto::from_float32(&[2], &[n, n]);
        onnx_gradients::onnx::npy::write_npy(&tensor, &seed, true).unwrap();
    };
    write(1.0);
    let text = "[\"bert-2\"]\ngrad-ys = 'file:seed.npy'\n";
    let first = run(text);
    assert_eq!(first["failed"], 0, "{first}");
    assert_eq!(run(text)["resumed"], 2);
    write(2.0);
    assert_eq!(run(text)["resumed"], 1);
}

#[test]
fn a_model_is_printed_as_text() {
    let (_folder, model) = folder(
        "g (float[20] x) => (float[20] y) <float[20] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> { y = Mul(x, w) }",
    );
    let short = stdout(&tool(&["print", &model]));
    assert!(short.contains("y = Mul (x, w)") && short.contains("..."), "{short}");
    let whole = stdout(&tool(&["print", &model, "--whole"]));
    assert_eq!(text::parse(&whole).unwrap(), Model::load(&model).unwrap().proto);
    let object: Value = serde_json::from_str(&stdout(&tool(&["print", &model, "--json"]))).unwrap();
    assert_eq!(object["text"], short);
}

#[test]
fn params_and_inputs_are_what_there_is_of_both() {
    let (folder, model) = folder("g (float[2] x) => (float[2] y) { y = Mul(x, x) }");
    let grad = |xs: &[&str]| {
        let out = out(&folder);
        let output = tool(&[&["grad", &model, "-o", &out, "--no-validate", "--json", "--force"], xs].concat());
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let both = grad(&["--params", "--inputs"]);
    assert_eq!(both["gradients"][0]["x"], "x", "{both}");
    assert!(both["warnings"][0].as_str().unwrap().contains("--params finds no weight"), "{both}");
    assert_eq!(grad(&["--params"])["code"], "unsupported");
}

#[test]
fn a_batch_says_what_is_better_or_worse() {
    let (folder, _) = folder(SQUARE);
    let models = folder.path().join("models");
    std::fs::create_dir(&models).unwrap();
    let save = |name: &str, graph: &str| {
        let proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap();
        Model::from(proto).write(&models.join(name), true).unwrap();
    };
    let odd = "g (float[2] x) => (float[2] y) { z = com.own.Odd(x) y = Mul(z, z) }";
    let worse = "g (float[2] x) => (float[2] y) { z = com.own.Even(x) y = Mul(z, z) }";
    let more = "g (float[2] x) => (float[2] y) { z = Sin(x) y = Mul(z, z) }";
    let out = folder.path().join("out");
    let report = out.join("report.jsonl").display().to_string();
    let (from, to) = (models.display().to_string(), out.display().to_string());
    let run = |more: &[&str]| {
        let arguments = [&["batch", &from, "-o", &to, "--force"], more, &["--", "grad", "--xs", "x", "--no-validate"]];
        tool(&arguments.concat())
    };
    for (name, graph) in
        [("gone", SQUARE), ("less", SQUARE), ("mended", odd), ("other", odd), ("same", SQUARE), ("size", SQUARE)]
    {
        save(&format!("{name}.onnx"), graph);
    }
    assert_eq!(run(&[]).status.code(), Some(1));
    std::fs::remove_file(models.join("gone.onnx")).unwrap();
    for (name, graph) in [("less", odd), ("mended", SQUARE), ("new", SQUARE), ("other", worse), ("size", more)] {
        save(&format!("{name}.onnx"), graph);
    }
    let object: Value = serde_json::from_str(&stdout(&run(&["--compare", &report, "--json"]))).unwrap();
    let changes = object["changes"].as_array().unwrap();
    let found: Vec<(&str, &str)> =
        changes.iter().map(|c| (c["way"].as_str().unwrap(), c["model"].as_str().unwrap())).collect();
    let wanted = [
        ("worse", "less.onnx"),
        ("better", "mended.onnx"),
        ("other", "other.onnx"),
        ("other", "size.onnx"),
        ("new", "new.onnx"),
        ("gone", "gone.onnx"),
    ];
    assert_eq!(found, wanted, "{object}");
    assert_eq!(changes[0]["what"], "unsupported-operator (com.own.Odd), was ok");
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("unsupported-operator (com.own.Odd), was ok"), "{page}");
    let text = stdout(&run(&["--compare", &report]));
    assert!(text.contains("since the earlier report: nothing has changed\n"), "{text}");
    let another = ["batch", &from, "-o", &to, "--force", "--json", "--compare", &report, "--", "inspect"];
    let object: Value = serde_json::from_str(&stdout(&tool(&another))).unwrap();
    let warning = object["warnings"][0].as_str().unwrap();
    assert!(warning.contains("another command: 'inspect' was 'grad --xs x --no-validate'"), "{object}");
    std::fs::write(folder.path().join("none.jsonl"), "{}\n").unwrap();
    let none = folder.path().join("none.jsonl").display().to_string();
    let output = run(&["--compare", &none, "--json"]);
    let object: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(object["code"], "invalid-data", "{object}");
}

#[test]
fn a_batch_that_is_killed_again_and_again_ends_as_one_that_is_not() {
    const MODELS: usize = 24;
    let folder = TempDir::new().unwrap();
    let models = folder.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for n in 0..MODELS {
        let operator = if n % 5 == 4 { "com.own.Odd" } else { "Sin" };
        let graph = format!("g (float[2] x) => (float[2] y) {{ z = {operator}(x) y = Mul(z, z) }}");
        let proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap();
        Model::from(proto).write(&models.join(format!("{n}.onnx")), true).unwrap();
    }
    let from = models.display().to_string();
    let batch = |out: &Path| {
        let out = out.display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-gradients"));
        command.args([
            "batch",
            &from,
            "-o",
            &out,
            "--jobs",
            "2",
            "--resume",
            "--",
            "grad",
            "--xs",
            "x",
            "--no-validate",
        ]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    assert_eq!(batch(&whole).status().unwrap().code(), Some(1));
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..20 {
        let mut child = batch(&killed).spawn().unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(std::time::Duration::from_millis(random % 50));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(batch(&killed).status().unwrap().code(), Some(1));
    let report = |out: &Path| {
        let mut lines = batch_report(out);
        lines.iter_mut().for_each(|(_, _, line)| line["seconds"] = 0.into());
        lines
    };
    assert_eq!(report(&killed), report(&whole));
    assert_eq!(report(&killed).len(), MODELS);
    for n in 0..MODELS {
        let read = |out: &Path| std::fs::read(out.join(format!("{n}.onnx"))).ok();
        assert_eq!(read(&killed), read(&whole));
        assert_eq!(read(&whole).is_none(), n % 5 == 4, "{n}");
    }
}

#[test]
fn other_external_data_are_another_model() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model.onnx");
    let graph = "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }";
    let mut proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{graph}")).unwrap();
    let w = &mut proto.graph.as_mut().unwrap().initializer[0];
    w.float_data.clear();
    w.raw_data = None;
    w.data_location = Some(1);
    w.external_data = vec![onnx_gradients::onnx::proto::StringStringEntryProto {
        key: Some("location".into()),
        value: Some("w.bin".into()),
    }];
    let data = folder.path().join("w.bin");
    std::fs::write(&data, [0; 8]).unwrap();
    std::fs::write(&model, prost::Message::encode_to_vec(&proto)).unwrap();
    let out = folder.path().join("out");
    let (from, to) = (model.display().to_string(), out.display().to_string());
    let resumed = || {
        let arguments = ["batch", &from, "-o", &to, "--resume", "--json", "--", "grad", "--xs", "x", "--no-validate"];
        let output = tool(&arguments);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()["resumed"].as_u64().unwrap()
    };
    assert_eq!((resumed(), resumed()), (0, 1));
    std::fs::write(&data, [1; 8]).unwrap();
    assert_eq!((resumed(), resumed()), (0, 1));
}

#[cfg(unix)]
#[test]
fn what_a_batch_has_started_ends_with_it() {
    let folder = TempDir::new().unwrap();
    // A model that is waited for forever.
    let pipe = folder.path().join("model.onnx");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut command = Command::new(env!("CARGO_BIN_EXE_onnx-gradients"));
    command.args(["--end-with-stdin", "inspect"]).arg(&pipe).stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let alive = child.stdin.take();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it waits for its model");
    drop(alive);
    for _ in 0..200 {
        if child.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    child.kill().unwrap();
    panic!("it has outlived what it was started by");
}

#[cfg(feature = "validate")]
/// A product, a tensor whose rank only the run knows, and operators that need no rank.
const SQUEEZED: &str = "g (float[N,T,4] x) => (y) <float[4,5] w = {0.1, 0.2, 0.3, -0.4, 0.5, 0.6, -0.7, 0.8, 0.9, 1,
    1.1, -1.2, 1.3, 1.4, 1.5, 1.6, -1.7, 1.8, 1.9, 2}> { h = MatMul(x, w) s = Squeeze(h) y = Sigmoid(s) }";

#[cfg(feature = "validate")]
#[test]
fn a_shape_of_any_tensor_is_believed_by_every_command() {
    let (folder, model) = folder(SQUEEZED);
    let written = out(&folder);
    let shape = ["--shape", "s=Tx5"];
    let grad = |more: &[&str]| {
        tool(&[&["grad", &model, "-o", &written, "--params", "--inputs", "--force"], &shape[..], more].concat())
    };
    let output = grad(&[]);
    assert!(output.status.success() && stdout(&output).contains("2 of 2"), "{output:?}");
    let declared = Model::load(&written).unwrap().proto.graph.unwrap().value_info;
    let s = declared.iter().find(|v| v.name() == "s").and_then(|v| v.r#type.as_ref()).unwrap();
    assert_eq!(text::print_type(s), "float[T,5]");
    let inspected = tool(&["inspect", &model, "--shape", "s=Tx5", "--json"]);
    let report: Value = serde_json::from_str(&stdout(&inspected)).unwrap();
    assert_eq!(report["outputs"][0]["type"], "float[T, 5]");
    for arguments in [
        &["check", &written, "--shape", "s=Tx5", "--dim", "T=3"][..],
        &["vjp", &model, "-o", &out(&folder), "--inputs", "--force", "--shape", "s=Tx5"],
        &["trainable", &model, "-o", &format!("{written}.t"), "--loss", "mse", "--shape", "s=Tx5"],
    ] {
        let output = tool(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    for (given, said) in [
        ("h=4x5", "error: --shape h=4x5: the tensor has the shape ?x?x5"),
        ("x=2x3", "error: --shape x=2x3: the input is declared as float[N,T,4]"),
        ("q=2", "error: --shape: the model has no 'q'; there are 'h', 's', 'w', 'x', 'y'"),
        ("w=5x4", "error: --shape w=5x4: the tensor has the shape 4x5"),
    ] {
        let (model, written) = (&model, &written);
        assert_eq!(error(&tool(&["grad", model, "-o", written, "--inputs", "--force", "--shape", given])), said);
    }
}

#[cfg(feature = "validate")]
#[test]
fn trainable_validates_its_gradients_with_the_inputs_that_are_given() {
    let (folder, model) = folder(
        "g (float[N,2] x, float[2] w) => (float[N] y) <float[2] w = {3, 4}> { l = Log(x) m = Mul(l, w) axes = Constant<value = int64[1] {1}>() y = ReduceSum<keepdims=0>(m, axes) }",
    );
    let target = format!("{}.t", out(&folder));
    let train = |more: &[&str]| {
        let output =
            tool(&[&["trainable", &model, "-o", &target, "--loss", "mse", "--force", "--json"], more].concat());
        let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
        (output, report)
    };
    let (output, report) = train(&["--range", "x=0.5..2", "--dim", "N=3"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!((&report["validation"]["status"], &report["validation"]["compared"]), (&"passed".into(), &Value::Null));
    assert!(report["validation"]["summary"].as_str().unwrap().contains("1 of 1"), "{report}");
    let (_, report) = train(&["--no-validate"]);
    assert_eq!(report["validation"]["reason"], "--no-validate");
    for (option, said) in [("--dim", "M=3"), ("--range", "z=0..1")] {
        let (output, _) = train(&[option, said]);
        assert!(error(&output).contains("the model has no"), "{output:?}");
    }
}

/// What a budget has led to is in the text and in the manifest of `trainable`, and a budget that is too small names one
/// that the same command accepts.
#[test]
fn a_memory_budget_is_met_in_training_too() {
    let layers: Vec<String> = (0..6)
        .map(|l| {
            let before = if l == 0 { "x".to_owned() } else { format!("h{}", l - 1) };
            format!(
                "m{l} = MatMul({before}, w{l}) s{l} = Sigmoid(m{l}) p{l} = Mul(m{l}, s{l}) h{l} = Add(p{l}, {before})"
            )
        })
        .collect();
    let weights: Vec<String> = (0..6).map(|l| format!("float[2,2] w{l} = {{0.1, 0.2, 0.3, 0.{l}1}}")).collect();
    let graph = format!("g (float[N,2] x) => (float[N,2] h5) <{}> {{ {} }}", weights.join(", "), layers.join("\n"));
    let (folder, model) = folder(&graph);
    let target = format!("{}.t", out(&folder));
    let train = |budget: &str, more: &[&str]| {
        let call = ["trainable", &model, "-o", &target, "--loss", "mse", "--force", "--no-validate", "--dim", "N=512"];
        tool(&[&call, &["--memory-budget", budget][..], more].concat())
    };
    let text = stdout(&train("60%", &[]));
    assert!(text.contains("train.onnx holds ") && text.contains("computed again"), "{text}");
    let report: Value = serde_json::from_str(&stdout(&train("60%", &["--json"]))).unwrap();
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(Path::new(&target).join("manifest.json")).unwrap()).unwrap();
    let models = manifest["models"].as_array().unwrap();
    let memory = models.iter().find(|m| m["role"] == "train").map(|m| m["memory"].clone()).unwrap();
    assert!(memory["peak"].as_f64().unwrap() <= 0.6 * memory["peak_without"].as_f64().unwrap(), "{memory} {report}");
    let again = memory["recomputed"].as_array().unwrap();
    assert!(!again.is_empty() && again.iter().all(|r| r["times"].as_u64() > Some(0)), "{memory}");
    assert!(again.iter().any(|r| r["bytes"].as_u64() == Some(512 * 2 * 4)), "{memory}");

    let refused: Value = serde_json::from_str(&stdout(&train("0.01", &["--json"]))).unwrap();
    assert!(refused["message"].as_str().unwrap().contains("is the least that recomputation comes to"), "{refused}");
    let remedy = refused["remedy"].as_str().unwrap();
    let least = remedy.trim_start_matches("--memory-budget ").split(',').next().unwrap();
    assert!(train(least, &[]).status.success(), "{remedy}");
}

/// A batch that does not fit into memory is an error with what helps.
#[cfg(all(feature = "validate", target_os = "linux"))]
#[test]
fn a_training_without_memory_says_so() {
    let folder = TempDir::new().unwrap();
    let place = |name: &str| folder.path().join(name).display().to_string();
    let made = tool(&[
        "trainable",
        "models/digits-mlp.onnx",
        "-o",
        &place("training"),
        "--loss",
        "cross-entropy",
        "--no-validate",
    ]);
    assert!(made.status.success(), "{made:?}");
    const SAMPLES: usize = 80_000;
    let images = TensorProto::from_float32(&[SAMPLES as i64, 64], &vec![0.5; 64 * SAMPLES]);
    let labels = TensorProto::from_int64(&[SAMPLES as i64], &vec![1; SAMPLES]);
    std::fs::create_dir(place("data")).unwrap();
    npy::write_npy(&images, Path::new(&place("data/image.npy")), false).unwrap();
    npy::write_npy(&labels, Path::new(&place("data/labels.npy")), false).unwrap();
    let train = |kilobytes: &str| {
        let command = "ulimit -v $0 && exec \"$@\"";
        let arguments =
            ["train", &place("training"), "--data", &place("data"), "--batch-size", "80000", "--epochs", "1"];
        let mut shell = Command::new("sh");
        shell.args(["-c", command, kilobytes, env!("CARGO_BIN_EXE_onnx-gradients")]).args(arguments).arg("--json");
        shell.output().unwrap()
    };
    for kilobytes in ["200000", "300000"] {
        let output = train(kilobytes);
        let said = error(&output);
        let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(report["code"], "out-of-memory", "{kilobytes}: {said}");
        assert!(report["remedy"].as_str().unwrap().contains("--batch-size"), "{report}");
    }
}

/// What is wrong with a command line is one line of JSON too, with advice that the same command takes.
#[test]
fn wrong_usage_is_told_in_one_line() {
    let (folder, model) = folder(SQUARE);
    let out = out(&folder);
    let told = |arguments: &[&str]| -> (Value, String) {
        let output = tool(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        (serde_json::from_slice(&output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let grad = ["grad", &model, "-o", &out];
    for (arguments, message, remedy) in [
        (vec!["--parms"], "unexpected argument '--parms' found", Some("a similar argument exists: '--params'")),
        (vec!["--nothing-like-it"], "unexpected argument '--nothing-like-it' found", None),
        (
            vec!["--inputs", "--unconnected-gradients=x"],
            "invalid value 'x' for '--unconnected-gradients <UNCONNECTED_GRADIENTS>' [possible values: none, zero]",
            None,
        ),
        (
            vec![],
            "no xs are given; name tensors with --xs, take --params or --inputs, or --lower the model's own",
            Some("name tensors with --xs, take --params or --inputs, or --lower the model's own"),
        ),
    ] {
        let (report, text) = told(&[&grad[..], &arguments].concat());
        let said = report["message"].as_str().unwrap();
        assert_eq!(said, message);
        assert_eq!(report["remedy"].as_str(), remedy, "{report}");
        assert!(!text.contains("as a value, use"), "{text}");
    }
    // A negative number is a value, of which the option says itself what is wrong with it.
    let pgd = ["attack", "pgd", &model, "-o", &out, "--epsilon", "1", "--steps"];
    let (report, _) = told(&[&pgd[..], &["-1"]].concat());
    let message = report["message"].as_str().unwrap();
    assert!(message.starts_with("invalid value '-1' for '--steps <STEPS>': "), "{message}");
    let output = tool(&["attack", "fgsm", &model, "-o", &out, "--epsilon", "-1"]);
    assert!(error(&output).contains("-1"), "{output:?}");
}

/// Who interrupts a batch learns what there is, and how it goes on; what was under way has no line.
#[cfg(all(unix, feature = "validate"))]
#[test]
fn an_interrupted_batch_says_how_it_goes_on() {
    let folder = TempDir::new().unwrap();
    let models = folder.path().join("models");
    std::fs::create_dir(&models).unwrap();
    let proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{SQUARE}")).unwrap();
    Model::from(proto).write(&models.join("a.onnx"), true).unwrap();
    // A loop that does not end by itself holds the second up.
    let endless = "g (float[2] x) => (float[2] y) <int64 n = {4611686018427387904}, bool c = {1}> {
        y = Loop<body = b (int64 i, bool k, float[2] s) => (bool l, float[2] t) { l = Identity(k) t = Neg(s) }>(n, c, x) }";
    let proto = text::parse(&format!("<ir_version: 8, opset_import: [\"\": 17]>\n{endless}")).unwrap();
    Model::from(proto).write(&models.join("b.onnx"), true).unwrap();
    let (from, to) = (models.display().to_string(), folder.path().join("out").display().to_string());
    let arguments = ["batch", &from, "-o", &to, "--jobs", "1", "--", "grad", "--inputs", "--time", "600"];
    let mut batch = Command::new(env!("CARGO_BIN_EXE_onnx-gradients"));
    batch.args(arguments).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let batch = batch.spawn().unwrap();
    let report = Path::new(&to).join("report.jsonl");
    let begun = std::time::Instant::now();
    while std::fs::read_to_string(&report).map_or(0, |text| text.lines().count()) == 0 {
        assert!(begun.elapsed().as_secs() < 300, "the first model has not ended");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let sent = Command::new("kill").args(["-INT", &batch.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = batch.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("report.jsonl holds 1 of 2 models; --resume goes on with the others"), "{told}");
    assert_eq!(std::fs::read_to_string(&report).unwrap().lines().count(), 1);
}
