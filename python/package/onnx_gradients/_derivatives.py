"""Derivatives of models as models: what the commands ``grad``, ``jvp``, ``vjp``, ``hvp``, ``jacobian``, ``hessian`` write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import numpy as np

from . import _command
from ._command import option
from ._models import ModelLike, PathLike

if TYPE_CHECKING:
    import numpy.typing as npt

Names: TypeAlias = Union[str, Iterable[str]]
SeedLike: TypeAlias = Union[None, int, float, str, "npt.NDArray[Any]"]


@dataclass(frozen=True)
class Validation:
    """What running a model has shown of its derivatives.

    Attributes
    ----------
    status : str
        ``passed``, ``failed`` or ``skipped``.
    reason : str or None
        Why it was skipped or has failed.
    summary : str or None
        The same in a line.
    gradients : list of dict
        Each gradient with its error, or why it was not compared.
    """

    status: str
    reason: str | None = None
    summary: str | None = None
    gradients: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @classmethod
    def read(cls, report: Mapping[str, Any]) -> Validation:
        """What a report's ``validation`` says."""
        return cls(
            str(report.get("status", "skipped")), report.get("reason"), report.get("summary"),
            list(report.get("gradients") or []),
        )


@dataclass(frozen=True)
class Gradients:
    """A model with the gradients of ys with respect to xs.

    Attributes
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model, in the form in which the first one was given.
    gradients : dict of str to str or None
        For each x the output that holds its gradient, which has x's type and shape; None where no y depends on it.
    seeds : dict of str to str or None
        For each y the tensor, input or number that its gradient starts with.
    nodes_added : int
        How many nodes were added.
    warnings : list of str
        What you should know.
    validation : Validation
        What running it has shown.
    """

    model: Any = field(repr=False)
    gradients: dict[str, str | None]
    seeds: dict[str, str | None]
    nodes_added: int
    warnings: list[str]
    validation: Validation

    def session(self, **options: Any) -> Any:
        """An ``onnxruntime.InferenceSession`` of the model; `options` go to it."""
        return _session(self.model, options)


@dataclass(frozen=True)
class Derivative:
    """A model with derivatives other than gradients.

    Attributes
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model, in the form in which the first one was given.
    outputs : list of dict
        The derivatives: ``y``, ``x``, ``second`` where they apply, and ``name``, the output that holds it or None.
    vectors : dict of str to str
        For each tensor the new input that takes its vector.
    nodes_added, warnings, validation
        As in :class:`Gradients`.
    """

    model: Any = field(repr=False)
    outputs: list[dict[str, Any]]
    vectors: dict[str, str]
    nodes_added: int
    warnings: list[str]
    validation: Validation

    def session(self, **options: Any) -> Any:
        """An ``onnxruntime.InferenceSession`` of the model; `options` go to it."""
        return _session(self.model, options)


def _session(model: Any, options: dict[str, Any]) -> Any:
    import onnxruntime

    if hasattr(model, "graph") and not hasattr(model, "SerializeToString"):
        import onnx_ir

        model = onnx_ir.serde.serialize_model(model)
    source = model.SerializeToString() if hasattr(model, "SerializeToString") else model
    options.setdefault("providers", onnxruntime.get_available_providers())
    return onnxruntime.InferenceSession(source if isinstance(source, bytes) else str(source), **options)


def _call_options(
    ys: Names | None, xs: Names | None, params: bool, inputs: bool, stop_gradients: Names | None, name: str | None,
    unconnected_gradients: str, aggregation_method: str, straight_through: bool, gradient_functions: Iterable[PathLike] | None,
    only_gradients: bool, validate: bool, dims: Mapping[str, int] | None, extra: Sequence[object],
) -> list[object]:
    arguments = [
        *option("--ys", ys), *option("--xs", xs), *option("--params", params), *option("--inputs", inputs),
        *option("--stop-gradients", stop_gradients), *option("--name", name),
        *option("--unconnected-gradients", unconnected_gradients), *option("--aggregation-method", aggregation_method),
        *option("--straight-through", straight_through), *option("--gradient-functions", gradient_functions),
        *option("--only-gradients", only_gradients), *option("--no-validate", not validate),
    ]
    if validate:
        arguments += option("--dim", [f"{d}={n}" for d, n in (dims or {}).items()])
    return [*arguments, *extra]


