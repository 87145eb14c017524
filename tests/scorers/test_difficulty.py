from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcprune import api, formats
from dcprune.artifacts import Embeddings, Rows
from dcprune.backends.ddpm import Ddpm
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.errors import MissingInput, OptionError
from dcprune.interfaces import Batch, DatasetRequest, DatasetSource, ScoringContext, TrainedRun
from dcprune.scorers import difficulty
from dcprune.scorers.difficulty import Difficulty
from dcprune.sources import identify
from dcprune.subset import Subset
from dcprune.testing import ShapesDataset, check_scorer, gaussian_embeddings, preparation_context, scoring_context

NETWORK: dict[str, Any] = {
    "resolution": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_levels": (1,),
    "norm_num_groups": 4,
    "dropout": 0.2,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small only get slower with more."""


@pytest.fixture(scope="module")
def fashion() -> DatasetSource:
    """Every hundredth image of fashion-mini."""
    return Subset(FashionMini(DatasetRequest("fashion-mini")), np.arange(0, 4000, 100))


def embeddings_of(source: DatasetSource, rows: NDArray[np.int64]) -> Embeddings:
    """Samples whose vectors mean nothing."""
    made = gaussian_embeddings(len(rows), 10, labels=np.asarray(source.labels)[rows])
    return replace(made, indices=rows, dataset=identify(source))


@pytest.fixture(scope="module")
def embeddings(fashion: DatasetSource) -> Embeddings:
    return embeddings_of(fashion, np.random.default_rng(0).permutation(40)[:30])


def run_of(backend: Ddpm, model: torch.nn.Module) -> TrainedRun:
    return TrainedRun(backend, model, lambda source: backend.prepare(source, preparation_context()))


@pytest.fixture(scope="module")
def trained() -> TrainedRun:
    """A network whose output layer is not zero, as it is before training."""
    backend = Ddpm(**NETWORK)
    model = backend.build(num_classes=10, sample_shape=(1, 8, 8), seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return run_of(backend, model.eval())


@pytest.fixture
def context(fashion: DatasetSource, trained: TrainedRun) -> ScoringContext:
    return scoring_context(open_dataset=lambda: fashion, open_run=lambda _: trained)


def losses_by_the_book(
    embeddings: Embeddings, fashion: DatasetSource, trained: TrainedRun, timesteps: int
) -> NDArray[np.float64]:
    """Sample by sample and timestep by timestep: the mean squared error of the predicted noise."""
    data = trained.prepare(fashion)
    alphas: torch.Tensor = trained.backend.noise_scheduler.alphas_cumprod  # type: ignore[attr-defined]
    means = []
    for index in embeddings.indices.tolist():
        random = np.random.default_rng([0, index])
        random.integers(2**63)
        noises = random.standard_normal((timesteps, *data.sample_shape), dtype=np.float32)
        losses = []
        for step, noise in enumerate(torch.from_numpy(noises)):
            t = int((step + 0.5) * 1000 / timesteps)
            x0 = data.images(torch.tensor([index]))[0].float() / 127.5 - 1
            x_t = alphas[t].sqrt() * x0 + (1 - alphas[t]).sqrt() * noise
            label = torch.tensor([int(np.asarray(fashion.labels)[index])])
            predicted = trained.model(x_t[None], torch.tensor([t]), label, return_dict=False)[0][0]
            losses.append((predicted - noise).square().mean().item())
        means.append(np.mean(losses))
    return np.array(means)


def test_scores_are_the_mean_losses_of_a_plain_loop(
    embeddings: Embeddings, context: ScoringContext, fashion: DatasetSource, trained: TrainedRun
) -> None:
    scores = Difficulty("run", timesteps=7).score(embeddings, context)
    with torch.inference_mode():
        expected = losses_by_the_book(embeddings, fashion, trained, 7)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_a_sample_is_scored_alone(embeddings: Embeddings, context: ScoringContext) -> None:
    scorer = Difficulty("run", timesteps=5)
    scores = scorer.score(embeddings, context)
    order = np.random.default_rng(1).permutation(30)[:11]
    assert embeddings.labels is not None
    some = replace(
        embeddings,
        embeddings=Rows([embeddings.embeddings[order]]),
        labels=embeddings.labels[order],
        indices=embeddings.indices[order],
    )
    np.testing.assert_array_equal(scorer.score(some, context), scores[order])


def test_many_timesteps_are_cut_into_batches(
    monkeypatch: pytest.MonkeyPatch, embeddings: Embeddings, context: ScoringContext
) -> None:
    whole = Difficulty("run", timesteps=9).score(embeddings, context)
    monkeypatch.setattr(difficulty, "_BATCH", 4)
    np.testing.assert_allclose(Difficulty("run", timesteps=9).score(embeddings, context), whole, rtol=1e-5)


class Drawing(Ddpm):
    """A loss that draws, as a masked backend's does, and that takes no time."""

    def per_sample_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        return (batch.x0 - noise).square().flatten(1).mean(1) + torch.rand(len(timesteps), generator=generator)


def test_a_backend_may_draw_inside_its_loss(
    embeddings: Embeddings, fashion: DatasetSource, trained: TrainedRun
) -> None:
    run = run_of(Drawing(**NETWORK), trained.model)
    context = scoring_context(open_dataset=lambda: fashion, open_run=lambda _: run)
    scorer = Difficulty("run", timesteps=3)
    scores = scorer.score(embeddings, context)
    assert len(np.unique(scores)) == len(scores)
    order = np.arange(30)[::-1]
    assert embeddings.labels is not None
    turned = replace(embeddings, labels=embeddings.labels[order], indices=embeddings.indices[order])
    np.testing.assert_array_equal(scorer.score(turned, context), scores[order])


def test_contract(trained: TrainedRun) -> None:
    run = run_of(Drawing(**NETWORK), trained.model)

    def context(embeddings: Embeddings, seed: int, ratio: float) -> ScoringContext:
        shapes = ShapesDataset(embeddings.dataset.num_samples, 3, channels=1)
        return scoring_context(seed, ratio, open_dataset=lambda: shapes, open_run=lambda _: run)

    check_scorer(Difficulty, settings={"run": "run", "timesteps": 2}, context=context)


def test_the_loss_of_a_run_that_was_trained(tmp_path: Path) -> None:
    fashion = FashionMini(DatasetRequest("fashion-mini"))
    embeddings = embeddings_of(fashion, np.arange(7, 4000, 400))
    run = tmp_path / "run"
    api.train(
        "fashion-mini",
        output=run,
        preset="tiny",
        settings={**NETWORK, "prediction_type": "epsilon", "beta_schedule": "linear", "log_every": 2},
        steps=4,
        batch_size=8,
        checkpoint_every=4,
        sample_every=0,
        device="cpu",
    )
    scores = api.score(embeddings, "difficulty", settings={"run": str(run), "timesteps": "4"}, device="cpu")
    model = Ddpm(**NETWORK).load(run / "model")
    with torch.inference_mode():
        expected = losses_by_the_book(embeddings, fashion, run_of(Ddpm(**NETWORK), model), 4)
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-4)
    formats.write_scores(scores, tmp_path / "scores.safetensors")
    assert formats.read_scores(tmp_path / "scores.safetensors").scorer.params == {"run": str(run), "timesteps": 4}


def test_needs_a_run() -> None:
    with pytest.raises(OptionError, match=r"--set run=runs/full"):
        Difficulty()
    with pytest.raises(MissingInput):
        Difficulty("nowhere").score(gaussian_embeddings(), scoring_context())


def test_refuses_more_timesteps_than_there_are(embeddings: Embeddings, context: ScoringContext) -> None:
    with pytest.raises(OptionError, match="was trained with 1000"):
        Difficulty("run", timesteps=1001).score(embeddings, context)


def test_refuses_a_run_of_other_images(embeddings: Embeddings, trained: TrainedRun) -> None:
    colours = ShapesDataset(4000, 3, channels=3)
    context = scoring_context(open_dataset=lambda: colours, open_run=lambda _: trained)
    with pytest.raises(OptionError, match="cannot score the images of shapes"):
        Difficulty("run").score(embeddings, context)
