"""Runs steps whose updates are operators of ai.onnx.preview.training in ONNX's reference evaluator, and the plain ones beside
them: the numbers have to be the same. python preview.py TOOL
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file

MODEL = pathlib.Path(__file__).parents[2] / "models/digits-mlp.onnx"


def trained(tool, optimizer, folder, options, steps=5):
    """The state after some steps on random data."""
    # The epsilon of the operator Adam is another one; where it is nothing, the two agree.
    command = [tool, "trainable", MODEL, "-o", folder, "--loss", "cross-entropy", "--optimizer", optimizer, "--epsilon", "1e-14"]
    subprocess.run(command + ["--weight-decay", "0.01"] + options, check=True, stdout=subprocess.DEVNULL)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = next(m for m in manifest["models"] if m["role"] == "train")
    model = onnx.load(folder / files["file"])
    onnx.checker.check_model(model)
    evaluator, state = ReferenceEvaluator(model), load_file(folder / manifest["initial_state"])
    rng = np.random.default_rng(0)
    for _ in range(steps):
        data = {"image": rng.random((8, 64), dtype=np.float32), "labels": rng.integers(0, 10, 8)}
        feeds = {**state, **data, "learning_rate": np.array(0.05, np.float32)}
        results = dict(zip(files["outputs"], evaluator.run(files["outputs"], {n: feeds[n] for n in files["inputs"]})))
        for feed in manifest["state"]:
            # The evaluator computes Adam in float64.
            state[feed["input"]] = np.asarray(results[feed["output"]]).astype(state[feed["input"]].dtype)
    return {p["name"]: state[p["name"]] for p in manifest["parameters"]}


def main():
    tool = str(pathlib.Path(sys.argv[1]).resolve())
    for optimizer in ["momentum", "nesterov", "adagrad", "adam"]:
        with tempfile.TemporaryDirectory() as place:
            place = pathlib.Path(place)
            plain = trained(tool, optimizer, place / "plain", [])
            preview = trained(tool, optimizer, place / "preview", ["--preview-operators"])
        apart = max(float(np.abs(plain[n] - preview[n]).max()) for n in plain)
        print(f"{optimizer}: the updates differ by at most {apart:.1e}")
        if not apart < 1e-3:
            raise SystemExit(f"{optimizer} of ai.onnx.preview.training is not the plain one")


if __name__ == "__main__":
    main()
