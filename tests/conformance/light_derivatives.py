"""Derivatives of the light ResNet-50 of the onnx package, one command each, run by onnxruntime.

    python light_derivatives.py TOOL

Each output has to be finite and of the size of the image; the example of PGD has to stay within epsilon of it.
"""
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime

LIGHT = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data", "light", "light_resnet50.onnx")
COMMANDS = {
    "grad-cam": (["explain", "grad-cam"], (1, 224, 224)),
    "saliency": (["explain", "saliency"], (1, 224, 224)),
    "smooth-grad": (["explain", "smooth-grad", "--samples", "2"], (1, 224, 224)),
    "integrated-gradients": (["explain", "integrated-gradients", "--steps", "2"], (1, 3, 224, 224)),
    "pgd": (["attack", "pgd", "--epsilon", "0.1", "--steps", "2"], (1, 3, 224, 224)),
}


def main():
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, (words, shape) in COMMANDS.items():
            out = os.path.join(folder, name + ".onnx")
            command = [sys.argv[1], *words[:2], LIGHT, "-o", out, *words[2:], "--no-validate"]
            subprocess.run(command, check=True, capture_output=True)
            onnx.checker.check_model(out)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(out, options, providers=["CPUExecutionProvider"])
            rng = np.random.default_rng(0)
            feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) if "float" in i.type else np.zeros(i.shape, np.int64)
                     for i in session.get_inputs()}
            image = next(i for i in feeds if feeds[i].ndim == 4)
            found = session.run([f"{name}/{image}"], feeds)[0]
            right = found.shape == shape and bool(np.isfinite(found).all())
            if name == "pgd":
                right &= bool(np.abs(found - feeds[image]).max() <= 0.1 + 1e-6)
            failed += not right
            print(f"{name:22} {found.shape} {'ok' if right else 'WRONG'}", flush=True)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
