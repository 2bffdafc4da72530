"""Derivatives of models as models: what the commands ``grad``, ``jvp``, ``vjp``, ``hvp``, ``jacobian``, ``hessian`` write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from . import _command, _models
from ._command import Scratch, option
from ._models import ModelLike, PathLike
from ._options import Budget, Deriving, Names, Running, SeedLike, Writing

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
class Result:
    """A model that was written.

    Attributes
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model, in the form in which the first one was given.
    nodes_added : int
        How many nodes were added.
    warnings : list of str
        What you should know.
    validation : Validation
        What running it has shown.
    report : dict
        All that the command says.
    """

    model: Any = field(repr=False)
    nodes_added: int
    warnings: list[str]
    validation: Validation
    report: dict[str, Any] = field(repr=False)

    def session(self, **options: Any) -> Any:
        """An ``onnxruntime.InferenceSession`` of the model.

        Parameters
        ----------
        **options
            Those of the session; `providers` are all that are available without them.

        Returns
        -------
        onnxruntime.InferenceSession

        Raises
        ------
        ImportError
            onnxruntime is not installed.
        """
        import onnxruntime

        options.setdefault("providers", onnxruntime.get_available_providers())
        taken = _models.take(self.model)
        return onnxruntime.InferenceSession(taken.argument if taken.data is None else taken.data, **options)


@dataclass(frozen=True)
class Gradients(Result):
    """A model with the gradients of ys with respect to xs.

    Attributes
    ----------
    gradients : dict of str to str or None
        For each x the output that holds its gradient, which has x's type and shape; None where no y depends on it.
    seeds : dict of str to str or None
        For each y the tensor, input or number that its gradient starts with.
    memory : dict or None
        With a memory budget: what the model holds at a time without it and with it, in bytes.
    model, nodes_added, warnings, validation, report
        As in :class:`Result`.
    """

    gradients: dict[str, str | None]
    seeds: dict[str, str | None]
    memory: dict[str, Any] | None = None


@dataclass(frozen=True)
class Derivative(Result):
    """A model with derivatives other than gradients.

    Attributes
    ----------
    outputs : list of dict
        The derivatives: ``y``, ``x``, ``second`` where they apply, and ``name``, the output that holds it or None.
    vectors : dict of str to str
        For each tensor the new input that takes its vector.
    model, nodes_added, warnings, validation, report
        As in :class:`Result`.
    """

    outputs: list[dict[str, Any]]
    vectors: dict[str, str]


def _transform(
    command: str, model: ModelLike, ys: Names | None, xs: Names | None, own: Iterable[object], call: Mapping[str, Any],
    scratch: Scratch,
) -> tuple[dict[str, Any], Any]:
    """Runs a command that writes derivatives; `own` are arguments that not all of them have."""
    call = dict(call)
    output, force, options = call.pop("output", None), call.pop("force", False), call.pop("options", ())
    shared = _command.keywords(call, Deriving.__annotations__, command.split()[0], scratch)
    arguments = [*option("--ys", ys), *option("--xs", xs), *shared, *own, *options]
    return _command.transform(command, model, arguments, output, force)


def _result(report: dict[str, Any], model: Any) -> dict[str, Any]:
    return {
        "model": model, "nodes_added": report.get("nodes_added", 0), "warnings": list(report.get("warnings", [])),
        "validation": Validation.read(report.get("validation", {})), "report": report,
    }


def _seeds(grad_ys: SeedLike | Iterable[SeedLike], scratch: Scratch) -> list[object]:
    """Seeds as the command line takes them."""
    def spec(seed: SeedLike) -> object:
        if seed is None:
            return "ones"
        return f"file:{scratch.array(seed)}" if isinstance(seed, np.ndarray) else seed

    if grad_ys is None:
        return []
    several = [grad_ys] if isinstance(grad_ys, str | int | float | np.ndarray) else list(grad_ys)
    return option("--grad-ys", [spec(seed) for seed in several])


def gradients(
    model: ModelLike,
    ys: Names | None = None,
    xs: Names | None = None,
    grad_ys: SeedLike | Iterable[SeedLike] = None,
    stop_gradients: Names | None = None,
    *,
    memory_budget: Budget | None = None,
    **call: Unpack[Writing],
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
        line: ``"input"``, ``"input:NAME"``, ``"tensor:NAME"``. One that is no list is that of a single y.
    stop_gradients : str or iterable of str, optional
        Tensors that count as constants.
    memory_budget : float or str, optional
        The most that the model may hold at a time, as a share of what it holds without this (0.5, ``"50%"``) or in bytes
        (``"300MB"``): what the gradients need of the forward pass is computed again in place of being kept. `dim` says what
        sizes symbols have.
    output : path, optional
        A file to write in place of returning the model.
    force : bool
        Whether a file that exists is replaced.
    options : iterable
        Further arguments of the command ``grad``.
    params, inputs : bool
        Whether all weights, all floating-point inputs are xs.
    name : str
        The scope of all new names; ``gradients`` without it.
    unconnected_gradients : {'none', 'zero'}
        What stands for the gradient of an x that no y depends on.
    aggregation_method : {'add-n', 'tree', 'accumulate-n'}
        How gradients that meet are summed.
    straight_through : bool
        Whether rounding counts as the identity.
    colocate_gradients_with_ops, gate_gradients : bool
        As TensorFlow has them: backward nodes take over devices, and stand together by forward node.
    gradient_functions : path or iterable of path
        Files with gradients of your own operators.
    only_gradients : bool
        Whether the model's own outputs go.
    validate : bool
        Whether the result is run, and compared with finite differences.
    dim : mapping of str to int
        Sizes of symbolic dimensions, for validation and the memory budget.
    shape : mapping of str to sequence of int or str
        Shapes of tensors, of numbers and names, in the place of what inputs are declared as.
    range, input : mapping
        For validation: what random values of an input lie between; the value of an input, as an array or a file.
    time, memory : float, str
        For validation: the seconds and the memory (``"4GB"``) that it may take.

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
    UsageError
        Arguments that contradict each other, or no xs.
    FileError
        A file that cannot be read or written.
    ValidationFailedError
        Validation has found a gradient that is wrong.

    Examples
    --------
    >>> result = gradients("mlp.onnx", ys="loss", params=True)      # doctest: +SKIP
    >>> result.gradients                                            # doctest: +SKIP
    {'W1': 'gradients/W1', 'b1': 'gradients/b1'}
    """
    with Scratch() as scratch:
        own = [
            *_seeds(grad_ys, scratch), *option("--stop-gradients", stop_gradients), *option("--memory-budget", memory_budget),
        ]
        report, new = _transform("grad", model, ys, xs, own, call, scratch)
    return Gradients(
        **_result(report, new),
        gradients={g["x"]: g.get("gradient", g.get("name")) for g in report["gradients"]},
        seeds={s["y"]: s.get("seed") for s in report.get("seeds", [])},
        memory=report.get("memory"),
    )


