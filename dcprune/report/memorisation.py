"""Generated images beside the training images that they are nearest to.

In the space of the encoder that made the embeddings at hand. A generated image is authentic when it is farther from the
nearest training image than that one is from its own nearest training image (Alaa et al. 2022, arXiv 2102.08921).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dcprune.artifacts import Embeddings, Rows
from dcprune.devices import cache_dir
from dcprune.embedding import encode_images
from dcprune.errors import WeightsError
from dcprune.interfaces import DatasetSource, Encoder, EncoderChoice, EncoderContext, Progress
from dcprune.neighbours import nearest_neighbours
from dcprune.plugins import registry
from dcprune.progress import SILENT
from dcprune.report.charts.axes import number
from dcprune.report.collect import RunData
from dcprune.report.figures.choice import is_kept
from dcprune.report.figures.figure import Table
from dcprune.report.images import Picture, paired_sheet, squared
from dcprune.report.words import percent
from dcprune.sources import sample_id
from dcprune.training.run_folder import GRID_COLUMNS

SHOWN = 8
PAIRS_BYTES = 120_000  # the pairs of one run
MAX_ENCODED = 5_000  # training images that are encoded at the run's resolution
_BATCH = 64
_SAME = ("dim", "weights_sha256", "layer", "preprocessing")  # of an encoder, for vectors that may be compared
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Memorisation:
    """The generated images of one run that are nearest to training images, and how many of all are authentic.

    Attributes:
        picture: generated images above, the nearest training image below each.
        words: what was found.
        table: distances of the pairs shown.
    """

    run: str
    picture: Picture
    words: str
    table: Table


@dataclass(frozen=True)
class _Found:
    """The training image nearest to every generated one.

    Attributes:
        rows: int64 [q], rows of the embeddings.
        distances: float64 [q], to it.
        own: float64 [q], its distance to the training image nearest to it.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float64]
    own: NDArray[np.float64]

    def nearer(self, other: _Found) -> _Found:
        """The nearer of two finds for every image."""
        mine = self.distances <= other.distances
        pairs = ((self.rows, other.rows), (self.distances, other.distances), (self.own, other.own))
        return _Found(*(np.where(mine, first, second) for first, second in pairs))

    @property
    def authentic(self) -> NDArray[np.bool_]:
        return self.distances > self.own


class NearestTraining:
    """Looks for the training images of runs that their samples are nearest to.

    Args:
        embeddings: of the dataset that the runs were trained on.
        source: its images.
        progress: for long work.

    Raises:
        DcpruneError: the encoder of the embeddings is not to be had, or only with other weights.
    """

    def __init__(self, embeddings: Embeddings, source: DatasetSource, progress: Progress) -> None:
        self.embeddings = embeddings
        self.source = source
        self.progress = progress
        self.encoder = _same_encoder(embeddings, source)
        # Vectors of the same precision as those at hand; a CPU has no float16 to compute in.
        self._dtype = torch.bfloat16 if embeddings.provenance.environment.dtype == "bf16" else torch.float32

    def check(self, run: RunData, samples: Path) -> Memorisation | None:
        """The pairs of one run; None where there is nothing to compare.

        Raises:
            OSError: `samples` is not an image.
            DatasetError: training images cannot be read.
        """
        tiles = sample_tiles(samples)
        rows = self._training_rows(run)
        if not tiles or len(rows) < 2:
            return None
        side = tiles[0].shape[0]
        height, width = self.source.image(int(self.embeddings.indices[rows[0]])).shape[:2]
        smaller = side < min(height, width)
        real = self.embeddings.embeddings.take(rows)
        encoded_again = smaller and len(rows) <= MAX_ENCODED
        if encoded_again:
            real = Rows([self._encode(lambda i: self._reduced(int(rows[i]), side), len(rows), "training images")])
        found = _nearest(self._encode(tiles.__getitem__, len(tiles), ""), real)
        if run.record.training.get("horizontal_flip"):
            found = found.nearer(_nearest(self._encode(lambda i: tiles[i][:, ::-1], len(tiles), ""), real))
        space = f"In the space of {self.embeddings.encoder.name}"
        if encoded_again:
            space += f", all images at {side} px"
        elif smaller:
            space += (
                f", training images at {min(height, width)} px and generated ones at {side}, which adds to distances"
            )
        return self._described(run, tiles, replace(found, rows=rows[found.rows]), space)

    def _training_rows(self, run: RunData) -> NDArray[np.int64]:
        """Rows int64 [n] of the embeddings that a run was trained on; none where that is not known."""
        everything = not run.has_coreset or run.record.training.get("anneal") is not None
        if run.record.dataset.fingerprint != self.embeddings.dataset.fingerprint:
            return np.empty(0, dtype=np.int64)
        if everything:
            return np.arange(len(self.embeddings.indices))
        return np.flatnonzero(is_kept(run.coreset, self.embeddings.indices)) if run.coreset else np.empty(0, np.int64)

    def _reduced(self, row: int, side: int) -> NDArray[np.uint8]:
        """A training image, cropped to a square and reduced to `side`: uint8 [side, side, C]."""
        return squared(self.source.image(int(self.embeddings.indices[row])), side)

    def _encode(self, load: Callable[[int], NDArray[np.uint8]], count: int, description: str) -> NDArray[np.float32]:
        return encode_images(
            self.encoder,
            load,
            np.arange(count),
            device=_CPU,
            dtype=self._dtype,
            batch_size=_BATCH,
            num_workers=0,
            progress=self.progress if description else None,
            description=description,
        )

    def _described(self, run: RunData, tiles: Sequence[NDArray[np.uint8]], found: _Found, space: str) -> Memorisation:
        relative = found.distances / np.where(found.own > 0, found.own, np.inf)
        relative[(found.own == 0) & (found.distances > 0)] = np.inf
        shown = np.argsort(relative, kind="stable")[:SHOWN]
        indices = self.embeddings.indices[found.rows]
        nearest = [self.source.image(int(indices[position])) for position in shown]
        picture = paired_sheet(
            [tiles[position] for position in shown],
            nearest,
            f"Above, {len(shown)} images that run {run.name} generated; below each, its nearest training image",
            PAIRS_BYTES,
        )
        table = Table(
            ("pair", "training image", "distance", "of that image to its own nearest", "authentic"),
            tuple(
                (
                    str(rank + 1),
                    sample_id(self.source, int(indices[position])),
                    number(float(found.distances[position])),
                    number(float(found.own[position])),
                    "yes" if found.authentic[position] else "no",
                )
                for rank, position in enumerate(shown.tolist())
            ),
        )
        return Memorisation(run.name, picture, _verdict(found.authentic, space), table)


