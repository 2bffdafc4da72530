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
    Validation,
    attack,
    check,
    derivative,
    explain,
    gradients,
    hessian,
    hvp,
    inspect,
    jacobian,
    jvp,
    operators,
    vjp,
)
from ._native import __version__
from .errors import Error
from .trainer import History, Step, Trainer, export, trainable

__all__ = [
    "Derivative",
    "Error",
    "Gradients",
    "History",
    "Step",
    "Trainer",
    "Validation",
    "__version__",
    "adapters",
    "attack",
    "check",
    "data",
    "derivative",
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
    "operators",
    "schedules",
    "trainable",
    "vjp",
]
