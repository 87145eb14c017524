"""Frechet Inception distance."""

from __future__ import annotations

from typing import Any, Literal

from dcprune.metrics.fd import FrechetDistance


class Fid(FrechetDistance):
    """Frechet distance in the space of the TensorFlow Inception-v3, with clean-fid's network and resizing.

    Source: Heusel et al. 2017 (arXiv 1706.08500); the modes are those of Parmar et al. 2022 (arXiv 2104.11222). Values
    of different modes are not comparable.

    Args:
        mode: `clean`, `legacy_pytorch` or `legacy_tensorflow`; how images come to 299 x 299 pixels.
        weights: a file of the Inception weights; None downloads the one that clean-fid uses in this mode.
    """

    def __init__(
        self,
        *,
        mode: Literal["clean", "legacy_pytorch", "legacy_tensorflow"] = "clean",
        weights: str | None = None,
    ) -> None:
        super().__init__("inceptionv3-fid", weights=weights, mode=mode, layer="pool3")
        self.mode = mode

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "mode": self.mode}
