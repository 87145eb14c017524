"""What encoders and backends of other packages may build on, besides `dcprune.interfaces` and `dcprune.errors`.

Everything here keeps its name and meaning within a major version; what is not here may change with any version.
"""

from __future__ import annotations

from dcprune.autoencoder import STABLE_DIFFUSION, Autoencoder, autoencoder_files, load_autoencoder
from dcprune.backends.noise import ImageNoise
from dcprune.backends.pixels import fit_square
from dcprune.diffusers_folder import load_model
from dcprune.encoders.folding import fold_batch_norm

__all__ = [
    "STABLE_DIFFUSION",
    "Autoencoder",
    "ImageNoise",
    "autoencoder_files",
    "fit_square",
    "fold_batch_norm",
    "load_autoencoder",
    "load_model",
]
