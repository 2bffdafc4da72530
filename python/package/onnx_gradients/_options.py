"""The options that functions share, by the words of the command line: a keyword is an option's name with underscores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Union

from ._models import PathLike

if TYPE_CHECKING:
    import numpy.typing as npt

Names: TypeAlias = Union[str, Iterable[str]]
SeedLike: TypeAlias = Union[None, int, float, str, "npt.NDArray[Any]"]
Budget: TypeAlias = Union[float, str]


class Running(TypedDict, total=False):
    """Whether and how what was made is run, and compared with finite differences.

    Attributes
    ----------
    validate : bool
        Whether it is.
    dim : mapping of str to int
        Sizes of symbolic dimensions.
    shape : mapping of str to sequence of int or str
        Shapes of tensors, of numbers and names, in the place of what inputs are declared as.
    range : mapping of str to (float, float)
        What random values of an input lie between.
    input : mapping of str to array or path
        Values of inputs; random without.
    time : float
        The seconds that it may take.
    memory : str
        The memory that it may take: ``"500MB"``.
    """

    validate: bool
    dim: Mapping[str, int] | None
    shape: Mapping[str, Iterable[int | str]] | None
    range: Mapping[str, tuple[float, float]] | None
    input: Mapping[str, npt.ArrayLike | PathLike] | None
    time: float | None
    memory: str | None


class Call(Running, total=False):
    """What is differentiated, and how.

    Attributes
    ----------
    params, inputs : bool
        Whether all weights, all floating-point inputs are xs.
    name : str
        The scope of all new names.
    unconnected_gradients : {'none', 'zero'}
        What stands for the gradient of an x that no y depends on.
    aggregation_method : {'add-n', 'tree', 'accumulate-n'}
        How gradients that meet are summed.
    straight_through : bool
        Whether rounding counts as the identity.
    colocate_gradients_with_ops : bool
        Whether backward nodes take over the devices of their forward nodes.
    gate_gradients : bool
        Whether a forward node's backward nodes stand together.
    gradient_functions : path or iterable of path
        Files with gradients of your own operators.
    only_gradients : bool
        Whether the model's own outputs go.
    """

    params: bool
    inputs: bool
    name: str | None
    unconnected_gradients: Literal["none", "zero"]
    aggregation_method: Literal["add-n", "tree", "accumulate-n"]
    straight_through: bool
    colocate_gradients_with_ops: bool
    gate_gradients: bool
    gradient_functions: PathLike | Iterable[PathLike] | None
    only_gradients: bool


class Writing(Call, total=False):
    """What is differentiated, how, and where the model with the derivatives goes.

    Attributes
    ----------
    output : path
        A file to write in place of returning the model.
    force : bool
        Whether a file that exists is replaced.
    options : iterable
        Further arguments of the command, as the command line takes them.
    """

    output: PathLike | None
    force: bool
    options: Iterable[object]


class Deriving(Writing, total=False):
    """The same where stops are no argument of their own.

    Attributes
    ----------
    stop_gradients : str or iterable of str
        Tensors that count as constants.
    """

    stop_gradients: Names | None


class Making(Running, total=False):
    """How a model is made trainable: :func:`trainable` says what each key is."""

    loss_model: PathLike | None
    train: Names | None
    freeze: Names | None
    last_layers: int | None
    lora: int | None
    lora_alpha: float | None
    accumulate: int
    batch_norm: Literal["inference", "train"]
    dropout: Names | Mapping[str, float] | None
    momentum: float | None
    beta1: float | None
    beta2: float | None
    epsilon: float | None
    weight_decay: float | None
    no_decay: Names | None
    lr_group: Mapping[str, float] | None
    clip_norm: float | None
    clip_value: float | None
    loss_scale: float | None
    metric: Names | None
    no_metrics: bool
    memory_budget: Budget | None
    stop_gradients: Names | None
    gradient_functions: PathLike | Iterable[PathLike] | None
    rounding: Literal["straight-through", "true"]
    preview_operators: bool
    seed: int
