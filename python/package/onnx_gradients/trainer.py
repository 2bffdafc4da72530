"""Training in ONNX Runtime: the step, and the loop around it."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import _loop, _safetensors, adapters, data, schedules
from ._command import Scratch
from ._loop import History
from ._making import export, trainable
from ._options import Making
from ._step import Step
from .data import count
from .errors import UsageError, from_runtime
from .health import Health

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Unpack

    from ._models import ModelLike, PathLike

_TYPES = {"float": "float32", "double": "float64"}


def _dtype(name: str) -> np.dtype[Any]:
    return _safetensors.dtype(_TYPES.get(name, name))


@dataclass(frozen=True)
class _Plan:
    """What one of the models takes and gives.

    Attributes
    ----------
    inputs : frozenset of str
        All that it takes.
    state : frozenset of str
        What it reads or writes of the state.
    written : dict of str to str
        What it writes of that, with the outputs.
    swapped : frozenset of str
        The same without the outputs.
    rest : tuple of str
        The other outputs.
    scalars : bool
        Whether these are numbers that are read at once, so that their buffers can be written again.
    """

    inputs: frozenset[str]
    state: frozenset[str]
    written: dict[str, str]
    swapped: frozenset[str]
    rest: tuple[str, ...]
    scalars: bool

    @classmethod
    def of(cls, model: Mapping[str, Any], feeds: Mapping[str, str], numbers: Iterable[str]) -> _Plan:
        """That of a model of the manifest; `feeds` is the state, by input the output that replaces it, `numbers` are outputs with
        one number."""
        inputs, outputs = frozenset(model["inputs"]), set(model["outputs"])
        written = {name: output for name, output in feeds.items() if output in outputs}
        state = frozenset(name for name in feeds if name in inputs or name in written)
        rest = tuple(o for o in model["outputs"] if o not in set(written.values()))
        return cls(inputs, state, written, frozenset(written), rest, set(rest) <= set(numbers))


class _Entry:
    """An input for data or labels, and what it takes.

    Parameters
    ----------
    entry : mapping
        What the manifest says of it.
    """

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.name: str = entry["name"]
        self._rank = len(entry["shape"])
        self._sizes: list[tuple[int, int]] = [(k, n) for k, n in enumerate(entry["shape"]) if n is not None]
        self.kind = _dtype(entry["type"])
        self._classes: int | None = entry.get("classes") if self.kind.kind in "iu" else None
        self._ignore: int | None = entry.get("ignore")

    def converted(self, given: npt.ArrayLike, parts: int) -> npt.NDArray[Any]:
        """An array in its element type, if the model can take it in so many parts."""
        array = np.asarray(given)
        if array.ndim != self._rank or any(array.shape[k] != (n if k else n * parts) for k, n in self._sizes):
            sizes = {k: n if k else n * parts for k, n in self._sizes}
            wanted = ", ".join(str(sizes.get(k, "any")) for k in range(self._rank))
            raise ValueError(f"{self.name!r} is {list(array.shape)}, the model takes [{wanted}]")
        result = array if array.dtype == self.kind else self._cast(array)
        # Of a number below zero the bits are those of a large one.
        if self._classes is not None and result.size and _unsigned(result).max() >= self._classes:
            wrong = result[(result < 0) | (result >= self._classes)]
            wrong = wrong if self._ignore is None else wrong[wrong != self._ignore]
            if wrong.size:
                raise ValueError(f"{self.name!r} holds {wrong.flat[0]}; the model has classes 0 to {self._classes - 1}")
        return result

    def _cast(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise TypeError(f"{self.name!r} takes {self.kind.name}; the batch holds {array.dtype.name}")
        result = array.astype(self.kind)
        if self.kind.kind in "iu" and array.dtype.kind == "f" and not np.array_equal(result, array):
            raise TypeError(f"{self.name!r} takes {self.kind.name}; the batch holds fractions")
        return result


def _unsigned(integers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return integers.view(f"u{integers.itemsize}")


def _remove(folder: str, process: int) -> None:
    """Removes a temporary folder, in the process that has made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _restored(
    files: dict[str, bytes] | None, folder: str, providers: list[Any], options: Any, state: dict[str, npt.NDArray[Any]],
    adapter: str, kept: dict[str, dict[str, npt.NDArray[Any]]],
) -> Trainer:
    """A trainer out of what was pickled."""
    import onnxruntime

    trainer = Trainer.__new__(Trainer)
    trainer._prepare(onnxruntime, providers, options)
    trainer.folder = Path(folder)
    if files is not None:
        trainer.folder = trainer._own_folder()
        trainer.folder.mkdir()
        for name, contents in files.items():
            (trainer.folder / name).write_bytes(contents)
    trainer._open()
    trainer.load_state_dict(state)
    trainer.adapter, trainer._kept = adapter, kept
    return trainer


