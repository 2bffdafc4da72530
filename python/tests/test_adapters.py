"""Adapters as PEFT has them, held against plain NumPy."""

import json

import numpy as np
import onnx
import onnx_gradients as og
import pytest
from onnx_gradients import _safetensors


def weights(path):
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def written(folder, tensors, config):
    folder.mkdir()
    _safetensors.write(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def made_up(trainer, rng):
    """PEFT's tensors for the layers of a model: of Linear layers A [r, in] and B [out, r], of Conv A [r, in, kernel...]."""
    tensors = {}
    for adapter in trainer.manifest["lora"]:
        # digits-mlp and digits-cnn hold weights as [out, in...], as PyTorch does.
        out, *inner = adapter["shape"]
        rank, name = adapter["shapes"][0][1], adapter["weight"].removesuffix(".weight")
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.standard_normal((rank, *inner)).astype(np.float32)
        ones = [1] * (len(inner) - 1)
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.standard_normal((out, rank, *ones)).astype(np.float32)
    return tensors


def merged(before, tensors, factor):
    """W + factor · B A, as PEFT merges."""
    after = {}
    for name, w in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{key}A.weight" in tensors:
            a, b = tensors[f"{key}A.weight"], tensors[f"{key}B.weight"]
            product = b.reshape(len(b), -1) @ a.reshape(len(a), -1)
            w = w + factor(name.removesuffix(".weight")) * product.reshape(w.shape)
        after[name] = w
    return after


@pytest.mark.parametrize("model", ["digits-mlp", "digits-cnn"])
@pytest.mark.parametrize("config, factor", [
    ({"r": 4, "lora_alpha": 4}, lambda _: 1.0),
    ({"r": 4, "lora_alpha": 16}, lambda _: 4.0),
    ({"r": 4, "lora_alpha": 16, "use_rslora": True}, lambda _: 8.0),
    ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"classify": 12}}, lambda name: 3.0 if name == "classify" else 0.5),
    (None, lambda _: 2.0),
])
def test_peft_files_mean_what_they_mean_to_peft(models, tmp_path, model, config, factor):
    path = models / f"{model}.onnx"
    trainer = og.Trainer(path, "cross-entropy", lora=4, lora_alpha=8)
    tensors = made_up(trainer, np.random.default_rng(0))
    trainer.load_adapters(written(tmp_path / "peft", tensors, config))
    found = weights(trainer.export(tmp_path / "merged.onnx"))
    for name, expected in merged(weights(path), tensors, factor).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
    # And out again: another model that takes it comes to the same, whatever its own factor.
    trainer.save_adapters(tmp_path / "again")
    said = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["peft_type"]) == (4, 8, "LORA")
    back, metadata = _safetensors.read(tmp_path / "again" / "adapter_model.safetensors")
    assert back.keys() == tensors.keys() and metadata == {"format": "pt"}
    for name, tensor in tensors.items():
        assert back[name].shape == tensor.shape
    other = og.Trainer(path, "cross-entropy", lora=4, lora_alpha=1)
    other.load_adapters(tmp_path / "again")
    for name, weight in weights(other.export(tmp_path / "other.onnx")).items():
        np.testing.assert_allclose(weight, found[name], rtol=1e-5, atol=1e-5)


def test_layers_may_have_other_names(models, tmp_path):
    trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy", lora=2)
    names = {"hidden.weight": "encoder.layer.0.dense"}
    trainer.save_adapters(tmp_path / "a", names)
    tensors, _ = _safetensors.read(tmp_path / "a" / "adapter_model.safetensors")
    assert "base_model.model.encoder.layer.0.dense.lora_A.weight" in tensors
    trainer.load_adapters(tmp_path / "a", names)
    trainer.add_adapter("b", tmp_path / "a", names)
    with pytest.raises(ValueError, match="hidden"):
        trainer.load_adapters(tmp_path / "a")


def test_what_cannot_be_taken_is_named(models, tmp_path):
    trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy", lora=2)
    tensors = made_up(trainer, np.random.default_rng(0))
    with pytest.raises(ValueError, match="DoRA"):
        trainer.load_adapters(written(tmp_path / "dora", tensors, {"use_dora": True}))
    with pytest.raises(ValueError, match="IA3"):
        trainer.load_adapters(written(tmp_path / "ia3", tensors, {"peft_type": "IA3"}))
    more = {**tensors, "base_model.model.head.lora_A.weight": np.zeros((2, 3), np.float32)}
    with pytest.raises(ValueError, match="head.lora_A"):
        trainer.load_adapters(written(tmp_path / "more", more, None))
    wide = {n: np.zeros((3, *t.shape[1:]) if "lora_A" in n else (t.shape[0], 3), np.float32) for n, t in tensors.items()}
    with pytest.raises(ValueError, match="matrix is"):
        trainer.load_adapters(written(tmp_path / "wide", wide, None))


def test_only_what_belongs_to_an_adapter_is_swapped(models, digits):
    """Of a weight that is called like the end of another, the optimizer keeps apart what it gathers."""
    trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy", lora=2)
    own = set(trainer._adapter_state())
    matrices = {a[side] for a in trainer.manifest["lora"] for side in ("left", "right")}
    expected = matrices | {f"state/{kind}/{name}" for kind in "mv" for name in matrices}
    assert own == expected & {f["input"] for f in trainer.manifest["state"]}
