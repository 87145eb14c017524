"""Runs images through an encoder."""

from dcprune.embedding.loading import Loader, load_encoder, loader
from dcprune.embedding.pipeline import CompileMode, Encoded, OnError, Pipeline, default_workers, encode_images

__all__ = [
    "CompileMode",
    "Encoded",
    "Loader",
    "OnError",
    "Pipeline",
    "default_workers",
    "encode_images",
    "load_encoder",
    "loader",
]
