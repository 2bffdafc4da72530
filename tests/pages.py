#!/usr/bin/env python
"""Looks at the pages of `batch` and `inspect --html` in a headless Chromium, light and dark.

    python tests/pages.py TOOL BROWSER [--keep FOLDER]

What is looked at is measured in the page itself: texts lie in their boxes, boxes beside each other, the page fits into the window,
text can be read on its background, nothing is loaded from anywhere, filters, sorting and links do what they say. Pages also print.
`--keep FOLDER` keeps pages and pictures of them for people.
"""
from __future__ import annotations

import html
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What is measured, written into an attribute of the page that the browser then prints.
MEASURE = """<script>
addEventListener("load", () => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const back = getComputedStyle(document.body).backgroundColor;
  const found = { back, width: [document.documentElement.scrollWidth, innerWidth], outside: [], overlap: [], dim: [] };
  for (const e of document.querySelectorAll("h1, h2, td, th, dt, dd, p, summary, .tile b, code, a")) {
    const c = contrast(getComputedStyle(e).color, back);
    if (c < 4.5) found.dim.push([e.tagName, e.className, e.textContent.slice(0, 30), c]);
  }
  const groups = [...document.querySelectorAll("svg g")];
  const boxes = groups.map(g => g.querySelector("rect.box").getBoundingClientRect());
  groups.forEach((g, i) => g.querySelectorAll("text").forEach(t => {
    const b = t.getBoundingClientRect(), o = boxes[i];
    if (b.left < o.left || b.right > o.right || b.top < o.top || b.bottom > o.bottom) found.outside.push(t.textContent);
    const c = contrast(getComputedStyle(t).fill, getComputedStyle(g.querySelector("rect.box")).fill);
    if (c < 4.5) found.dim.push(["text", g.className.baseVal, t.textContent, c]);
  }));
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, k) => {
    if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) found.overlap.push([i, i + 1 + k]);
  }));
  found.boxes = boxes.length;
  found.loaded = performance.getEntriesByType("resource").map(r => r.name);
  const form = document.getElementById("filter");
  if (form) {
    const rows = () => [...document.querySelectorAll("#models tbody tr")];
    const shown = () => rows().filter(r => r.offsetParent !== null).length;
    found.rows = [rows().length, shown(), document.getElementById("shown").textContent];
    form.text.value = "mlp";
    form.dispatchEvent(new Event("input"));
    found.filtered = [shown(), rows().filter(r => r.textContent.includes("mlp")).length];
    form.text.value = "";
    form.dispatchEvent(new Event("input"));
    const sizes = () => rows().map(r => Number(r.cells[3].dataset.v));
    document.querySelectorAll("#models th button")[3].click();
    const up = sizes();
    document.querySelectorAll("#models th button")[3].click();
    found.sorted = [up.every((v, i) => !i || up[i - 1] <= v), sizes().every((v, i, a) => !i || a[i - 1] >= v)];
  }
  location.hash = "#TARGET";
  setTimeout(() => {
    found.open = document.getElementById("TARGET").open;
    document.documentElement.setAttribute("data-found", JSON.stringify(found));
  }, 50);
});
</script>"""


