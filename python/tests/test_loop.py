"""The loop: what is interrupted goes on to the same numbers, and nothing is lost on the way."""

import copy
import csv
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import onnx_gradients as og
import onnxruntime
import pytest


def make(models, **options):
    return og.Trainer(models / "digits-mlp.onnx", "cross-entropy", **options)


def same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


class Stop(Exception):
    pass


@pytest.mark.parametrize("options", [
    {"schedule": "cosine", "warmup": 7, "held_out": 0.2, "patience": 3},
    {"schedule": "plateau", "validation": True},
    {"schedule": "linear", "batch_size": 100},
])
def test_what_goes_on_gives_the_same_bytes(models, digits, tmp_path, options):
    samples = {n: a[:500] for n, a in digits.items()}
    if options.get("validation"):
        options = {**options, "validation": {n: a[500:700] for n, a in digits.items()}}
    through, parts = make(models), make(models)
    whole = through.fit(samples, epochs=5, lr=2e-2, progress=False, log=tmp_path / "a.csv", **options)

    def stop(row):
        if row["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        parts.fit(samples, epochs=5, lr=2e-2, progress=False, on_epoch=stop, resume=tmp_path / "at", log=tmp_path / "b.csv", **options)
    fresh = make(models)
    went_on = fresh.fit(samples, epochs=5, lr=2e-2, progress=False, resume=tmp_path / "at", log=tmp_path / "b.csv", **options)
    assert went_on.rows == whole.rows
    same(fresh.state_dict(), through.state_dict())
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert [int(r["epoch"]) for r in csv.DictReader((tmp_path / "a.csv").open())] == [1, 2, 3, 4, 5]
    # What has ended is not done again.
    assert make(models).fit(samples, epochs=5, lr=2e-2, progress=False, resume=tmp_path / "at", **options).rows == whole.rows
    with pytest.raises(og.errors.UsageError, match="lr"):
        make(models).fit(samples, epochs=5, lr=1e-2, progress=False, resume=tmp_path / "at", **options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ctrl_c_ends_a_step_and_keeps_it(models, digits, tmp_path, accumulate):
    samples = {n: a[:640] for n, a in digits.items()}
    through, parts = (make(models, accumulate=accumulate) for _ in range(2))
    whole = through.fit(samples, epochs=3, lr=1e-2, progress=False)
    step, steps = parts.step, []

    def interrupted(batch, lr):
        if len(steps) == 26:
            signal.raise_signal(signal.SIGINT)
        steps.append(lr)
        return step(batch, lr)

    parts.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        parts.fit(samples, epochs=3, lr=1e-2, progress=False, resume=tmp_path / "at")
    assert len(steps) == 27
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fresh = make(models, accumulate=accumulate)
    assert fresh.fit(samples, epochs=3, lr=1e-2, progress=False, resume=tmp_path / "at").rows == whole.rows
    same(fresh.state_dict(), through.state_dict())
    # A file of a training is also one of a state.
    other = make(models, accumulate=accumulate)
    other.load(tmp_path / "at")
    same(other.state_dict(), through.state_dict())


def test_an_iterable_goes_on_too(models, digits, tmp_path):
    def batches():
        for start in range(0, 600, 50):
            yield {n: a[start : start + 50] for n, a in digits.items()}

    through, parts = make(models), make(models)
    whole = through.fit(batches, epochs=3, lr=1e-2, progress=False, schedule="cosine", steps_per_epoch=10)
    step = parts.step
    seen = []

    def interrupted(batch, lr):
        seen.append(len(batch["labels"]))
        if len(seen) == 14:
            signal.raise_signal(signal.SIGINT)
        return step(batch, lr)

    parts.step = interrupted
    arguments = {"epochs": 3, "lr": 1e-2, "progress": False, "schedule": "cosine", "steps_per_epoch": 10, "resume": tmp_path / "at"}
    with pytest.raises(KeyboardInterrupt):
        parts.fit(batches, **arguments)
    # Batches of 50 are cut and joined to the 32 that are asked for.
    assert set(seen) == {32}
    fresh = make(models)
    assert fresh.fit(batches, **arguments).rows == whole.rows
    same(fresh.state_dict(), through.state_dict())


def test_a_step_that_is_interrupted_leaves_a_whole_state(models, digits):
    trainer = make(models)
    batch = {n: a[:32] for n, a in digits.items()}
    states = [trainer.state_dict()]
    for _ in range(2):
        trainer.step(batch, 1e-2)
        states.append(trainer.state_dict())
    trainer.load_state_dict(states[0])
    trainer.step(batch, 1e-2)
    # Wherever an exception comes up in between, as Ctrl-C may, the state is that of before or of after.
    for lines in range(1, 400, 5):
        trainer.load_state_dict(states[1])
        left = [lines]

        def trace(frame, event, argument, left=left):
            if "onnx_gradients" not in frame.f_code.co_filename:
                return None
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            trainer.step(batch, 1e-2)
            sys.settrace(None)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        now = trainer.state_dict()
        before, after = (all(np.array_equal(now[n], s[n]) for n in now) for s in states[1:])
        assert before or after, lines
    else:
        pytest.fail("the step has more lines than are gone through")
    assert lines > 50


def test_the_best_is_kept(models, digits, tmp_path):
    seen, held = ({n: a[i] for n, a in digits.items()} for i in (slice(0, 300), slice(300, 600)))
    trainer = make(models)
    rows = []
    history = trainer.fit(
        seen, epochs=60, lr=0.1, validation=held, patience=2, checkpoint=tmp_path / "best", progress=False, on_epoch=rows.append,
    )
    assert rows == history.rows and len(rows) < 60
    losses = [row["val_loss"] for row in rows]
    assert losses.index(min(losses)) == len(losses) - 4
    assert trainer.evaluate(held).loss == pytest.approx(min(losses), rel=1e-6)
    best = make(models)
    best.load(tmp_path / "best")
    same(best.state_dict(), trainer.state_dict())


def test_history_says_what_steps_say(models, digits):
    samples = {n: a[:100] for n, a in digits.items()}
    one, two = make(models), make(models)
    row = one.fit(samples, epochs=1, batch_size=40, lr=0.0, progress=False).rows[0]
    # Means over samples, of batches of 40, 40 and 20.
    assert row["loss"] == pytest.approx(two.evaluate(samples).loss, rel=1e-5)
    assert row["accuracy"] == pytest.approx(two.evaluate(samples).metrics["accuracy"], rel=1e-5)
    assert "gradient_norm" in row


def test_wrong_arguments_are_named(models, digits):
    trainer = make(models)
    samples = {n: a[:64] for n, a in digits.items()}
    with pytest.raises(ValueError, match="steps_per_epoch"):
        trainer.fit(lambda: [samples], epochs=2, schedule="cosine", progress=False)
    with pytest.raises(og.errors.UsageError, match="once"):
        trainer.fit(iter([samples]), epochs=2, progress=False)
    assert len(trainer.fit(iter([samples]), epochs=1, progress=False).rows) == 1
    with pytest.raises(ValueError, match="no samples"):
        trainer.fit(lambda: [], epochs=2, progress=False)
    with pytest.raises(ValueError, match="share"):
        trainer.fit(samples, held_out=1.5, progress=False)
    with pytest.raises(ValueError, match="hold out more"):
        trainer.fit(samples, held_out=0.001, progress=False)
    with pytest.raises(ValueError, match="learning rate"):
        trainer.step(samples, float("nan"))
    with pytest.raises(ValueError, match="classes 0 to 9"):
        trainer.step({**samples, "labels": samples["labels"] + 5})
    with pytest.raises(ValueError, match="image"):
        trainer.step({**samples, "image": samples["image"][:, :63]})
    with pytest.raises(ValueError, match="numbers of samples"):
        trainer.step({**samples, "image": samples["image"][:63]})
    with pytest.raises(TypeError, match="image"):
        trainer.step({**samples, "image": samples["image"].astype(str)})
    with pytest.raises(og.errors.UsageError, match="micro-batches"):
        make(models, accumulate=8).fit(samples, batch_size=4, progress=False)
    with pytest.raises(TypeError, match="lorra"):
        make(models, lorra=4)
    with pytest.raises(KeyError, match="hidden.bias"):
        trainer.apply({})
    before = trainer.state_dict()
    with pytest.raises(FloatingPointError):
        trainer.fit({**samples, "image": samples["image"] * np.nan}, progress=False)
    assert before.keys() == trainer.state_dict().keys()


def test_providers_are_checked(models):
    with pytest.raises(og.errors.UsageError, match="CUDAExecutionProvidr") as caught:
        make(models, providers=["CUDAExecutionProvidr"])
    assert "CPUExecutionProvider" in caught.value.remedy
    with pytest.raises(og.errors.UsageError):
        make(models, providers=[])
    assert make(models, providers="CPUExecutionProvider").session("train").get_providers() == ["CPUExecutionProvider"]
    with_options = make(models, providers=[("CPUExecutionProvider", {"use_arena": "0"})])
    assert with_options.session("train").get_providers() == ["CPUExecutionProvider"]


def test_what_the_runtime_says_has_a_place(models, digits, tmp_path, capfd):
    import onnx

    og.trainable(models / "digits-mlp.onnx", "cross-entropy", output=tmp_path / "t")
    step = onnx.load(tmp_path / "t" / "train.onnx")
    node = next(n for n in step.graph.node if n.op_type in ("Gemm", "MatMul"))
    node.input[1] = "labels"
    (tmp_path / "t" / "train.onnx").write_bytes(step.SerializeToString())
    trainer = og.Trainer(tmp_path / "t")
    with pytest.raises(og.errors.EngineError, match="train.onnx"):
        trainer.step({n: a[:8] for n, a in digits.items()})
    assert capfd.readouterr() == ("", "")
    error = og.errors.from_runtime(
        RuntimeError("[ONNXRuntimeError] : 2 : Non-zero status code returned while running MatMul node. Name:'a/b' Status Message: no"), "m"
    )
    assert (error.operator, error.node, error.code) == ("MatMul", "a/b", "engine")
    again = pickle.loads(pickle.dumps(error))
    assert (again.operator, str(again), type(again)) == ("MatMul", str(error), og.errors.EngineError)


def test_a_trainer_can_be_pickled_and_copied(models, digits, tmp_path):
    batch = {n: a[:32] for n, a in digits.items()}
    for trainer in (make(models), make(models, folder=tmp_path / "own")):
        trainer.step(batch, 1e-2)
        copies = [pickle.loads(pickle.dumps(trainer)), copy.deepcopy(trainer)]
        assert (copies[0].folder == trainer.folder.resolve()) == (trainer.folder == tmp_path / "own")
        expected = trainer.step(batch, 1e-2).loss
        assert [c.step(batch, 1e-2).loss for c in copies] == [expected] * 2
        same(copies[0].state_dict(), trainer.state_dict())


def test_temporary_folders_go(models, digits):
    trainer = make(models)
    folder = trainer.folder
    assert folder.is_dir()
    del trainer
    assert not folder.exists()


def _child(trainer, batch, pipe):
    pipe.send(trainer.step(batch, 1e-2).loss)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_trainer_steps_behind_a_fork(models, digits):
    batch = {n: a[:32] for n, a in digits.items()}
    trainer = make(models)
    trainer.step(batch, 1e-2)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(trainer, batch, there))
    child.start()
    assert here.poll(60)
    found = here.recv()
    child.join(60)
    assert child.exitcode == 0
    # The child's folder is that of its parent, which still needs it.
    assert trainer.folder.is_dir()
    assert trainer.step(batch, 1e-2).loss == found


def test_threads_share_a_trainer(models, digits):
    batch = {n: a[:32] for n, a in digits.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    shared, alone = make(models, session_options=options), make(models, session_options=options)

    def steps():
        for _ in range(10):
            shared.step(batch, 1e-2)
            shared.predict(batch)

    threads = [threading.Thread(target=steps) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(40):
        alone.step(batch, 1e-2)
    same(shared.state_dict(), alone.state_dict())


def test_a_model_of_one_sample_is_trained_on_batches(models, digits, tmp_path):
    import onnx

    model = onnx.load(models / "digits-mlp.onnx")
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    trainer = og.Trainer(model, "cross-entropy", accumulate=16)
    assert trainer.fixed_batch == 1
    samples = {n: a[:400] for n, a in digits.items()}
    history = trainer.fit(samples, epochs=4, lr=1e-2, held_out=0.25, progress=False)
    assert history.rows[-1]["val_accuracy"] > 0.7
    whole = make(models)
    whole.load_state_dict(trainer.parameters())
    assert whole.evaluate(samples).loss == pytest.approx(trainer.evaluate(samples).loss, rel=1e-4)


def test_statistics_are_trained_and_exported(models, digits, tmp_path):
    trainer = og.Trainer(models / "digits-cnn.onnx", "cross-entropy", batch_norm="train", accumulate=2, dropout="train")
    seen, held = ({n: a[i] for n, a in digits.items()} for i in (slice(0, 1400), slice(1400, 1797)))
    trainer.fit(seen, epochs=3, batch_size=64, lr=5e-3, progress=False)
    path = trainer.export(tmp_path / "cnn.onnx")
    (scores,) = onnxruntime.InferenceSession(path).run(["scores"], {"image": held["image"].astype(np.float32)})
    accuracy = np.mean(scores.argmax(1) == held["labels"])
    assert accuracy > 0.9
    assert trainer.evaluate(held).metrics["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_a_bar_is_drawn_where_somebody_looks(models, tmp_path):
    script = textwrap.dedent(f"""
        import numpy as np, onnx_gradients as og
        trainer = og.Trainer({str(models / 'digits-mlp.onnx')!r}, "cross-entropy")
        samples = {{"image": np.zeros((64, 64)), "labels": np.zeros(64, int)}}
        trainer.fit(samples, epochs=2, batch_size=16, progress=PROGRESS)
    """)
    run = lambda progress: subprocess.run(  # noqa: E731
        [sys.executable, "-c", script.replace("PROGRESS", progress)], capture_output=True, text=True, check=True
    )
    quiet = run("None")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    pytest.importorskip("tqdm")
    shown = run("True").stderr
    assert "epoch 1/2" in shown and "epoch 2/2" in shown and "0/4" in shown


def test_a_bar_is_drawn_in_a_notebook(models):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    code = textwrap.dedent(f"""
        import numpy as np, onnx_gradients as og
        trainer = og.Trainer({str(models / 'digits-mlp.onnx')!r}, "cross-entropy")
        history = trainer.fit({{"image": np.zeros((64, 64)), "labels": np.zeros(64, int)}}, epochs=1, batch_size=16)
    """)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    said = " ".join(str(output) for output in notebook.cells[0].outputs)
    assert "epoch 1/1" in said and "Warning" not in said
