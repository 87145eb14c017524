"""What a metric compares: generated images and reference images in the space of an encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
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
        gaussian: the moments, where they are known already.
        from_elsewhere: whether the moments came by themselves, of images that nothing else is known about.

    Raises:
        InputError: neither features nor moments are given.
    """

    def __init__(
        self,
        features: Features | None = None,
        gaussian: Gaussian | None = None,
        *,
        from_elsewhere: bool = False,
    ) -> None:
        self.features = features
        self.from_elsewhere = from_elsewhere
        self._moments: Callable[[], Gaussian]
        if gaussian is not None:
            self._moments = lambda: gaussian
        elif features is not None:
            self._moments = lambda: Gaussian(*moments(features.features))
        else:
            raise InputError("A reference needs features or moments.")

    @cached_property
    def gaussian(self) -> Gaussian:
        """The moments, computed once."""
        return self._moments()

    def count(self, metric: Metric) -> int:
        """Number of images that `metric` is about; 0 where a file of statistics does not say."""
        real = self.for_metric(metric)
        return real.count if isinstance(real, Gaussian) else len(real.features)

    def sha256(self, metric: Metric) -> str:
        """Hash of what `metric` takes, as 64 hex digits: of features and labels, or of moments from elsewhere."""
        if self.features is None or (_takes_moments(metric) and self.from_elsewhere):
            return moments_sha256(self.gaussian)
        return self._features_sha256

    @cached_property
    def _features_sha256(self) -> str:
        return "" if self.features is None else features_sha256(self.features)

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
