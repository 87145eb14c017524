"""A saved run in a process that never imports dcprune: diffusers alone draws the same images."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcprune.backends.ddpm import Ddpm
from dcprune.backends.edm import Edm
from dcprune.interfaces import Sampling

LABELS, SEEDS, GUIDANCE = [3, 7, 0], [11, 12, 13], 1.5

SCRIPT = """
import json, sys, warnings
from pathlib import Path

import diffusers, numpy as np, torch

warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
folder, labels, seeds, guidance_scale, jobs = json.loads(sys.argv[1])
labels = torch.tensor(labels)
for name, model, scheduler, options, step_options, steps in jobs:
    unet = diffusers.UNet2DModel.from_pretrained(Path(folder, model, "unet")).eval()
    scheduler = getattr(diffusers, scheduler).from_pretrained(Path(folder, model, "scheduler"), **options)
    scheduler.set_timesteps(steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    x = torch.stack([torch.randn(shape, generator=each) for each in generators])
    if name.startswith("edm"):
        x = x * scheduler.sigmas[0]
    null = torch.full_like(labels, unet.config.num_class_embeds - 1)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        with torch.no_grad():
            conditional, unconditional = (unet(scaled, t, each).sample for each in (labels, null))
        output = unconditional + guidance_scale * (conditional - unconditional)
        if name == "ddpm":
            step_options = {"generator": generators}
        x = scheduler.step(output, t, x, **step_options).prev_sample
    np.save(Path(folder, name + ".npy"), ((x + 1) * 127.5).round().clamp(0, 255).byte().numpy())
assert not any(module.partition(".")[0] == "dcprune" for module in sys.modules)
"""

# In the settings of diffusers, static clipping of DPM-Solver's x0 is dynamic thresholding that may not go above 1.
CLIPPED = {"thresholding": True, "dynamic_thresholding_ratio": 1.0, "sample_max_value": 1.0}

# name, model folder, scheduler, its options, options of every step, number of steps, our sampler
JOBS: list[tuple[str, str, str, dict[str, Any], dict[str, Any], int, str]] = [
    ("ddim", "epsilon", "DDIMScheduler", {}, {"use_clipped_model_output": True}, 10, "ddim"),
    ("ddpm", "epsilon", "DDPMScheduler", {}, {}, 10, "ddpm"),
    ("ddim-v", "velocity", "DDIMScheduler", {}, {}, 10, "ddim"),
    ("dpmsolver-v", "velocity", "DPMSolverMultistepScheduler", CLIPPED, {}, 20, "dpmsolver++"),
    ("edm-euler", "edm", "EDMEulerScheduler", {}, {}, 9, "euler"),
    ("edm-dpmsolver", "edm", "EDMDPMSolverMultistepScheduler", {}, {}, 18, "dpmsolver++"),
]


@pytest.fixture(scope="module")
def backends(small: dict[str, Any]) -> dict[str, Any]:
    velocity: dict[str, Any] = {
        "prediction_type": "v_prediction",
        "beta_schedule": "squaredcos_cap_v2",
        "timestep_spacing": "trailing",
    }
    return {
        "epsilon": Ddpm(**small, use_clipped_model_output=True),
        "velocity": Ddpm(**small, **velocity, rescale_betas_zero_snr=True),
        "edm": Edm(**small, sigma_data=0.6, rho=6.0),
    }


@pytest.fixture(scope="module")
def folder(
    backends: dict[str, Any],
    loud: Callable[[torch.nn.Module], torch.nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Saved models, and what the script made of them."""
    folder = tmp_path_factory.mktemp("saved")
    for name, backend in backends.items():
        (folder / name).mkdir()
        backend.save(loud(backend.build(num_classes=10, sample_shape=(3, 8, 8), seed=0)), folder / name)
    argument = json.dumps([str(folder), LABELS, SEEDS, GUIDANCE, [job[:6] for job in JOBS]])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, argument],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job[0])
def test_diffusers_alone_draws_our_images(
    job: tuple[str, str, str, dict[str, Any], dict[str, Any], int, str], folder: Path, backends: dict[str, Any]
) -> None:
    name, model, *_, steps, sampler = job
    backend = backends[model]
    images = backend.sample(
        backend.load(folder / model), torch.tensor(LABELS), SEEDS, Sampling(sampler, steps, GUIDANCE)
    )
    theirs = np.load(folder / f"{name}.npy")
    assert np.abs(images.numpy().astype(int) - theirs).max() <= 1
    assert len(np.unique(theirs)) > 10
