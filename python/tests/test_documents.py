"""What the documents say is so: each block of Python in them runs, in order, in a folder like the checkout."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def blocks(text):
    """The indented blocks of a document, each with the number of its first line."""
    found, first = [], None
    for number, line in enumerate([*text.splitlines(), "end"]):
        if line.startswith("    ") and (first is not None or not before):
            if first is None:
                first, lines = number + 1, []
            lines.append(line[4:])
        elif first is not None and line.strip():
            found.append((first, "\n".join(lines).rstrip()))
            first = None
        elif first is not None:
            lines.append("")
        before = line.strip()
    return found


def is_python(block):
    try:
        ast.parse(block)
    except SyntaxError:
        return False
    return True


def commands(text):
    """The lines for a shell that call the command line with models of the checkout, or with what such lines have written."""
    made = ["models/"]
    for _, block in blocks(text):
        for line in block.splitlines():
            words = shlex.split(line.removeprefix("cargo run --").removeprefix("onnx-gradients"), comments=True)
            if line.startswith(("cargo run -- ", "onnx-gradients ")) and words[1:] and words[1].startswith(tuple(made)):
                made += [words[words.index("-o") + 1]] if "-o" in words else []
                yield words


def python_of(text):
    """The blocks of Python, each with the number of its first line; lines for a shell may stand before them."""
    for first, block in blocks(text):
        while block and not is_python(block):
            before, _, block = block.partition("\n\n")
            first += before.count("\n") + 2
        if block:
            yield first, block


@pytest.mark.parametrize("document, least", [("README.md", 2), ("python/README.md", 7)])
def test_every_block_of_python_runs(document, least, tmp_path):
    for folder in ("models", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    blocks_of_it = list(python_of((ROOT / document).read_text()))
    assert len(blocks_of_it) >= least
    # Each block stands where it does in the document, so that a failure names its line.
    script, now = [], 1
    for line, block in blocks_of_it:
        script += [""] * (line - now) + block.splitlines()
        now = line + len(block.splitlines())
    for words in commands((ROOT / document).read_text()):
        if "--epochs" in words:  # How well it learns is for other tests.
            words[words.index("--epochs") + 1] = "2"
        subprocess.run([sys.executable, "-m", "onnx_gradients", *words], cwd=tmp_path, capture_output=True, check=True)
    path = tmp_path / "blocks.py"
    path.write_text("\n".join(script) + "\n")
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_an_error_is_said_to_say_it_says(tmp_path):
    text = (ROOT / "python" / "README.md").read_text()
    said = next(line.split("# ", 1)[1] for line in text.splitlines() if "print(error.tensor" in line)
    block = next(b for _, b in blocks(text) if "print(error.tensor" in b)
    shutil.copytree(ROOT / "models", tmp_path / "models")
    done = subprocess.run(
        [sys.executable, "-c", f"import onnx_gradients as og\n{block}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == said


def test_docstrings_name_every_argument():
    """Each public function and method says what it takes and gives back."""
    import inspect

    import onnx_gradients as og
    from onnx_gradients import _options as options

    checked = 0
    things = [getattr(og, name) for name in og.__all__]
    things += [member for name, member in vars(og.Trainer).items() if not name.startswith("_")]
    things += [getattr(og.data, n) for n in ("open_source", "rebatched")] + [og.adapters.load, og.adapters.save]
    for thing in things:
        if not inspect.isfunction(thing):
            continue
        document = thing.__doc__ or ""
        assert document.strip(), thing.__qualname__
        head = document.split("Returns\n")[0]
        for name, parameter in inspect.signature(thing).parameters.items():
            if name == "self" or parameter.kind is parameter.VAR_KEYWORD:
                continue
            assert name in head, f"{thing.__qualname__} does not say what {name} is"
            checked += 1
    for thing, keywords in ((og.gradients, options.Writing), (og.trainable, options.Making)):
        for name in keywords.__annotations__:
            assert re.search(rf"\b{name}\b", thing.__doc__), f"{thing.__qualname__} does not say what {name} is"
            checked += 1
    assert checked > 100
