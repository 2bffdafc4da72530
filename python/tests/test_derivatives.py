"""Derivatives by every function, against finite differences in onnxruntime."""

import numpy as np
import onnx
import onnx_gradients as og
import onnxruntime
import pytest
from onnx import TensorProto, helper


def small(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {text}')


CUBE = "g (double[n, 3] x) => (double[n, 3] y) { s = Mul(x, x)  y = Mul(s, x) }"


def test_a_proto_in_is_a_proto_out(models):
    model = onnx.load(models / "mlp.onnx")
    result = og.gradients(model, "loss", params=True)
    assert isinstance(result.model, onnx.ModelProto)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.nodes_added > 0 and all(result.gradients.values())
    names = {i.name for i in model.graph.initializer}
    assert set(result.gradients) <= names


def test_every_form_of_a_model_gives_the_same(models, tmp_path):
    path = models / "mlp.onnx"
    as_bytes = og.gradients(path.read_bytes(), "loss", params=True)
    assert isinstance(as_bytes.model, bytes)
    as_proto = og.gradients(path, "loss", params=True)
    assert onnx.load_from_string(as_bytes.model) == as_proto.model
    written = og.gradients(path, "loss", params=True, output=tmp_path / "out.onnx")
    assert written.model == tmp_path / "out.onnx" and onnx.load(written.model) == as_proto.model
    ir = pytest.importorskip("onnx_ir")
    as_ir = og.gradients(ir.load(path), "loss", params=True)
    assert isinstance(as_ir.model, ir.Model)
    assert {o.name for o in as_ir.model.graph.outputs} == {o.name for o in as_proto.model.graph.output}


def test_gradients_are_those_of_the_model(models):
    result = og.gradients(models / "mlp.onnx", "loss", params=True)
    session = result.session(providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {}
    for i in session.get_inputs():
        shape = [n if isinstance(n, int) else 4 for n in i.shape]
        if "int64" in i.type:
            feeds[i.name] = rng.integers(0, 3, shape)
        else:
            feeds[i.name] = rng.standard_normal(shape).astype(np.float32)
    loss, *found = session.run(["loss", *result.gradients.values()], feeds)
    model = onnx.load(models / "mlp.onnx")
    for (name, _), gradient in zip(result.gradients.items(), found, strict=True):
        direction = rng.standard_normal(gradient.shape)
        moved = []
        for side in (1e-3, -1e-3):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            tensor = next(t for t in copy.graph.initializer if t.name == name)
            value = onnx.numpy_helper.to_array(tensor) + side * direction
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), name))
            moved.append(onnxruntime.InferenceSession(copy.SerializeToString()).run(["loss"], feeds)[0])
        slope = float((moved[0] - moved[1]) / 2e-3)
        assert slope == pytest.approx(float(np.sum(gradient * direction)), rel=2e-2, abs=2e-3)
    assert np.isfinite(loss)


def test_seeds_are_arrays_numbers_and_inputs():
    x = np.array([[1.0, 2.0, 3.0]])
    three = 3 * x**2

    def of(seed, **feeds):
        result = og.gradients(small("g (double[1, 3] x) => (double[1, 3] y) { s = Mul(x, x)  y = Mul(s, x) }"), "y", "x", [seed])
        return result.session().run([result.gradients["x"]], {"x": x, **feeds})[0]

    np.testing.assert_allclose(of(None), three)
    np.testing.assert_allclose(of(-2), -2 * three)
    np.testing.assert_allclose(of(np.array([[1.0, 0.0, 2.0]])), three * [1, 0, 2])
    np.testing.assert_allclose(of("input:v", v=np.full((1, 3), 5.0)), 5 * three)


def test_stops_and_unconnected_xs():
    model = small("g (float[2] a, float[2] z) => (float[2] y) { b = Add(a, a)  y = Add(a, b) }")
    assert og.gradients(model, "y", ["a", "z"]).gradients["z"] is None
    zeros = og.gradients(model, "y", ["a", "z"], unconnected_gradients="zero", stop_gradients="b")
    a, z = zeros.session().run(list(zeros.gradients.values()), {"a": np.ones(2, "f"), "z": np.ones(2, "f")})
    np.testing.assert_array_equal(a, [1, 1])
    np.testing.assert_array_equal(z, [0, 0])


