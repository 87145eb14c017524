"""Notices a training that goes wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

EXPLODED: Final = 10.0
_WINDOW_SAMPLES: Final = 1024


@dataclass
class LossGuard:
    """Watches mean losses over windows of at least 1,024 samples.

    A network that has learned nothing has about the loss of the first window. Ten times as much is no noise.

    Attributes:
        first: mean loss of the first window; 0 before its end.
        total: sum of the losses of the current window, times their samples.
        samples: samples of the current window.
    """

    first: float = 0.0
    total: float = 0.0
    samples: int = 0

    def suspects(self, mean_loss: float, samples: int) -> bool:
        """Whether the current window, with a stretch that was not looked at yet, says that training explodes.

        A loss that is not finite is no suspicion, it is certain; see `complaint`.

        Args:
            mean_loss: mean loss of the stretch.
            samples: samples in it.
        """
        if not (self.first and samples and math.isfinite(mean_loss)):
            return False
        window = (self.total + mean_loss * samples) / (self.samples + samples)
        return max(window, mean_loss) > EXPLODED * self.first

    def complaint(self, mean_loss: float, samples: int) -> str:
        """What is wrong with a stretch of training, in words; empty when nothing is.

        Args:
            mean_loss: mean loss of the stretch.
            samples: samples in it.
        """
        if not math.isfinite(mean_loss):
            return "the loss is not finite any more"
        self.total += mean_loss * samples
        self.samples += samples
        if self.samples < _WINDOW_SAMPLES:
            return ""
        mean = self.total / self.samples
        self.total, self.samples = 0.0, 0
        if not self.first:
            self.first = mean
        elif mean > EXPLODED * self.first:
            return f"the loss explodes: it is {mean:.3g}, and was {self.first:.3g} at the start"
        return ""
