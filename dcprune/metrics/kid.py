"""Kernel Inception distance."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from dcprune.metrics.kd import KernelDistance


class Kid(KernelDistance):
    """Squared maximum mean discrepancy under a cubic kernel, in the space of the FID network; not scaled.

    Source: Binkowski et al. 2018 (arXiv 1801.01401): k(x, y) = (x.y / D + 1)^3, unbiased, the mean over 100 random
    subsets of 1,000 images of either side. Unlike the FID it has no bias at few images, and it may be negative.
    Published values are often times 1000.

    Args:
        num_subsets: random subsets; 0 takes all pairs of all images at once.
        subset_size: images of each side in a subset; with fewer images, all of the smaller side.
        subset_seed: of the subsets.
        mode: `clean`, `legacy_pytorch` or `legacy_tensorflow`; how images come to 299 x 299 pixels.
        weights: a file of the Inception weights; None downloads the one that clean-fid uses in this mode.
    """

    def __init__(
        self,
        *,
        num_subsets: Annotated[int, Field(ge=0)] = 100,
        subset_size: Annotated[int, Field(ge=2)] = 1000,
        subset_seed: Annotated[int, Field(ge=0)] = 0,
        mode: Literal["clean", "legacy_pytorch", "legacy_tensorflow"] = "clean",
        weights: str | None = None,
    ) -> None:
        super().__init__(
            "inceptionv3-fid",
            num_subsets=num_subsets,
            subset_size=subset_size,
            subset_seed=subset_seed,
            weights=weights,
            mode=mode,
            layer="pool3",
        )
        self.mode = mode

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "mode": self.mode}
