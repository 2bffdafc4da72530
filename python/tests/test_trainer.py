"""Training through the Trainer, on handwritten digits."""

import json

import numpy as np
import onnx
import onnx_gradients as og
import onnxruntime
import pytest


def halves(digits):
    order = np.random.default_rng(0).permutation(len(digits["labels"]))
    held, seen = order[:360], order[360:]
    return {n: a[seen] for n, a in digits.items()}, {n: a[held] for n, a in digits.items()}


def test_digits_are_learnt_and_exported(models, digits, tmp_path):
    seen, held = halves(digits)
    trainer = og.Trainer(onnx.load(models / "digits-mlp.onnx"), "cross-entropy")
    history = trainer.fit(
        seen, epochs=12, lr=5e-3, schedule="cosine", warmup=10, validation=held, log=tmp_path / "log.csv",
        checkpoint=tmp_path / "best.safetensors", progress=False,
    )
    assert history.rows[-1]["val_accuracy"] > 0.95
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 13
    path = trainer.export(tmp_path / "trained.onnx")
    logits = onnxruntime.InferenceSession(path).run(["logits"], {"image": held["image"].astype(np.float32)})[0]
    assert np.mean(logits.argmax(1) == held["labels"]) == pytest.approx(trainer.evaluate(held).metrics["accuracy"], abs=1e-6)
    np.testing.assert_allclose(trainer.predict({"image": held["image"]})["logits"], logits, rtol=1e-4, atol=1e-4)


def test_types_of_numpy_and_rates_of_python_just_work(models, digits):
    trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy")
    first = trainer.step({"image": digits["image"][:32].astype(np.float64), "labels": digits["labels"][:32].astype(np.int32)}, 1e-2)
    again = trainer.step({"image": digits["image"][:32], "labels": list(digits["labels"][:32])}, np.float32(1e-2))
    assert again.loss < first.loss
    with pytest.raises(KeyError, match="labels"):
        trainer.step({"image": digits["image"][:32]})
    with pytest.raises(TypeError, match="labels"):
        trainer.step({"image": digits["image"][:2], "labels": np.array([0.5, 1.0])})


def test_the_halves_are_the_step(models, digits):
    batch = {n: a[:32] for n, a in digits.items()}
    whole, split = (og.Trainer(models / "digits-mlp.onnx", "cross-entropy") for _ in range(2))
    for _ in range(3):
        one = whole.step(batch, 1e-2)
        two, gradients = split.gradients(batch)
        split.apply(gradients, 1e-2)
        assert one.loss == pytest.approx(two.loss, rel=1e-5)
    for name, value in whole.parameters().items():
        np.testing.assert_allclose(split.parameters()[name], value, rtol=1e-4, atol=1e-6)


def test_micro_batches_are_hidden(models, digits):
    batch = {n: a[:32] for n, a in digits.items()}
    whole = og.Trainer(models / "digits-mlp.onnx", "cross-entropy")
    parts = og.Trainer(models / "digits-mlp.onnx", "cross-entropy", accumulate=4)
    for _ in range(3):
        assert whole.step(batch, 1e-2).loss == pytest.approx(parts.step(batch, 1e-2).loss, rel=1e-5)
    for name, value in whole.parameters().items():
        np.testing.assert_allclose(parts.parameters()[name], value, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="micro-batches"):
        parts.step({n: a[:30] for n, a in digits.items()})


def test_a_state_goes_out_and_in(models, digits, tmp_path):
    batch = {n: a[:32] for n, a in digits.items()}
    trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy")
    trainer.step(batch)
    trainer.save(tmp_path / "state.safetensors")
    after = trainer.step(batch).loss
    state = trainer.state_dict()
    trainer.load(tmp_path / "state.safetensors")
    assert trainer.step(batch).loss == after
    for name, value in trainer.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    with pytest.raises(KeyError):
        trainer.load_state_dict({"no such": np.zeros(1)})
    with pytest.raises(ValueError, match="hidden.bias"):
        trainer.load_state_dict({"hidden.bias": np.zeros(1)})


def test_adapters_are_files_of_their_own(models, digits, tmp_path):
    batch = {n: a[:64] for n, a in digits.items()}
    trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy", lora=4)
    for _ in range(5):
        trainer.step(batch, 1e-2)
    trained = trainer.predict(batch)["logits"]
    trainer.save_adapters(tmp_path / "a")
    tensors, _ = og._safetensors.read(tmp_path / "a" / "adapter_model.safetensors")
    assert tensors["base_model.model.hidden.lora_A.weight"].shape == (4, 64)
    assert tensors["base_model.model.hidden.lora_B.weight"].shape == (128, 4)
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 4
    fresh = og.Trainer(models / "digits-mlp.onnx", "cross-entropy", lora=4)
    untrained = fresh.predict(batch)["logits"]
    assert not np.allclose(untrained, trained, atol=1e-3)
    fresh.load_adapters(tmp_path / "a")
    np.testing.assert_allclose(fresh.predict(batch)["logits"], trained, rtol=1e-5, atol=1e-5)
    merged = fresh.export(tmp_path / "merged.onnx")
    logits = onnxruntime.InferenceSession(merged).run(["logits"], {"image": batch["image"].astype(np.float32)})[0]
    np.testing.assert_allclose(logits, trained, rtol=1e-3, atol=1e-3)