@contextmanager
def _seeds(grad_ys: Iterable[SeedLike] | None) -> Iterator[list[object]]:
    """Seeds as the command line takes them; arrays lie in files as long as it runs."""
    if grad_ys is None:
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="onnx-gradients-") as folder:
        specs: list[object] = []
        for i, seed in enumerate([grad_ys] if isinstance(grad_ys, str | int | float) else grad_ys):
            if seed is None:
                specs.append("ones")
            elif isinstance(seed, np.ndarray):
                path = Path(folder) / f"{i}.npy"
                np.save(path, seed)
                specs.append(f"file:{path}")
            else:
                specs.append(seed)
        yield option("--grad-ys", specs)


def gradients(
    model: ModelLike,
    ys: Names | None = None,
    xs: Names | None = None,
    grad_ys: Iterable[SeedLike] | None = None,
    stop_gradients: Names | None = None,
    *,
    params: bool = False,
    inputs: bool = False,
    name: str | None = None,
    unconnected_gradients: str = "none",
    aggregation_method: str = "add-n",
    straight_through: bool = False,
    gradient_functions: Iterable[PathLike] | None = None,
    only_gradients: bool = False,
    validate: bool = False,
    dims: Mapping[str, int] | None = None,
    options: Sequence[object] = (),
    output: PathLike | None = None,
    force: bool = False,
) -> Gradients:
    """Append the gradients of `ys` with respect to `xs` to a model, as ``tf.gradients`` does.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model. One of more than 2 GB goes by path.
    ys : str or iterable of str, optional
        Tensors that are differentiated; all floating-point outputs without it. Their sum is, weighted by the seeds.
    xs : str or iterable of str, optional
        Tensors with respect to which: inputs, initializers, outputs of nodes; ``*`` and ``?`` are wildcards.
    grad_ys : iterable, optional
        The seed of each y, in order: None for ones, a number, an array of y's type and shape, or a SPEC of the command
        line: ``"input"``, ``"input:NAME"``, ``"tensor:NAME"``.
    stop_gradients : str or iterable of str, optional
        Tensors that count as constants.
    params, inputs : bool
        Whether all weights, all floating-point inputs are xs.
    name : str, optional
        The scope of all new names; ``gradients`` without it.
    unconnected_gradients : {'none', 'zero'}
        What stands for the gradient of an x that no y depends on.
    aggregation_method : {'add-n', 'tree', 'accumulate-n'}
        How gradients that meet are summed.
    straight_through : bool
        Whether rounding counts as the identity.
    gradient_functions : iterable of path, optional
        Files with gradients of your own operators.
    only_gradients : bool
        Whether the model's own outputs go.
    validate : bool
        Whether the result is run, and compared with finite differences.
    dims : mapping of str to int, optional
        Sizes of symbolic dimensions for validation.
    options : sequence
        Further arguments of the command ``grad``.
    output : path, optional
        A file to write in place of returning the model; `force` replaces one that exists.
    force : bool
        See `output`.

    Returns
    -------
    Gradients
        The model, and for each x the name of its gradient, an output of x's type and shape.

    Raises
    ------
    UnknownNameError
        A tensor that the model does not have.
    NoGradientError
        An operator on a path from an x to a y has no gradient.
    InvalidModelError
        The model contradicts itself, or is none.
    ValidationFailedError
        Validation has found a gradient that is wrong.

    Examples
    --------
    >>> result = gradients("mlp.onnx", ys="loss", params=True)      # doctest: +SKIP
    >>> result.gradients                                            # doctest: +SKIP
    {'W1': 'gradients/W1', 'b1': 'gradients/b1'}
    """
    with _seeds(grad_ys) as seeds:
        arguments = _call_options(
            ys, xs, params, inputs, stop_gradients, name, unconnected_gradients, aggregation_method, straight_through,
            gradient_functions, only_gradients, validate, dims, [*seeds, *options],
        )
        report, new = _command.transform("grad", model, arguments, output, force)
    return Gradients(
        new,
        {g["x"]: g.get("gradient", g.get("name")) for g in report["gradients"]},
        {s["y"]: s.get("seed") for s in report.get("seeds", [])},
        report["nodes_added"], report["warnings"], Validation.read(report.get("validation", {})),
    )


