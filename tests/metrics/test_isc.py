"""The Inception score against its definition and torch-fidelity's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcprune.encoders.inception_fid import InceptionV3Fid
from dcprune.errors import InputError
from dcprune.evaluation import create_metrics
from dcprune.interfaces import Features
from dcprune.metrics.isc import InceptionScore, divergences
from dcprune.testing import check_metric, gaussian_embeddings

Matrix = NDArray[np.float32]


def logits(seed: int, count: int, classes: int = 30, scale: float = 3.0) -> Matrix:
    return (scale * np.random.default_rng(seed).normal(size=(count, classes))).astype(np.float32)


def features(rows: Matrix) -> Features:
    return Features(rows, None, gaussian_embeddings().encoder)


def by_definition(rows: Matrix) -> float:
    shares = np.exp(rows.astype(np.float64))
    shares /= shares.sum(axis=1)[:, None]
    return float(np.exp((shares * np.log(shares / shares.mean(axis=0))).sum(axis=1).mean()))


def test_contract() -> None:
    check_metric(InceptionScore)
    check_metric(InceptionScore, settings={"num_splits": "3", "split_seed": "4", "mode": "legacy_tensorflow"})


def test_one_split_is_the_definition() -> None:
    rows = logits(0, 200)
    assert InceptionScore(num_splits=1).value(features(rows)) == pytest.approx(by_definition(rows), rel=1e-12)


def test_it_is_torch_fidelitys() -> None:
    theirs = pytest.importorskip("torch_fidelity.metric_isc").isc_features_to_metric
    rows = logits(1, 203)
    metric = InceptionScore(num_splits=10)
    dealt = np.concatenate([part for part, _ in metric._deal(features(rows))])
    expected = theirs(torch.from_numpy(rows[dealt]), splits=10, shuffle=False)
    splits = metric.splits(features(rows))
    assert splits.mean() == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert splits.std() == pytest.approx(expected["inception_score_std"], rel=1e-9)


def test_splits_share_out_all_images_and_no_order_counts() -> None:
    rows = logits(2, 101)
    metric = InceptionScore(num_splits=4)
    parts = [part for part, _ in metric._deal(features(rows))]
    assert sorted(np.concatenate(parts).tolist()) == list(range(101))
    assert {len(part) for part in parts} == {25, 26}
    assert metric.value(features(rows[::-1].copy())) == metric.value(features(rows))
    assert InceptionScore(num_splits=4, split_seed=1).value(features(rows)) != metric.value(features(rows))


def test_its_ends() -> None:
    """Sure and different: the number of classes. All the same, or unsure: 1. Extreme logits do not overflow."""
    sure = np.full((40, 8), -2000, dtype=np.float32)
    sure[np.arange(40), np.arange(40) % 8] = 2000
    metric = InceptionScore(num_splits=1)
    assert metric.value(features(sure)) == pytest.approx(8)
    assert metric.value(features(np.repeat(sure[:1], 40, axis=0))) == pytest.approx(1)
    assert metric.value(features(np.zeros((40, 8), dtype=np.float32))) == pytest.approx(1)
    assert np.isfinite(divergences(sure)).all()


def test_wrong_features_are_refused() -> None:
    with pytest.raises(InputError, match="needs at least 10 generated images; there are 9"):
        InceptionScore().value(features(logits(0, 9)))
    rows = logits(0, 20)
    rows[3, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        InceptionScore(num_splits=2).value(features(rows))


def test_it_takes_the_logits_of_the_fid_network_in_the_same_pass() -> None:
    fid, isc = create_metrics(["fid", "isc"], {"mode": "legacy_pytorch"}, "inception.pth")
    encoder = InceptionV3Fid(mode="legacy_pytorch", layer="logits")
    assert isc.encoder.settings == {"mode": "legacy_pytorch", "layer": "logits"}
    assert encoder.encoder_below(isc.encoder) == fid.encoder