def derivative(
    command: str, model: ModelLike, ys: Names | None = None, xs: Names | None = None, **call: Unpack[Deriving],
) -> Derivative:
    """Append derivatives to a model by a command of the command line.

    Parameters
    ----------
    command : str
        ``jvp``, ``vjp``, ``hvp``, ``jacobian``, ``hessian``, ``explain METHOD`` or ``attack METHOD``.
    model, ys, xs
        As :func:`gradients` takes them.
    **call
        The other keywords of :func:`gradients` that are no seeds and no budget. What the command alone has goes into `options`.

    Returns
    -------
    Derivative
        The model, its new outputs, and its new inputs.

    Raises
    ------
    Error
        As :func:`gradients` does.
    """
    return _derivative(command, model, ys, xs, [], call)


def _derivative(
    command: str, model: ModelLike, ys: Names | None, xs: Names | None, own: Iterable[object], call: Mapping[str, Any],
) -> Derivative:
    with Scratch() as scratch:
        report, new = _transform(command, model, ys, xs, own, call, scratch)
    return Derivative(
        **_result(report, new),
        outputs=list(report.get("outputs", [])), vectors={v["of"]: v["name"] for v in report.get("vectors", [])},
    )


_SHARED = """

    Parameters
    ----------
    model, ys, xs
        As :func:`gradients` takes them.
    **call
        The keywords of :func:`derivative`.

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
def jvp(model: ModelLike, ys: Names | None = None, xs: Names | None = None, **call: Unpack[Deriving]) -> Derivative:
    """Append J v of `ys` along new inputs, one an x, of x's type and shape.

    ``vectors`` names the input for each x, ``outputs`` the product for each y, of y's type and shape.
    """
    return _derivative("jvp", model, ys, xs, [], call)


@_documented
def vjp(model: ModelLike, ys: Names | None = None, xs: Names | None = None, **call: Unpack[Deriving]) -> Derivative:
    """Append vᵀ J of `ys` with new inputs as seeds, one a y, of y's type and shape.

    ``vectors`` names the input for each y, ``outputs`` the product for each x, of x's type and shape.
    """
    return _derivative("vjp", model, ys, xs, [], call)


@_documented
def hvp(model: ModelLike, ys: Names | None = None, xs: Names | None = None, **call: Unpack[Deriving]) -> Derivative:
    """Append the product of the Hessian of the sum of `ys` with new inputs, one an x, of x's type and shape.

    ``vectors`` names the input for each x, ``outputs`` the product for each x.
    """
    return _derivative("hvp", model, ys, xs, [], call)


def jacobian(
    model: ModelLike, ys: Names | None = None, xs: Names | None = None, *, batch: int | None = None, mode: Literal["auto", "forward", "reverse"] = "auto",
    **call: Unpack[Deriving],
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
    **call
        The keywords of :func:`derivative`.

    Returns
    -------
    Derivative
        ``outputs`` names the Jacobian of each y by each x.
    """
    own = [*option("--batch", batch), *option("--mode", mode)]
    return _derivative("jacobian", model, ys, xs, own, call)


