"""Loss of a trained diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from dcprune.artifacts import Embeddings
from dcprune.errors import OptionError
from dcprune.interfaces import Batch, ScoringContext, TrainedRun, TrainingData, condition_of

_BATCH = 64


class Difficulty:
    """Diffusion difficulty, the Select phase of D2C (Huang et al. 2025, arXiv 2507.05914).

    score(x, c) = mean over timesteps and noise of the loss of a trained model at x under its own class c (for epsilon
    prediction ||eps(x_t, t, c) - eps||^2, a mean over pixels); low is easy. D2C sorts each class by it and keeps every
    k-th sample, from the easiest on, which is the policy `interval`.

    The paper draws timesteps uniformly. Most of the loss is a matter of the timestep, so all samples are given the same
    ones here, spread evenly: (i + 1/2) T / n, i = 0, ..., n - 1. The noise of a sample depends on the seed and on its
    dataset index alone, and a batch holds the timesteps of one sample: the score depends on no other sample, even where
    a backend draws inside its loss. The loss is the one that the run was trained with: where that predicts the sample
    or v, or weighs timesteps, the score is not the paper's epsilon loss and ranks by what the run was taught.

    Costs `timesteps` network evaluations a sample, and the dataset in the memory that training needs; embeddings are
    not looked at.

    Args:
        run: folder of a finished run on this dataset, such as the reference of `dcprune reweight`.
        timesteps: n.
    """

    keep: ClassVar[str] = "interval"
    per_class: ClassVar[bool] = True

    def __init__(self, run: str | None = None, timesteps: Annotated[int, Field(ge=1)] = 20) -> None:
        if run is None:
            raise OptionError("The scorer 'difficulty' measures the loss of a trained run: --set run=runs/full.")
        self.run = run
        self.timesteps = timesteps

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores float64 [N]: mean losses; see `dcprune.interfaces.Scorer`.

        Raises:
            MissingInput: no such run.
            OptionError: more timesteps than the run was trained with, or a run that does not fit the dataset.
            DatasetError: the images cannot be read.
        """
        trained = context.open_run(Path(self.run))
        total = trained.backend.num_train_timesteps
        if self.timesteps > total:
            raise OptionError(f"timesteps={self.timesteps}, but the run {self.run} was trained with {total}.")
        source = context.open_dataset()
        data = trained.prepare(source)
        scores = np.empty(len(embeddings.indices))
        with context.progress.task("score difficulty", len(scores), "samples") as task, torch.inference_mode():
            for row, index in enumerate(embeddings.indices.tolist()):
                try:
                    scores[row] = self._loss(trained, data, index, context)
                except (RuntimeError, ValueError, IndexError) as error:
                    raise OptionError(f"The run {self.run} cannot score the images of {source.uri}: {error}") from error
                task.advance()
        return scores

    def _loss(self, trained: TrainedRun, data: TrainingData, index: int, context: ScoringContext) -> float:
        """Mean loss of one sample over the timesteps."""
        total, device = trained.backend.num_train_timesteps, context.device
        random = np.random.default_rng([context.seed, index])
        inside = torch.Generator(device).manual_seed(int(random.integers(2**63)))
        sum_of_losses = 0.0
        for start in range(0, self.timesteps, _BATCH):
            steps = np.arange(start, min(start + _BATCH, self.timesteps))
            rows = torch.full((len(steps),), index, device=device)
            dropped = torch.zeros(len(steps), dtype=torch.bool, device=device)
            batch = Batch(
                data.x0(rows, dropped, inside), data.labels[rows], dropped, condition=condition_of(data, rows)
            )
            noise = random.standard_normal((len(steps), *data.sample_shape), dtype=np.float32)
            timesteps = torch.from_numpy((2 * steps + 1) * total // (2 * self.timesteps)).to(device)
            losses = trained.backend.per_sample_loss(
                trained.model, batch, timesteps, torch.from_numpy(noise).to(device), inside
            )
            sum_of_losses += float(losses.double().sum())
        return sum_of_losses / self.timesteps
