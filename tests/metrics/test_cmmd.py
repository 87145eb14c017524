"""CMMD against its definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune.artifacts import Rows
from dcprune.encoders.clip import OpenClip
from dcprune.errors import InputError
from dcprune.evaluation import create_metrics
from dcprune.interfaces import Features
from dcprune.metrics import cmmd as module
from dcprune.metrics.cmmd import Cmmd, cmmd, every_pair, expanded
from dcprune.testing import check_metric, gaussian_embeddings

Matrix = NDArray[np.float32]


def embeddings(seed: int, count: int, dim: int, *, decay: float = 0.5, shift: float = 0.2) -> Matrix:
    """Rows around a common direction, as CLIP's are, of any length; a large `decay` puts them along few directions."""
    generator = np.random.default_rng(seed)
    scales = np.arange(1.0, dim + 1) ** -decay
    scales /= np.linalg.norm(scales)
    rows = generator.normal(size=(count, dim)) * scales
    rows[:, 0] += 1
    rows[:, -1] += shift
    rows *= generator.uniform(5, 20, size=(count, 1))
    return rows.astype(np.float32)


def by_definition(first: Matrix, second: Matrix) -> float:
    def mean_kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.exp(-np.square(a[:, None] - b[None]).sum(axis=2) / (2 * 10**2)).mean())

    x, y = (
        each.astype(np.float64) / np.linalg.norm(each.astype(np.float64), axis=1)[:, None] for each in (first, second)
    )
    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


def features(rows: Matrix) -> Features:
    return Features(rows, None, gaussian_embeddings().encoder)


def test_contract() -> None:
    check_metric(Cmmd)
    check_metric(Cmmd, settings={"exact": "true"})


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("counts", "dim"), [((150, 90), 48), ((1, 200), 16), ((40, 1), 200), ((60, 60), 2)])
def test_it_is_the_definition(counts: tuple[int, int], dim: int, exact: bool) -> None:
    first, second = embeddings(0, counts[0], dim), embeddings(1, counts[1], dim, shift=0.5)
    expected = by_definition(first, second)
    assert expected > 0.1
    value = Cmmd(exact=exact).value(features(first), features(second))
    assert value == pytest.approx(expected, rel=0, abs=1e-10 if exact else 1e-5)


@pytest.mark.parametrize("directions", [2, 48])
@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("shift", [0.0, 0.2, 3.0])
def test_the_bound_holds(decay: float, shift: float, directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_THIRD_ORDER_DIM", directions)
    first, second = embeddings(2, 120, 40, decay=decay, shift=0), embeddings(3, 80, 40, decay=decay, shift=shift)
    value, error = expanded(Rows([first]), Rows([second]))
    assert -1e-10 <= by_definition(first, second) - value <= error + 1e-10
    assert error < (1e-3 if directions == 2 else 1e-5)


@pytest.mark.parametrize("dim", [1, 5])
def test_the_bound_holds_for_opposite_points(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest terms of odd order that there can be: all of one side at x, all of the other at -x."""
    x = np.eye(1, dim, dtype=np.float32)
    exact = 2000 * (1 - np.exp(-4 / 200))
    assert every_pair(Rows([x]), Rows([-x])) == pytest.approx(exact, rel=1e-12)
    value, error = expanded(Rows([x]), Rows([-x]))
    assert -1e-10 < exact - value <= error < 2e-6
    monkeypatch.setattr(module, "_LARGEST_ERROR", 1.0)
    value, error = expanded(Rows([x]), Rows([-x]))
    assert 6e-4 < exact - value <= error < 7e-4


def test_embeddings_of_a_wide_space_need_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Rows([embeddings(4, 1000, 768)]), Rows([embeddings(5, 900, 768, shift=0.3)])
    expected = every_pair(first, second)
    monkeypatch.setattr(module, "every_pair", lambda *_: pytest.fail("every pair was evaluated"))
    assert cmmd(first, second) == pytest.approx(expected, rel=0, abs=1e-5)


def test_few_directions_take_the_third_term(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = embeddings(6, 60, 100, decay=1, shift=0), embeddings(7, 70, 100, decay=1, shift=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_LARGEST_ERROR", 1.0)
        assert expanded(Rows([first]), Rows([second]))[1] > 1e-5
    monkeypatch.setattr(module, "every_pair", lambda *_: pytest.fail("every pair was evaluated"))
    assert cmmd(Rows([first]), Rows([second])) == pytest.approx(by_definition(first, second), rel=0, abs=1e-5)


def test_what_no_bound_covers_is_evaluated_pair_by_pair() -> None:
    """Sixty directions alike: too few for the second-order bound, too many for the third term."""
    axes = np.eye(60, dtype=np.float32)
    first, second = np.concatenate([axes, -axes]), np.concatenate([axes, -axes, axes[:20]])
    assert expanded(Rows([first]), Rows([second]))[1] > 1e-5
    assert cmmd(Rows([first]), Rows([second])) == pytest.approx(by_definition(first, second), rel=0, abs=1e-10)


def test_tiles_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Rows([embeddings(8, 103, 24)]), Rows([embeddings(9, 61, 24)])
    whole = every_pair(first, second), *expanded(first, second)
    monkeypatch.setattr(module, "_TILE", 20)
    assert (every_pair(first, second), *expanded(first, second)) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("exact", [True, False])
def test_the_same_images_are_at_distance_zero(exact: bool) -> None:
    rows = embeddings(10, 50, 30)
    shuffled = rows[np.random.default_rng(0).permutation(50)]
    constant = np.ones((7, 30), dtype=np.float32)
    metric = Cmmd(exact=exact)
    assert 0 <= metric.value(features(rows), features(shuffled)) < 1e-10
    assert 0 <= metric.value(features(constant), features(3 * constant[:1])) < 1e-10


def test_what_has_no_value_is_refused() -> None:
    good, bad = embeddings(11, 5, 8), embeddings(12, 5, 8)
    bad[3, 2] = np.nan
    with pytest.raises(InputError, match=r"generated features are not finite .* in row 3"):
        Cmmd().value(features(bad), features(good))
    bad[3] = 0
    with pytest.raises(InputError, match="row 3 is zero"):
        Cmmd().value(features(good), features(bad))
    with pytest.raises(InputError, match="8 and 7 dimensions"):
        Cmmd().value(features(good), features(good[:, :7]))
    with pytest.raises(InputError, match="at least 1 reference images; there are 0"):
        Cmmd().value(features(good), features(good[:0]))


def test_the_encoder_is_clip_at_336_pixels() -> None:
    (named,) = create_metrics(["cmmd"], {"exact": "true"}, "clip.pt")
    encoder = OpenClip(named.encoder.name.partition(":")[2])
    assert (encoder.model, encoder.pretrained) == ("ViT-L-14-336", "openai")
    assert named.encoder.weights == "clip.pt"
    assert named.metric.protocol() == Cmmd().protocol()