def hessian(
    model: ModelLike, ys: Names | None = None, xs: Names | None = None, *, batch: int | None = None, mode: Literal["auto", "forward", "reverse"] = "auto",
    diagonal: bool = False, **call: Unpack[Deriving],
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
    **call
        The keywords of :func:`derivative`.

    Returns
    -------
    Derivative
        ``outputs`` names the Hessian by each pair ``x``, ``second``.
    """
    own = [*option("--batch", batch), *option("--mode", mode), *option("--diagonal", diagonal)]
    return _derivative("hessian", model, ys, xs, own, call)


def per_sample(
    model: ModelLike, ys: Names | None = None, xs: Names | None = None, *, axis: int = 0, samples: Names | None = None,
    norms: bool = False, clip_norm: float | None = None, **call: Unpack[Deriving],
) -> Derivative:
    """Append the gradients of each sample of a batch alone, their norms, or their sums once each is clipped.

    Parameters
    ----------
    model, ys, xs
        As :func:`gradients` takes them.
    axis : int
        The axis of the inputs along which the samples lie.
    samples : str or iterable of str, optional
        The inputs that hold samples; without it those of the size of the first one along the axis.
    norms : bool
        Whether only the norm of all gradients of each sample is wanted, of shape [N].
    clip_norm : float, optional
        The sums over the samples of gradients scaled down to at most this norm, in the shapes of xs, and the norms.
    **call
        The keywords of :func:`derivative`.

    Returns
    -------
    Derivative
        ``outputs`` names the gradient by each x, of shape [N] + x.shape, or what is asked for in its place.

    Raises
    ------
    Error
        As :func:`gradients` does.
    """
    own = [
        *option("--per-sample", axis), *option("--samples", samples), *option("--norms", norms), *option("--clip-norm", clip_norm),
    ]
    return _derivative("grad", model, ys, xs, own, call)


def lower(model: ModelLike, *, output: PathLike | None = None, force: bool = False) -> Result:
    """Replace the nodes ``Gradient`` of ai.onnx.preview.training, which no runtime runs, by what computes their outputs.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model.
    output, force
        As :func:`gradients` takes them.

    Returns
    -------
    Result
        The model; ``report["lowered"]`` lists the nodes.

    Raises
    ------
    Error
        As :func:`gradients` does.
    """
    report, new = _command.transform("grad", model, ["--lower"], output, force)
    return Result(**_result(report, new))


def explain(
    model: ModelLike, method: str = "saliency", ys: Names | None = None, xs: Names | None = None, *,
    label: int | str | None = None, class_axis: int | None = None, channels: int | None = None, keep_softmax: bool = False,
    layer: str | None = None, steps: int | None = None, baseline: float | str | None = None, samples: int | None = None,
    noise: float | None = None, seed: int | None = None, noise_input: bool = False, **call: Unpack[Deriving],
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
    **call
        The keywords of :func:`derivative`.

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
    return _derivative(f"explain {method}", model, ys, xs, own, call)


def attack(
    model: ModelLike, method: str = "fgsm", ys: Names | None = None, xs: Names | None = None, *, epsilon: float,
    bounds: tuple[float, float] | None = None, class_axis: int | None = None, targeted: bool = False, loss: bool = False,
    steps: int | None = None, step_size: float | None = None, random_start: int | None = None, **call: Unpack[Deriving],
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
    **call
        The keywords of :func:`derivative`.

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
    return _derivative(f"attack {method}", model, ys, xs, own, call)


def check(
    model: ModelLike, *, call: str | None = None, ys: Names | None = None, xs: Names | None = None,
    gradients: Names | None = None, grad_ys: Iterable[float | str] | None = None, seed: int | None = None,
    directions: int | None = None, others: int | None = None, options: Iterable[object] = (), **running: Unpack[Running],
) -> dict[str, Any]:
    """Run a model with gradients, and compare them with finite differences.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model: one that a function of this package has written, or with `gradients` any.
    call : str, optional
        One call alone, by the `name` that it was given.
    ys, xs, gradients : str or iterable of str, optional
        Of a graph that another tool wrote: what is differentiated, with respect to what, and the tensors that hold the gradients,
        one for each of `xs`.
    grad_ys : iterable of float or str, optional
        What those gradients start with, one for each of `ys`: a number, or ``"tensor:NAME"``.
    seed : int, optional
        What random inputs and directions follow from.
    directions : int, optional
        Along how many random directions each gradient is compared.
    others : int, optional
        At how many further inputs gradients are compared, at most.
    options : iterable
        Further arguments of the command ``check``.
    dim, shape, range, input, time, memory
        As :func:`gradients` takes them for validation.

    Returns
    -------
    dict
        The report: each call with its status and gradients.

    Raises
    ------
    ValidationFailedError
        A gradient is wrong.
    NotValidatedError
        Nothing could be compared.
    """
    with Scratch() as scratch:
        shared = _command.keywords(running, set(Running.__annotations__) - {"validate"}, "check", scratch)
        own = {
            "call": call, "ys": ys, "xs": xs, "gradients": gradients, "grad-ys": grad_ys, "seed": seed, "directions": directions,
            "others": others,
        }
        arguments = [a for name, value in own.items() for a in option(f"--{name}", value)]
        return _command.run(["check", *shared, *arguments, *options, "--", scratch.model(model)])[0]


def inspect(
    model: ModelLike, *, html: PathLike | None = None, force: bool = False, dim: Mapping[str, int] | None = None,
    shape: Mapping[str, Iterable[int | str]] | None = None,
) -> dict[str, Any]:
    """What a model holds, and what stands in the way of its gradients.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model.
    html : path, optional
        A page to write, with a picture of where gradients flow and stop.
    force : bool
        Whether a page that exists is replaced.
    dim : mapping of str to int, optional
        Sizes of symbolic dimensions, for the memory of a step.
    shape : mapping of str to sequence of int or str, optional
        Shapes of tensors, as :func:`gradients` takes them.

    Returns
    -------
    dict
        ``inputs``, ``outputs``, ``parameters``, ``operators``, ``reach``, ``warnings``.

    Raises
    ------
    Error
        As :func:`gradients` does.
    """
    taken = _models.take(model)
    with Scratch() as scratch:
        shared = _command.keywords({"dim": dim, "shape": shape}, ["dim", "shape"], "inspect", scratch)
    arguments = ["inspect", *shared, *option("--html", html), *option("--force", force), "--", taken.argument]
    return _command.run(arguments, taken.data)[0]


def diff(before: ModelLike, after: ModelLike, *, all: bool = False) -> dict[str, Any]:
    """Whether a model is what another was, plus additions.

    Parameters
    ----------
    before, after : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model as it was, and as it is.
    all : bool
        Whether every addition is listed, not only how many there are.

    Returns
    -------
    dict
        ``lost``, ``changed``, ``added``.

    Raises
    ------
    DifferentError
        Something is lost or changed; its ``report`` lists it.
    """
    with Scratch() as scratch:
        return _command.run(["diff", *option("--all", all), "--", scratch.model(before), scratch.model(after)])[0]


def operators() -> list[dict[str, Any]]:
    """The table of operators: versions, inputs with a gradient, formulas.

    Returns
    -------
    list of dict
        A row an operator.
    """
    report: Any = _command.run(["ops"])[0]
    return list(report if isinstance(report, list) else report["operators"])
