"""What a step of Trainer costs beside the loop that one writes by hand for it: IO binding with two sets of OrtValues.

    python benches/step.py [--steps 200] [--rounds 9]

Both train models/digits-cnn.onnx on the same batches, from the same state, with one thread, in turns of some steps; what counts is
processor time: the least, and the median of the ratios of turns that follow each other. Beside them stands the loop through NumPy arrays.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np
import onnx_gradients as og
import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parents[2]


def options() -> onnxruntime.SessionOptions:
    """One thread each: turns are compared, not how a machine shares its processors."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = 1
    return chosen


class ByHand:
    """The loop for one manifest: a step reads one set of buffers and writes the other."""

    def __init__(self, folder: pathlib.Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        self.session = onnxruntime.InferenceSession(str(folder / "train.onnx"), options(), providers=["CPUExecutionProvider"])
        self.loss = manifest["loss"]
        self.metrics = manifest["metrics"]
        state = og._safetensors.read(folder / manifest["initial_state"])[0]
        sets = [{n: onnxruntime.OrtValue.ortvalue_from_numpy(np.array(a)) for n, a in state.items()} for _ in range(2)]
        self.bindings = []
        for old, new in (sets, sets[::-1]):
            binding = self.session.io_binding()
            for feed in manifest["state"]:
                binding.bind_ortvalue_input(feed["input"], old[feed["input"]])
                binding.bind_ortvalue_output(feed["output"], new[feed["input"]])
            self.bindings.append(binding)

    def step(self, batch: dict[str, np.ndarray], lr: float) -> float:
        binding = self.bindings[0]
        self.bindings.reverse()
        binding.bind_cpu_input("image", batch["image"])
        binding.bind_cpu_input("labels", batch["labels"])
        binding.bind_cpu_input("learning_rate", np.array(lr, np.float32))
        for name in (self.loss, *self.metrics):
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        loss, *metrics = (float(value.numpy()) for value in binding.get_outputs()[-1 - len(self.metrics) :])
        return loss


class ThroughNumpy:
    """The loop with arrays in and out."""

    def __init__(self, folder: pathlib.Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        self.session = onnxruntime.InferenceSession(str(folder / "train.onnx"), options(), providers=["CPUExecutionProvider"])
        self.feeds = {f["output"]: f["input"] for f in manifest["state"]}
        self.names = [*self.feeds, manifest["loss"], *manifest["metrics"]]
        self.loss = manifest["loss"]
        self.state = {n: np.array(a) for n, a in og._safetensors.read(folder / manifest["initial_state"])[0].items()}

    def step(self, batch: dict[str, np.ndarray], lr: float) -> float:
        results = dict(zip(self.names, self.session.run(self.names, {**batch, **self.state, "learning_rate": np.array(lr, np.float32)})))
        self.state = {name: results[output] for output, name in self.feeds.items()}
        return float(results[self.loss])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    digits = np.load(ROOT / "data" / "digits.npz")
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(arguments.steps):
        chosen = rng.choice(len(digits["labels"]), arguments.batch, replace=False)
        batches.append({"image": digits["image"][chosen].astype(np.float32), "labels": digits["labels"][chosen].astype(np.int64)})
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "digits"
        og.trainable(ROOT / "models" / "digits-cnn.onnx", "cross-entropy", output=folder)
        hand, through = ByHand(folder), ThroughNumpy(folder)
        trainer = og.Trainer(folder, providers="CPUExecutionProvider", session_options=options())
        steps: dict[str, Callable[[dict[str, np.ndarray], float], float]] = {
            "Trainer.step": lambda batch, lr: trainer.step(batch, lr).loss,
            "by hand, IO binding": hand.step,
            "by hand, NumPy": through.step,
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        losses: dict[str, float] = {}
        for _ in range(arguments.rounds):
            # Each comes first as often as the others.
            steps = dict([*list(steps.items())[1:], next(iter(steps.items()))])
            for name, step in steps.items():
                begin = time.process_time()
                for batch in batches:
                    losses[name] = step(batch, 1e-3)
                times[name].append((time.process_time() - begin) / len(batches))
    np.testing.assert_allclose(list(losses.values()), losses["Trainer.step"], rtol=1e-5)
    for name, seconds in times.items():
        ratio = np.median(np.array(seconds) / times["by hand, IO binding"])
        print(f"{name:20} {1e3 * min(seconds):7.3f} ms a step, {ratio:.3f} of IO binding by hand")


if __name__ == "__main__":
    main()