def derivative(
    command: str,
    model: ModelLike,
    ys: Names | None = None,
    xs: Names | None = None,
    *,
    params: bool = False,
    inputs: bool = False,
    stop_gradients: Names | None = None,
    name: str | None = None,
    unconnected_gradients: str = "none",
    aggregation_method: str = "add-n",
    straight_through: bool = False,
    gradient_functions: Iterable[PathLike] | None = None,
    only_gradients: bool = False,
    validate: bool = False,
    dims: Mapping[str, int] | None = None,
    options: Sequence[object] = (),
    output: PathLike | None = None,
    force: bool = False,
) -> Derivative:
    """Append derivatives to a model by a command of the command line.

    Parameters
    ----------
    command : str
        ``jvp``, ``vjp``, ``hvp``, ``jacobian``, ``hessian``, ``explain METHOD`` or ``attack METHOD``.
    model, ys, xs, ...
        As :func:`gradients` takes them.
    options : sequence
        Further arguments of the command.

    Returns
    -------
    Derivative
        The model, its new outputs, and its new inputs.

    Raises
    ------
    Error
        As :func:`gradients` does.
    """
    arguments = _call_options(
        ys, xs, params, inputs, stop_gradients, name, unconnected_gradients, aggregation_method, straight_through,
        gradient_functions, only_gradients, validate, dims, options,
    )
    report, new = _command.transform(command, model, arguments, output, force)
    return Derivative(
        new, list(report.get("outputs", [])), {v["of"]: v["name"] for v in report.get("vectors", [])},
        report.get("nodes_added", 0), report.get("warnings", []), Validation.read(report.get("validation", {})),
    )


_SHARED = """

    Parameters
    ----------
    model, ys, xs
        As :func:`gradients` takes them.
    **arguments
        Those of :func:`derivative`.

    Returns
    -------
    Derivative
        """

Product = TypeVar("Product", bound=Callable[..., Derivative])


def _documented(function: Product) -> Product:
    """Completes the docstring of a product with vectors, whose last paragraph says what it returns."""
    summary, returned = (function.__doc__ or "").strip().split("\n\n", 1)
    function.__doc__ = summary + _SHARED + returned.strip() + "\n    "
    return function


@_documented
def jvp(model: ModelLike, ys: Names | None = None, xs: Names | None = None, **arguments: Any) -> Derivative:
    """Append J v of `ys` along new inputs, one an x, of x's type and shape.

    ``vectors`` names the input for each x, ``outputs`` the product for each y, of y's type and shape.
    """
    return derivative("jvp", model, ys, xs, **arguments)


@_documented
def vjp(model: ModelLike, ys: Names | None = None, xs: Names | None = None, **arguments: Any) -> Derivative:
    """Append vᵀ J of `ys` with new inputs as seeds, one a y, of y's type and shape.

    ``vectors`` names the input for each y, ``outputs`` the product for each x, of x's type and shape.
    """
    return derivative("vjp", model, ys, xs, **arguments)


@_documented
def hvp(model: ModelLike, ys: Names | None = None, xs: Names | None = None, **arguments: Any) -> Derivative:
    """Append the product of the Hessian of the sum of `ys` with new inputs, one an x, of x's type and shape.

    ``vectors`` names the input for each x, ``outputs`` the product for each x.
    """
    return derivative("hvp", model, ys, xs, **arguments)


