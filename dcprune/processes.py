"""The processes that share one job, started by `torchrun` or `accelerate launch`; without them there is one."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

# One process may train a surrogate or download weights for hours while the others wait.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank: 0 to `count - 1`; rank 0 is the one that writes results and speaks to the user.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """What every process passed, in the order of ranks, on every process."""
        if self.count == 1:
            return [value]
        import torch.distributed

        gathered: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0, then on the others, which find what rank 0 has cached."""
        if self.count == 1:
            return work()
        result = work() if self.is_main else None
        self.barrier()
        if not self.is_main:
            result = work()
        return result  # type: ignore[return-value]


ALONE: Final = Processes()


def processes() -> Processes:
    """The processes that `torchrun` or `accelerate launch` started; they are connected on the first call.

    Objects travel over gloo on the CPU; tensors on a GPU would travel over NCCL.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    import torch

    # When it is imported, its functions take the group that exists then as their default, and would hold it forever.
    import torch.distributed.nn

    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=_PATIENCE)
        atexit.register(_part)
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def _part() -> None:
    """Leave the group and end its threads, which abort the process when they outlive the interpreter.

    They end when nothing holds the group any more: not the models that `DistributedDataParallel` tied into cycles.
    """
    import torch

    torch.distributed.destroy_process_group()
    gc.collect()


def is_main() -> bool:
    """Whether this process speaks to the user; connects nothing."""
    return os.environ.get("RANK", "0") == "0"
