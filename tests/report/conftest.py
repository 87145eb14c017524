"""A realistic chain on disk, of real Fashion-MNIST images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dcprune import formats, sources
from dcprune.api import reports
from dcprune.artifacts import (
    ClassWeights,
    Coreset,
    DatasetIdentity,
    Diagnostics,
    Embeddings,
    Environment,
    Metrics,
    MetricValue,
    Objective,
    Provenance,
    Rows,
    RunRecord,
    ScorerInfo,
    Scores,
    Selection,
    StageCost,
)
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.embedding import encode_images, load_encoder
from dcprune.interfaces import DatasetRequest, DatasetSource, EncoderChoice, EncoderContext
from dcprune.progress import SILENT
from dcprune.training.run_folder import GRID_COLUMNS

ENVIRONMENT = Environment(python="3.12.3", torch="2.11.0", device="cpu", dtype="fp32")
PROTOCOL = {"encoder": "resnet18", "weights_sha256": "5" * 64, "resize": "bilinear, antialiased", "split": "train"}


def provenance(command: str, inputs: tuple[Path, ...] = (), **config: object) -> Provenance:
    return Provenance(
        dcprune_version="0.1.0",
        command=command,
        config=dict(config),
        seed=0,
        inputs=tuple(formats.input_file(path) for path in inputs),
        environment=ENVIRONMENT,
    )


def report(runs: Sequence[Path], **options: Any) -> Path:
    """The page of some runs, its map by principal components, because UMAP compiles for a minute."""
    return reports.report(runs, **{"projection": "pca", **options})


@dataclass(frozen=True)
class Chain:
    """Where the files of a chain lie: a coreset run, a random baseline and a full-data reference."""

    folder: Path

    @property
    def core(self) -> Path:
        return self.folder / "runs" / "core"

    @property
    def random(self) -> Path:
        return self.folder / "runs" / "random"

    @property
    def full(self) -> Path:
        return self.folder / "runs" / "full"

    @property
    def runs(self) -> list[Path]:
        return [self.core, self.random, self.full]


def make_embeddings(source: DatasetSource, dataset: DatasetIdentity, path: Path) -> Embeddings:
    """Pixels, reduced to 14 x 14, as embeddings."""
    context = EncoderContext(source, dataset.fingerprint, torch.device("cpu"), torch.float32, 0, path.parent, SILENT)
    encoder, loaded = load_encoder(EncoderChoice("pixels", {"image_size": 14}, None), context)
    info = loaded.model_copy(update={"details": {"held_out_accuracy": 0.874}})
    vectors = encode_images(
        encoder, source.image, np.arange(len(source)), device=context.device, dtype=context.dtype, num_workers=0
    )
    embeddings = Embeddings(
        embeddings=Rows([vectors]),
        labels=source.labels,
        indices=np.arange(len(source)),
        ids=None,
        encoder=info,
        dataset=dataset,
        provenance=provenance("embed", encoder="pixels", set=info.settings, dataset=dataset.uri, output=path.name),
    )
    formats.write_embeddings(embeddings, path)
    return formats.read_embeddings(path)


def moderate_scores(embeddings: Embeddings) -> NDArray[np.float64]:
    """Distance to the class median, written out here so that the fixture stands on its own."""
    values = embeddings.embeddings[:].astype(np.float64)
    scores = np.empty(len(values))
    for _, rows in embeddings.classes():
        scores[rows] = np.linalg.norm(values[rows] - np.median(values[rows], axis=0), axis=1)
    return scores


def make_scores(embeddings: Embeddings, path: Path) -> Scores:
    scores = Scores(
        scores=moderate_scores(embeddings),
        labels=embeddings.labels,
        indices=embeddings.indices,
        ids=None,
        scorer=ScorerInfo(name="moderate", params={"centre": "median"}),
        keep="median-window",
        dataset=embeddings.dataset,
        provenance=provenance("score", (Path(str(embeddings.origin)),), scorer="moderate", output=path.name),
    )
    formats.write_scores(scores, path)
    return formats.read_scores(path)


def make_coreset(
    values: NDArray[np.float64],
    labels: NDArray[np.int64],
    dataset: DatasetIdentity,
    scorer: str,
    made_from: Path,
    path: Path,
    ratio: float = 0.2,
) -> None:
    """The middle part of the sorted values of every class."""
    kept = []
    for label in range(max(1, dataset.num_classes)):
        rows = np.flatnonzero(labels == label)
        order = rows[np.argsort(values[rows], kind="stable")]
        budget = max(1, round(ratio * len(rows)))
        start = (len(rows) - budget) // 2
        kept += order[start : start + budget].tolist()
    counts = np.bincount(labels[kept], minlength=dataset.num_classes).tolist()[: dataset.num_classes]
    coreset = Coreset(
        dataset=dataset,
        selection=Selection(
            scorer=scorer,
            params={"centre": "median"} if scorer == "moderate" else {},
            keep="median-window",
            scope="class" if dataset.num_classes else "global",
            ratio=ratio,
            budget=len(kept),
            seed=0,
        ),
        num_selected=len(kept),
        class_counts=dict(zip(dataset.class_names, counts, strict=True)),
        indices=tuple(sorted(kept)),
        provenance=provenance("select", (made_from,), scorer=scorer, ratio=ratio, output=path.name),
    )
    formats.write_coreset(coreset, path)


def make_weights(dataset: DatasetIdentity, coreset: Path, path: Path) -> None:
    """Weights that drift from uniform towards the hard classes."""
    classes = dataset.num_classes
    generator = np.random.default_rng(1)
    target = np.exp(0.12 * generator.standard_normal(classes))
    ramp = np.linspace(0, 1, 61)[:, None] ** 0.5
    noise = np.cumsum(0.004 * generator.standard_normal((61, classes)), axis=0)
    curves = np.exp(ramp * np.log(target) + noise)
    curves /= curves.sum(axis=1, keepdims=True)
    curves[0] = 1 / classes
    mean = curves.mean(axis=0) * classes
    weights = ClassWeights(
        dataset=dataset,
        weights=dict(zip(dataset.class_names, (mean / mean.mean()).tolist(), strict=True)),
        objective=Objective(eta=1.0, smoothing=1e-3, clip=True, steps=600, backend="ddpm", reference_sha256="7" * 64),
        diagnostics=Diagnostics(
            trajectory=tuple((10 * step, tuple(row)) for step, row in enumerate(curves.tolist())),
            entropy=0.9931,
            fraction_clipped=0.41,
            final_excess=tuple(np.abs(generator.normal(0.004, 0.001, classes)).tolist()),
        ),
        provenance=provenance(
            "reweight", (coreset,), reference="runs/full", epochs=60, batch_size=64, output=path.name
        ),
    )
    formats.write_class_weights(weights, path)


def make_run(
    folder: Path,
    source: DatasetSource,
    dataset: DatasetIdentity,
    *,
    steps: int,
    value: float,
    coreset: Path | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> None:
    folder.mkdir(parents=True)
    made_from = tuple(path for path in (coreset, weights) if path is not None)
    size = formats.read_coreset(coreset).num_selected if coreset else dataset.num_samples
    stages = [
        StageCost(
            stage="train", images_seen=steps * 64, updates=steps, flops=steps * 10**9, device_seconds=steps * 0.031
        )
    ]
    options = {"coreset": coreset and coreset.name, "class_weights": weights and weights.name}
    record = RunRecord(
        dataset=dataset,
        provenance=provenance(
            "train", made_from, backend="ddpm", preset="tiny", **options, output=f"runs/{folder.name}"
        ).model_copy(update={"seed": seed}),
        backend="ddpm",
        preset="tiny",
        model={"channels": [32, 64]},
        training={"batch_size": 64, "epochs": 40},
        sampling={"sampler": "ddim"},
        num_trained_samples=size,
        coreset=formats.input_file(coreset) if coreset else None,
        class_weights=formats.input_file(weights) if weights else None,
        step=steps,
        total_steps=steps,
        model_sha256="9" * 64,
        ledger=tuple(stages),
    )
    formats.write_run(record, folder)
    generator = np.random.default_rng(round(100 * value))
    lines = []
    for step in range(5, steps + 1, 5):
        loss = 0.9 * np.exp(-step / 90) + 0.06 * (400 / (400 + step)) * np.exp(0.2 * generator.standard_normal())
        classes: list[float | None] = [float(loss * (0.5 + label / 10)) for label in range(dataset.num_classes)]
        classes[step // 5 % 7 : step // 5 % 7 + 1] = [None] * min(1, len(classes[step // 5 % 7 :]))
        line = {"step": step, "loss": float(loss), "lr": 1e-3, "images_per_second": 2000.0, "class_losses": classes}
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    rows = generator.choice(len(source), 40, replace=len(source) < 40)
    grid = np.block([[source.image(int(rows[r * 10 + c]))[..., 0] for c in range(10)] for r in range(4)])
    (folder / "samples").mkdir()
    columns = PngInfo()
    columns.add_text(GRID_COLUMNS, "10")
    Image.fromarray(np.asarray(grid)).save(folder / "samples" / f"step-{steps:08d}.png", pnginfo=columns)
    make_metrics(folder, dataset, value, generator)


def make_metrics(folder: Path, dataset: DatasetIdentity, value: float, generator: np.random.Generator) -> None:
    per_class = {name: value * float(generator.uniform(1.2, 2.6)) for name in dataset.class_names} or None
    value_of = MetricValue(
        name="fd:resnet18", value=value, num_generated=1000, num_reference=4000, protocol=PROTOCOL, per_class=per_class
    )
    floor = value_of.model_copy(
        update={"name": "fd:resnet18 (coreset images)", "value": value / 9, "num_generated": 800, "per_class": None}
    )
    metrics = Metrics(
        dataset=dataset,
        metrics=(value_of, floor) if formats.read_run(folder).coreset else (value_of,),
        run=formats.input_file(folder / "run.json"),
        sampler={"sampler": "ddim", "num_inference_steps": 50, "guidance_scale": 1.3},
        provenance=provenance("eval", run=f"runs/{folder.name}", metric=["fd:resnet18"], num_samples=1000),
    )
    formats.write_metrics(metrics, folder / "metrics.json")


def build_chain(folder: Path, source: DatasetSource) -> Chain:
    """Everything that the commands would leave in `folder`; class-less data has no class weights."""
    dataset = sources.identify(source)
    labels = np.zeros(len(source), dtype=np.int64) if source.labels is None else source.labels
    weights = folder / "weights.json" if dataset.num_classes else None
    embeddings = make_embeddings(source, dataset, folder / "embeddings.safetensors")
    scores = make_scores(embeddings, folder / "scores.safetensors")
    make_coreset(scores.scores, labels, dataset, "moderate", folder / "scores.safetensors", folder / "coreset.json")
    uniform = np.random.default_rng(0).random(len(labels))
    make_coreset(uniform, labels, dataset, "random", folder / "embeddings.safetensors", folder / "random.json")
    if weights is not None:
        make_weights(dataset, folder / "coreset.json", weights)
    chain = Chain(folder)
    make_run(
        chain.core,
        source,
        dataset,
        steps=500,
        value=14.82,
        coreset=folder / "coreset.json",
        weights=weights,
    )
    make_run(chain.random, source, dataset, steps=500, value=16.07, coreset=folder / "random.json")
    make_run(chain.full, source, dataset, steps=2500, value=11.4)
    return chain


@pytest.fixture(scope="session")
def shared_chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """One chain for all tests that only read."""
    return build_chain(tmp_path_factory.mktemp("chain"), FashionMini(DatasetRequest("fashion-mini")))


@pytest.fixture
def make_chain() -> Callable[[Path, DatasetSource], Chain]:
    """Builds a chain of another dataset."""
    return build_chain


@pytest.fixture
def chain(shared_chain: Chain, tmp_path: Path) -> Chain:
    """A copy that a test may damage."""
    copied = tmp_path / "copy"
    shutil.copytree(shared_chain.folder, copied)
    return Chain(copied)
