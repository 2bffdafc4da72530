"""tf.gradients for ONNX: derivatives of ONNX models as ONNX models, and training on them.

>>> import onnx_gradients as og
>>> result = og.gradients("mlp.onnx", ys="loss", params=True)           # doctest: +SKIP
>>> session = result.session()                                          # doctest: +SKIP
>>> session.run(list(result.gradients.values()), {"x": x})              # doctest: +SKIP
"""

from . import adapters, data, errors, health, schedules
from ._derivatives import (
    Derivative,
    Gradients,
    Result,
    Validation,
    attack,
    check,
    derivative,
    diff,
    explain,
    gradients,
    hessian,
    hvp,
    inspect,
    jacobian,
    jvp,
    lower,
    operators,
    per_sample,
    vjp,
)
from ._loop import History
from ._making import export, trainable
from ._native import __version__
from ._step import Step
from .errors import Error
from .trainer import Trainer

__all__ = [
    "Derivative",
    "Error",
    "Gradients",
    "History",
    "Result",
    "Step",
    "Trainer",
    "Validation",
    "__version__",
    "adapters",
    "attack",
    "check",
    "data",
    "derivative",
    "diff",
    "errors",
    "explain",
    "export",
    "gradients",
    "health",
    "hessian",
    "hvp",
    "inspect",
    "jacobian",
    "jvp",
    "lower",
    "operators",
    "per_sample",
    "schedules",
    "trainable",
    "vjp",
]
