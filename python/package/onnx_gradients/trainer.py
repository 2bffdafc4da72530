"""Training in ONNX Runtime: the step, and the loop around it."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _command, _models, _safetensors, adapters, data, schedules
from ._command import option
from ._plot import axes_or_new
from .errors import UsageError
from .health import Health

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._models import ModelLike, PathLike

_TYPES = {"float": "float32", "double": "float64"}


def _dtype(name: str) -> np.dtype[Any]:
    return _safetensors.dtype(_TYPES.get(name, name))


def trainable(
    model: ModelLike,
    loss: str | Iterable[str],
    optimizer: str = "adamw",
    *,
    output: PathLike,
    train: str | Iterable[str] | None = None,
    freeze: str | Iterable[str] | None = None,
    lora: int | None = None,
    accumulate: int = 1,
    batch_norm: str = "inference",
    clip_norm: float | None = None,
    weight_decay: float | None = None,
    options: Sequence[object] = (),
    validate: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Make an inference model trainable: a folder with a training step, its halves and an evaluation as plain models.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model.
    loss : str or iterable of str
        Losses as the command line has them, ``"cross-entropy:logits,smoothing=0.1"``; they are summed.
    optimizer : str
        sgd, momentum, nesterov, rmsprop, adagrad, adam, adamw, lamb or lion.
    output : path
        The folder.
    train, freeze : str or iterable of str, optional
        Patterns of weights.
    lora : int, optional
        Train LoRA matrices of that rank in place of the weights.
    accumulate : int
        How many micro-batches make a step.
    batch_norm : {'inference', 'train'}
        The mode of BatchNormalization.
    clip_norm, weight_decay : float, optional
        As the command line has them.
    options : sequence
        Further arguments of the command ``trainable``.
    validate : bool
        Whether the gradients are compared with finite differences before anything is written.
    force : bool
        Whether an existing folder is replaced.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    Error
        As the command line says.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-gradients-") as folder:
        taken = _models.take(model)
        path: object = taken.argument
        if taken.data is not None:
            path = Path(folder) / "model.onnx"
            Path(folder, "model.onnx").write_bytes(taken.data)
        arguments = [
            "trainable", *option("--loss", loss), *option("--optimizer", optimizer), *option("--train", train),
            *option("--freeze", freeze), *option("--lora", lora), *option("--accumulate", accumulate),
            *option("--batch-norm", batch_norm), *option("--clip-norm", clip_norm), *option("--weight-decay", weight_decay),
            *option("--force", force), *option("--no-validate", not validate), *options, f"--output={Path(output)}", "--", path,
        ]
        report, _ = _command.run(arguments)
    manifest: dict[str, Any] = report["manifest"]
    return manifest


def export(
    folder: PathLike, output: PathLike, state: PathLike | Mapping[str, npt.NDArray[Any]] | None = None, *,
    lora: str = "merged", force: bool = False,
) -> Path:
    """Put trained weights back into the inference model.

    Parameters
    ----------
    folder : path
        What :func:`trainable` has written.
    output : path
        The model to write.
    state : path or mapping of str to array, optional
        The weights; those of the folder's checkpoint without it.
    lora : {'merged', 'apart'}
        Whether LoRA matrices are added to their weights.
    force : bool
        Whether an existing file is replaced.

    Returns
    -------
    Path
        `output`.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-gradients-") as temporary:
        if isinstance(state, Mapping):
            _safetensors.write(Path(temporary) / "state.safetensors", state)
            state = Path(temporary) / "state.safetensors"
        _command.run(
            ["export", *option("--state", state), *option("--lora", lora), *option("--force", force),
             f"--output={Path(output)}", "--", folder]
        )
    return Path(output)


