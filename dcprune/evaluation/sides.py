"""What a metric compares: generated images and reference images in the space of an encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dcprune.errors import InputError
from dcprune.interfaces import Features, Gaussian, Metric
from dcprune.moments import moments


class Reference:
    """The reference images in the space of one encoder: their features, or their moments alone.

    Args:
        features: at least two images.
        gaussian: moments that take the place of those of the features.

    Raises:
        InputError: neither is given.
    """

    def __init__(self, features: Features | None = None, gaussian: Gaussian | None = None) -> None:
        if features is None and gaussian is None:
            raise InputError("A reference needs features or moments.")
        self.features = features
        self._gaussian = gaussian

    @classmethod
    def with_moments(cls, features: Features, gaussian: Gaussian) -> Reference:
        """Features whose moments are known already."""
        found = cls(features)
        found.__dict__["gaussian"] = gaussian
        return found

    @cached_property
    def gaussian(self) -> Gaussian:
        """The moments, computed once."""
        if self._gaussian is not None:
            return self._gaussian
        assert self.features is not None  # noqa: S101 - the constructor saw to it
        return Gaussian(*moments(self.features.features))

    @property
    def has_stored_moments(self) -> bool:
        """Whether the moments were not computed from features."""
        return self._gaussian is not None

    def count(self, metric: Metric) -> int:
        """Number of images that `metric` is about; 0 where a file of statistics does not say."""
        real = self.for_metric(metric)
        return real.count if isinstance(real, Gaussian) else len(real.features)

    def sha256(self, metric: Metric) -> str:
        """Hash of what `metric` takes, as 64 hex digits: of features and labels, or of stored moments."""
        if self.features is None or (_takes_moments(metric) and self.has_stored_moments):
            return moments_sha256(self.gaussian)
        return self._features_sha256

    @cached_property
    def _features_sha256(self) -> str:
        assert self.features is not None  # noqa: S101 - the caller saw to it
        return features_sha256(self.features)

    def for_metric(self, metric: Metric) -> Features | Gaussian:
        """What `metric` takes of the reference.

        Raises:
            InputError: it needs features, and there are moments only.
        """
        if _takes_moments(metric):
            return self.gaussian
        if self.features is None:
            raise InputError(
                f"{type(metric).__name__} needs the features of the reference images, and there are only their mean "
                "and covariance: name the images as the reference, or leave the metric out."
            )
        return self.features


def _takes_moments(metric: Metric) -> bool:
    return bool(getattr(metric, "takes_moments", False))


def needs_reference(metric: Metric) -> bool:
    """Whether a metric looks at reference images at all."""
    return bool(getattr(metric, "needs_reference", True))


def select_rows(features: Features, rows: NDArray[np.int64]) -> Features:
    """Some of the images."""
    labels = None if features.labels is None else features.labels[rows]
    return replace(features, features=features.features[rows], labels=labels)


def features_sha256(features: Features) -> str:
    """Hash of features and labels, as 64 hex digits."""
    digest = hashlib.sha256(np.ascontiguousarray(features.features, dtype="<f4").data)
    if features.labels is not None:
        digest.update(np.ascontiguousarray(features.labels, dtype="<i8").data)
    return digest.hexdigest()


def first_rows(features: Features, number: int) -> Features:
    """The first images, without a copy."""
    labels = None if features.labels is None else features.labels[:number]
    return replace(features, features=features.features[:number], labels=labels)


def moments_sha256(gaussian: Gaussian) -> str:
    """Hash of mean and covariance, as 64 hex digits."""
    digest = hashlib.sha256(np.ascontiguousarray(gaussian.mean, dtype="<f8").data)
    digest.update(np.ascontiguousarray(gaussian.covariance, dtype="<f8").data)
    return digest.hexdigest()


def aligned_labels(
    labels: NDArray[np.int64] | None, class_names: Sequence[str], onto: Sequence[str]
) -> NDArray[np.int64] | None:
    """Labels in another order of classes; None when there are none, or a class is not in `onto`.

    Args:
        labels: int64 [N] in the order of `class_names`.
        class_names: names of the classes of `labels`.
        onto: the order that is wanted.
    """
    if labels is None or not set(class_names) <= set(onto):
        return None
    positions = {name: position for position, name in enumerate(onto)}
    return np.array([positions[name] for name in class_names], dtype=np.int64)[labels]
