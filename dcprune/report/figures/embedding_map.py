"""The embeddings on a plane, the coreset marked: principal components, or UMAP where that is installed."""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from dcprune.artifacts import Coreset, Embeddings
from dcprune.errors import OptionError
from dcprune.report.charts.axes import number
from dcprune.report.charts.scatter import Points, scatter
from dcprune.report.figures.choice import is_kept
from dcprune.report.figures.figure import Figure, Table, described

Projection = Literal["pca", "umap"]
PROJECTIONS: Final = ("auto", "pca", "umap")

MAX_POINTS = 2_000
MAX_NAMES = 12
_FEWEST_FOR_UMAP = 50  # below that its graph has hardly more than one neighbourhood
_NEIGHBOURS = 15


@dataclass(frozen=True)
class Plane:
    """Coordinates float64 [n, 2], and what the axes are."""

    xy: NDArray[np.float64]
    x_label: str
    y_label: str
    note: str = ""


def resolved_projection(name: str) -> Projection:
    """`auto` is UMAP where that is installed, else principal components.

    Raises:
        OptionError: an unknown projection, or UMAP without the package.
    """
    if name not in PROJECTIONS:
        raise OptionError(f"Projection {name!r} is unknown. Known: {', '.join(PROJECTIONS)}.")
    installed = importlib.util.find_spec("umap") is not None
    if name == "umap" and not installed:
        raise OptionError('A UMAP projection needs umap-learn: pip install "dcprune[umap]"')
    return "umap" if name != "pca" and installed else "pca"


def principal_plane(rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Coordinates float64 [n, 2] on the first two principal components of `rows` [n, D], and their shares of variance.

    The sign of a component is such that its largest coordinate by size is positive.
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    total = float(np.square(centred).sum())
    smaller = min(centred.shape)
    product = centred @ centred.T if smaller == len(centred) else centred.T @ centred
    values, vectors = scipy.linalg.eigh(product, subset_by_index=(max(0, smaller - 2), smaller - 1))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    plane = np.zeros((len(rows), 2))
    plane[:, : len(values)] = vectors * np.sqrt(values) if smaller == len(centred) else centred @ vectors
    plane *= np.where(np.take_along_axis(plane, np.abs(plane).argmax(axis=0)[None], axis=0) < 0, -1, 1)
    first, second = [*(values / (total or 1.0)).tolist(), 0.0][:2]
    return plane, (first, second)


def umap_plane(rows: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Coordinates float64 [n, 2] of UMAP (McInnes et al., arXiv 1802.03426), the same every time on one machine.

    None where it finds no layout, as of rows that are all equal.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, about themselves
        import umap

        reducer = umap.UMAP(n_neighbors=_NEIGHBOURS, random_state=0, n_jobs=1)
        plane = np.asarray(reducer.fit_transform(rows), dtype=np.float64)
    return plane if np.isfinite(plane).all() else None


def project(rows: NDArray[np.float32], projection: Projection) -> Plane:
    """Rows [n, D] on a plane; too few rows for UMAP go on their principal components."""
    plane = umap_plane(rows) if projection == "umap" and len(rows) >= _FEWEST_FOR_UMAP else None
    if plane is not None:
        note = f"UMAP, {_NEIGHBOURS} neighbours: what is near is alike, but distances between groups mean little."
        return Plane(plane, "UMAP 1", "UMAP 2", note)
    flat, shares = principal_plane(rows)
    first = f"principal component 1 ({number(100 * shares[0], 2)} % of the variance)"
    return Plane(flat, first, f"principal component 2 ({number(100 * shares[1], 2)} %)")


def embedding_map(embeddings: Embeddings, coreset: Coreset, projection: Projection) -> Figure:
    """The embeddings on a plane, the coreset marked; some of them, drawn at random, when there are many."""
    total = len(embeddings.embeddings)
    rows = np.sort(np.random.default_rng(0).choice(total, min(MAX_POINTS, total), replace=False))
    plane = project(embeddings.embeddings[rows], projection)
    kept = is_kept(coreset, embeddings.indices[rows])
    labels = None if embeddings.labels is None else embeddings.labels[rows]
    centres = _centres(plane.xy, labels, kept, embeddings.dataset.class_names)
    title = f"Embeddings ({embeddings.encoder.name}, {embeddings.encoder.dim}-d)"
    svg = scatter(
        described(title, f"{int(kept.sum()):,} kept and {int((~kept).sum()):,} dropped images on a plane."),
        [Points("dropped", plane.xy[~kept], "dropped"), Points("kept", plane.xy[kept], "kept")],
        x_label=plane.x_label,
        y_label=plane.y_label,
        names=[(name, x, y) for name, x, y, _ in centres] if len(centres) <= MAX_NAMES else [],
    )
    some = f"{len(rows):,} of {total:,} images, drawn at random." if len(rows) < total else ""
    table = Table(
        ("class", "centre, horizontal", "centre, vertical", "kept of those shown"),
        tuple((name, number(x), number(y), share) for name, x, y, share in centres[:MAX_POINTS]),
    )
    keys = (("kept", "kept"), ("dropped", "dropped"))
    return Figure(title, svg, " ".join(filter(None, (plane.note, some))), keys, table if centres else None)


def _centres(
    xy: NDArray[np.float64], labels: NDArray[np.int64] | None, kept: NDArray[np.bool_], names: tuple[str, ...]
) -> list[tuple[str, float, float, str]]:
    """Name, median place and kept share of every class that has points."""
    if labels is None or len(names) < 2:
        return []
    found = []
    for label in np.unique(labels).tolist():
        mine = labels == label
        x, y = np.median(xy[mine], axis=0).tolist()
        found.append((names[label], x, y, f"{int(kept[mine].sum())} of {int(mine.sum())}"))
    return found
