"""What derivatives cost in ONNX Runtime, as multiples of the model or of its gradient, all measured in one run, in time of the
processor: a busy machine interrupts long runs more often than short ones.

    python derivative_costs.py TOOL [THREADS]       (pip install numpy onnx onnxruntime)
"""
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

TOOL, THREADS = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
RNG = np.random.default_rng(0)


def weight(name, *shape):
    scale = 1 / np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0])
    return numpy_helper.from_array((RNG.standard_normal(shape) * scale).astype(np.float32), name)


def save(folder, name, nodes, inputs, outputs, weights):
    value = lambda n, shape: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, name, [value(*i) for i in inputs], [value(*o) for o in outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = os.path.join(folder, name + ".onnx")
    onnx.save(model, path)
    return path


def mlp(folder):
    n = helper.make_node
    nodes = [n("MatMul", ["x", "w1"], ["a1"]), n("Add", ["a1", "b1"], ["c1"]), n("Tanh", ["c1"], ["h1"]),
             n("MatMul", ["h1", "w2"], ["a2"]), n("Add", ["a2", "b2"], ["c2"]), n("Tanh", ["c2"], ["h2"]),
             n("MatMul", ["h2", "w3"], ["y"])]
    weights = [weight("w1", 784, 512), weight("b1", 512), weight("w2", 512, 512), weight("b2", 512), weight("w3", 512, 10)]
    return save(folder, "mlp", nodes, [("x", ["N", 784])], [("y", ["N", 10])], weights), dict(x=(64, 784))


def cnn(folder):
    n = helper.make_node
    nodes = [n("Conv", ["x", "k1"], ["c1"], pads=[1] * 4), n("Softplus", ["c1"], ["s1"]),
             n("AveragePool", ["s1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
             n("Conv", ["p1", "k2"], ["c2"], pads=[1] * 4), n("Softplus", ["c2"], ["s2"]),
             n("GlobalAveragePool", ["s2"], ["p2"]), n("Flatten", ["p2"], ["f"]), n("MatMul", ["f", "w"], ["y"])]
    weights = [weight("k1", 32, 3, 3, 3), weight("k2", 64, 32, 3, 3), weight("w", 64, 10)]
    return save(folder, "cnn", nodes, [("x", ["N", 3, 32, 32])], [("y", ["N", 10])], weights), dict(x=(16, 3, 32, 32))


def derive(model, command, *options):
    out = model.replace(".onnx", f"-{len(os.listdir(os.path.dirname(model)))}.onnx")
    subprocess.run([TOOL, *command.split(), model, "-o", out, *options, "--only-gradients", "--no-validate"],
                   check=True, stdout=subprocess.DEVNULL)
    return out


PER_SAMPLE = {"per sample": (), "norms of samples": ("--norms",), "clipped sums": ("--clip-norm", "1")}


class Timed:
    def __init__(self, path, shapes):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = THREADS, 4
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        like = {i.name: i for i in self.session.get_inputs()}
        batch = next(iter(shapes.values()))[0]
        size = lambda name, i, d: shapes[name][i] if name in shapes else (d if isinstance(d, int) else batch)
        self.feeds = {name: RNG.standard_normal([size(name, k, d) for k, d in enumerate(i.shape)]).astype(np.float32)
                      for name, i in like.items()}
        self.times = []

    def run(self):
        start = time.process_time()
        self.session.run(None, self.feeds)
        self.times.append(time.process_time() - start)

    def best(self):
        return np.sort(self.times)[len(self.times) // 4]


def main():
    with tempfile.TemporaryDirectory() as folder:
        for make in (mlp, cnn):
            path, shapes = make(folder)
            gradient = ("grad", "--ys", "y", "--xs", "x")
            models = {
                "model": path,
                "grad": derive(path, *gradient),
                "grad of weights": derive(path, "grad", "--ys", "y", "--params"),
                "jvp": derive(path, "jvp", "--ys", "y", "--xs", "x"),
                "jvp of weights": derive(path, "jvp", "--ys", "y", "--params"),
                "hvp": derive(path, "hvp", "--ys", "y", "--xs", "x"),
                "hvp of weights": derive(path, "hvp", "--ys", "y", "--params"),
                "jacobian --batch": derive(path, "jacobian", "--ys", "y", "--xs", "x", "--batch", "0"),
            }
            if "--per-sample" in subprocess.run([TOOL, "grad", "--help"], capture_output=True, text=True).stdout:
                for name, kept in PER_SAMPLE.items():
                    models[name] = derive(path, "grad", "--ys", "y", "--params", "--per-sample", "0", *kept)
            timed = {name: Timed(model, shapes) for name, model in models.items()}
            for _ in range(30):
                for t in timed.values():
                    t.run()
            best = {name: t.best() for name, t in timed.items()}
            print(f"{make.__name__}: model {best['model'] * 1e3:.2f} ms, gradient {best['grad'] / best['model']:.2f} models")
            ratio = lambda name, of, bound: print(f"  {name}: {best[name] / best[of]:.2f} x {of} (bound {bound})")
            ratio("jvp", "model", 3)
            ratio("jvp of weights", "model", 3)
            ratio("hvp", "grad", 2.2)
            ratio("hvp of weights", "grad of weights", 2.2)
            ratio("jacobian --batch", "grad", 11)
            for name in (n for n in PER_SAMPLE if n in best):
                ratio(name, "grad of weights", 3)


main()