def test_several_adapters_are_kept_and_merged(models, digits, tmp_path):
    batch = {n: a[:64] for n, a in digits.items()}
    trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy", lora=4)
    untrained = trainer.predict(batch)["logits"]
    for _ in range(5):
        trainer.step(batch, 1e-2)
    first, state = trainer.predict(batch)["logits"], trainer.state_dict()
    trainer.add_adapter("other")
    trainer.use_adapter("other")
    assert trainer.adapters == ("default", "other")
    np.testing.assert_array_equal(trainer.predict(batch)["logits"], untrained)
    swapped = {n: 9 - a if n == "labels" else a for n, a in batch.items()}
    for _ in range(5):
        trainer.step(swapped, 1e-2)
    second = trainer.predict(batch)["logits"]
    trainer.use_adapter("default")
    np.testing.assert_array_equal(trainer.predict(batch)["logits"], first)
    moments = [n for n in state if n.startswith("state/m/")]
    assert moments
    for name in moments:
        np.testing.assert_array_equal(trainer.state_dict()[name], state[name])

    def logits(path):
        return onnxruntime.InferenceSession(path).run(["logits"], {"image": batch["image"].astype(np.float32)})[0]

    alone = logits(trainer.export(tmp_path / "second.onnx", adapters=["other"]))
    np.testing.assert_allclose(alone, second, rtol=1e-3, atol=1e-3)
    none = logits(trainer.export(tmp_path / "none.onnx", adapters={"default": 0.0, "other": 0.0}))
    np.testing.assert_allclose(none, untrained, rtol=1e-3, atol=1e-3)
    # Half of one and half of another twice over are the two of them.
    halves_of = {"default": 0.5, "other": 0.5}
    both = logits(trainer.export(tmp_path / "both.onnx", adapters=halves_of))
    trainer.save_adapters(tmp_path / "kept")
    trainer.add_adapter("again", tmp_path / "kept")
    thirds = logits(trainer.export(tmp_path / "thirds.onnx", adapters={"again": 0.25, "other": 0.5, "default": 0.25}))
    np.testing.assert_allclose(thirds, both, rtol=1e-3, atol=1e-3)
    assert not np.allclose(both, first, atol=1e-2)
    with pytest.raises(KeyError, match="other"):
        trainer.use_adapter("no such")
    with pytest.raises(ValueError, match="kept already"):
        trainer.add_adapter("other")
    with pytest.raises(ValueError, match="without LoRA"):
        og.Trainer(models / "digits-mlp.onnx", "cross-entropy").add_adapter("a")


def test_samples_come_from_anywhere(models, digits, tmp_path):
    seen, held = halves(digits)
    (tmp_path / "mapped").mkdir()
    (tmp_path / "shards").mkdir()
    for name, array in seen.items():
        np.save(tmp_path / "mapped" / f"{name}.npy", array)
    for i in range(3):
        np.savez(tmp_path / "shards" / f"{i}.npz", **{n: a[i::3] for n, a in seen.items()})
    np.savez(tmp_path / "all.npz", **seen)

    def batches():
        for start in range(0, 1024, 64):
            yield {n: a[start : start + 64] for n, a in seen.items()}

    for source in (seen, tmp_path / "mapped", tmp_path / "shards", tmp_path / "all.npz", batches, list(batches())):
        trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy")
        trainer.fit(source, epochs=4, batch_size=64, lr=5e-3, progress=False)
        assert trainer.evaluate(held).metrics["accuracy"] > 0.85, source


def test_a_training_that_no_longer_helps_stops(models, digits):
    seen, held = halves(digits)
    trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy")
    history = trainer.fit(seen, epochs=50, lr=0.0, validation=held, patience=2, progress=False)
    assert len(history.rows) == 4
    plateau = og.schedules.ReduceOnPlateau(1e-2, patience=0)
    for loss in (1.0, 1.0, 1.0):
        plateau.observe(loss)
    assert plateau(0) == pytest.approx(1e-4)


def test_schedules():
    cosine = og.schedules.named("cosine", 1.0, 110, warmup=10)
    assert [cosine(0), cosine(9), cosine(10), cosine(60), cosine(110)] == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="cosinus"):
        og.schedules.named("cosinus", 1.0, 10)


def test_health_names_what_is_dead(models, digits):
    trainer = og.Trainer(models / "digits-mlp.onnx", "cross-entropy")
    batch = {n: a[:32] for n, a in digits.items()}
    assert {layer.verdict for layer in trainer.health(batch).layers} == {"ok"}
    trainer.load_state_dict({"hidden.bias": np.full(128, -1e6)})
    verdicts = {layer.name: layer.verdict for layer in trainer.health(batch).layers}
    assert verdicts["hidden.weight"] == "dead" and verdicts["classify.bias"] == "ok"


def test_wrong_usage_is_named(models, tmp_path):
    with pytest.raises(og.errors.UsageError, match="loss"):
        og.Trainer(models / "digits-mlp.onnx")
    with pytest.raises(og.Error):
        og.Trainer(models / "digits-mlp.onnx", "cross-entropi")