def jacobian(
    model: ModelLike, ys: Names | None = None, xs: Names | None = None, *, batch: int | None = None, mode: str = "auto",
    **arguments: Any,
) -> Derivative:
    """Append the Jacobian of each y by each x, of shape y.shape + x.shape.

    Parameters
    ----------
    model, ys, xs
        As :func:`gradients` takes them.
    batch : int, optional
        The axis along which samples lie that do not depend on each other: the Jacobian of each sample.
    mode : {'auto', 'forward', 'reverse'}
        One pass for each element of x, or of y.
    **arguments
        Those of :func:`derivative`.

    Returns
    -------
    Derivative
        ``outputs`` names the Jacobian of each y by each x.
    """
    own = [*option("--batch", batch), *option("--mode", mode)]
    return derivative("jacobian", model, ys, xs, options=[*own, *arguments.pop("options", ())], **arguments)


def hessian(
    model: ModelLike, ys: Names | None = None, xs: Names | None = None, *, batch: int | None = None, mode: str = "auto",
    diagonal: bool = False, **arguments: Any,
) -> Derivative:
    """Append the Hessian of the sum of `ys` by each two xs, of shape x.shape + z.shape.

    Parameters
    ----------
    model, ys, xs
        As :func:`gradients` takes them.
    batch, mode
        As :func:`jacobian` takes them.
    diagonal : bool
        Whether only second derivatives by one element twice are wanted, in the shape of x.
    **arguments
        Those of :func:`derivative`.

    Returns
    -------
    Derivative
        ``outputs`` names the Hessian by each pair ``x``, ``second``.
    """
    own = [*option("--batch", batch), *option("--mode", mode), *option("--diagonal", diagonal)]
    return derivative("hessian", model, ys, xs, options=[*own, *arguments.pop("options", ())], **arguments)


def explain(
    model: ModelLike, method: str = "saliency", ys: Names | None = None, xs: Names | None = None, *,
    label: int | str | None = None, class_axis: int | None = None, channels: int | None = None, keep_softmax: bool = False,
    layer: str | None = None, steps: int | None = None, baseline: float | str | None = None, samples: int | None = None,
    noise: float | None = None, seed: int | None = None, noise_input: bool = False, **arguments: Any,
) -> Derivative:
    """Append an explanation of a classifier's prediction: what in its input it hangs on.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model.
    method : {'saliency', 'input-x-gradient', 'grad-cam', 'integrated-gradients', 'smooth-grad'}
        How. The options below are those of the methods that have them; the command line says more (``explain METHOD --help``).
    ys : str, optional
        The scores of classes; the output without it.
    xs : str, optional
        What is explained: the input with the most axes without it, or any tensor behind it, as the embeddings of tokens.
    label : int or str, optional
        The class that is explained: its number, ``'predicted'`` (as without it), or ``'input'`` for a new input with one number a
        sample.
    class_axis, channels : int, optional
        The axis of y that runs over classes (the last one), the axis of x that runs over channels.
    keep_softmax : bool
        Whether the probability is explained where the model ends in a softmax, not the score before it.
    layer : str, optional
        grad-cam: the tensor whose channels are weighted.
    steps : int, optional
        integrated-gradients: how many points lie on the way.
    baseline : float or str, optional
        integrated-gradients: where it begins, a number or ``'input'``.
    samples, noise, seed, noise_input
        smooth-grad: how many noisy copies, the standard deviation of the noise as a share of x's range, what it follows from,
        or that it comes from a new input.
    **arguments
        Those of :func:`derivative`.

    Returns
    -------
    Derivative
        ``outputs`` names the explanation, ``vectors`` the new inputs. Its shape is x's; saliency and smooth-grad have no channels,
        grad-cam has x's places.

    Raises
    ------
    Error
        As :func:`gradients` does; an option that the method does not have is a UsageError.
    """
    own = [
        *option("--class", label), *option("--class-axis", class_axis), *option("--channels", channels),
        *option("--keep-softmax", keep_softmax), *option("--layer", layer), *option("--steps", steps),
        *option("--baseline", baseline), *option("--samples", samples), *option("--noise", noise), *option("--seed", seed),
        *option("--noise-input", noise_input),
    ]
    return derivative(f"explain {method}", model, ys, xs, options=[*own, *arguments.pop("options", ())], **arguments)


