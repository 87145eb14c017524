"""InfoBatch: every epoch leaves out half of the samples that the model already does well on.

Qin et al. 2024, "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning" (arXiv 2303.04947). A sample
whose score lies below the mean of all scores is left out with probability s; one that stays although it lies below
counts 1 / (1 - s), so that the expected gradient is that of all samples. Scores start at 3 and follow the loss.

A diffusion loss says more about the timestep than about the sample. So the score is the loss divided by the usual loss
around that timestep: an exponential moving average within each of `BINS` equal ranges of timesteps, in which a sample
counts by its weight. The scores of samples that have been seen are therefore around 1.
"""

from __future__ import annotations

from typing import Final

import torch

from dcprune.training.draws import Purpose, generator

FULL_DATA_FROM: Final = 0.875  # of the run's length
DROP_PROBABILITY: Final = 0.5
FIRST_SCORE: Final = 3.0
BINS: Final = 20
DECAY: Final = 0.99


class InfoBatchStream:
    """Epochs over the samples that were not left out, one after the other; a batch may hold the seam of two.

    Args:
        rows: int64 [n] on the CPU, rows of the training data.
        batch_size: B.
        num_train_timesteps: T.
        seed: the run's seed.
        device: where rows, weights and scores go.
        counter: what tells the streams of a run apart.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        *,
        batch_size: int,
        num_train_timesteps: int,
        seed: int,
        device: torch.device,
        counter: int = 0,
    ) -> None:
        self.rows = rows.to(device)
        self.batch_size = batch_size
        self.num_train_timesteps = num_train_timesteps
        self.seed = seed
        self.device = device
        self.counter = counter
        self._scores = torch.full((len(rows),), FIRST_SCORE, device=device)
        self._usual = torch.zeros(2, BINS, device=device)  # decayed sum of mean losses, and of ones
        self._order = torch.empty(0, dtype=torch.int64, device=device)  # positions in `rows`
        self._weights = torch.empty(0, device=device)
        self._epoch, self._offset = -1, 0
        self._current, self._counted = self._order, self._weights  # what `next` gave last

    @property
    def epochs(self) -> float:
        """Epochs done, the current one by the share of its own samples."""
        return max(0, self._epoch) + (self._offset / len(self._order) if len(self._order) else 0.0)

    @property
    def scores(self) -> torch.Tensor:
        """float32 [n], in the order of the stream's rows."""
        return self._scores.clone()

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows int64 [B] of the next step and the weights float32 [B] of their losses."""
        taken: list[torch.Tensor] = []
        weights: list[torch.Tensor] = []
        missing = self.batch_size
        while missing:
            if self._offset == len(self._order):
                self._begin_epoch()
            stop = min(len(self._order), self._offset + missing)
            taken.append(self._order[self._offset : stop])
            weights.append(self._weights[self._offset : stop])
            missing -= stop - self._offset
            self._offset = stop
        self._current, self._counted = torch.cat(taken), torch.cat(weights)
        return self.rows[self._current], self._counted

    def _begin_epoch(self) -> None:
        """Decide on the CPU who stays, which is the same on every kind of device."""
        self._epoch, self._offset = self._epoch + 1, 0
        random = generator(torch.device("cpu"), self.seed, Purpose.PRUNING, self.counter, self._epoch)
        scores = self._scores.double().cpu()
        low = scores < scores.mean()
        kept = torch.nonzero(~(low & (torch.rand(len(low), generator=random) < DROP_PROBABILITY))).flatten()
        order = kept[torch.randperm(len(kept), generator=random)]
        weights = torch.where(low[order], 1 / (1 - DROP_PROBABILITY), 1.0)
        self._order, self._weights = order.to(self.device), weights.float().to(self.device)

    def observe(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Score the samples of the last `next`; nothing waits for the device.

        Args:
            timesteps: int64 [B].
            losses: float32 [B], unweighted.
        """
        bins = timesteps * BINS // self.num_train_timesteps
        member = (bins[:, None] == torch.arange(BINS, device=self.device)).to(losses.dtype)
        counts = self._counted @ member
        means = torch.stack([(self._counted * losses) @ member / counts.clamp(min=1), torch.ones_like(counts)])
        self._usual = torch.where(counts > 0, DECAY * self._usual + (1 - DECAY) * means, self._usual)
        usual = (self._usual[0] / self._usual[1].clamp(min=torch.finfo(losses.dtype).tiny))[bins]
        relative = losses / usual.clamp(min=torch.finfo(losses.dtype).tiny)
        # A batch may hold a sample twice; the larger loss counts, whatever the order of the writes.
        self._scores.scatter_reduce_(0, self._current, relative, "amax", include_self=False)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that `load_state` needs to go on from here."""
        return {
            "scores": self._scores,
            "usual": self._usual,
            "order": self._order,
            "weights": self._weights,
            "position": torch.tensor([self._epoch, self._offset]),
        }

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        self._scores = state["scores"].to(self.device)
        self._usual = state["usual"].to(self.device)
        self._order = state["order"].to(self.device)
        self._weights = state["weights"].to(self.device)
        self._epoch, self._offset = state["position"].tolist()