def run(*command: str | pathlib.Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    return done.stdout


def browse(browser: str, page: pathlib.Path, dark: bool, *more: str) -> str:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1600", scheme]
    return run(browser, *options, *more, page.as_uri())


def large(path: pathlib.Path, layers: int = 250) -> None:
    """Some two thousand nodes: layers with names as exporters give them, and ways around them."""
    nodes, weights, name = [], [], "x"
    for n in range(layers):
        weights.append(numpy_helper.from_array(np.full((8, 8), 0.01 * n, np.float32), f"encoder.layers.{n}.dense.weight"))
        scope = f"/encoder/layers.{n}/a_rather_long_name_of_a_module"
        before = name
        nodes.append(helper.make_node("MatMul", [name, weights[-1].name], [f"m{n}"], name=f"{scope}/dense/MatMul"))
        name = f"m{n}"
        for k, op in enumerate(["Relu", "Tanh", "Sigmoid", "Neg", "Exp", "Abs"]):
            nodes.append(helper.make_node(op, [name], [f"t{n}_{k}"], name=f"{scope}/{op}"))
            name = f"t{n}_{k}"
        nodes.append(helper.make_node("Add", [name, before], [f"h{n}"], name=f"{scope}/Add"))
        name = f"h{n}"
    nodes.append(helper.make_node("Round", [name], ["r"], name="rounded"))
    nodes.append(helper.make_node("Exp", ["r"], ["y"], name="behind"))
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8])
    graph = helper.make_graph(nodes, "large", [value("x")], [value("y"), value(name)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def odd(path: pathlib.Path) -> None:
    """An operator without a gradient, and names that are no names."""
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
    nodes = [helper.make_node("Odd", ["<b>x</b>"], ["z"], name="</text><script>", domain="com.own"), helper.make_node("Exp", ["z"], ["y"])]
    graph = helper.make_graph(nodes, "odd", [value("<b>x</b>")], [value("y")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def measured(browser: str, page: pathlib.Path, target: str, dark: bool) -> dict:
    copy = page.with_suffix(".measured.html")
    text = page.read_text()
    copy.write_text(text.replace("</body>", MEASURE.replace("TARGET", target) + "</body>"))
    dom = browse(browser, copy, dark, "--virtual-time-budget=5000", "--dump-dom")
    copy.unlink()
    found = re.search(r'data-found="([^"]*)"', dom)
    assert found, f"{page}: the page's scripts have not run"
    return json.loads(html.unescape(found.group(1)))


def main() -> None:
    tool, browser = sys.argv[1:3]
    keep = pathlib.Path(sys.argv[4]) if sys.argv[3:4] == ["--keep"] else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or pathlib.Path(temporary)
        models = folder / "models"
        models.mkdir(parents=True, exist_ok=True)
        large(models / "large.onnx")
        odd(models / "odd.onnx")
        for path in sorted((ROOT / "models").glob("*.onnx")):
            (models / path.name).write_bytes(path.read_bytes())
        pages = {}
        for name in ["mlp", "transformer", "large", "odd"]:
            page = folder / f"{name}.html"
            run(tool, "inspect", models / f"{name}.onnx", "--html", page, "--force", "--dim", "batch=4")
            if not page.exists():
                run(tool, "inspect", models / f"{name}.onnx", "--html", page)
            pages[page] = "g0"
        run(tool, "batch", models, "-o", folder / "out", "--force", "--", "grad", "--params", "--inputs", "--time", "20")
        pages[folder / "out" / "report.html"] = "m0"
        boxes = {}
        for page, target in pages.items():
            backs = []
            for dark in (False, True):
                found = measured(browser, page, target, dark)
                where = f"{page.name}, {'dark' if dark else 'light'}"
                assert not found["loaded"], (where, found["loaded"])
                assert found["width"][0] <= found["width"][1], (where, found["width"])
                for what in ("outside", "overlap", "dim"):
                    assert not found[what], (where, what, found[what][:5])
                assert found["open"], (where, "a link does not open its section")
                if "rows" in found:
                    count = len(list(models.glob("*.onnx")))
                    assert found["rows"] == [count, count, f"{count} of {count}"], (where, found["rows"])
                    shown, fits = found["filtered"]
                    assert 0 < shown == fits < count, (where, found["filtered"])
                    assert found["sorted"] == [True, True], (where, found["sorted"])
                boxes[page.stem] = found["boxes"]
                backs.append(found["back"])
                if keep:
                    picture = page.with_suffix(".dark.png" if dark else ".png")
                    browse(browser, page, dark, f"--screenshot={picture}")
            assert backs[0] != backs[1], (page.name, "light and dark are the same")
            pdf = page.with_suffix(".pdf")
            browse(browser, page, False, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
            assert pdf.stat().st_size > 5000, (page.name, "it does not print")
        assert boxes["mlp"] == 6 + 4, boxes
        assert 250 <= boxes["large"] <= 256, boxes
        print(f"{len(pages)} pages, light and dark: boxes {boxes}")


if __name__ == "__main__":
    main()
