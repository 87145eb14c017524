from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.artifacts import Coreset, Selection
from dcprune.backends.ddpm import Ddpm
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.interfaces import DatasetRequest, DatasetSource, TrainingData
from dcprune.sources import identify
from dcprune.subset import Subset
from dcprune.testing import preparation_context
from dcprune.training.config import TrainingConfig
from dcprune.training.objectives import WeightedLoss
from dcprune.training.run_folder import RunFolder
from dcprune.training.schedule import Phase
from dcprune.training.trainer import Trainer

# The smallest U-Net that still has every kind of layer, dropout and attention among them.
NETWORK: dict[str, Any] = {
    "resolution": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_levels": (1,),
    "norm_num_groups": 4,
    "dropout": 0.2,
}


class Scripted:
    """A `Progress` that does something when a task has counted so far."""

    def __init__(self, at: int = -1, action: Callable[[], None] = lambda: None) -> None:
        self.at = at
        self.action = action
        self.count = 0
        self.notes: list[str] = []
        self.warnings: list[str] = []

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Scripted]:
        self.count = 0 if description == "train" else -(10**9)
        yield self

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self.count += amount
        if self.count == self.at:
            self.action()

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small only get slower with more, and the bits of a result depend on how many there are."""


@pytest.fixture(scope="session")
def fashion() -> DatasetSource:
    return FashionMini(DatasetRequest("fashion-mini"))


@pytest.fixture(scope="session")
def rows(fashion: DatasetSource) -> NDArray[np.int64]:
    """Four images of every class, in the order of the dataset."""
    labels = np.asarray(fashion.labels)
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:4] for label in range(10)]))


@pytest.fixture(scope="session")
def backend() -> Ddpm:
    return Ddpm(**NETWORK)


@pytest.fixture(scope="session")
def data(fashion: DatasetSource, rows: NDArray[np.int64], backend: Ddpm) -> TrainingData:
    return backend.prepare(Subset(fashion, rows), preparation_context())


@pytest.fixture(scope="session")
def coreset(fashion: DatasetSource, rows: NDArray[np.int64]) -> Coreset:
    return coreset_of(fashion, rows)


def coreset_of(source: DatasetSource, rows: NDArray[np.int64]) -> Coreset:
    from dcprune.api.provenance import provenance

    classes = len(source.class_names)
    counts = [] if source.labels is None else np.bincount(source.labels[rows], minlength=classes).tolist()
    return Coreset(
        dataset=identify(source),
        selection=Selection(
            scorer="random", params={}, keep="random", scope="class", ratio=None, budget=len(rows), seed=0
        ),
        num_selected=len(rows),
        class_counts=dict(zip(source.class_names, counts, strict=True)),
        indices=tuple(rows.tolist()),
        ids=tuple(source.ids[row] for row in rows) if source.ids is not None else None,
        provenance=provenance("select", {}, seed=0),
    )


@pytest.fixture(scope="session")
def make_coreset() -> Callable[[DatasetSource, NDArray[np.int64]], Coreset]:
    return coreset_of


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture(scope="session")
def network() -> dict[str, Any]:
    return dict(NETWORK)


@pytest.fixture
def make_trainer(backend: Ddpm, data: TrainingData) -> Callable[..., Trainer]:
    """A trainer over all of `data`; keyword arguments are training options, `phases`, `folder` and `progress`."""

    def make(
        *,
        phases: Sequence[Phase] | None = None,
        folder: Path | None = None,
        progress: Scripted | None = None,
        draw_images: Callable[[torch.nn.Module], torch.Tensor] = lambda _: torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        **options: Any,
    ) -> Trainer:
        cpu = torch.device("cpu")
        config = TrainingConfig(
            **{"steps": 8, "batch_size": 12, "log_every": 2, "checkpoint_every": 3, "learning_rate": 1e-3, **options}
        )
        labels = data.labels.numpy()
        whole = Phase(torch.arange(len(data)), config.steps or 8, WeightedLoss(np.ones(10), labels, cpu))
        return Trainer(
            backend,
            data,
            config,
            phases or [whole],
            num_classes=10,
            device=cpu,
            dtype=torch.float32,
            folder=None
            if folder is None
            else RunFolder(
                folder,
                keep_checkpoints=config.keep_checkpoints,
                draw_images=draw_images,
                columns=2,
            ),
            progress=progress or Scripted(),
        )

    return make


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, coreset: Coreset) -> Path:
    folder = tmp_path_factory.mktemp("files")
    formats.write_coreset(coreset, folder / "coreset.json")
    return folder


@pytest.fixture(scope="module")
def options(network: dict[str, Any], files: Path) -> dict[str, Any]:
    return {
        "coreset": files / "coreset.json",
        "preset": "tiny",
        "settings": {**network, "dropout": 0.1, "log_every": 2},
        "steps": 6,
        "batch_size": 10,
        "checkpoint_every": 4,
    }


@pytest.fixture(scope="module")
def reference(files: Path, options: dict[str, Any]) -> Path:
    """A finished run, for everything that starts from one."""
    from dcprune.api.runs import train

    train(output=files / "reference", **options)
    return files / "reference"


@pytest.fixture
def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images in the grid at the end of a run instead of eighty."""
    from dcprune.api import runs

    monkeypatch.setattr(runs, "_GRID_CLASSES", 1)
    monkeypatch.setattr(runs, "_GRID_COLUMNS", 2)
