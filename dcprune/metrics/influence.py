"""What each generated image does to a metric; see `dcprune.interfaces.HasInfluence`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def centred(effects: NDArray[Any]) -> NDArray[np.float64]:
    """Effects of single images [N] less their mean, as float64: what resampling the images can change."""
    values = np.asarray(effects, dtype=np.float64)
    found: NDArray[np.float64] = values - values.mean()
    return found
