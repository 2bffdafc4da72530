"""Operators of onnxruntime's own, and networks that its optimizer has fused, run by onnxruntime.

    python contributed.py TOOL

Each case is one node: its gradients along random directions against differences of what onnxruntime computes, in float32. Then small
networks as they are and as the optimizer writes them: both have the same gradients.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

F, I, L = np.float32, np.int32, np.int64
TOLERANCE = 2e-2
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape).astype(F)


def cases():
    """Operator, inputs in order (None where one is left out), how many outputs, attributes."""
    ints = lambda *v: np.array(v, I)
    x, w, b, z = normal(2, 3, 6, 5) * F(0.3), normal(4, 3, 3, 2) * F(0.5), normal(4), normal(2, 4, 6, 6)
    parameters = {"Relu": [], "Tanh": [], "Sigmoid": [], "LeakyRelu": [0.2], "Clip": [-1.0, 1.5], "HardSigmoid": [0.2, 0.4]}
    for activation, values in parameters.items():
        attributes = {"activation_params": values} if values else {}
        yield "FusedConv", [x, w, b], 1, dict(activation=activation, pads=[1] * 4, **attributes)
    yield "FusedConv", [x, w, None, z], 1, dict(activation="Tanh", pads=[1] * 4)
    parameters = {"Relu": {}, "Elu": {"alpha": 0.7}, "Celu": {"alpha": 0.7}, "Softplus": {}, "Softsign": {}}
    parameters |= {"Selu": {"alpha": 1.6, "gamma": 1.1}}
    for activation, values in parameters.items():
        attributes = {f"activation_{k}": v for k, v in values.items()}
        yield "FusedGemm", [normal(4, 3), normal(5, 4), normal(5)], 1, dict(transA=1, transB=1, activation=activation, **attributes)
    yield "FusedMatMul", [normal(4, 3, 2), normal(5, 3, 4)], 1, dict(alpha=0.5, transA=1, transB=1, transBatchA=1, transBatchB=1)
    yield "TransposeMatMul", [normal(2, 5, 4), normal(5, 6)], 1, dict(transA=1)
    packed, scales = rng.integers(0, 256, (3, 3, 8)).astype(np.uint8), normal(3, 3)
    n_bits = dict(K=40, N=3, bits=4, block_size=16)
    yield "MatMulNBits", [normal(2, 40), packed, scales, normal(3, 3) + F(8), None, normal(3)], 1, n_bits
    yield "MatMulNBits", [normal(2, 40), packed, scales, None, rng.integers(0, 3, 40).astype(I)], 1, n_bits
    table, rows = rng.integers(0, 256, (3, 10)).astype(np.uint8), np.array([[0, 2], [-1, 1]], L)
    for bits in (2, 4, 8):
        blocks = -(-80 // bits // 16)
        zeros = rng.integers(0, 256, (3, -(-blocks * bits // 8))).astype(np.uint8)
        for last in ([], [zeros]):
            yield "GatherBlockQuantized", [table, rows, normal(3, blocks), *last], 1, dict(bits=bits, block_size=16)

    words, segments = ints(1, 3, 3, 0, 4, 1).reshape(2, 3), ints(0, 1, 1, 0, 0, 1).reshape(2, 3)
    tables = [normal(5, 8), normal(4, 8), normal(2, 8), normal(8), normal(8)]
    yield "EmbedLayerNormalization", [words, segments, *tables], 3, {}
    yield "SkipLayerNormalization", [normal(2, 3, 8), normal(3, 8), normal(8), normal(8), normal(8)], 1, {}
    yield "SkipSimplifiedLayerNormalization", [normal(2, 3, 8), normal(2, 3, 8), normal(8)], 1, {}

    q, k, v = normal(2, 3, 8), normal(2, 3, 8), normal(2, 3, 8)
    past_k, past_v, bias = normal(2, 2, 2, 4), normal(2, 2, 2, 4), normal(24)
    mask = ints(1, 0, 1, 1, 1, 1, 1, 1, 0, 1).reshape(2, 5)
    causal = dict(num_heads=2, unidirectional=1)
    yield "MultiHeadAttention", [q, k, v, bias, mask, normal(1, 2, 3, 5), past_k, past_v], 3, causal
    yield "MultiHeadAttention", [q, normal(2, 2, 5, 4), normal(2, 2, 5, 4), bias, ints(3, 5)], 1, dict(num_heads=2)
    yield "MultiHeadAttention", [q, k, v, None, (rng.random((2, 3, 3)) > 0.4).astype(I)], 1, dict(num_heads=2)
    x, w = normal(2, 3, 5), normal(5, 24) * F(0.5)
    for mask, past in ((ints(2, 3), None), (ints(3, 2, 1, 0), None), (mask, normal(2, 2, 2, 2, 4))):
        yield "Attention", [x, w, bias, mask, past], 1 if past is None else 2, dict(num_heads=2)

    angle = normal(20, 8)
    cos, sin, heads = np.cos(angle), np.sin(angle), dict(num_heads=4, kv_num_heads=2)
    q, k, v, packed = normal(2, 3, 64) * F(0.5), normal(2, 3, 32) * F(0.5), normal(2, 3, 32), normal(2, 3, 128) * F(0.5)
    now, past = [e[:, :1].copy() for e in (q, k, v)], [normal(2, 2, 4, 16), normal(2, 2, 4, 16)]
    window = dict(**heads, local_window_size=2, softcap=1.5, smooth_softmax=1)
    yield "GroupQueryAttention", [q, k, v, None, None, ints(2, 2), I(3)], 3, window
    yield "GroupQueryAttention", [packed, None, None, None, None, ints(2, 2), I(3), cos, sin], 3, dict(**heads, do_rotary=1)
    positions, added, sink = np.array([[4, 6, 1], [2, 9, 3]], L), normal(1, 4, 3, 3), normal(4)
    turned = dict(**heads, do_rotary=1, rotary_interleaved=1)
    yield "GroupQueryAttention", [q, k, v, None, None, ints(2, 2), I(3), cos, sin, positions, added, sink], 3, turned
    yield "GroupQueryAttention", [*now, *past, ints(4, 2), I(5), cos, sin], 3, dict(**heads, do_rotary=1, local_window_size=3)
    yield "GroupQueryAttention", [*now, *past, ints(3, 2), I(4)], 3, heads

    router, up, down = normal(3, 4), normal(4, 12, 4), normal(4, 4, 6)
    gated = dict(activation_type="swiglu", swiglu_fusion=1, activation_alpha=1.7, activation_beta=1.0, swiglu_limit=0.7)
    yield "MoE", [normal(1, 3, 4), router, up, normal(4, 12), down, normal(4, 4)], 1, dict(**gated, k=2, normalize_routing_weights=1)
    yield "MoE", [normal(3, 4), router, up[:, :6].copy(), None, down], 1, dict(k=2, activation_type="gelu")

    yield "Inverse", [normal(2, 3, 3) + 3 * np.eye(3, dtype=F)], 1, {}
    yield "CDist", [normal(4, 3), normal(5, 3)], 1, dict(metric="euclidean")
    yield "ExpandDims", [normal(3, 4), I(-1)], 1, {}
    yield "Trilu", [normal(2, 3, 4), np.array(1, L)], 1, dict(upper=0)
    yield "GatherND", [normal(3, 4, 2), ints(0, 1, 2, 3, 0, 1).reshape(3, 2)], 1, {}
    yield "Pad", [normal(3, 4), np.array([1, 0, 2, 1], L), normal(1)], 1, {}
    yield "GridSample", [normal(1, 2, 4, 5), normal(1, 3, 2, 2) * F(0.4)], 1, {}
    linear = dict(q_num_heads=4, kv_num_heads=2, update_rule="linear")
    yield "LinearAttention", [normal(2, 3, 8), normal(2, 3, 4), normal(2, 3, 6), normal(2, 2, 2, 3)], 2, linear


def windows(x, size):
    """The means of windows of that size, in steps of two, of an image with a border of one that does not count."""
    places = [slice(max(0, 2 * i - 1), 2 * i - 1 + size) for i in range((x.shape[2] + 2 - size) // 2 + 1)]
    return np.array([[[[channel[r, c].mean() for c in places] for r in places] for channel in image] for image in x])


def softmax(x, axes):
    e = np.exp(x - x.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# The scale and the zero point of what goes in, and of what comes out.
STEP, ZERO, STEPS = F(1 / 32), np.uint8(128), {"QLinearSigmoid": F(1 / 256), "QLinearSoftmax": F(1 / 256)}


def quantized_cases():
    """Operator, the inputs that are quantized, attributes, and what it computes of the numbers that the integers stand for."""
    a, b, x = normal(2, 1, 3), normal(4, 1), normal(1, 2, 5, 5)
    yield "QLinearAdd", [a, b], {}, lambda a, b: a + b
    yield "QLinearMul", [a, b], {}, lambda a, b: a * b
    yield "QLinearConcat", [a, normal(2, 2, 3)], dict(axis=1), lambda a, b: np.concatenate([a, b], 1)
    yield "QLinearWhere", [a, b], {}, lambda a, b: np.where(CHOICE, a, b)
    pool = dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    yield "QLinearAveragePool", [x], pool, lambda x: windows(x, 3)
    yield "QLinearGlobalAveragePool", [x], dict(channels_last=0), lambda x: x.mean((2, 3), keepdims=True)
    yield "QLinearLeakyRelu", [x], dict(alpha=0.3), lambda x: np.where(x < 0, 0.3 * x, x)
    yield "QLinearSigmoid", [x], {}, sigmoid
    yield "QLinearSoftmax", [a], dict(axis=1, opset=11), lambda a: softmax(a, (1, 2))
    yield "QLinearSoftmax", [a], dict(axis=1, opset=13), lambda a: softmax(a, 1)
    yield "QGemm", [normal(2, 3), normal(4, 3)], dict(transB=1, alpha=0.5), lambda a, b: 0.5 * (a @ b.T + BIAS * STEP * STEP)
    yield "QGemm", [normal(3, 2), normal(3, 4)], dict(transA=1), lambda a, b: a.T @ b + BIAS * STEP * STEP


CHOICE, BIAS = np.array([[True, False, True]]), np.array([100, -200, 300, 400], I)


def check_quantized(tool, op, arrays, attributes, formula, folder):
    """What comes out is what the formula gives, in steps; the gradient straight through is the formula's slope."""
    out = STEPS.get(op, STEP * 2)
    weights = [("s", STEP), ("z", ZERO), ("t", out), ("choice", CHOICE), ("bias", BIAS)]
    feeds = {f"x{i}": a for i, a in enumerate(arrays)}
    nodes = [helper.make_node("QuantizeLinear", [x, "s", "z"], [f"q{x}"]) for x in feeds]
    given = [n for x in feeds for n in (f"q{x}", "s", "z")]
    given = {"QLinearConcat": ["t", "z", *given], "QLinearWhere": ["choice", *given], "QGemm": [*given, "bias"]}.get(op, given)
    given += [] if op == "QLinearConcat" else ["t", "z"]
    nodes.append(helper.make_node(op, given, ["q"], domain="com.microsoft", **attributes))
    nodes.append(helper.make_node("DequantizeLinear", ["q", "t", "z"], ["y"]))
    model = model_of(nodes, feeds, [output("y")], weights)
    # The numbers that the integers stand for; none is clipped, none lies at a kink.
    at = [np.clip(np.round(a / STEP), -100, 100) for a in arrays]
    at = [np.where(a == 0, 3, a) * STEP.astype(np.float64) for a in at]
    feeds = {x: v.astype(F) for x, v in zip(feeds, at)}
    expected, y = formula(*at), session(model).run(["y"], feeds)[0]
    if y.shape != expected.shape or np.abs(y - np.clip(expected, -128 * out, 127 * out)).max() > out:
        return "it computes something else"
    inside = (expected > -127 * out) & (expected < 126 * out)
    seed = normal(*y.shape) * inside
    backward, gradients = differentiate(tool, model, ["y"], list(feeds), folder, "--straight-through")
    found = session(backward).run([gradients[x] for x in feeds], {**feeds, "seed_y": seed.astype(F)})
    for i, gradient in enumerate(found):
        slope = np.zeros_like(at[i])
        for k in np.ndindex(slope.shape):
            moved = [np.array(v) for v in at]
            moved[i][k] += 1e-4
            up = formula(*moved)
            moved[i][k] -= 2e-4
            slope[k] = ((up - formula(*moved)) * seed).sum() / 2e-4
        if np.abs(gradient - slope).max() > 1e-3 * max(1, np.abs(slope).max()):
            return f"the gradient of input {i} is off by {np.abs(gradient - slope).max():.1e}"
    return "ok"


