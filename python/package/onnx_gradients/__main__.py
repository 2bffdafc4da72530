"""The command ``onnx-gradients``, and ``python -m onnx_gradients``."""

from __future__ import annotations

import sys

from . import _native


def main() -> int:
    """Run the command line on the arguments of this process.

    Returns
    -------
    int
        The exit code: 0 for success, 1 where the work failed, 2 for wrong usage.
    """
    return _native.main(["onnx-gradients", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
