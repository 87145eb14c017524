from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from dcprune.artifacts import RunRecord
from dcprune.errors import OptionError
from dcprune.report.collect import RunData
from dcprune.report.figures.choice import kept_window
from dcprune.report.figures.embedding_map import principal_plane, project, resolved_projection
from dcprune.report.figures.figure import extremes
from dcprune.report.figures.losses import class_loss_curves, smoothed
from dcprune.report.losses import Losses
from dcprune.testing import gaussian_embeddings


@pytest.mark.parametrize(("rows", "dim"), [(200, 7), (30, 90)])
def test_principal_plane_is_scikit_learns(rows: int, dim: int) -> None:
    generator = np.random.default_rng(rows)
    values = (generator.standard_normal((rows, dim)) * np.geomspace(9, 1, dim) + 5).astype(np.float32)
    plane, shares = principal_plane(values)
    reference = PCA(2, svd_solver="full").fit(values.astype(np.float64))
    expected = reference.transform(values.astype(np.float64))
    expected *= np.sign((expected * plane).sum(axis=0))
    np.testing.assert_allclose(plane, expected, atol=1e-6)
    assert shares == pytest.approx(reference.explained_variance_ratio_)
    assert (plane[np.abs(plane).argmax(axis=0), [0, 1]] > 0).all()


def test_plane_of_too_few_dimensions_or_rows_is_flat() -> None:
    plane, shares = principal_plane(np.arange(5, dtype=np.float32)[:, None])
    np.testing.assert_allclose(np.diff(plane[:, 0]), plane[1, 0] - plane[0, 0])
    assert not plane[:, 1].any()
    assert shares == pytest.approx((1.0, 0.0))
    assert not principal_plane(np.ones((1, 4), dtype=np.float32))[0].any()


def test_extremes_are_the_highest_and_the_lowest() -> None:
    values = np.random.default_rng(0).permutation(100).tolist()
    shown = [values[index] for index in extremes(values, 10)]
    assert shown == [99, 98, 97, 96, 95, 4, 3, 2, 1, 0]
    assert extremes([3.0, 1.0, 2.0], 10) == [0, 1, 2]


def test_smoothing_takes_means_of_equal_stretches() -> None:
    steps = np.arange(1, 101)
    losses = Losses(steps, steps.astype(np.float64))
    assert smoothed(losses, 25)[1] == pytest.approx([13, 38, 63, 88])
    assert smoothed(losses, 25)[0] == smoothed(losses, 25)[1]
    assert smoothed(losses, 0.5)[1] == pytest.approx(steps)


def run_with(losses: Losses | None, names: tuple[str, ...] = ("a", "b")) -> RunData:
    dataset = gaussian_embeddings(num_classes=2).dataset.model_copy(update={"class_names": names})
    fields: dict[str, Any] = {"dataset": dataset}
    record = RunRecord.model_construct(**fields)
    return RunData("core", Path("core"), record, losses, None, None, None, None)


def test_losses_of_classes_have_a_curve_each_over_the_updates_that_had_samples() -> None:
    steps = np.arange(10, 410, 10)
    classes = np.stack([np.full(40, 0.5), np.linspace(1.0, 0.1, 40)], axis=1)
    classes[::2, 1] = np.nan
    figure = class_loss_curves(run_with(Losses(steps, classes[:, 0], classes)))
    assert figure is not None
    assert figure.title == "Training loss of each class (core)"
    assert all(f">{name}<" in figure.svg for name in ("a", "b"))
    assert "nan" not in figure.svg


@pytest.mark.parametrize("classes", [None, np.full((3, 2), np.nan), np.ones((3, 5))])
def test_without_losses_of_classes_there_is_no_such_figure(classes: NDArray[np.float64] | None) -> None:
    assert class_loss_curves(run_with(Losses(np.arange(1, 4), np.ones(3), classes))) is None
    assert class_loss_curves(run_with(None)) is None


def test_the_projection_is_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, names in ((None, {"auto": "pca", "pca": "pca"}), (object(), {"auto": "umap", "pca": "pca"})):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, spec=installed: spec)
        assert {name: resolved_projection(name) for name in names} == names
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r'pip install "dcprune\[umap\]"'):
        resolved_projection("umap")
    with pytest.raises(OptionError, match="Known: auto, pca, umap"):
        resolved_projection("tsne")


@pytest.mark.slow  # it compiles for half a minute
def test_umap_keeps_what_is_alike_together_and_is_the_same_every_time() -> None:
    pytest.importorskip("umap")
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    rows = (10 * np.eye(16)[labels] + generator.standard_normal((120, 16))).astype(np.float32)
    plane = project(rows, "umap")
    assert plane.x_label == "UMAP 1"
    distances = cdist(plane.xy, plane.xy)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()
    np.testing.assert_array_equal(project(rows, "umap").xy, plane.xy)
    assert project(rows[:20], "umap").x_label.startswith("principal component 1")


def test_the_window_is_what_was_kept_without_a_gap() -> None:
    scores = np.arange(10.0)
    assert kept_window(scores[3:6], np.concatenate([scores[:3], scores[6:]])) == (3.0, 5.0)
    assert kept_window(scores[7:], scores[:7]) == (7.0, 9.0)
    assert kept_window(scores[::2], scores[1::2]) is None
    assert kept_window(scores, scores[:0]) is None
    assert kept_window(np.full(3, 1.0), np.full(3, 1.0)) == (1.0, 1.0)
