"""What a memory budget costs: gradients of models with budgets, in ONNX Runtime on one thread, as a table and a plot.

    python benches/budget.py TOOL -o docs/budget.svg NAME=MODEL.onnx... [--seconds 8]

Each model has a scalar output `loss` and inputs of known sizes; its weights are made inputs, as a training loop feeds them. Needs
numpy, onnx and onnxruntime. TOOL is the program onnx-gradients.
"""
import argparse, gc, json, math, pathlib, subprocess, tempfile, time

import numpy
import onnx
import onnxruntime
from onnx import helper, numpy_helper

SHARES = (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3)
COLOURS = ("#1b6ca8", "#c4572b", "#3b8a4f", "#7d4fa3", "#a3842b")


def written(tool, model, share, folder):
    """(file, report) of the gradients of all weights, or (None, what is wrong)."""
    out = str(pathlib.Path(folder) / "gradients.onnx")
    command = [tool, "grad", model, "-o", out, "--force", "--params", "--ys", "loss", "--no-validate", "--json", "--memory-budget", str(share)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    return (out, report) if "gradients" in report else (None, report)


def session(path, report):
    """A function that runs the model on buffers that stay."""
    model = onnx.load(path)
    wanted = {g["x"] for g in report["gradients"] if g["gradient"]}
    stored = {i.name: i for i in model.graph.initializer}
    random, feeds = numpy.random.default_rng(0), {}
    for i in model.graph.input:
        if i.name not in stored:
            dims = [d.dim_value for d in i.type.tensor_type.shape.dim]
            whole = i.type.tensor_type.elem_type != onnx.TensorProto.FLOAT
            feeds[i.name] = random.integers(0, 4, dims) if whole else random.standard_normal(dims).astype(numpy.float32)
    for name in wanted & set(stored):
        tensor = stored[name]
        feeds[name] = numpy_helper.to_array(tensor)
        model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        model.graph.initializer.remove(tensor)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    ort = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in ort.get_outputs()]
    binding = ort.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(numpy.ascontiguousarray(value)))
    for name, value in zip(names, ort.run(names, feeds)):
        binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(numpy.ascontiguousarray(value)))
    return lambda: ort.run_with_iobinding(binding)


def measured(tool, model, seconds):
    """[(share of the peak, time over that without recomputation)] and the least share that there is."""
    points, runs, least = [], [], 1.0
    with tempfile.TemporaryDirectory() as folder:
        for share in SHARES:
            path, report = written(tool, model, share, folder)
            if path is None:
                least = float(report["remedy"].split("or ")[1].split(" of")[0])
                break
            points.append(report["memory"]["peak"] / report["memory"]["peak_without"])
            runs.append(session(path, report))
    best = [math.inf] * len(runs)
    gc.disable()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for i, run in enumerate(runs):
            start = time.process_time()
            run()
            best[i] = min(best[i], time.process_time() - start)
    return [(p, t / best[0]) for p, t in zip(points, best)], least


def plot(results):
    """The curves as SVG: share of memory to the left, time upwards."""
    width, height, left, right, top, bottom = 640, 380, 62, 150, 24, 52
    low, high = 0.95, 1.5  # what takes half as long again and more is not shown
    results = {name: ([p for p in points if p[1] < high], least) for name, (points, least) in results.items()}
    x = lambda share: left + (1 - share) / 0.75 * (width - left - right)
    y = lambda t: height - bottom - (t - low) / (high - low) * (height - top - bottom)
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for t in numpy.arange(1.0, high, 0.1):
        svg.append(f'<line x1="{left}" x2="{width - right}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.1f}</text>')
    for share in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3):
        svg.append(f'<line x1="{x(share):.1f}" x2="{x(share):.1f}" y1="{top}" y2="{height - bottom}" stroke="#eee"/>'
                   f'<text x="{x(share):.1f}" y="{height - bottom + 18}" text-anchor="middle">{share:.0%}</text>')
    labels = []
    for (name, (points, _)), colour in zip(results.items(), COLOURS):
        path = " ".join(f"{x(p):.1f},{y(t):.1f}" for p, t in points)
        dots = "".join(f'<circle cx="{x(p):.1f}" cy="{y(t):.1f}" r="3" fill="{colour}"/>' for p, t in points)
        svg.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}')
        labels.append([y(points[-1][1]) + 4, x(points[-1][0]) + 8, colour, name])
    labels.sort()
    for before, label in zip(labels, labels[1:]):
        label[0] = max(label[0], before[0] + 14)
    svg.extend(f'<text x="{at:.1f}" y="{down:.1f}" fill="{colour}">{name}</text>' for down, at, colour, name in labels)
    middle = (left + width - right) / 2
    svg.append(f'<text x="{middle}" y="{height - 12}" text-anchor="middle">held at most, of what is held without recomputation</text>')
    svg.append(f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">time of a step</text></svg>')
    return "\n".join(svg) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    results = {}
    for name, model in (m.split("=", 1) for m in options.models):
        results[name] = points, least = measured(options.tool, model, options.seconds)
        print(f"{name:12} least {least:.2f}: " + ", ".join(f"{p:.2f} at {t:.2f}" for p, t in points), flush=True)
    pathlib.Path(options.output).write_text(plot(results))


if __name__ == "__main__":
    main()