def check_dynamic(tool, kind, folder):
    """An operator that rounds inside of it: its gradients are the slopes of the same without the rounding."""
    if kind == "DynamicQuantizeLSTM":
        arrays = {"x": normal(3, 2, 4), "b": normal(2, 24), "h": normal(2, 2, 3), "c": normal(2, 2, 3)}
        w, r = (rng.integers(-60, 60, (2, n, 12)).astype(np.int8) for n in (4, 3))
        scales = {"ws": np.array([0.01, 0.02], F), "wz": np.zeros(2, np.int8), "rs": (rng.random((2, 12)) * 0.02).astype(F)}
        weights = {"w": w, "r": r, **scales, "rz": np.zeros((2, 12), np.int8)}
        given, attributes = "x w r b  h c  ws wz rs rz".split(" "), dict(hidden_size=3, direction="bidirectional")
        plain = {"w": w.transpose(0, 2, 1) * scales["ws"][:, None, None], "r": r.transpose(0, 2, 1) * scales["rs"][:, :, None]}
        twin = helper.make_node("LSTM", "x w r b  h c".split(" "), ["y", "yh", "yc"], **attributes)
        ys = ["y", "yh", "yc"]
    else:
        arrays, b = {"a": normal(2, 3), "d": normal(4)}, rng.integers(0, 256, (3, 4)).astype(np.uint8)
        weights = {"b": b, "s": np.array(0.02, F), "z": np.array(120, np.uint8)}
        given, attributes, ys = ["a", "b", "s", "z", "d"], {}, ["y"]
        plain = {"b": (b.astype(F) - 120) * F(0.02)}
        twin = helper.make_node("Gemm", ["a", "b", "d"], ["y"])
    node = helper.make_node(kind, given, ys, domain="com.microsoft", **attributes)
    model = model_of([node], arrays, [output(y) for y in ys], weights.items())
    plain = session(model_of([twin], arrays, [output(y) for y in ys], [(n, a.astype(F)) for n, a in plain.items()]))
    values, rounded = plain.run(ys, arrays), session(model).run(ys, arrays)
    if any(np.abs(v - w).max() > 0.1 for v, w in zip(values, rounded)):
        return "it computes something else"
    seeds = {f"seed_{y}": normal(*v.shape) for y, v in zip(ys, values)}
    backward, gradients = differentiate(tool, model, ys, list(arrays), folder)
    found = dict(zip(arrays, session(backward).run([gradients[x] for x in arrays], {**arrays, **seeds})))
    for x, a in arrays.items():
        direction = normal(*a.shape)
        ends = [plain.run(ys, {**arrays, x: a + F(h) * direction}) for h in (1e-2, -1e-2)]
        slope = sum(((p.astype(np.float64) - q) * seeds[f"seed_{y}"]).sum() for y, p, q in zip(ys, *ends)) / 2e-2
        error = abs(slope - (found[x].astype(np.float64) * direction).sum()) / np.abs(found[x] * direction).sum()
        if not error < TOLERANCE:
            return f"the gradient of {x} is off by {error:.1e}"
    return "ok"


