"""Models of the project, which the tests run on."""

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def models() -> Path:
    return ROOT / "models"


@pytest.fixture
def digits() -> dict[str, np.ndarray]:
    return dict(np.load(ROOT / "data" / "digits.npz"))
