"""Data-parallel training: each process takes its share of a batch, MPI averages the gradients.

    mpiexec -n 4 python data_parallel.py ../../models/digits-mlp.onnx ../../data/digits.npz
"""

from __future__ import annotations

import sys

import numpy as np
import onnx_gradients as og
import onnxruntime
from mpi4py import MPI


def main(model: str, samples: str, steps: int = 40, size: int = 64) -> float:
    """Train, and return how far the weights are from those of one process that takes whole batches."""
    world = MPI.COMM_WORLD
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    trainer = og.Trainer(model, "cross-entropy", session_options=options)
    alone = og.Trainer(model, "cross-entropy", session_options=options)
    data = og.data.Arrays(dict(np.load(samples)))
    rng = np.random.default_rng(0)  # The same in every process.
    for _ in range(steps):
        batch = next(data.batches(size, rng.permutation(data.count)[:size]))
        share = {name: array[world.rank :: world.size] for name, array in batch.items()}
        _, gradients = trainer.gradients(share)
        mean = {name: world.allreduce(g) / world.size for name, g in gradients.items()}
        trainer.apply(mean, lr=1e-3)
        alone.step(batch, lr=1e-3)
    weights = alone.parameters()
    return max(float(np.abs(w - weights[name]).max()) for name, w in trainer.parameters().items())


if __name__ == "__main__":
    apart = main(sys.argv[1], sys.argv[2])
    if MPI.COMM_WORLD.rank == 0:
        print(f"{MPI.COMM_WORLD.size} processes and one differ by at most {apart:.1e}")
    if apart > 1e-4:
        sys.exit("the processes do not give the result of one")