def test_products_with_jacobian_and_hessian():
    x, v = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]]), np.array([[1.0, -1.0, 2.0], [0.0, 3.0, 1.0]])
    for command, expected in [(og.jvp, 3 * x**2 * v), (og.vjp, 3 * x**2 * v), (og.hvp, 6 * x * v)]:
        result = command(small(CUBE), "y", "x")
        (name,) = result.vectors.values()
        (found,) = result.session().run([result.outputs[0]["name"]], {"x": x, name: v})
        np.testing.assert_allclose(found, expected, err_msg=command.__name__)


def test_whole_matrices():
    x = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]])
    result = og.jacobian(small(CUBE), "y", "x")
    (found,) = result.session().run([result.outputs[0]["name"]], {"x": x})
    np.testing.assert_allclose(found.reshape(6, 6), np.diag((3 * x**2).ravel()))
    result = og.hessian(small(CUBE), "y", "x", diagonal=True)
    (found,) = result.session().run([result.outputs[0]["name"]], {"x": x})
    np.testing.assert_allclose(found, 6 * x)


CLASSIFIER = "g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {1, 2, -3, 4, 5, -6}> { h = MatMul(x, w)  y = Softmax<axis=-1>(h) }"


def test_explanations():
    x, w = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]], "f"), np.array([[1, 2], [-3, 4], [5, -6]], "f")

    def run(*arguments, **options):
        result = og.explain(small(CLASSIFIER), *arguments, **options)
        return result.session().run([result.outputs[0]["name"]], {"x": x})[0]

    np.testing.assert_allclose(run("input-x-gradient", label=1), x * w[:, 1], rtol=1e-5)
    # Both rows are of class 0; on the way from nothing the score rises by what it is.
    found = run("integrated-gradients", steps=5, baseline=0.0)
    np.testing.assert_allclose(found, x * w[:, 0], rtol=1e-5)
    np.testing.assert_allclose(run("saliency", label=0, channels=1).squeeze(), np.full(2, 5.0), rtol=1e-5)
    with pytest.raises(og.errors.UsageError):
        run("saliency", steps=5)


def test_attacks():
    x = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]], "f")
    clean = og.gradients(small(CLASSIFIER), "y", "x").session().run(["y"], {"x": x})[0]
    for method, options in [("fgsm", {}), ("pgd", {"steps": 3, "random_start": 1})]:
        result = og.attack(small(CLASSIFIER), method, epsilon=0.25, bounds=(-1.0, 3.0), **options)
        (label,) = result.vectors.values()
        session = result.session()
        kind = {"tensor(int64)": "int64", "tensor(int32)": "int32"}[next(i.type for i in session.get_inputs() if i.name == label)]
        (found,) = session.run([result.outputs[0]["name"]], {"x": x, label: np.zeros(2, kind)})
        assert np.abs(found - x).max() == pytest.approx(0.25, abs=1e-6)
        assert -1.0 <= found.min() and found.max() <= 3.0
        (after,) = session.run(["y"], {"x": found, label: np.zeros(2, kind)})
        assert (after[:, 0] < clean[:, 0]).all()


def test_docstrings_are_whole():
    for function in (og.jvp, og.vjp, og.hvp):
        assert function.__doc__.index("Parameters") < function.__doc__.index("Returns") < function.__doc__.index("``vectors``")


def test_validation_and_check(models, tmp_path):
    result = og.gradients(models / "mlp.onnx", "loss", params=True, validate=True, output=tmp_path / "g.onnx")
    assert result.validation.status == "passed"
    assert og.check(tmp_path / "g.onnx")
    wrong = onnx.load(tmp_path / "g.onnx")
    name = next(iter(result.gradients.values()))
    node = next(n for n in wrong.graph.node if name in n.output)
    node.output[list(node.output).index(name)] = "half"
    wrong.graph.node.append(helper.make_node("Add", ["half", "half"], [name]))
    with pytest.raises(og.errors.ValidationFailedError):
        og.check(wrong)


