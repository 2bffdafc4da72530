"""What a round trip of a large ModelProto through the package costs, beside the library's own time from file to file.

    python benches/round_trip.py

Each side is the least of rounds in which all take turns.
"""

import pathlib
import tempfile
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnx_gradients as og
from onnx_gradients._command import run


def large(layers=25, width=1024):
    """A chain of products with square matrices: 4 MB a layer."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((width, width), dtype=np.float32) / width**0.5, f"w{i}")
        for i in range(layers)
    ]
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(layers)]
    nodes.append(helper.make_node("ReduceSum", [f"h{layers}"], ["loss"], keepdims=0))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "large", [info("h0", TensorProto.FLOAT, ["N", width])], [info("loss", TensorProto.FLOAT, [])], weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def least(sides, rounds=9):
    """The least time of each side, in turns."""
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            begin = time.perf_counter()
            side()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def round_trip(folder):
    model = large()
    path, out = folder / "large.onnx", folder / "out.onnx"
    onnx.save(model, path)
    sides = {
        "file": lambda: run(["grad", "--params", "--ys", "loss", "--no-validate", "--force", f"--output={out}", "--", path]),
        "proto": lambda: og.gradients(model, "loss", params=True, validate=False),
        "serialize": model.SerializeToString,
    }
    best = least(sides)
    print(f"round trip of {path.stat().st_size / 1e6:.0f} MB: {best['proto']:.3f} s, file to file {best['file']:.3f} s,")
    print(f"  ratio {best['proto'] / best['file']:.2f}; SerializeToString alone {best['serialize']:.3f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        round_trip(pathlib.Path(temporary))