def _verdict(authentic: NDArray[np.bool_], space: str) -> str:
    count, total = int(authentic.sum()), len(authentic)
    low, high = wilson_interval(count, total)
    return (
        f"{space}, {count} of the {total} images of the grid ({percent(count / total)}, 95\N{NO-BREAK SPACE}% interval "
        f"{percent(low)} to {percent(high)}) are authentic: farther from the nearest training image than that is from "
        "its own nearest. Fresh draws from the training distribution have 33 to 50\N{NO-BREAK SPACE}%; fewer is "
        "memorisation, more is being off that distribution."
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _nearest(made: NDArray[np.float32], real: Rows) -> _Found:
    """The row of `real` [n, D] nearest to each of `made` [q, D], of equally near ones the first."""
    queries = made.astype(np.float64)
    best, rows, start = np.full(len(made), np.inf), np.zeros(len(made), dtype=np.int64), 0
    for block in real.blocks():
        others = block.astype(np.float64)
        relative = np.square(others).sum(axis=1) - 2 * queries @ others.T  # |query|^2 is the same for all of them
        here = relative.argmin(axis=1)
        least = relative[np.arange(len(made)), here]
        closer = least < best
        best[closer], rows[closer] = least[closer], here[closer] + start
        start += len(block)
    distances = np.linalg.norm(real[rows].astype(np.float64) - queries, axis=1)
    matched, place = np.unique(rows, return_inverse=True)
    own = nearest_neighbours(real, 1, queries=matched).distances[:, 0]
    return _Found(rows, distances, own[place])


def _same_encoder(embeddings: Embeddings, source: DatasetSource) -> Encoder:
    """The encoder that made the embeddings, its weights compared; nothing is trained or downloaded for it.

    Raises:
        DcpruneError: it does not load from what is on this machine, or has other weights than then.
    """
    info, config = embeddings.encoder, embeddings.provenance.config
    weights = config.get("weights")
    choice = EncoderChoice(info.name, info.settings, None if weights is None else str(weights))
    context = EncoderContext(
        dataset=source,
        fingerprint=embeddings.dataset.fingerprint,
        device=_CPU,
        dtype=torch.float32,
        seed=embeddings.provenance.seed,
        cache_dir=cache_dir(),
        progress=SILENT,
        may_train=False,
    )
    encoder: Encoder = registry().create("encoder", choice.name, choice.settings, weights=choice.weights)
    missing = [each.path for each in encoder.downloads(context.cache_dir) if not each.path.exists()]
    if missing:
        raise WeightsError(f"The weights {missing[0]} of {info.name} are not on this machine.")
    loaded = encoder.load(context)
    for name in _SAME:
        if getattr(loaded, name) != getattr(info, name):
            raise WeightsError(f"{info.name} has another {name} here than when it made the embeddings.")
    return encoder


def sample_tiles(path: Path) -> list[NDArray[np.uint8]]:
    """The images uint8 [S, S, C] of a grid that a run has written, without the black ones that fill its last row.

    Empty for a picture that does not say that it is such a grid.

    Raises:
        OSError: not an image.
    """
    with Image.open(path) as image:
        words = str(image.info.get(GRID_COLUMNS, ""))
        pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    columns = int(words) if words.isdecimal() else 0
    if columns == 0:
        return []
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    side, rest = divmod(pixels.shape[1], columns)
    if rest or side == 0 or pixels.shape[0] % side:
        return []
    tiles = [
        np.ascontiguousarray(pixels[top : top + side, left : left + side])
        for top in range(0, pixels.shape[0], side)
        for left in range(0, pixels.shape[1], side)
    ]
    while tiles and not tiles[-1].any():
        tiles.pop()
    return tiles
