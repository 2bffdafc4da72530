"""Differentiates the nine light_*.onnx networks of the onnx package: d outputs / d (image and weights), run by onnxruntime.

    python light.py TOOL

Each gradient has to be finite and of its x's shape. The gradient with respect to the image is also compared with a finite
difference of the logits along the gradient itself. (All weights of a layer are one number in these files, written by ConstantOfShape:
behind the softmax gradients cancel to nothing.)
"""
import glob
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime


def feeds_of(model, rng):
    """Random images for the inputs that no initializer gives."""
    given = {t.name for t in model.graph.initializer}
    feeds = {}
    for i in model.graph.input:
        if i.name not in given:
            shape = [d.dim_value or 1 for d in i.type.tensor_type.shape.dim]
            feeds[i.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def names_of(model):
    """The logits; the weights that nodes fill."""
    last = model.graph.node[-1]
    y = last.input[0] if last.op_type == "Softmax" else last.output[0]
    return y, [n.output[0] for n in model.graph.node if n.op_type == "ConstantOfShape"]


def check(tool, path, folder):
    out = os.path.join(folder, os.path.basename(path))
    model, rng = onnx.load(path), np.random.default_rng(0)
    y, filled = names_of(model)
    # In two of the networks nodes fill all weights that reach the logits: --params, which finds none, is an error there.
    for params in (["--params"], []):
        command = [tool, "grad", path, "-o", out, "--ys", y, "--xs", *filled, "--inputs", *params, "--grad-ys", "input:seed"]
        command += ["--no-validate", "--json", "--force"]
        done = subprocess.run(command, capture_output=True, text=True)
        if "finds no weight" not in done.stderr:
            break
    if done.returncode:
        return f"refused: {done.stderr.strip()[:200]}"
    gradients = {g["x"]: g["gradient"] for g in json.loads(done.stdout)["gradients"] if g["gradient"]}
    onnx.checker.check_model(out)
    feeds = feeds_of(model, rng)
    model.graph.output.append(onnx.ValueInfoProto(name=y))
    logits = os.path.join(folder, "logits.onnx")
    onnx.save(model, logits)
    forward, backward = session(logits), session(out)
    y_name, y = y, forward.run([y], feeds)[0]
    seed = rng.standard_normal(y.shape).astype(np.float32)
    names = sorted(set(gradients.values()))
    values = dict(zip(names, backward.run(names, {**feeds, "seed": seed})))
    for name, value in values.items():
        if not np.isfinite(value).all():
            return f"{name} is not finite"
    for x, feed in feeds.items():
        if x not in gradients:
            continue
        g = values[gradients[x]]
        if g.shape != feed.shape:
            return f"the gradient of {x} has shape {g.shape}"
        norm = np.linalg.norm(g.astype(np.float64))
        if norm == 0:
            continue
        direction, errors = (g / norm).astype(np.float32), []
        for h in (1.0, 1e-1, 1e-2):
            up, down = (forward.run([y_name], {**feeds, x: feed + s * h * direction})[0] for s in (1, -1))
            slope = float(((up.astype(np.float64) - down) * seed).sum() / (2 * h))
            noise = float(np.abs(seed * y).sum() * 1e-6 / h)
            errors.append(max(0.0, abs(slope - norm) - noise) / norm)
        if min(errors) > 0.05:
            return f"the gradient of {x} is off by {min(errors):.1e}"
    return f"{len(gradients)} gradients"


def main():
    tool = sys.argv[1]
    folder = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data", "light")
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(glob.glob(os.path.join(folder, "light_*.onnx"))):
            result = check(tool, path, scratch)
            failed += not result.endswith("gradients")
            print(f"{os.path.basename(path):30} {result}", flush=True)
    print(f"{9 - failed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
