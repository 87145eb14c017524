"""How the processes of a run share its batches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch

from dcprune.errors import OptionError
from dcprune.processes import ALONE, Processes


@dataclass(frozen=True)
class Sharing:
    """This process's part of every batch: neighbouring samples, in one or more portions.

    Attributes:
        processes: all of them.
        portions: into how many parts a process divides its own part, to save memory.
    """

    processes: Processes = ALONE
    portions: int = 1

    def check(self, batch_size: int) -> None:
        """Refuse a batch that leaves a portion without samples.

        Raises:
            OptionError: fewer samples than portions.
        """
        count = self.processes.count * self.portions
        if count > batch_size:
            raise OptionError(
                f"A batch of {batch_size} cannot be shared by {self.processes.count} processes in portions of "
                f"{self.portions}: it needs at least {count} samples. Raise --batch-size."
            )

    def portions_of(self, batch_size: int) -> list[slice]:
        """This process's portions of a batch; they differ in size by 1 at most."""
        count = self.processes.count * self.portions
        edges = [batch_size * number // count for number in range(count + 1)]
        first = self.processes.rank * self.portions
        return [slice(edges[number], edges[number + 1]) for number in range(first, first + self.portions)]

    def gathered(self, values: torch.Tensor, batch_size: int) -> torch.Tensor:
        """The whole batch's values [B, ...], of which `values` [b, ...] are this process's own, on every process."""
        count = self.processes.count
        if count == 1:
            return values
        import torch.distributed

        bounds = [batch_size * number // count for number in range(count + 1)]
        sizes = [stop - start for start, stop in pairwise(bounds)]
        padded = values.new_zeros((max(sizes), *values.shape[1:]))
        padded[: len(values)] = values
        everything = values.new_empty((count * max(sizes), *values.shape[1:]))
        torch.distributed.all_gather_into_tensor(everything, padded)
        return torch.cat([part[:size] for part, size in zip(everything.chunk(count), sizes, strict=True)])

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all processes, on every process."""
        if self.processes.count == 1:
            return values
        import torch.distributed

        total = values.clone()
        torch.distributed.all_reduce(total)
        return total


WHOLE: Final = Sharing()