def model_of(nodes, inputs, outputs, weights=(), opset=17):
    element = lambda a: helper.np_dtype_to_tensor_dtype(np.asarray(a).dtype)
    infos = [helper.make_tensor_value_info(n, element(a), np.shape(a)) for n, a in inputs.items()]
    graph = helper.make_graph(nodes, "g", infos, outputs, [numpy_helper.from_array(a, n) for n, a in weights])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def session(model, optimized=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if optimized else levels.ORT_DISABLE_ALL
    if optimized:
        options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def output(name):
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)


def differentiate(tool, model, ys, xs, folder, *options):
    """The model with its gradients, and their names; each y has an input for its seed."""
    source, target = os.path.join(folder, "model.onnx"), os.path.join(folder, "gradients.onnx")
    onnx.save(model, source)
    command = [tool, "grad", source, "-o", target, "--ys", *ys, "--xs", *xs, "--grad-ys", *(f"input:seed_{y}" for y in ys), *options]
    done = subprocess.run([*command, "--no-validate", "--json", "--force"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"refused: {done.stderr.strip()[:200]}")
    return onnx.load(target), {g["x"]: g["gradient"] for g in json.loads(done.stdout)["gradients"]}


def check_node(tool, op, arrays, outputs, attributes, folder):
    feeds = {f"x{i}": np.asarray(a) for i, a in enumerate(arrays) if a is not None}
    names = [f"y{i}" for i in range(outputs)]
    given = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    node = helper.make_node(op, given, names, domain="com.microsoft", **attributes)
    # The counts of EmbedLayerNormalization are no numbers with a gradient.
    ys = [y for y in names if not (op == "EmbedLayerNormalization" and y == "y1")]
    model = model_of([node], feeds, [output(y) for y in ys])
    forward = session(model)
    xs = [x for x, a in feeds.items() if a.dtype == F]
    backward, gradients = differentiate(tool, model, ys, xs, folder)
    values = forward.run(ys, feeds)
    seeds = {f"seed_{y}": normal(*v.shape) for y, v in zip(ys, values)}
    missing = [x for x in xs if gradients[x] is None]
    if missing:
        return f"no gradient for {missing}"
    found = dict(zip(xs, session(backward).run([gradients[x] for x in xs], {**feeds, **seeds})))

    def along(x, direction, step):
        shifted = forward.run(ys, {**feeds, x: np.asarray(feeds[x] + F(step) * direction, F)})
        return sum(float((v.astype(np.float64) * seeds[f"seed_{y}"]).sum()) for y, v in zip(ys, shifted))

    for x in xs:
        for _ in range(3):
            direction = normal(*feeds[x].shape)
            expected = float((found[x].astype(np.float64) * direction).sum())
            size = float(np.abs(found[x] * direction).sum()) + 1e-3
            # Where a step crosses a kink, a shorter one may not.
            slopes = [(along(x, direction, h) - along(x, direction, -h)) / (2 * h) for h in (1e-2, 3e-3, 1e-3)]
            error = min(abs(slope - expected) for slope in slopes) / size
            if not error < TOLERANCE:
                return f"the gradient of {x} is off by {error:.1e}"
    return "ok"


def image_network():
    weights = {"w1": normal(4, 3, 3, 3), "b1": normal(4), "w2": normal(4, 4, 3, 3), "w3": normal(6, 4, 1, 1)}
    weights |= {"w4": normal(5, 6), "b4": normal(5)}
    steps = [("Conv", "x w1 b1", "c1", dict(pads=[1] * 4)), ("Relu", "c1", "r1", {}), ("Conv", "r1 w2", "c2", dict(pads=[1] * 4))]
    steps += [("Add", "c2 r1", "s2", {}), ("Relu", "s2", "r2", {}), ("Conv", "r2 w3", "c3", {})]
    steps += [("LeakyRelu", "c3", "l3", dict(alpha=0.2)), ("GlobalAveragePool", "l3", "p", {}), ("Flatten", "p", "f", {})]
    steps += [("Gemm", "f w4 b4", "g", dict(transB=1)), ("Relu", "g", "y", {})]
    return steps, weights, {"x": normal(2, 3, 6, 6)}


def text_network():
    """A block of a transformer, its parts written in small steps."""
    weights = {f"w{p}": normal(8, 8) * F(0.4) for p in "qkvo"} | {f"b{p}": normal(8) for p in "qkvo"}
    weights |= {"wi": normal(8, 16) * F(0.4), "bi": normal(16), "wj": normal(16, 8) * F(0.4), "bj": normal(8)}
    weights |= {f"{p}{i}": normal(8) for i in range(3) for p in ("scale", "shift")}
    weights |= {"heads": np.array([0, 0, 2, 4], L), "joined": np.array([0, 0, 8], L)}
    weights |= {n: np.array(v, F) for n, v in dict(two=2, half=0.5, one=1, root=np.sqrt(2), eps=1e-5).items()}
    steps = [("LayerNormalization", "x scale0 shift0", "n0", {})]
    for p in "qkv":
        steps += [("MatMul", f"n0 w{p}", f"{p}m", {}), ("Add", f"{p}m b{p}", f"{p}a", {}), ("Reshape", f"{p}a heads", f"{p}r", {})]
        steps += [("Transpose", f"{p}r", f"{p}t", dict(perm=[0, 2, 3, 1] if p == "k" else [0, 2, 1, 3]))]
    steps += [("MatMul", "qt kt", "s", {}), ("Mul", "s half", "h", {}), ("Softmax", "h", "p", {}), ("MatMul", "p vt", "o", {})]
    steps += [("Transpose", "o", "ot", dict(perm=[0, 2, 1, 3])), ("Reshape", "ot joined", "oj", {}), ("MatMul", "oj wo", "om", {})]
    steps += [("Add", "om bo", "oa", {}), ("Add", "oa n0", "r1", {}), ("LayerNormalization", "r1 scale1 shift1", "n1", {})]
    steps += [("MatMul", "n1 wi", "im", {}), ("Add", "im bi", "ia", {}), ("Div", "ia root", "e0", {}), ("Erf", "e0", "e1", {})]
    steps += [("Add", "e1 one", "e2", {}), ("Mul", "ia e2", "e3", {}), ("Mul", "e3 half", "e4", {}), ("MatMul", "e4 wj", "jm", {})]
    steps += [("Add", "jm bj", "ja", {}), ("Add", "ja n1", "r2", {}), ("Pow", "r2 two", "sq", {})]
    steps += [("ReduceMean", "sq", "ms", dict(axes=[-1]))]
    steps += [("Add", "ms eps", "me", {}), ("Sqrt", "me", "rt", {}), ("Div", "r2 rt", "dv", {}), ("Mul", "dv scale2", "n2", {})]
    steps += [("Transpose", "n2", "nt", dict(perm=[0, 2, 1])), ("MatMul", "n2 nt", "y", {})]
    return steps, weights, {"x": normal(2, 4, 8)}


def check_network(tool, network, fused, folder):
    """The same gradient of x before and after the optimizer, which has made the operators `fused`."""
    steps, weights, feeds = network
    nodes = [helper.make_node(op, inputs.split(), [name], **attributes) for op, inputs, name, attributes in steps]
    plain = model_of(nodes, feeds, [output("y")], weights.items())
    path = os.path.join(folder, "optimized.onnx")
    y = session(plain, path).run(["y"], feeds)[0]
    optimized = onnx.load(path)
    absent = fused - {n.op_type for n in optimized.graph.node}
    if absent:
        return f"the optimizer has not made {absent}"
    feeds, results = {**feeds, "seed_y": normal(*y.shape)}, []
    for model in plain, optimized:
        backward, gradients = differentiate(tool, model, ["y"], ["x"], folder)
        results.append(session(backward).run([gradients["x"]], feeds)[0])
    error = np.abs(results[0] - results[1]).max() / np.abs(results[0]).max()
    return "ok" if error < 1e-4 else f"the gradients differ by {error:.1e}"


def main():
    tool, failed = sys.argv[1], 0

    def report(name, check, *arguments):
        nonlocal failed
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = check(tool, *arguments, folder)
            except Exception as error:  # one broken case does not hide the others
                result = f"{type(error).__name__}: {str(error)[:300]}"
        failed += result != "ok"
        print(f"{name:34} {result}", flush=True)

    for op, arrays, outputs, attributes in cases():
        report(op, check_node, op, arrays, outputs, attributes)
    for op, arrays, attributes, formula in quantized_cases():
        report(op, check_quantized, op, arrays, attributes, formula)
    for kind in "DynamicQuantizeLSTM", "DynamicQuantizeMatMul":
        report(kind, check_dynamic, kind)
    report("an optimized image network", check_network, image_network(), {"FusedConv", "FusedGemm"})
    fused = {"FusedMatMul", "Gelu", "SkipLayerNormalization", "SimplifiedLayerNormalization"}
    report("an optimized text network", check_network, text_network(), fused)
    print(f"{failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
