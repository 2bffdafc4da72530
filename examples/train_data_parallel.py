"""Data-parallel training of a folder written by `onnx-gradients trainable`: every process computes the gradients of its share of
each batch in plain ONNX Runtime, MPI averages them, and every process applies the same average.

    pip install onnxruntime numpy safetensors mpi4py mpich
    mpiexec -n 4 python train_data_parallel.py digits-training data/digits.npz --steps 50

With --check, the first process also trains on whole batches alone, and compares.
"""
import argparse

import numpy as np
from mpi4py import MPI
from safetensors.numpy import save_file
from train_onnxruntime import Training


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    world = MPI.COMM_WORLD
    if args.batch_size % world.size:
        parser.error(f"the batch size is no multiple of {world.size} processes")
    share = args.batch_size // world.size
    training = Training(args.folder, threads=1)
    alone = Training(args.folder, threads=1) if args.check and world.rank == 0 else None
    data = training.data(args.data)
    parameters = training.manifest["parameters"]
    # The same seed everywhere: the processes agree on every batch without a word.
    rng = np.random.default_rng(0)
    count = len(next(iter(data.values())))
    for step in range(args.steps):
        batch = rng.choice(count, args.batch_size, replace=False)
        own = batch[world.rank * share:(world.rank + 1) * share]
        results = training.run("gradients", {name: array[own] for name, array in data.items()})
        # Gradients are averaged, and so are the statistics that follow the data.
        averaged = {}
        for parameter in parameters:
            gradient = results[parameter["gradient"]]
            total = np.empty_like(gradient)
            world.Allreduce(gradient, total)
            averaged[parameter["gradient"]] = total / world.size
        for feed in training.manifest["state"]:
            if feed["role"] == "statistic":
                total = np.empty_like(training.state[feed["input"]])
                world.Allreduce(training.state[feed["input"]], total)
                training.state[feed["input"]] = total / world.size
        training.run("apply", {**averaged, **training.rate(args.lr)})
        loss = world.allreduce(float(results[training.manifest["loss"]])) / world.size
        if alone:
            alone.run("train", {**{name: array[batch] for name, array in data.items()}, **alone.rate(args.lr)})
        if world.rank == 0 and (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {loss:.4f}")
    if alone:
        names = [p["name"] for p in parameters]
        apart = max(float(np.abs(training.state[n] - alone.state[n]).max()) for n in names)
        print(f"{world.size} processes and one differ by at most {apart:.1e}")
        if apart > 1e-4:
            raise SystemExit("the processes do not give the result of one")
    if world.rank == 0:
        save_file(training.state, training.folder / "checkpoint.safetensors")


if __name__ == "__main__":
    main()