class Trainer:
    """A model that is trained in ONNX Runtime.

    The state (weights, optimizer, statistics) lies in two sets of buffers on the device, which a step reads from one and
    writes to the other; then they change places. Threads may share a trainer: one step runs at a time. It can be pickled, and
    used behind a fork.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        A folder that :func:`trainable` has written, or a model, which is made trainable.
    loss : str or iterable of str, optional
        The loss, for a model.
    optimizer : str
        The optimizer, for a model.
    providers : str or sequence, optional
        Execution providers of ONNX Runtime, as its sessions take them; all that are available without it.
    session_options : onnxruntime.SessionOptions, optional
        Options of its sessions.
    folder : path, optional
        Where the trainable model is written; a temporary folder without it.
    force : bool
        Whether an existing `folder` is replaced.
    options : iterable
        Further arguments of the command ``trainable``.
    **making
        The keywords of :func:`trainable`: `lora`, `train`, `accumulate`, `batch_norm`, ...

    Raises
    ------
    UsageError
        A model without a loss, or a folder with one; an execution provider that is not there.
    Error
        As :func:`trainable` does.
    ImportError
        onnxruntime is not installed.
    """

    def __init__(
        self, model: ModelLike, loss: str | Iterable[str] | None = None, optimizer: str = "adamw", *,
        providers: str | Sequence[Any] | None = None, session_options: Any = None, folder: PathLike | None = None,
        force: bool = False, options: Iterable[object] = (), **making: Unpack[Making],
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("training runs in ONNX Runtime: pip install onnxruntime") from error

        self._prepare(onnxruntime, providers, session_options)
        if isinstance(model, str | os.PathLike) and (Path(model) / "manifest.json").is_file():
            if loss is not None or making:
                given = "its loss" if loss is not None else ", ".join(sorted(making))
                raise UsageError(f"{os.fspath(model)} is trainable already: {given} stands in its manifest")
            self.folder = Path(model)
        elif isinstance(model, str | os.PathLike) and Path(model).is_dir():
            raise UsageError(f"{os.fspath(model)} is a folder without a manifest.json: `trainable` writes one")
        elif loss is None and making.get("loss_model") is None:
            raise UsageError("a model is trained on a loss: give loss='cross-entropy', 'mse', ...")
        else:
            self.folder = Path(folder) if folder is not None else self._own_folder()
            trainable(model, loss, optimizer, output=self.folder, force=force, options=options, **making)
        self._open()

    def _prepare(self, runtime: Any, providers: str | Sequence[Any] | None, options: Any) -> None:
        self._runtime = runtime
        self._providers = self._known_providers(providers)
        self._options = options
        self._device = self._device_of(self._providers[0])
        self._owned = False

    def _own_folder(self) -> Path:
        """A folder that goes with the trainer."""
        temporary = tempfile.mkdtemp(prefix="onnx-gradients-")
        weakref.finalize(self, _remove, temporary, os.getpid())
        self._owned = True
        return Path(temporary) / "trainable"

    def _open(self) -> None:
        """Reads the folder."""
        self.manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        self._sessions: dict[str, Any] = {}
        self._bindings: dict[tuple[str, frozenset[str]], Any] = {}
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._roles = {m["role"]: m for m in self.manifest["models"]}
        self._feeds: dict[str, str] = {f["input"]: f["output"] for f in self.manifest["state"]}
        self._read = [self.manifest["loss"], *self.manifest["metrics"]]
        self._plans = {role: _Plan.of(model, self._feeds, self._read) for role, model in self._roles.items()}
        # What the halves of a step hand on stays on the device.
        self._handed = {p[key] for p in self.manifest["parameters"] for key in ("gradient", "next_sum")}
        # Each tensor of the state has two buffers; it lies in the second one where its name is in `_second`.
        self._pairs: dict[str, tuple[Any, Any]] = {}
        self._second: frozenset[str] = frozenset()
        self._data = [_Entry(entry) for entry in self.manifest["data"]]
        self._labels = [_Entry(entry) for entry in self.manifest["labels"]]
        self._rate_type = _dtype(self.manifest["learning_rate"]["type"])
        self._zeros: dict[str, Any] = {}
        self._kept: dict[str, dict[str, npt.NDArray[Any]]] = {}
        self.adapter = "default"
        self.load_state_dict(self._initial())

    def _initial(self) -> dict[str, npt.NDArray[Any]]:
        return _safetensors.read(self.folder / self.manifest["initial_state"])[0]

    def __reduce__(self) -> tuple[Any, ...]:
        files = {p.name: p.read_bytes() for p in self.folder.iterdir() if p.is_file()} if self._owned else None
        folder = str(self.folder.resolve())
        return _restored, (files, folder, self._providers, self._options, self.state_dict(), self.adapter, self._kept)

    def _known_providers(self, providers: str | Sequence[Any] | None) -> list[Any]:
        available = self._runtime.get_available_providers()
        chosen = [providers] if isinstance(providers, str) else list(available if providers is None else providers)
        names = [p[0] if isinstance(p, tuple) else p for p in chosen]
        unknown = [name for name in names if name not in available]
        if unknown or not names:
            raise UsageError(
                f"this ONNX Runtime has no {unknown[0]!r}" if unknown else "no execution provider is named",
                {"code": "usage", "remedy": f"it has {', '.join(available)}"},
            )
        return chosen

    @staticmethod
    def _device_of(provider: Any) -> tuple[str, int]:
        name, options = provider if isinstance(provider, tuple) else (provider, {})
        device = {"CUDAExecutionProvider": "cuda", "ROCMExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}.get(name, "cpu")
        return device, int(options.get("device_id", 0))

    def _value(self, array: npt.NDArray[Any]) -> Any:
        array = np.asarray(array, order="C")
        if array.dtype.name == "bfloat16":
            return self._runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), 16)
        return self._runtime.OrtValue.ortvalue_from_numpy(array, *self._device)

    def _given(self, array: npt.NDArray[Any]) -> Any:
        """An array as a model takes it: where it lies, but for a type that NumPy does not have."""
        return self._value(array) if array.dtype.kind == "V" else np.asarray(array, order="C")

    # The one state.

    def _now(self, name: str) -> npt.NDArray[Any]:
        return np.array(self._pairs[name][name in self._second].numpy())

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of all that goes from step to step: weights, optimizer, statistics, counters, by name."""
        with self._lock:
            return {name: self._now(name) for name in self._pairs}

    def parameters(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of the trained weights, by name."""
        with self._lock:
            return {p["name"]: self._now(p["name"]) for p in self.manifest["parameters"]}

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike]) -> None:
        """Take a state over.

        Parameters
        ----------
        state : mapping of str to array
            What :meth:`state_dict` gives; a part of it leaves the rest as it is.

        Raises
        ------
        KeyError
            A name that the state does not have, or, at first, one that is missing.
        ValueError
            Another shape. Nothing is taken over then.
        """
        known = {f["input"]: f for f in self.manifest["state"]}
        unknown = [name for name in state if name not in known]
        missing = [name for name in known if name not in state and name not in self._pairs]
        if unknown or missing:
            raise KeyError(f"the state has no {unknown}" if unknown else f"the state lacks {missing}")
        new: dict[str, Any] = {}
        for name, array in state.items():
            array = np.asarray(array)
            if list(array.shape) != list(known[name]["shape"]):
                raise ValueError(f"{name!r} is {list(array.shape)}, the state has {known[name]['shape']}")
            array = array.astype(_dtype(known[name]["type"]), copy=True)
            # Both hold it: whatever interrupts what follows, it is read.
            new[name] = (self._value(array), self._value(array.copy()))
        with self._lock:
            self._bindings.clear()
            self._pairs, self._second = {**self._pairs, **new}, self._second.difference(new)

    def save(self, path: PathLike) -> None:
        """Write the state to a .safetensors file, all or nothing.

        Parameters
        ----------
        path : path
            The file, which is replaced where it exists.
        """
        _safetensors.write(path, self.state_dict())

    def load(self, path: PathLike) -> None:
        """Take the state of a .safetensors file over: what :meth:`save`, or `checkpoint` or `resume` of :meth:`fit`, has written.

        Parameters
        ----------
        path : path
            The file.

        Raises
        ------
        KeyError, ValueError
            As :meth:`load_state_dict` does.
        """
        self.load_state_dict({n: t for n, t in _safetensors.read(path)[0].items() if not n.startswith(_loop.BEST)})

    def export(
        self, output: PathLike, *, lora: Literal["merged", "apart"] = "merged",
        adapters: Iterable[str] | Mapping[str, float] | None = None, force: bool = False,
    ) -> Path:
        """Write the inference model with the weights as they are now; see :func:`export`.

        Parameters
        ----------
        output, lora, force
            As :func:`export` takes them.
        adapters : iterable of str, or mapping of str to float, optional
            Several adapters that are kept, all of which are added to the weights, each as often as the number says; without it
            the one that is trained.

        Returns
        -------
        Path
            `output`.

        Raises
        ------
        KeyError
            No adapter is kept under a name.
        UsageError
            Several adapters with ``lora='apart'``.
        """
        if adapters is None:
            return export(self.folder, output, self.state_dict(), lora=lora, force=force)
        if lora != "merged":
            raise UsageError("several adapters can only be merged into the weights")
        shares = dict(adapters) if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
        matrices = {name: self._matrices(name) for name in shares}
        if not shares:
            raise UsageError("no adapters are named")
        with Scratch() as scratch:
            folder = self.folder
            for i, (name, share) in enumerate(shares.items()):
                # Each is added to what the one before has left, and the product is linear in its left factor.
                scaled = {a["left"]: (matrices[name][a["left"]] * share).astype(matrices[name][a["left"]].dtype)
                          for a in self.manifest["lora"]}
                last = i + 1 == len(shares)
                target = Path(output) if last else scratch.path("inference.onnx")
                export(folder, target, {**self.state_dict(), **matrices[name], **scaled}, force=force and last)
                if not last:
                    folder = target.parent
                    (folder / "manifest.json").write_text(json.dumps({**self.manifest, "inference": target.name}))
        return Path(output)

    # Adapters: the LoRA matrices, of which several sets can be kept.

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are kept, with that of the one that is trained (:attr:`adapter`)."""
        return tuple(sorted({self.adapter, *self._kept}))

    def add_adapter(self, name: str, folder: PathLike | None = None, names: Mapping[str, str] | None = None) -> None:
        """Keep one more adapter, beside the one that is trained.

        Parameters
        ----------
        name : str
            What it is called.
        folder : path, optional
            Its matrices, with PEFT's names; without it they are as at the start, where they change nothing.
        names : mapping of str to str, optional
            As :func:`onnx_gradients.adapters.load` takes them.

        Raises
        ------
        ValueError
            An adapter is kept under that name, a matrix is missing or has another shape, or there is no LoRA.
        """
        if name in self.adapters:
            raise ValueError(f"an adapter {name!r} is kept already")
        initial = self._initial()
        own = {key: np.array(initial[key]) for key in self._adapter_state()}
        self._kept[name] = own if folder is None else {**own, **adapters.load(folder, self.manifest, names)}

    def use_adapter(self, name: str) -> None:
        """Put an adapter in the place of the one that is trained, which is kept: its matrices, and what the optimizer has
        gathered for them.

        Parameters
        ----------
        name : str
            One of :attr:`adapters`.

        Raises
        ------
        KeyError
            No adapter is kept under that name.
        """
        if name == self.adapter:
            return
        if name not in self._kept:
            raise KeyError(f"no adapter {name!r} is kept, only {', '.join(self.adapters)}")
        before = {key: self._now(key) for key in self._adapter_state()}
        self.load_state_dict(self._kept.pop(name))
        self._kept[self.adapter], self.adapter = before, name

    def _adapter_state(self) -> list[str]:
        """The part of the state that belongs to the LoRA matrices."""
        matrices = [adapter[side] for adapter in self.manifest.get("lora") or [] for side in ("left", "right")]
        if not matrices:
            raise ValueError("the model was made trainable without LoRA: it has no adapters")
        own = set(matrices)
        # What an optimizer gathers for a weight is called state/KIND/WEIGHT.
        return [
            feed["input"] for feed in self.manifest["state"]
            if feed["input"] in own or (feed["role"] == "optimizer" and feed["input"].split("/", 2)[-1] in own)
        ]

    def _matrices(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The LoRA matrices of an adapter."""
        if name not in self.adapters:
            raise KeyError(f"no adapter {name!r} is kept, only {', '.join(self.adapters)}")
        source = self._kept.get(name) or {key: self._now(key) for key in self._adapter_state()}
        return {adapter[side]: source[adapter[side]] for adapter in self.manifest["lora"] for side in ("left", "right")}

    def save_adapters(self, folder: PathLike, names: Mapping[str, str] | None = None) -> None:
        """Write the LoRA matrices that are trained to a folder of their own, with PEFT's names.

        Parameters
        ----------
        folder, names
            As :func:`onnx_gradients.adapters.save` takes them.
        """
        adapters.save(folder, self.manifest, self.parameters(), names)

    def load_adapters(self, folder: PathLike, names: Mapping[str, str] | None = None) -> None:
        """Take the LoRA matrices of a folder, in the place of those that are trained.

        Parameters
        ----------
        folder, names
            As :func:`onnx_gradients.adapters.load` takes them.
        """
        self.load_state_dict(adapters.load(folder, self.manifest, names))

    # The models.

    def session(self, role: str) -> Any:
        """The session of one of the models.

        Parameters
        ----------
        role : {'train', 'gradients', 'accumulate', 'apply', 'evaluate'}
            Which.

        Returns
        -------
        onnxruntime.InferenceSession

        Raises
        ------
        UsageError
            The folder has no such model.
        EngineError
            ONNX Runtime does not take it.
        """
        if os.getpid() != self._process:
            # The threads of a session do not come along into a process that is forked, nor does who holds a lock.
            self._sessions, self._bindings, self._process, self._lock = {}, {}, os.getpid(), threading.RLock()
        with self._lock:
            if role in self._sessions:
                return self._sessions[role]
            if role not in self._roles:
                raise UsageError(f"the folder has no model for {role!r}, only for {', '.join(self._roles)}")
            options = self._options
            if options is None:
                options = self._runtime.SessionOptions()
                # What fails is said by an exception; nothing is printed beside.
                options.log_severity_level = 4
            path = self.folder / self._roles[role]["file"]
            try:
                self._sessions[role] = self._runtime.InferenceSession(str(path), options, providers=self._providers)
            except Exception as error:
                raise from_runtime(error, self._roles[role]["file"]) from error
            return self._sessions[role]

    def _run(self, role: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Runs a model on the state and `feeds`. New state goes into the spare buffers, which then change places with the
        old ones; the other outputs are returned, as numbers where all are, else as values of the runtime."""
        session, plan = self.session(role), self._plans[role]
        with self._lock:
            binding = self._binding(session, role, plan, feeds)
            for name, value in feeds.items():
                if name in plan.inputs:
                    bind = binding.bind_cpu_input if isinstance(value, np.ndarray) else binding.bind_ortvalue_input
                    bind(name, value)
            if not plan.scalars:
                self._bind_rest(binding, plan)
            try:
                session.run_with_iobinding(binding)
            except Exception as error:
                # What it was about to write lies in the spare buffers: the state is as it was.
                raise from_runtime(error, self._roles[role]["file"]) from error
            # They come in the order in which they were bound, the state first.
            values = binding.get_outputs_as_ortvaluevector()
            results = {name: values[i] for i, name in enumerate(plan.rest, len(plan.written))}
            # At once: whatever interrupts this finds the state of before or of after.
            self._second ^= plan.swapped
            # Numbers are read before another step writes to where they lie.
            return {name: float(value.numpy()) for name, value in results.items()} if plan.scalars else results

    def _bind_rest(self, binding: Any, plan: _Plan) -> None:
        for output in plan.rest:
            binding.bind_output(output, *(self._device if output in self._handed else ("cpu", 0)))

    def _binding(self, session: Any, role: str, plan: _Plan, feeds: Mapping[str, Any]) -> Any:
        """What is bound to the buffers as they lie now. They lie in the same way in every second step, so it is kept."""
        second = self._second & plan.state
        key = (role, second)
        given = not plan.state.isdisjoint(feeds)
        if given or key not in self._bindings:
            binding = session.io_binding()
            for name in plan.state:
                if name in plan.inputs and name not in feeds:
                    binding.bind_ortvalue_input(name, self._pairs[name][name in second])
            for name, output in plan.written.items():
                binding.bind_ortvalue_output(output, self._pairs[name][name not in second])
            if plan.scalars:
                self._bind_rest(binding, plan)
            if given:
                return binding
            self._bindings[key] = binding
        return self._bindings[key]

    def batch(self, batch: data.Batch, labels: bool = True, parts: int = 1) -> dict[str, npt.NDArray[Any]]:
        """A batch in the element types that the model takes.

        Parameters
        ----------
        batch : mapping of str to array
            An array for each input, and each label; others are ignored.
        labels : bool
            Whether labels must be there.
        parts : int
            How many batches of the model's are in it.

        Returns
        -------
        dict of str to array

        Raises
        ------
        KeyError
            An array is missing.
        TypeError
            Numbers that the element type does not hold, such as fractions for labels that are classes.
        ValueError
            An array of another shape than the model takes, arrays with different numbers of samples, or a label that is no class.
        """
        wanted = self._data + self._labels if labels else self._data
        missing = [entry.name for entry in wanted if entry.name not in batch]
        if missing:
            raise KeyError(f"the batch has no {missing}, only {sorted(batch)}")
        converted = {entry.name: entry.converted(batch[entry.name], parts) for entry in wanted}
        if len({len(a) for a in converted.values() if a.ndim}) > 1:
            raise ValueError(f"the numbers of samples differ: { {name: len(a) for name, a in converted.items() if a.ndim} }")
        return converted

    def _rate(self, lr: float) -> dict[str, Any]:
        if not math.isfinite(lr):
            raise ValueError(f"the learning rate is {lr}")
        return {self.manifest["learning_rate"]["name"]: self._given(np.array(lr, self._rate_type))}

    def _numbers(self, results: Mapping[str, Any]) -> Step:
        read = {n: results[n] for n in self._read if n in results}
        numbers = {n: v if isinstance(v, float) else float(v.numpy()) for n, v in read.items()}
        return Step(numbers.pop(self._read[0], math.nan), numbers)

    def step(self, batch: data.Batch, lr: float = 1e-3) -> Step:
        """One step of the optimizer on a batch.

        Parameters
        ----------
        batch : mapping of str to array
            Samples first. Where the model was made for N micro-batches a step, the batch is cut into N equal ones.
        lr : float
            The learning rate.

        Returns
        -------
        Step
            Loss and metrics, of the weights before the step.

        Raises
        ------
        KeyError, TypeError, ValueError
            As :meth:`batch` does; a batch that cannot be cut into equal parts; a learning rate that is no number.
        EngineError
            ONNX Runtime fails. The state is as it was.
        """
        parts = self.manifest["accumulate"]
        arrays = self.batch(batch, parts=parts)
        if parts == 1:
            feeds = {name: self._given(a) for name, a in arrays.items()}
            return self._numbers(self._run("train", {**feeds, **self._rate(lr)}))
        samples = count(arrays)
        if samples % parts:
            raise ValueError(f"{samples} samples cannot be cut into {parts} equal micro-batches")
        rate, size, losses = self._rate(lr), samples // parts, []
        with self._lock:
            sums = self._no_sums()
            for part in range(parts):
                micro = {name: self._given(a[part * size : (part + 1) * size]) for name, a in arrays.items()}
                results = self._run("accumulate", {**micro, **self._micro_step(part, parts), **sums})
                losses.append(self._numbers(results))
                sums = {p["sum"]: self._runtime.OrtValue(results[p["next_sum"]]) for p in self.manifest["parameters"]}
            gradients = {p["gradient"]: sums[p["sum"]] for p in self.manifest["parameters"]}
            applied = self._numbers(self._run("apply", {**gradients, **rate}))
        mean = {n: float(np.mean([s.metrics[n] for s in losses])) for n in losses[0].metrics}
        return Step(float(np.mean([s.loss for s in losses])), {**mean, **applied.metrics})

    def _micro_step(self, part: int, parts: int) -> dict[str, Any]:
        """Another number for every micro-batch: what is dropped out follows from it."""
        name = self.manifest["step"]
        now = self._now(name)
        return {name: self._value((now * parts + part).astype(now.dtype))}

    def _no_sums(self) -> dict[str, Any]:
        """What sums of gradients start with: zeros, which no step writes to."""
        if not self._zeros:
            types = {i.name: i.type for i in self.session("accumulate").get_inputs()}
            shapes = {f["input"]: f["shape"] for f in self.manifest["state"]}
            for p in self.manifest["parameters"]:
                kind = types[p["sum"]].removeprefix("tensor(").removesuffix(")")
                self._zeros[p["sum"]] = self._value(np.zeros(shapes[p["name"]], _dtype(kind)))
        return self._zeros

    def gradients(self, batch: data.Batch) -> tuple[Step, dict[str, npt.NDArray[Any]]]:
        """The first half of a step: loss, metrics, and the gradient of each weight, by the weight's name.

        Parameters
        ----------
        batch : mapping of str to array
            Samples first.

        Returns
        -------
        step : Step
        gradients : dict of str to array
            What :meth:`apply` takes, after an all-reduce for instance; each of the weight's shape.

        Raises
        ------
        KeyError, TypeError, ValueError, EngineError
            As :meth:`step` does.
        """
        feeds = {name: self._given(a) for name, a in self.batch(batch).items()}
        results = self._run("gradients", feeds)
        return self._numbers(results), {p["name"]: results[p["gradient"]].numpy() for p in self.manifest["parameters"]}

    def apply(self, gradients: Mapping[str, npt.NDArray[Any]], lr: float = 1e-3) -> Step:
        """The second half of a step.

        Parameters
        ----------
        gradients : mapping of str to array
            The gradient of each weight, by the weight's name.
        lr : float
            The learning rate.

        Returns
        -------
        Step
            The metrics that are of gradients, such as their norm; the loss is not known here, and no number.

        Raises
        ------
        KeyError
            The gradient of a weight is missing.
        ValueError
            One has another shape.
        """
        missing = [p["name"] for p in self.manifest["parameters"] if p["name"] not in gradients]
        if missing:
            raise KeyError(f"there is no gradient of {missing}")
        shapes = {f["input"]: (tuple(f["shape"]), _dtype(f["type"])) for f in self.manifest["state"]}
        feeds = {}
        for p in self.manifest["parameters"]:
            gradient, (shape, kind) = np.asarray(gradients[p["name"]]), shapes[p["name"]]
            if gradient.shape != shape:
                raise ValueError(f"the gradient of {p['name']!r} is {list(gradient.shape)}, the weight {list(shape)}")
            feeds[p["gradient"]] = self._value(gradient.astype(kind, copy=False))
        return self._numbers(self._run("apply", {**feeds, **self._rate(lr)}))

    @property
    def fixed_batch(self) -> int | None:
        """How many samples the model takes at a time, where its inputs are fixed to a number."""
        sizes = {i["shape"][0] for i in [*self.manifest["data"], *self.manifest["labels"]] if i["shape"]} - {None}
        return int(min(sizes)) if sizes else None

    def evaluate(self, source: data.Source, batch_size: int | None = 256) -> Step:
        """Loss and metrics of the weights as they are, each the mean over the samples.

        Parameters
        ----------
        source : mapping, path, or iterable of mappings
            Samples; see :func:`onnx_gradients.data.open_source`.
        batch_size : int, optional
            Samples at a time; as an iterable has them with None. A model that takes a fixed number gets that many.

        Returns
        -------
        Step

        Raises
        ------
        KeyError, TypeError, ValueError, EngineError
            As :meth:`step` does; or there are no samples.
        """
        return self._evaluate(self._opened(source).batches(self.fixed_batch or batch_size))

    def _opened(self, source: data.Source) -> data.Arrays | data.Stream:
        """Samples, of which only what the model takes is read."""
        return data.open_source(source, {i["name"] for i in [*self.manifest["data"], *self.manifest["labels"]]})

    def _evaluate(self, batches: Iterable[data.Batch]) -> Step:
        totals: dict[str, float] = {}
        samples = 0
        for batch in batches:
            arrays = self.batch(batch)
            own = count(arrays)
            numbers = self._numbers(self._run("evaluate", {n: self._given(a) for n, a in arrays.items()}))
            for name, value in {"loss": numbers.loss, **numbers.metrics}.items():
                totals[name] = totals.get(name, 0.0) + value * own
            samples += own
        if not samples:
            raise ValueError("there are no samples to evaluate")
        means = {name: total / samples for name, total in totals.items()}
        return Step(means.pop("loss"), means)

    def predict(self, batch: data.Batch) -> dict[str, npt.NDArray[Any]]:
        """The model's own outputs for a batch with the weights as they are, by name.

        Parameters
        ----------
        batch : mapping of str to array
            Samples first. Labels need not be there.

        Returns
        -------
        dict of str to array

        Raises
        ------
        KeyError, TypeError, ValueError, EngineError
            As :meth:`step` does.
        """
        arrays = self.batch(batch, labels=False)
        samples = count(arrays)
        for entry in self.manifest["labels"]:
            shape = [samples if n is None and k == 0 else n or 1 for k, n in enumerate(entry["shape"])]
            arrays[entry["name"]] = np.asarray(batch.get(entry["name"], np.zeros(shape))).astype(_dtype(entry["type"]))
        results = self._run("evaluate", {n: self._given(a) for n, a in arrays.items()})
        own = {self.manifest["loss"], *self.manifest["metrics"]}
        return {name: value.numpy() for name, value in results.items() if name not in own}

    def health(self, batch: data.Batch) -> Health:
        """How the gradients of a batch are spread over the weights: what vanishes, explodes, or is dead.

        Parameters
        ----------
        batch : mapping of str to array
            Samples first.

        Returns
        -------
        Health
            A row a weight, to print or to plot.
        """
        return Health.of(self.gradients(batch)[1], self.parameters())

    # The loop.

    def fit(
        self,
        source: data.Source,
        epochs: int = 10,
        batch_size: int | None = 32,
        lr: float = 1e-3,
        schedule: schedules.ScheduleLike = "constant",
        warmup: int = 0,
        *,
        validation: data.Source | None = None,
        held_out: float = 0.0,
        patience: int | None = None,
        checkpoint: PathLike | None = None,
        resume: PathLike | None = None,
        log: PathLike | None = None,
        progress: bool | None = None,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        on_epoch: Callable[[dict[str, float]], object] | None = None,
    ) -> History:
        """Train over epochs.

        Ctrl-C lets the step end; the trainer then holds the state behind it, and `resume` has it in a file. A second one does
        not wait.

        Parameters
        ----------
        source : mapping, path, iterable of mappings, or a function that returns one
            Samples; see :func:`onnx_gradients.data.open_source`.
        epochs : int
            How often all samples are seen.
        batch_size : int, optional
            Samples of a step; as an iterable has them with None. A model that takes a fixed number gets that many, or that
            many a micro-batch.
        lr : float
            The learning rate.
        schedule : {'constant', 'linear', 'cosine', 'plateau'}, callable or ReduceOnPlateau
            How it goes on.
        warmup : int
            The steps over which it rises.
        validation : optional
            Samples to evaluate on after each epoch.
        held_out : float
            Without `validation`, the share of the samples that is kept for it; needs samples that are arrays.
        patience : int, optional
            Stop after more than so many epochs without a better loss, and go back to the best.
        checkpoint : path, optional
            A .safetensors file for the state with the best loss.
        resume : path, optional
            A .safetensors file for where the training stands, written after each epoch and at Ctrl-C. Where it exists, the training
            goes on from it, to the same numbers as without the interruption.
        log : path, optional
            A CSV file with a row an epoch.
        progress : bool, optional
            Whether a bar is shown (tqdm); in a terminal or notebook, where tqdm is installed, without it.
        seed : int
            The order of the samples, and which are held out, follow from it.
        steps_per_epoch : int, optional
            Where an epoch of an iterable ends; linear and cosine schedules need it for iterables.
        on_epoch : callable, optional
            Is called with the row of each epoch.

        Returns
        -------
        History
            A row an epoch: epoch, loss, lr, val_loss and the metrics (those of validation with ``val_``). The loss is the mean over
            the samples.

        Raises
        ------
        UsageError
            Arguments that do not go together; a `resume` file of another training.
        ValueError
            No samples, a schedule that there is not, and what :meth:`step` says.
        FloatingPointError
            The loss is no number.
        KeyboardInterrupt
            Ctrl-C.
        """
        return _loop.run(
            self, source, epochs, batch_size, lr, schedule, warmup, validation=validation, held_out=held_out, patience=patience,
            checkpoint=checkpoint, resume=resume, log=log, progress=progress, seed=seed, steps_per_epoch=steps_per_epoch,
            on_epoch=on_epoch,
        )
