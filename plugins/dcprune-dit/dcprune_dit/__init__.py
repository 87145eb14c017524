"""The dcprune backend `dit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcprune import hookimpl

if TYPE_CHECKING:
    from dcprune.hookspecs import Register


@hookimpl
def register_backends(register: Register) -> None:
    register(
        "dit",
        "dcprune_dit.backend:Dit",
        summary="diffusion transformers on latents: DiT (epsilon) or SiT (flow), diffusers' DiTTransformer2DModel",
        presets="dcprune_dit.presets:PRESETS",
    )
