"""A model of more than 2 GB: gradients, a trainable model and steps by path, and what is said of one that is given by value.

    python benches/large.py [FOLDER]

It takes some 7 GB of the folder (a temporary one without it) and up to 6 GB of memory.
"""

from __future__ import annotations

import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import onnx
import onnx_gradients as og
from onnx import TensorProto, helper

LAYERS, WIDTH = 34, 4096  # 67 MB a layer


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes the model, layer by layer."""
    rng = np.random.default_rng(0)
    tensors, nodes = [], []
    with (folder / "large.data").open("wb") as data:
        for i in range(LAYERS):
            tensor = TensorProto(name=f"layer{i}.weight", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            weight = rng.standard_normal((WIDTH, WIDTH), dtype=np.float32) / WIDTH**0.5
            place = {"location": "large.data", "offset": data.tell(), "length": weight.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            weight.tofile(data)
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"h{i}", tensor.name], [f"h{i + 1}"], name=f"layer{i}"))
    info = helper.make_tensor_value_info
    x, y = info("h0", TensorProto.FLOAT, ["N", WIDTH]), info(f"h{LAYERS}", TensorProto.FLOAT, ["N", WIDTH])
    graph = helper.make_graph(nodes, "large", [x], [y], tensors)
    path = folder / "large.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString())
    print(f"{path}: {(folder / 'large.data').stat().st_size / 1e9:.2f} GB")
    return path


def timed(text: str, begin: float) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{text}: {time.perf_counter() - begin:.1f} s, at most {most:.2f} GB until now", flush=True)


def main(folder: pathlib.Path) -> None:
    path = write(folder)
    batch = {"h0": np.ones((2, WIDTH), "f"), "labels": np.zeros((2, WIDTH), "f")}

    begin = time.perf_counter()
    result = og.gradients(path, xs="layer0.weight", output=folder / "gradients.onnx")
    timed(f"gradients by path, {result.nodes_added} nodes added", begin)

    begin = time.perf_counter()
    trainer = og.Trainer(path, "mse", "sgd", train="layer33.weight", folder=folder / "t", providers="CPUExecutionProvider")
    timed("trainable by path", begin)
    begin = time.perf_counter()
    losses = [trainer.step(batch, 1e-3).loss for _ in range(2)]
    timed(f"two steps, losses {losses[0]:.4f} and {losses[1]:.4f}", begin)
    assert losses[1] < losses[0]
    begin = time.perf_counter()
    trainer.export(folder / "trained.onnx")
    timed("export", begin)
    del trainer

    begin = time.perf_counter()
    session = result.session(providers=["CPUExecutionProvider"])
    (gradient,) = session.run([result.gradients["layer0.weight"]], {"h0": batch["h0"]})
    assert gradient.shape == (WIDTH, WIDTH) and np.isfinite(gradient).all() and gradient.any()
    timed("the gradient, computed", begin)
    del session

    model = onnx.load(path)
    try:
        og.gradients(model, xs="layer0.weight")
    except og.errors.UnsupportedError as error:
        print(f"by value: {error}; {error.remedy}")
        assert "path" in str(error.remedy)
    else:
        raise AssertionError("a model of more than 2 GB was taken by value")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(pathlib.Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(pathlib.Path(temporary))