def test_inspect_and_operators(models):
    assert og.inspect(models / "mlp.onnx")["parameters"]
    assert og.inspect(onnx.load(models / "mlp.onnx"))["opset"]
    assert any(row["operator"] == "Softmax" for row in og.operators())


def test_errors_have_a_kind_and_a_place(models):
    with pytest.raises(og.errors.UnknownNameError, match="los"):
        og.gradients(models / "mlp.onnx", "los", params=True)
    with pytest.raises(og.errors.InvalidModelError):
        og.gradients(b"\xff\xff no model", "y", "x")
    with pytest.raises(og.errors.UsageError):
        og.gradients(models / "mlp.onnx", "loss")
    with pytest.raises(og.errors.FileError):
        og.gradients(models / "no-such-file.onnx", "y", "x")
    with pytest.raises(TypeError):
        og.gradients(7, "y", "x")
    node = helper.make_node("Foo", ["x"], ["y"], "foo", domain="my.own")
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy"]
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("my.own", 1)])
    with pytest.raises(og.errors.NoGradientError) as caught:
        og.gradients(model, "y", "x")
    assert "Foo" in str(caught.value.operator) and caught.value.remedy


def test_keywords_are_the_options_of_the_command_line(models, tmp_path):
    path = models / "transformer.onnx"
    plain = og.gradients(path, "logits", params=True)
    assert plain.memory is None
    held = og.gradients(path, "logits", params=True, memory_budget=0.9, dim={"batch": 4}).memory
    assert held["peak"] < held["peak_without"]
    assert og.gradients(path, "logits", params=True, memory_budget="90%", dim={"batch": 4}).memory == held
    smaller = og.gradients(path, "logits", params=True, memory_budget=0.9, dim={"batch": 1}).memory
    assert smaller["peak_without"] < held["peak_without"]
    with pytest.raises(og.errors.UnknownNameError, match="bach"):
        og.gradients(path, "logits", params=True, memory_budget=0.9, dim={"bach": 4})
    # What says how to run the result is for where it is run.
    assert og.gradients(path, "logits", params=True, time=1.0).validation.status == "skipped"
    gated = og.gradients(path, "logits", params=True, gate_gradients=True, name="g", only_gradients=True)
    assert set(gated.gradients.values()) == {o.name for o in gated.model.graph.output}
    with pytest.raises(TypeError, match="parms"):
        og.gradients(path, "logits", parms=True)
    with pytest.raises(TypeError, match="jvp.*diagonal"):
        og.jvp(path, "logits", params=True, diagonal=True)
    model = small("g (float[N, 3] x) => (float[N, 3] y) { y = Sqrt(x) }")
    checked = og.gradients(model, "y", "x", validate=True, dim={"N": 2}, range={"x": (0.5, 2)}, shape={"x": ["N", 3]})
    assert checked.validation.status == "passed"
    ones = og.gradients(model, "y", "x", validate=True, input={"x": np.ones((2, 3), "f")})
    assert ones.validation.status == "passed"
    with pytest.raises(og.Error):
        og.gradients(model, "y", "x", validate=True, input={"x": np.ones((2, 4), "f")})
    og.gradients(model, "y", "x", output=tmp_path / "-odd name.onnx")
    assert og.check(tmp_path / "-odd name.onnx", dim={"N": 2}, range={"x": (1, 2)}, directions=2, seed=3)
    assert og.check(tmp_path / "-odd name.onnx", input={"x": np.ones((5, 3), "f")})
    with pytest.raises(TypeError, match="validate"):
        og.check(model, validate=True)


