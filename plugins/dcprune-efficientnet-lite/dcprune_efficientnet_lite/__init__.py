"""The dcprune encoder `efficientnet-lite0`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcprune import hookimpl

if TYPE_CHECKING:
    from dcprune.hookspecs import Register


@hookimpl
def register_encoders(register: Register) -> None:
    register(
        "efficientnet-lite0",
        "dcprune_efficientnet_lite.encoder:EfficientNetLite0",
        summary="ImageNet features without any download",
    )
