"""Models made trainable, and weights put back into them: the commands ``trainable`` and ``export``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import _command, _models, _safetensors
from ._command import Scratch, option
from ._options import Making

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Unpack

    from ._models import ModelLike, PathLike


def trainable(
    model: ModelLike,
    loss: str | Iterable[str] | None = None,
    optimizer: str = "adamw",
    *,
    output: PathLike,
    force: bool = False,
    options: Iterable[object] = (),
    **making: Unpack[Making],
) -> dict[str, Any]:
    """Make an inference model trainable: a folder with a training step, its halves and an evaluation as plain models.

    Parameters
    ----------
    model : path, bytes, onnx.ModelProto or onnx_ir.Model
        The model. One of more than 2 GB goes by path.
    loss : str or iterable of str
        Losses as the command line has them, ``"cross-entropy:logits,smoothing=0.1"``; they are summed. Left out where there is a
        `loss_model`.
    optimizer : str
        sgd, momentum, nesterov, rmsprop, adagrad, adam, adamw, lamb or lion.
    output : path
        The folder.
    force : bool
        Whether an existing folder is replaced.
    options : iterable
        Further arguments of the command ``trainable``.
    loss_model : path
        A model of one more loss: its inputs are tensors of the model by name, or new inputs; its first output is the loss.
    train, freeze : str or iterable of str
        Patterns of weights that are trained, or not.
    last_layers : int
        Train the last layers only.
    lora, lora_alpha : int, float
        Train LoRA matrices of that rank in place of the weights; their factor is lora_alpha / lora.
    accumulate : int
        How many micro-batches make a step.
    batch_norm : {'inference', 'train'}
        The mode of BatchNormalization.
    dropout : ``"train"``, or mapping of str to float
        The model's own Dropout nodes, or tensors with the share that is dropped.
    momentum, beta1, beta2, epsilon, weight_decay : float
        Numbers of the optimizer, PyTorch's without.
    no_decay : str or iterable of str
        Patterns of weights without decay.
    lr_group : mapping of str to float
        Factors on the learning rate, by pattern.
    clip_norm, clip_value : float
        The most that the norm of all gradients, or an element, may be.
    loss_scale : float
        The scale that the loss starts with.
    metric : str or iterable of str
        ``accuracy``, ``top-K``, ``mae``, ``mse``, ``gradient-norm``, of one output as ``METRIC:OUTPUT``.
    no_metrics : bool
        Whether there are none.
    memory_budget : float or str
        The most that a step may hold at a time: 0.5, ``"50%"``, ``"300MB"``.
    stop_gradients, gradient_functions, shape, dim, range, input, time, memory
        As :func:`gradients` takes them.
    rounding : {'straight-through', 'true'}
        What gradients make of rounding in quantization.
    preview_operators : bool
        Whether updates are operators of ai.onnx.preview.training.
    seed : int
        What random initial values follow from.
    validate : bool
        Whether the gradients are compared with finite differences before anything is written.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    UnknownNameError
        A tensor or pattern that names nothing.
    NoGradientError
        An operator between the weights and the loss has no gradient.
    UsageError
        A loss, optimizer or option that there is not, or no loss.
    FileError
        The folder exists, or cannot be written.
    ValidationFailedError
        Validation has found a gradient that is wrong.
    """
    taken = _models.take(model)
    with Scratch() as scratch:
        made = _command.keywords(making, Making.__annotations__, "trainable", scratch)
        arguments = [
            "trainable", *option("--loss", loss), *option("--optimizer", optimizer), *option("--force", force), *made, *options,
            f"--output={Path(output)}", "--", taken.argument,
        ]
        manifest: dict[str, Any] = _command.run(arguments, taken.data)[0]["manifest"]
    return manifest


def export(
    folder: PathLike, output: PathLike, state: PathLike | Mapping[str, npt.NDArray[Any]] | None = None, *,
    lora: Literal["merged", "apart"] = "merged", force: bool = False,
) -> Path:
    """Put trained weights back into the inference model.

    Parameters
    ----------
    folder : path
        What :func:`trainable` has written.
    output : path
        The model to write.
    state : path or mapping of str to array, optional
        The weights, and the statistics where they are trained; those of the folder's checkpoint without it.
    lora : {'merged', 'apart'}
        Whether LoRA matrices are added to their weights.
    force : bool
        Whether an existing file is replaced.

    Returns
    -------
    Path
        `output`.

    Raises
    ------
    FileError
        The file exists, or cannot be written.
    InvalidDataError
        A state that is not that of the folder.
    """
    with Scratch() as scratch:
        if isinstance(state, Mapping):
            path = scratch.path("state.safetensors")
            _safetensors.write(path, state)
            state = path
        arguments = ["export", *option("--state", state), *option("--lora", lora), *option("--force", force)]
        _command.run([*arguments, f"--output={Path(output)}", "--", folder])
    return Path(output)
