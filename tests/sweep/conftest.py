from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

# Two cells more than needed for one chain, so that stages are shared; updates of milliseconds.
SWEEP = """
dataset = "fashion-mini"
ratios = [0.1]

[train]
preset = "tiny"
steps = 4
batch_size = 8
checkpoint_every = 2
set = {resolution = 8, block_out_channels = [8], norm_num_groups = 4, log_every = 1}

[reweight]
steps = 2

[eval]
metric = ["fd:pixels"]
num_samples = "20"
num_inference_steps = 1
per_class = false
set = {image_size = 2}

[encoders.pixels]
set = {image_size = 4}

[[grid]]

[[grid]]
scorer = "random"

[[grid]]
encoder = "pixels"
scorer = "moderate"
weights = true
anneal = [false, 0.5]
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a sweep file, the text of `SWEEP` or another one, into a folder of the test."""

    def to_file(text: str = SWEEP, name: str = "sweep.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return to_file