@dataclass(frozen=True)
class Step:
    """What a step has come to.

    Attributes
    ----------
    loss : float
        The loss, before the step.
    metrics : dict of str to float
        The metrics of the manifest.
    """

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class History:
    """How a training went: one row an epoch."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def plot(self, axes: Any = None) -> Any:
        """The loss over the epochs, with matplotlib.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            Where to draw.

        Returns
        -------
        matplotlib.axes.Axes
        """
        axes = axes_or_new(axes)
        epochs = [row["epoch"] for row in self.rows]
        for key, label in (("loss", "training"), ("val_loss", "held out")):
            if self.rows and key in self.rows[0]:
                axes.plot(epochs, [row[key] for row in self.rows], marker="o", label=label)
        axes.set(xlabel="epoch", ylabel="loss")
        axes.legend()
        return axes


@dataclass(frozen=True)
class _Plan:
    """What one of the models takes and gives.

    Attributes
    ----------
    inputs : frozenset of str
        All that it takes.
    state : tuple of str
        What it reads or writes of the state.
    written : dict of str to str
        What it writes of that, with the outputs.
    rest : tuple of str
        The other outputs.
    """

    inputs: frozenset[str]
    state: tuple[str, ...]
    written: dict[str, str]
    rest: tuple[str, ...]

    @classmethod
    def of(cls, model: Mapping[str, Any], feeds: Mapping[str, str]) -> _Plan:
        """That of a model of the manifest; `feeds` is the state, by input the output that replaces it."""
        inputs, outputs = frozenset(model["inputs"]), set(model["outputs"])
        written = {name: output for name, output in feeds.items() if output in outputs}
        state = tuple(name for name in feeds if name in inputs or name in written)
        return cls(inputs, state, written, tuple(o for o in model["outputs"] if o not in set(written.values())))


class Trainer:
    """A model that is trained in ONNX Runtime.

    The state (weights, optimizer, statistics) lies in two sets of buffers on the device, which a step reads from one and
    writes to the other; then they change places.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        A folder that :func:`trainable` has written, or a model, which is made trainable.
    loss : str or iterable of str, optional
        The loss, for a model.
    optimizer : str
        The optimizer, for a model.
    providers : sequence, optional
        Execution providers of ONNX Runtime; all that are available without it.
    session_options : onnxruntime.SessionOptions, optional
        Options of its sessions.
    folder : path, optional
        Where the trainable model is written; a temporary folder without it.
    **options
        Those of :func:`trainable`.

    Raises
    ------
    UsageError
        A model without a loss, or a folder with one.
    """

    def __init__(
        self, model: ModelLike, loss: str | Iterable[str] | None = None, optimizer: str = "adamw", *,
        providers: Sequence[Any] | None = None, session_options: Any = None, folder: PathLike | None = None, **options: Any,
    ) -> None:
        import onnxruntime

        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if isinstance(model, str | Path) and (Path(model) / "manifest.json").is_file():
            if loss is not None:
                raise UsageError(f"{model} is trainable already: its loss stands in its manifest")
            self.folder = Path(model)
        elif loss is None:
            raise UsageError("a model is trained on a loss: give loss='cross-entropy', 'mse', ...")
        else:
            if folder is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="onnx-gradients-")
                folder = Path(self._temporary.name) / "trainable"
            self.folder = Path(folder)
            trainable(model, loss, optimizer, output=self.folder, **options)
        self.manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        self._runtime = onnxruntime
        self._options = session_options or onnxruntime.SessionOptions()
        self._providers = list(providers or onnxruntime.get_available_providers())
        self._sessions: dict[str, Any] = {}
        self._roles = {m["role"]: m for m in self.manifest["models"]}
        self._device = self._device_of(self._providers[0])
        self._feeds: dict[str, str] = {f["input"]: f["output"] for f in self.manifest["state"]}
        self._state: dict[str, Any] = {}
        self._spare: dict[str, Any] = {}
        # In which of its two buffers each tensor of the state lies, and what is bound to them.
        self._side: dict[str, bool] = {}
        self._bindings: dict[tuple[str, tuple[bool, ...]], Any] = {}
        self._plans = {role: _Plan.of(model, self._feeds) for role, model in self._roles.items()}
        self._kept: dict[str, dict[str, npt.NDArray[Any]]] = {}
        self.adapter = "default"
        self.load_state_dict(_safetensors.read(self.folder / self.manifest["initial_state"])[0])

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
        return self._value(array) if array.dtype.name == "bfloat16" else np.asarray(array, order="C")

    # The one state.

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of all that goes from step to step: weights, optimizer, statistics, counters, by name."""
        return {name: np.array(value.numpy()) for name, value in self._state.items()}

    def parameters(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of the trained weights, by name."""
        return {p["name"]: np.array(self._state[p["name"]].numpy()) for p in self.manifest["parameters"]}

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
            Another shape.
        """
        known = {f["input"]: f for f in self.manifest["state"]}
        unknown = [name for name in state if name not in known]
        missing = [name for name in known if name not in state and name not in self._state]
        if unknown or missing:
            raise KeyError(f"the state has no {unknown}" if unknown else f"the state lacks {missing}")
        for name, array in state.items():
            array = np.asarray(array)
            if list(array.shape) != list(known[name]["shape"]):
                raise ValueError(f"{name!r} is {list(array.shape)}, the state has {known[name]['shape']}")
            array = array.astype(_dtype(known[name]["type"]), copy=True)
            self._state[name], self._spare[name] = self._value(array), self._value(np.zeros_like(array))
            self._side[name] = False
        self._bindings.clear()

    def save(self, path: PathLike) -> None:
        """Write the state to a .safetensors file, all or nothing."""
        _safetensors.write(path, self.state_dict())

    def load(self, path: PathLike) -> None:
        """Take the state of a .safetensors file over."""
        self.load_state_dict(_safetensors.read(path)[0])

    def export(
        self, output: PathLike, *, lora: str = "merged", adapters: Iterable[str] | Mapping[str, float] | None = None,
        force: bool = False,
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
            return export(self.folder, output, self.parameters(), lora=lora, force=force)
        if lora != "merged":
            raise UsageError("several adapters can only be merged into the weights")
        shares = dict(adapters) if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
        matrices = {name: self._matrices(name) for name in shares}
        if not shares:
            raise UsageError("no adapters are named")
        with tempfile.TemporaryDirectory(prefix="onnx-gradients-") as temporary:
            folder = self.folder
            for i, (name, share) in enumerate(shares.items()):
                # Each is added to what the one before has left, and the product is linear in its left factor.
                scaled = {a["left"]: (matrices[name][a["left"]] * share).astype(matrices[name][a["left"]].dtype)
                          for a in self.manifest["lora"]}
                last = i + 1 == len(shares)
                target = Path(output) if last else Path(temporary) / str(i) / "inference.onnx"
                target.parent.mkdir(exist_ok=True)
                export(folder, target, {**self.parameters(), **matrices[name], **scaled}, force=force and last)
                if not last:
                    folder = target.parent
                    (folder / "manifest.json").write_text(json.dumps({**self.manifest, "inference": target.name}))
        return Path(output)

    # Adapters: the LoRA matrices, of which several sets can be kept.

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are kept, with that of the one that is trained (:attr:`adapter`)."""
        return tuple(sorted({self.adapter, *self._kept}))

    def add_adapter(self, name: str, folder: PathLike | None = None) -> None:
        """Keep one more adapter, beside the one that is trained.

        Parameters
        ----------
        name : str
            What it is called.
        folder : path, optional
            Its matrices, with PEFT's names; without it they are as at the start, where they change nothing.

        Raises
        ------
        ValueError
            An adapter is kept under that name, a matrix is missing or has another shape, or there is no LoRA.
        """
        if name in self.adapters:
            raise ValueError(f"an adapter {name!r} is kept already")
        initial = _safetensors.read(self.folder / self.manifest["initial_state"])[0]
        own = {key: np.array(initial[key]) for key in self._adapter_state()}
        self._kept[name] = own if folder is None else {**own, **adapters.load(folder, self.manifest)}

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
        before = {key: np.array(self._state[key].numpy()) for key in self._adapter_state()}
        self.load_state_dict(self._kept.pop(name))
        self._kept[self.adapter], self.adapter = before, name

    def _adapter_state(self) -> list[str]:
        """The part of the state that belongs to the LoRA matrices."""
        matrices = [adapter[side] for adapter in self.manifest.get("lora") or [] for side in ("left", "right")]
        if not matrices:
            raise ValueError("the model was made trainable without LoRA: it has no adapters")
        gathered = tuple(f"/{name}" for name in matrices)
        own = set(matrices)
        return [
            feed["input"] for feed in self.manifest["state"]
            if feed["input"] in own or (feed["role"] == "optimizer" and feed["input"].endswith(gathered))
        ]

    def _matrices(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The LoRA matrices of an adapter."""
        if name not in self.adapters:
            raise KeyError(f"no adapter {name!r} is kept, only {', '.join(self.adapters)}")
        source = self._kept.get(name) or {key: np.array(self._state[key].numpy()) for key in self._adapter_state()}
        return {adapter[side]: source[adapter[side]] for adapter in self.manifest["lora"] for side in ("left", "right")}

    def save_adapters(self, folder: PathLike) -> None:
        """Write the LoRA matrices to a folder of their own, with PEFT's names."""
        adapters.save(folder, self.manifest, self.parameters())

    def load_adapters(self, folder: PathLike) -> None:
        """Take the LoRA matrices of a folder, in the place of those that are there."""
        self.load_state_dict(adapters.load(folder, self.manifest))

    # The models.

    def session(self, role: str) -> Any:
        """The session of one of the models: train, gradients, accumulate, apply or evaluate."""
        if role not in self._sessions:
            if role not in self._roles:
                raise UsageError(f"the folder has no model for {role!r}, only for {', '.join(self._roles)}")
            path = self.folder / self._roles[role]["file"]
            self._sessions[role] = self._runtime.InferenceSession(str(path), self._options, providers=self._providers)
        return self._sessions[role]

    def _run(self, role: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Runs a model on the state and `feeds`. New state goes into the spare buffers, which then change places with the
        old ones; the other outputs are returned as values of the runtime."""
        session, plan = self.session(role), self._plans[role]
        binding = self._binding(role, plan, feeds)
        for name, value in feeds.items():
            if name in plan.inputs:
                bind = binding.bind_cpu_input if isinstance(value, np.ndarray) else binding.bind_ortvalue_input
                bind(name, value)
        for output in plan.rest:
            binding.bind_output(output, "cpu")
        session.run_with_iobinding(binding)
        for name in plan.written:
            self._state[name], self._spare[name] = self._spare[name], self._state[name]
            self._side[name] = not self._side[name]
        # They come in the order in which they were bound, the state first.
        values = binding.get_outputs_as_ortvaluevector()
        results = [self._runtime.OrtValue(values[i]) for i in range(len(plan.written), len(values))]
        return dict(zip(plan.rest, results, strict=True))

    def _binding(self, role: str, plan: _Plan, feeds: Mapping[str, Any]) -> Any:
        """What is bound to the buffers as they lie now. They lie in the same way in every second step, so it is kept."""
        key = (role, tuple(self._side[name] for name in plan.state))
        given = any(name in feeds for name in plan.state)
        if key not in self._bindings or given:
            binding = self.session(role).io_binding()
            for name in plan.state:
                if name in plan.inputs and name not in feeds:
                    binding.bind_ortvalue_input(name, self._state[name])
            for name, output in plan.written.items():
                binding.bind_ortvalue_output(output, self._spare[name])
            if given:
                return binding
            self._bindings[key] = binding
        return self._bindings[key]

    def batch(self, batch: data.Batch, labels: bool = True) -> dict[str, npt.NDArray[Any]]:
        """A batch in the element types that the model takes.

        Parameters
        ----------
        batch : mapping of str to array
            An array for each input, and each label; others are ignored.
        labels : bool
            Whether labels must be there.

        Raises
        ------
        KeyError
            An array is missing.
        TypeError
            Numbers that the element type does not hold, such as fractions for labels that are classes.
        """
        wanted = [*self.manifest["data"], *(self.manifest["labels"] if labels else [])]
        missing = [i["name"] for i in wanted if i["name"] not in batch]
        if missing:
            raise KeyError(f"the batch has no {missing}, only {sorted(batch)}")
        converted = {}
        for entry in wanted:
            array = np.asarray(batch[entry["name"]])
            kind = _dtype(entry["type"])
            result = array.astype(kind, copy=False)
            if kind.kind in "iu" and array.dtype.kind == "f" and not np.array_equal(result, array):
                raise TypeError(f"{entry['name']!r} takes {kind.name}; the batch holds fractions")
            converted[entry["name"]] = result
        return converted

    def _rate(self, lr: float) -> dict[str, Any]:
        rate = self.manifest["learning_rate"]
        return {rate["name"]: self._given(np.array(lr, _dtype(rate["type"])))}

    def _numbers(self, results: Mapping[str, Any]) -> Step:
        read = {n: float(results[n].numpy()) for n in [self.manifest["loss"], *self.manifest["metrics"]] if n in results}
        loss = read.pop(self.manifest["loss"], math.nan)
        return Step(loss, read)

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
        ValueError
            A batch that cannot be cut into equal parts.
        """
        arrays = self.batch(batch)
        parts = self.manifest["accumulate"]
        if parts == 1:
            feeds = {name: self._given(a) for name, a in arrays.items()}
            return self._numbers(self._run("train", {**feeds, **self._rate(lr)}))
        count = len(next(iter(arrays.values())))
        if count % parts:
            raise ValueError(f"{count} samples cannot be cut into {parts} equal micro-batches")
        size, losses = count // parts, []
        sums: dict[str, Any] = {}
        for part in range(parts):
            micro = {name: self._given(a[part * size : (part + 1) * size]) for name, a in arrays.items()}
            results = self._run("accumulate", {**micro, **self._micro_step(part, parts), **(sums or self._no_sums())})
            losses.append(self._numbers(results))
            sums = {p["sum"]: results[p["next_sum"]] for p in self.manifest["parameters"]}
        gradients = {p["gradient"]: sums[p["sum"]] for p in self.manifest["parameters"]}
        applied = self._numbers(self._run("apply", {**gradients, **self._rate(lr)}))
        mean = {n: float(np.mean([s.metrics[n] for s in losses])) for n in losses[0].metrics}
        return Step(float(np.mean([s.loss for s in losses])), {**mean, **applied.metrics})

    def _micro_step(self, part: int, parts: int) -> dict[str, Any]:
        """Another number for every micro-batch: what is dropped out follows from it."""
        name = self.manifest["step"]
        now = self._state[name].numpy()
        return {name: self._value((now * parts + part).astype(now.dtype))}

    def _no_sums(self) -> dict[str, Any]:
        types = {i.name: i for i in self.session("accumulate").get_inputs()}
        shapes = {f["input"]: f["shape"] for f in self.manifest["state"]}
        kinds = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
        return {
            p["sum"]: self._value(np.zeros(shapes[p["name"]], kinds[types[p["sum"]].type])) for p in self.manifest["parameters"]
        }

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
            What :meth:`apply` takes, after an all-reduce for instance.
        """
        feeds = {name: self._given(a) for name, a in self.batch(batch).items()}
        results = self._run("gradients", feeds)
        return self._numbers(results), {p["name"]: results[p["gradient"]].numpy() for p in self.manifest["parameters"]}

    def apply(self, gradients: Mapping[str, npt.NDArray[Any]], lr: float = 1e-3) -> None:
        """The second half of a step.

        Parameters
        ----------
        gradients : mapping of str to array
            The gradient of each weight, by the weight's name.
        lr : float
            The learning rate.
        """
        feeds = {p["gradient"]: self._value(gradients[p["name"]]) for p in self.manifest["parameters"]}
        self._run("apply", {**feeds, **self._rate(lr)})

    def evaluate(self, source: data.Source, batch_size: int | None = 256) -> Step:
        """Loss and metrics of the weights as they are, each the mean over the samples.

        Parameters
        ----------
        source : mapping, path, or iterable of mappings
            Samples; see :func:`onnx_gradients.data.open_source`.
        batch_size : int, optional
            Samples at a time; as the source has them with None.
        """
        return self._evaluate(self._batches(data.open_source(source), batch_size))

    def _evaluate(self, batches: Iterable[data.Batch]) -> Step:
        totals: dict[str, float] = {}
        samples = 0
        for batch in batches:
            arrays = self.batch(batch)
            count = len(next(iter(arrays.values())))
            numbers = self._numbers(self._run("evaluate", {n: self._given(a) for n, a in arrays.items()}))
            for name, value in {"loss": numbers.loss, **numbers.metrics}.items():
                totals[name] = totals.get(name, 0.0) + value * count
            samples += count
        if not samples:
            raise ValueError("there are no samples to evaluate")
        means = {name: total / samples for name, total in totals.items()}
        return Step(means.pop("loss"), means)

    def predict(self, batch: data.Batch) -> dict[str, npt.NDArray[Any]]:
        """The model's own outputs for a batch with the weights as they are, by name. Labels are zeros where it has none."""
        arrays = self.batch(batch, labels=False)
        count = len(next(iter(arrays.values())))
        for entry in self.manifest["labels"]:
            shape = [count if n is None and k == 0 else n or 1 for k, n in enumerate(entry["shape"])]
            arrays[entry["name"]] = np.asarray(batch.get(entry["name"], np.zeros(shape))).astype(_dtype(entry["type"]))
        results = self._run("evaluate", {n: self._given(a) for n, a in arrays.items()})
        own = {self.manifest["loss"], *self.manifest["metrics"]}
        return {name: value.numpy() for name, value in results.items() if name not in own}

    def health(self, batch: data.Batch) -> Health:
        """How the gradients of a batch are spread over the weights: what vanishes, explodes, or is dead."""
        return Health.of(self.gradients(batch)[1], self.parameters())

    # The loop.

    @staticmethod
    def _batches(source: Any, size: int | None, order: npt.NDArray[np.int64] | None = None) -> Iterable[data.Batch]:
        if isinstance(source, data.Arrays):
            return source.batches(size or source.count, order)
        return data.rebatched(source(), size)

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
        log: PathLike | None = None,
        progress: bool | None = None,
        seed: int = 0,
    ) -> History:
        """Train over epochs.

        Parameters
        ----------
        source : mapping, path, iterable of mappings, or a function that returns one
            Samples; see :func:`onnx_gradients.data.open_source`.
        epochs : int
            How often all samples are seen.
        batch_size : int, optional
            Samples of a step; as an iterable has them with None.
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
            Stop after so many epochs without a better loss, and go back to the best.
        checkpoint : path, optional
            A .safetensors file for the state with the best loss.
        log : path, optional
            A CSV file with a row an epoch.
        progress : bool, optional
            Whether a bar is shown (tqdm); where it is installed without it.
        seed : int
            The order of the samples follows from it.

        Returns
        -------
        History
            A row an epoch: epoch, loss, lr, val_loss and the metrics.

        Raises
        ------
        FloatingPointError
            The loss is no number.
        """
        opened = data.open_source(source)
        rng = np.random.default_rng(seed)
        order, held = None, None
        if isinstance(opened, data.Arrays):
            order, held = opened.split(held_out if validation is None else 0.0, rng)
        elif held_out and validation is None:
            raise UsageError("held_out takes samples that are arrays; give validation=... for iterables and shards")
        evaluation = data.open_source(validation) if validation is not None else None
        parts = self.manifest["accumulate"]
        total = epochs * math.ceil(len(order) / (batch_size or len(order))) if order is not None else epochs * 1000
        rate = schedules.named(schedule, lr, total, warmup)
        history, best, waited, best_state, step = History(), math.inf, 0, None, 0
        for epoch in range(1, epochs + 1):
            shuffled = rng.permutation(order) if order is not None else None
            losses: list[float] = []
            for read in self._bar(self._batches(opened, batch_size, shuffled), f"epoch {epoch}/{epochs}", progress):
                batch = _whole(read, parts)
                if batch is None:
                    continue
                done = self.step(batch, rate(step))
                if not math.isfinite(done.loss):
                    raise FloatingPointError(f"the loss is {done.loss} in step {step}")
                losses.append(done.loss)
                step += 1
            row: dict[str, float] = {"epoch": epoch, "loss": float(np.mean(losses)), "lr": rate(max(0, step - 1))}
            tested = None
            if evaluation is not None:
                tested = self._evaluate(self._batches(evaluation, batch_size))
            elif held is not None and len(held):
                tested = self._evaluate(self._batches(opened, batch_size, held))
            if tested is not None:
                row |= {"val_loss": tested.loss, **{f"val_{n}": v for n, v in tested.metrics.items()}}
            history.rows.append(row)
            judged = row.get("val_loss", row["loss"])
            if isinstance(rate, schedules.ReduceOnPlateau):
                rate.observe(judged)
            if judged < best:
                best, waited = judged, 0
                best_state = self.state_dict() if patience is not None else None
                if checkpoint is not None:
                    self.save(checkpoint)
            else:
                waited += 1
            if log is not None:
                _append(Path(log), row, first=epoch == 1)
            if patience is not None and waited > patience:
                break
        if best_state is not None:
            self.load_state_dict(best_state)
        return history

    @staticmethod
    def _bar(batches: Iterable[data.Batch], text: str, progress: bool | None) -> Iterable[data.Batch]:
        if progress is False:
            return batches
        try:
            from tqdm.auto import tqdm
        except ImportError:
            if progress:
                raise
            return batches
        bar: Iterable[data.Batch] = tqdm(batches, desc=text, leave=False, disable=None if progress is None else False)
        return bar


def _whole(batch: data.Batch, parts: int) -> data.Batch | None:
    """As many samples of a batch as can be cut into equal parts; None where that is none."""
    if parts == 1:
        return batch
    arrays = {n: np.asarray(a) for n, a in batch.items()}
    count = len(next(iter(arrays.values()))) // parts * parts
    return {n: a[:count] for n, a in arrays.items()} if count else None


def _append(path: Path, row: Mapping[str, float], first: bool) -> None:
    with path.open("w" if first else "a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if first:
            writer.writeheader()
        writer.writerow(row)
