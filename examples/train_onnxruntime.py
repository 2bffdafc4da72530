"""Trains a folder written by `onnx-gradients trainable` with plain ONNX Runtime.

    pip install onnxruntime numpy safetensors
    python train_onnxruntime.py digits-training data/digits.npz --epochs 20 --lr 0.003

The loop knows nothing of losses or optimizers: the manifest says which output feeds which input.
"""
import argparse
import json
import pathlib

import numpy as np
import onnxruntime
from safetensors.numpy import load_file, save_file

TYPES = {"float": np.float32, "double": np.float64, "float16": np.float16, "int64": np.int64, "int32": np.int32}


class Training:
    """A trainable model: its manifest, its models as sessions, its state."""

    def __init__(self, folder, threads=0):
        self.folder = pathlib.Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.state = load_file(self.folder / self.manifest["initial_state"])
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.sessions = {}

    def run(self, role, feeds):
        """Runs one of the models on the state and `feeds`; what it gives for the state is taken over."""
        model = next(m for m in self.manifest["models"] if m["role"] == role)
        if role not in self.sessions:
            self.sessions[role] = onnxruntime.InferenceSession(
                self.folder / model["file"], self.options, providers=["CPUExecutionProvider"])
        feeds = {**self.state, **feeds}
        outputs = self.sessions[role].run(model["outputs"], {name: feeds[name] for name in model["inputs"]})
        results = dict(zip(model["outputs"], outputs))
        for feed in self.manifest["state"]:
            if feed["output"] in results:
                self.state[feed["input"]] = results[feed["output"]]
        return results

    def rate(self, lr):
        rate = self.manifest["learning_rate"]
        return {rate["name"]: np.array(lr, TYPES[rate["type"]])}

    def data(self, path):
        """The tensors that the model takes, by name, in its types."""
        arrays = np.load(path)
        inputs = self.manifest["data"] + self.manifest["labels"]
        return {i["name"]: arrays[i["name"]].astype(TYPES[i["type"]]) for i in inputs}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    training = Training(args.folder)
    data = training.data(args.data)
    rng = np.random.default_rng(args.seed)
    order = rng.permutation(len(next(iter(data.values()))))
    held_out, order = order[: len(order) // 5], order[len(order) // 5:]
    steps = args.epochs * -(-len(order) // args.batch_size)
    step = 0
    for epoch in range(args.epochs):
        losses = []
        shuffled = rng.permutation(order)
        for start in range(0, len(shuffled), args.batch_size):
            samples = shuffled[start:start + args.batch_size]
            lr = args.lr * 0.5 * (1 + np.cos(np.pi * step / steps))
            results = training.run("train", {**{n: a[samples] for n, a in data.items()}, **training.rate(lr)})
            losses.append(float(results[training.manifest["loss"]]))
            step += 1
        results = training.run("evaluate", {n: a[held_out] for n, a in data.items()})
        metrics = [training.manifest["loss"]] + [m for m in training.manifest["metrics"] if m in results]
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}, held out:", ", ".join(f"{m} {results[m]:.4f}" for m in metrics))
    save_file(training.state, training.folder / "checkpoint.safetensors")
    print("checkpoint.safetensors written; `onnx-gradients export` puts it back into the model")


if __name__ == "__main__":
    main()