def test_gradients_of_samples():
    x = np.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]])
    model = small("g (double[N, 3] x) => (double[N, 1] y) <double[3, 1] w = {1, 2, 3}> { y = MatMul(x, w) }")
    for options, expected in [
        ({}, x[:, :, None]), ({"norms": True}, np.linalg.norm(x, axis=1)),
        ({"clip_norm": 1.0}, np.sum(x / np.maximum(1, np.linalg.norm(x, axis=1, keepdims=True)), 0)[:, None]),
    ]:
        result = og.per_sample(model, "y", "w", **options)
        (found, *_) = result.session().run([result.outputs[0]["name"]], {"x": x})
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradient_nodes_are_lowered():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["y"]),
        helper.make_node("Gradient", ["x"], ["dx"], domain="ai.onnx.preview.training", xs=["x"], y="y"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("dx", TensorProto.FLOAT, [3])])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.preview.training", 1)]
    result = og.lower(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    assert len(result.report["lowered"]) == 1
    (found,) = result.session().run(["dx"], {"x": np.array([1, 2, 3], "f")})
    np.testing.assert_allclose(found, [2, 4, 6])


def test_diff_says_what_was_added_and_what_was_lost(models):
    path = models / "mlp.onnx"
    result = og.gradients(path, "loss", params=True)
    assert og.diff(path, result.model)["only_adds"]
    assert og.diff(path, result.model, all=True)["added"]
    with pytest.raises(og.errors.DifferentError) as caught:
        og.diff(result.model, path)
    assert caught.value.report["lost"]


def test_inspect_writes_a_page(models, tmp_path):
    og.inspect(models / "mlp.onnx", html=tmp_path / "page.html", dim={"batch": 4})
    assert (tmp_path / "page.html").read_text().lstrip().startswith("<!")
    with pytest.raises(og.errors.FileError):
        og.inspect(models / "mlp.onnx", html=tmp_path / "page.html")
    og.inspect(models / "mlp.onnx", html=tmp_path / "page.html", force=True)


def test_external_data_are_found(models, tmp_path, monkeypatch):
    model = onnx.load(models / "digits-mlp.onnx")
    expected = og.gradients(model, "logits", params=True)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    by_path = og.gradients(tmp_path / "m.onnx", "logits", params=True, output=tmp_path / "g.onnx")
    assert by_path.gradients == expected.gradients
    feeds = {"image": np.ones((2, 64), "f")}
    names = list(expected.gradients.values())
    for one, two in zip(by_path.session().run(names, feeds), expected.session().run(names, feeds), strict=True):
        np.testing.assert_array_equal(one, two)
    # Without output= they come along, as with onnx.load.
    whole = og.gradients(tmp_path / "m.onnx", "logits", params=True)
    for one, two in zip(whole.session().run(names, feeds), expected.session().run(names, feeds), strict=True):
        np.testing.assert_array_equal(one, two)
    # A ModelProto says where its data lie from the current folder on.
    monkeypatch.chdir(tmp_path)
    without = onnx.load("m.onnx", load_external_data=False)
    assert og.gradients(without, "logits", params=True).gradients == expected.gradients
    assert og.inspect(without)["parameters"]
    og.trainable(without, "cross-entropy", output=tmp_path / "t")
    assert og.Trainer(tmp_path / "t").parameters().keys() == expected.gradients.keys()


def test_remedies_are_said_of_keywords(models, tmp_path):
    (tmp_path / "there.onnx").write_text("")
    with pytest.raises(og.errors.FileError, match="force=True"):
        og.gradients(models / "mlp.onnx", "loss", params=True, output=tmp_path / "there.onnx")
    with pytest.raises(og.errors.UsageError) as caught:
        og.gradients(models / "mlp.onnx", "loss")
    assert "--" not in str(caught.value) and "params=True" in str(caught.value)


def test_a_model_of_more_than_2_gb_goes_by_path():
    class Large:
        def SerializeToString(self):
            raise ValueError("Failed to serialize proto")

    with pytest.raises(og.errors.UnsupportedError, match="2 GB") as caught:
        og.gradients(Large(), "y", "x")
    assert "path" in caught.value.remedy and "output=" in caught.value.remedy


def test_nothing_is_printed(models, capfd):
    og.gradients(models / "mlp.onnx", "loss", params=True)
    with pytest.raises(og.Error):
        og.gradients(models / "mlp.onnx", "los", params=True)
    assert capfd.readouterr() == ("", "")


def test_other_threads_run_meanwhile(models):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: og.gradients(models / "transformer.onnx", "logits", params=True), range(4)))
    assert all(r.model == results[0].model for r in results)