def attack(
    model: ModelLike, method: str = "fgsm", ys: Names | None = None, xs: Names | None = None, *, epsilon: float,
    bounds: tuple[float, float] | None = None, class_axis: int | None = None, targeted: bool = False, loss: bool = False,
    steps: int | None = None, step_size: float | None = None, random_start: int | None = None, **arguments: Any,
) -> Derivative:
    """Append adversarial examples: outputs of the shape of the inputs, for which the loss is larger.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model.
    method : {'fgsm', 'pgd'}
        One step, or several.
    ys : str, optional
        The scores of classes; the output without it. With `loss`, the loss itself.
    xs : str or iterable of str, optional
        The inputs that change; the one with the most axes without it.
    epsilon : float
        How far each place of x may change.
    bounds : tuple of float, optional
        The least and the largest number that an input may hold.
    class_axis : int, optional
        The axis of y that runs over classes; the last one without it.
    targeted : bool
        Whether labels are what the classifier shall be led to, not away from.
    loss : bool
        Whether `ys` is the loss itself, with the labels that the model takes.
    steps : int, optional
        pgd: how many steps.
    step_size : float, optional
        pgd: their size; 2.5 epsilon / steps without it.
    random_start : int, optional
        pgd: start at a random place within epsilon of x, which follows from this number.
    **arguments
        Those of :func:`derivative`.

    Returns
    -------
    Derivative
        ``outputs`` names the example for each x, ``vectors`` the new input for labels.

    Raises
    ------
    Error
        As :func:`gradients` does; an option that the method does not have is a UsageError.
    """
    own = [
        *option("--epsilon", epsilon), *option("--bounds", None if bounds is None else f"{bounds[0]}..{bounds[1]}"),
        *option("--class-axis", class_axis), *option("--targeted", targeted), *option("--loss", loss),
        *option("--steps", steps), *option("--step-size", step_size), *option("--random-start", random_start),
    ]
    return derivative(f"attack {method}", model, ys, xs, options=[*own, *arguments.pop("options", ())], **arguments)


def check(
    model: ModelLike, *, dims: Mapping[str, int] | None = None, inputs: Mapping[str, Any] | None = None,
    options: Sequence[object] = (),
) -> dict[str, Any]:
    """Run a model that :func:`gradients` has written, and compare its gradients with finite differences.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model.
    dims : mapping of str to int, optional
        Sizes of symbolic dimensions.
    inputs : mapping of str to array, optional
        Inputs to run it on; the others are drawn.
    options : sequence
        Further arguments of the command ``check``.

    Returns
    -------
    dict
        The report: each call with its status and gradients.

    Raises
    ------
    ValidationFailedError
        A gradient is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-gradients-") as folder:
        from . import _models

        taken = _models.take(model)
        path = Path(taken.argument)
        if taken.data is not None:
            path = Path(folder) / "model.onnx"
            path.write_bytes(taken.data)
        arguments: list[object] = ["check", *option("--dim", [f"{d}={n}" for d, n in (dims or {}).items()])]
        for i, (name, array) in enumerate((inputs or {}).items()):
            np.save(Path(folder) / f"{i}.npy", np.asarray(array))
            arguments += option("--input", f"{name}={Path(folder) / f'{i}.npy'}")
        report, _ = _command.run([*arguments, *options, "--", path])
        return report


def inspect(model: ModelLike) -> dict[str, Any]:
    """What a model holds, and what stands in the way of its gradients.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model.

    Returns
    -------
    dict
        ``inputs``, ``outputs``, ``parameters``, ``operators``, ``reach``, ``warnings``.
    """
    from . import _models

    taken = _models.take(model)
    if taken.data is None:
        return _command.run(["inspect", "--", taken.argument])[0]
    with tempfile.TemporaryDirectory(prefix="onnx-gradients-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(taken.data)
        return _command.run(["inspect", "--", path])[0]


def operators() -> list[dict[str, Any]]:
    """The table of operators: versions, inputs with a gradient, formulas.

    Returns
    -------
    list of dict
        A row an operator.
    """
    report: Any = _command.run(["ops"])[0]
    return list(report if isinstance(report, list) else report["operators"])
