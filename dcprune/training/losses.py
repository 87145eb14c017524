"""The losses since the last line of `metrics.jsonl`, summed on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dcprune.training.sharing import Sharing


@dataclass(frozen=True)
class Losses:
    """Means over some updates.

    Attributes:
        mean: what was minimised.
        per_class: unweighted mean loss of every class, None for one without samples; empty with fewer than two classes.
        updates: how many updates.
    """

    mean: float
    per_class: tuple[float | None, ...]
    updates: int


class LossSums:
    """Sums that nothing waits for until they are read.

    Args:
        num_classes: K; 0 and 1 keep no losses of classes.
        device: where the losses are.
        sharing: how processes share the batches; each adds its own part.
    """

    def __init__(self, num_classes: int, device: torch.device, sharing: Sharing) -> None:
        self.sharing = sharing
        self.updates = 0
        self._classes = num_classes if num_classes > 1 else 0
        self._sums = torch.zeros(1 + 2 * self._classes, device=device)

    def add(self, weighted: torch.Tensor, losses: torch.Tensor, labels: torch.Tensor) -> None:
        """One part of a batch: its share of the loss, and its losses float32 [b] with their labels int64 [b]."""
        self._sums[0] += weighted
        if self._classes:
            by_class = torch.stack([losses, torch.ones_like(losses)])
            member = (labels[:, None] == torch.arange(self._classes, device=labels.device)).to(losses.dtype)
            self._sums[1:] += (by_class @ member).flatten()

    def read(self, *, reset: bool = False) -> Losses:
        """Means over all processes; waits for the device, and for the other processes."""
        sums = self.sharing.summed(self._sums).tolist()
        losses, counts = sums[1 : 1 + self._classes], sums[1 + self._classes :]
        found = Losses(
            mean=sums[0] / max(1, self.updates),
            per_class=tuple(
                loss / count if count and math.isfinite(loss) else None
                for loss, count in zip(losses, counts, strict=True)
            ),
            updates=self.updates,
        )
        if reset:
            self._sums.zero_()
            self.updates = 0
        return found

    def state(self) -> dict[str, torch.Tensor]:
        """The sums over all processes."""
        return {"sums": self.sharing.summed(self._sums), "updates": torch.tensor(self.updates)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`; the first process takes it all."""
        self.updates = int(state["updates"])
        self._sums.zero_()
        if self.sharing.processes.is_main:
            self._sums.copy_(state["sums"])
