from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dcprune import formats, sources, torch_subset
from dcprune.artifacts import ClassWeights, Coreset
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.errors import DatasetMismatch, OptionError
from dcprune.interfaces import DatasetSource
from dcprune.testing import ShapesDataset, request

MakeCoreset = Callable[[DatasetSource, Sequence[int]], Coreset]
MakeWeights = Callable[[DatasetSource, Sequence[float]], ClassWeights]


@pytest.fixture
def mini() -> FashionMini:
    return FashionMini(request())


def test_the_coresets_own_dataset_in_one_call(mini: FashionMini, make_coreset: MakeCoreset, tmp_path: Path) -> None:
    source = sources.open_dataset("fashion-mini")
    rows = list(range(0, 4000, 7))
    formats.write_coreset(make_coreset(source, rows), tmp_path / "coreset.json")
    subset, sampler = torch_subset(tmp_path / "coreset.json")
    images, labels = next(iter(DataLoader(subset, batch_size=len(subset))))
    assert images.dtype == torch.uint8
    assert np.array_equal(images[:, 0].numpy(), mini.array[rows, :, :, 0])
    assert mini.labels is not None
    assert np.array_equal(labels.numpy(), mini.labels[rows])
    assert len(list(DataLoader(subset, batch_size=10, sampler=sampler))) == len(sampler) // 10 + 1


def test_draws_follow_the_class_weights(make_coreset: MakeCoreset, make_weights: MakeWeights) -> None:
    source = ShapesDataset(num_samples=300)
    assert source.labels is not None
    coreset = make_coreset(source, list(range(0, 300, 2)))
    values = np.array([0.3, 0.9, 1.8])
    own = TensorDataset(torch.arange(300), torch.from_numpy(source.labels))
    labels = source.labels.tolist()
    subset, sampler = torch_subset(
        coreset, own, class_weights=make_weights(source, values.tolist()), labels=labels, num_samples=20_000, seed=3
    )
    drawn = list(sampler)
    assert drawn == list(
        torch_subset(
            coreset, own, class_weights=make_weights(source, values.tolist()), labels=labels, num_samples=20_000, seed=3
        ).sampler
    )
    shares = np.bincount([int(subset[position][1]) for position in drawn], minlength=3) / 20_000
    expected = values * 50 / (values * 50).sum()
    assert shares == pytest.approx(expected, abs=4 * 0.5 / 20_000**0.5)
    assert {int(subset[position][0]) % 2 for position in drawn} == {0}


def test_labels_come_from_targets_or_from_the_coresets_dataset(
    pets: Path, kept_pets: Path, make_weights: MakeWeights
) -> None:
    class Own(TensorDataset):
        targets = (0, 0, 0, 1, 1, 1)

    weights = make_weights(sources.open_dataset(pets), [0.5, 1.5])
    for own in (Own(torch.zeros(6)), TensorDataset(torch.zeros(6))):
        sampler = torch_subset(kept_pets, own, class_weights=weights).sampler
        assert sampler.weights.tolist() == [0.5, 0.5, 1.5, 1.5]


def test_without_weights_nothing_but_the_length_is_asked_of_a_dataset(kept_pets: Path) -> None:
    subset, sampler = torch_subset(kept_pets, TensorDataset(torch.arange(6)))
    assert [int(subset[position][0]) for position in range(len(subset))] == [0, 2, 3, 5]
    assert sampler.weights.tolist() == [1.0] * 4


def test_what_does_not_fit_is_refused(pets: Path, kept_pets: Path, make_weights: MakeWeights) -> None:
    six = TensorDataset(torch.zeros(6))
    with pytest.raises(DatasetMismatch, match="has 5"):
        torch_subset(kept_pets, TensorDataset(torch.zeros(5)))
    with pytest.raises(DatasetMismatch, match="numbering"):
        torch_subset(kept_pets, six, labels=[1, 1, 1, 0, 0, 1])
    with pytest.raises(DatasetMismatch, match=r"shape \(3,\)"):
        torch_subset(kept_pets, six, labels=[0, 0, 1])
    with pytest.raises(DatasetMismatch, match="class weights"):
        torch_subset(kept_pets, six, class_weights=make_weights(ShapesDataset(), [1.0, 1.0, 1.0]))
    with pytest.raises(OptionError, match="num_samples"):
        torch_subset(kept_pets, six, num_samples=0)
