"""Forces out of an energy model: minus the gradient of the energy with respect to the positions, beside the energy.

    python force_field.py
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_gradients as og

MODEL = """<ir_version: 10, opset_import: ["" : 18]>
springs (double[atoms, 3] positions) => (double energy) {
    centre = ReduceMean <keepdims = 1> (positions, axis)
    apart = Sub(positions, centre)
    squared = Mul(apart, apart)
    energy = ReduceSum <keepdims = 0> (squared)
}"""


def main() -> None:
    """Print energy and forces of four atoms."""
    model = onnx.parser.parse_model(MODEL)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))
    result = og.gradients(model, "energy", "positions", grad_ys=[-1])
    forces = result.gradients["positions"]
    positions = np.random.default_rng(0).standard_normal((4, 3))
    energy, force = result.session().run(["energy", forces], {"positions": positions})
    print(f"energy {energy:.4f}\n{force}")
    np.testing.assert_allclose(force.sum(axis=0), 0, atol=1e-12)


if __name__ == "__main__":
    main()
