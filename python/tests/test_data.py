"""Samples in every form in which they come, and how much of them is in memory."""

import subprocess
import sys
import textwrap

import numpy as np
import onnx_gradients as og
import pytest
from onnx_gradients import data

RNG = np.random.default_rng(0)


def samples(count=50):
    return {"image": RNG.standard_normal((count, 4, 3)).astype(np.float32), "labels": RNG.integers(0, 9, count)}


def read(source, size=16, order=None, names=None):
    opened = data.open_source(source, names)
    batches = list(opened.batches(size) if order is None else opened.batches(size, order))
    return {n: np.concatenate([b[n] for b in batches]) for n in batches[0]}, [len(b["labels"]) for b in batches]


def test_files_hold_what_was_written(tmp_path):
    given = samples()
    np.savez(tmp_path / "plain.npz", **given)
    np.savez_compressed(tmp_path / "packed.npz", **given)
    og._safetensors.write(tmp_path / "all.safetensors", given)
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "image.npy", given["image"])
    np.save(tmp_path / "npy" / "labels.npy", given["labels"].astype(">i4"))
    (tmp_path / "turned").mkdir()
    np.save(tmp_path / "turned" / "image.npy", np.asfortranarray(given["image"]).astype(">f8"))
    np.save(tmp_path / "turned" / "labels.npy", given["labels"])
    for kind, write in {"a": np.savez, "b": np.savez_compressed}.items():
        (tmp_path / kind).mkdir()
        for i, (start, end) in enumerate([(0, 20), (20, 21), (21, 50)]):
            write(tmp_path / kind / f"{i}.npz", **{n: a[start:end] for n, a in given.items()})
    mapped = {n: np.load(tmp_path / "npy" / f"{n}.npy", mmap_mode="r") for n in given}
    paths = {n: tmp_path / "npy" / f"{n}.npy" for n in given}
    order = RNG.permutation(50)[:37]
    sources = [given, mapped, paths, *(tmp_path / n for n in ("plain.npz", "packed.npz", "all.safetensors", "npy", "turned", "a", "b"))]
    for source in sources:
        found, counts = read(source)
        assert counts == [16, 16, 16, 2]
        for name, array in given.items():
            np.testing.assert_array_equal(found[name], array, err_msg=str(source))
        chosen, _ = read(source, 50, order)
        np.testing.assert_array_equal(chosen["image"], given["image"][np.sort(order)])
        only, _ = read(source, names={"labels"})
        assert list(only) == ["labels"]


def test_iterables_are_cut_and_joined():
    given = samples()
    cuts = [0, 1, 3, 40, 50]
    pieces = [{n: a[i:j] for n, a in given.items()} for i, j in zip(cuts, cuts[1:])]
    for source in (pieces, lambda: iter(pieces), iter(pieces)):
        found, counts = read(source)
        assert counts == [16, 16, 16, 2]
        np.testing.assert_array_equal(found["image"], given["image"])
    assert read(pieces, None)[1] == [1, 2, 37, 10]
    assert data.open_source(pieces).steps(None) == 4 and data.open_source(pieces).steps(16) is None
    with pytest.raises(ValueError, match="the one before"):
        list(data.rebatched([{"a": [1.0]}, {"b": [1.0]}], 4))


def test_what_holds_no_samples_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .npy"):
        data.open_source(tmp_path / "empty")
    with pytest.raises(ValueError, match="numbers of samples differ"):
        data.open_source({"a": np.zeros(3), "b": np.zeros(4)})
    # What nobody wants may have as many as it likes.
    assert data.open_source({"a": np.zeros(3), "b": np.zeros(4)}, {"a"}).count == 3
    with pytest.raises(ValueError, match="no arrays called"):
        data.open_source({"a": np.zeros(3)}, {"c"})
    with pytest.raises(ValueError, match="no samples"):
        data.open_source({"a": np.zeros((0, 3))})
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match="text.npz"):
        data.open_source(tmp_path / "text.npz")
    np.savez(tmp_path / "damaged.npz", a=np.arange(1000.0))
    whole = bytearray((tmp_path / "damaged.npz").read_bytes())
    whole[4000] ^= 1
    (tmp_path / "damaged.npz").write_bytes(whole)
    with pytest.raises(ValueError, match="damaged.npz"):
        data.open_source(tmp_path / "damaged.npz")
    np.savez(tmp_path / "objects.npz", a=np.array([{}, {}]))
    with pytest.raises(ValueError, match="objects"):
        data.open_source(tmp_path / "objects.npz")
    (tmp_path / "shards").mkdir()
    np.savez(tmp_path / "shards" / "0.npz", a=np.zeros((3, 2)))
    np.savez(tmp_path / "shards" / "1.npz", a=np.zeros((3, 4)))
    with pytest.raises(ValueError, match="1.npz"):
        data.open_source(tmp_path / "shards")
    with pytest.raises(FileNotFoundError):
        data.open_source(tmp_path / "nowhere.npz")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("kind", ["plain", "packed", "turned", "shards"])
def test_the_whole_set_is_never_in_memory(tmp_path, kind):
    array = np.zeros((64, 1 << 20), np.float32)  # 256 MB
    array[:] = np.arange(64, dtype=np.float32)[:, None]
    if kind == "turned":
        np.save(tmp_path / "image.npy", np.asfortranarray(array))
        path = tmp_path
    elif kind == "shards":
        for i in range(4):
            np.savez(tmp_path / f"{i}.npz", image=array[i * 16 : i * 16 + 16])
        path = tmp_path
    else:
        path = tmp_path / "all.npz"
        (np.savez if kind == "plain" else np.savez_compressed)(path, image=array)
    script = textwrap.dedent(f"""
        import numpy as np, onnx_gradients as og
        def held():
            text = open("/proc/self/status").read()
            return int(text.split("RssAnon:")[1].split()[0])
        before = held()
        most = 0
        for batch in og.data.open_source({str(path)!r}).batches(2, np.random.default_rng(0).permutation(64)):
            assert (batch["image"] == batch["image"][:, :1]).all()
            most = max(most, held() - before)
        print(most)
    """)
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    # In KiB: two samples are 8 MB, with copies.
    assert int(printed) < 60_000
