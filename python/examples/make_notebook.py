"""Writes fine_tune.ipynb, whose outputs are stripped.

    python make_notebook.py && jupyter execute fine_tune.ipynb
"""

from __future__ import annotations

import json
from pathlib import Path

CELLS: list[tuple[str, str]] = [
    ("markdown", "# From a scikit-learn model to a fine-tuned one\n\nA classifier that has seen the digits 0 to 4 only is exported to ONNX, "
     "then trained on all ten, without scikit-learn and without torch."),
    ("code", "import numpy as np\nfrom sklearn.datasets import load_digits\nfrom sklearn.neural_network import MLPClassifier\n\n"
     "digits = load_digits()\nimages = (digits.data / 16).astype(np.float32)\nlabels = digits.target.astype(np.int64)\n"
     "order = np.random.default_rng(0).permutation(len(labels))\nheld, seen = order[:360], order[360:]\n"
     "few = [i for n in range(10) for i in seen[labels[seen] == n][: 200 if n < 5 else 2]]\n"
     "classifier = MLPClassifier((64,), max_iter=60, random_state=0).fit(images[few], labels[few])\n"
     "before = classifier.score(images[held], labels[held])\nprint(f'{before:.1%} right of the held-out digits')"),
    ("code", "from skl2onnx import to_onnx\n\nmodel = to_onnx(classifier, images[:1], options={'zipmap': False}, target_opset=18)\n"
     "[(o.name) for o in model.graph.output]"),
    ("markdown", "The model puts out a label and probabilities. Cross-entropy has the softmax in it, so the loss is computed from what goes "
     "into it."),
    ("code", "import onnx_gradients as og\n\ntrainer = og.Trainer(model, 'cross-entropy:probabilities,smoothing=0.05')\n"
     "batch = {'X': images[seen[:64]], 'labels': labels[seen[:64]]}\nprint(trainer.health(batch))"),
    ("code", "trainer.health(batch).plot();"),
    ("code", "samples = {'X': images[seen], 'labels': labels[seen]}\n"
     "history = trainer.fit(samples, epochs=20, lr=5e-3, schedule='cosine', warmup=20,\n"
     "                      validation={'X': images[held], 'labels': labels[held]}, progress=False)\nhistory.plot();"),
    ("code", "import onnxruntime\n\npath = trainer.export('fine-tuned.onnx', force=True)\n"
     "session = onnxruntime.InferenceSession(path)\n"
     "found = session.run(['probabilities'], {'X': images[held]})[0].argmax(1)\n"
     "after = np.mean(found == labels[held])\nprint(f'{before:.1%} before, {after:.1%} after')\nassert after > max(before, 0.93)"),
]


def main() -> None:
    """Write the notebook beside this file."""
    cells = []
    for i, (kind, text) in enumerate(CELLS):
        cell: dict[str, object] = {"cell_type": kind, "id": f"cell-{i}", "metadata": {}, "source": text.splitlines(keepends=True)}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    Path(__file__).with_name("fine_tune.ipynb").write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
