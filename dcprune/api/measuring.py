"""The encoders of an evaluation, each loaded once, and the metrics in their spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import EncoderInfo, MetricValue
from dcprune.devices import dtype_name
from dcprune.embedding import encode_images, load_encoder
from dcprune.evaluation import NamedMetric, features_sha256, measure
from dcprune.interfaces import Encoder, EncoderChoice, EncoderContext, Features

LoadImage = Callable[[int], NDArray[np.uint8]]

# The yardstick stays the same, whatever precision the images are drawn with.
_FEATURE_DTYPE = torch.float32


class Bench:
    """Metrics, and the encoders that they need: each is loaded once and sees every set of images once.

    Args:
        named: the metrics.
        context: what encoders are loaded with.
        batch_size, num_workers: for encoding.

    Raises:
        WeightsError: weights that are missing or do not fit.
    """

    def __init__(
        self, named: Sequence[NamedMetric], context: EncoderContext, batch_size: int, num_workers: int
    ) -> None:
        self.named = named
        self.context = context
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.encoders: list[tuple[EncoderChoice, Encoder, EncoderInfo]] = []
        for each in named:
            if all(choice != each.encoder for choice, _, _ in self.encoders):
                self.encoders.append((each.encoder, *load_encoder(each.encoder, context)))

    def encode(
        self, load: LoadImage, rows: NDArray[np.int64], labels: NDArray[np.int64] | None, description: str
    ) -> list[Features]:
        """Features of stored images, one set per encoder.

        Args:
            load: row -> uint8 [H, W, C].
            rows: int64 [N].
            labels: int64 [N] of those rows.
            description: what the progress calls it.
        """
        return [
            Features(self._encode(encoder, load, rows, self.num_workers, description), labels, info)
            for _, encoder, info in self.encoders
        ]

    def encode_batches(self, batches: Iterable[torch.Tensor], labels: NDArray[np.int64] | None) -> list[Features]:
        """Features of images uint8 [B, C, H, W] that arrive batch by batch and are not kept, one set per encoder."""
        parts: list[list[NDArray[np.float32]]] = [[] for _ in self.encoders]
        for batch in batches:
            images = batch.permute(0, 2, 3, 1).numpy()
            rows = np.arange(len(images))
            for found, (_, encoder, _) in zip(parts, self.encoders, strict=True):
                found.append(self._encode(encoder, images.__getitem__, rows, 0, ""))
        return [
            Features(np.concatenate(found), labels, info)
            for found, (_, _, info) in zip(parts, self.encoders, strict=True)
        ]

    def _encode(
        self, encoder: Encoder, load: LoadImage, rows: NDArray[np.int64], num_workers: int, description: str
    ) -> NDArray[np.float32]:
        return encode_images(
            encoder,
            load,
            rows,
            device=self.context.device,
            dtype=_FEATURE_DTYPE,
            batch_size=self.batch_size,
            num_workers=num_workers,
            progress=self.context.progress if description else None,
            description=description,
        )

    def values(
        self,
        generated: Sequence[Features],
        reference: Sequence[Features],
        *,
        protocol: Mapping[str, Any],
        class_names: Sequence[str] = (),
        label: str = "",
    ) -> tuple[MetricValue, ...]:
        """Every metric between two lists of features as `encode` gives them; see `measure`."""
        choices = [choice for choice, _, _ in self.encoders]
        found = []
        for each in self.named:
            position = choices.index(each.encoder)
            found.append(
                measure(
                    each,
                    generated[position],
                    reference[position],
                    label=label,
                    protocol={**_extractor(reference[position]), **protocol},
                    class_names=class_names,
                    progress=self.context.progress,
                )
            )
        return tuple(found)


def _extractor(reference: Features) -> dict[str, Any]:
    """The part of a protocol that says which features were compared."""
    info = reference.encoder
    return {
        "extractor": info.name,
        "extractor_settings": info.settings,
        "weights_sha256": info.weights_sha256,
        "layer": info.layer,
        "preprocessing": info.preprocessing,
        "precision": dtype_name(_FEATURE_DTYPE),
        "reference_features_sha256": features_sha256(reference),
    }
