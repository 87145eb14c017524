"""What frozen networks say about samples, computed once: latents of images, embeddings of texts."""

from dcprune.latents.context import preparation
from dcprune.latents.encoding import LatentPlan, cached_latents, encode_latents, num_to_encode
from dcprune.latents.table import Latents, Table
from dcprune.latents.texts import cached_texts

__all__ = [
    "LatentPlan",
    "Latents",
    "Table",
    "cached_latents",
    "cached_texts",
    "encode_latents",
    "num_to_encode",
    "preparation",
]
