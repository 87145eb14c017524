"""Guidance needs a condition, and a model that was trained without it, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dcprune.api.evaluation import evaluate
from dcprune.api.generation import sample
from dcprune.api.guidance import guided
from dcprune.api.runs import train
from dcprune.errors import OptionError
from dcprune.interfaces import Sampling

pytestmark = pytest.mark.usefixtures("small_grids")

NEVER = {"label_dropout": 0.0, "unconditional": False}


class _Other:
    knows_null_condition = True


def test_a_model_whose_labels_were_never_dropped_takes_no_guidance(options: dict[str, Any], tmp_path: Path) -> None:
    without = {**options, "settings": {**options["settings"], "label_dropout": 0}}
    with pytest.raises(OptionError, match="label_dropout=0"):
        train(output=tmp_path / "run", **without)
    assert not (tmp_path / "run").exists()
    run = train(output=tmp_path / "run", guidance_scale=1, **without)
    assert run.sampling["guidance_scale"] == 1
    grid: dict[str, Any] = {"num_samples": 4, "num_inference_steps": 1, "device": "cpu"}
    sample(tmp_path / "run", output=tmp_path / "images", **grid)
    for scale in (0, 1.5):
        with pytest.raises(OptionError, match=rf"guidance_scale={scale}.*label_dropout=0"):
            sample(tmp_path / "run", output=tmp_path / "more", guidance_scale=scale, **grid)
    with pytest.raises(OptionError, match="label_dropout=0"):
        evaluate(tmp_path / "run", metrics=["fd:pixels"], guidance_scale=1.5, **grid)
    assert not (tmp_path / "more").exists()


def test_an_unconditional_model_takes_the_recipes_guidance_for_none(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unconditional"):
        train(output=tmp_path / "run", unconditional=True, guidance_scale=1.5, **options)
    train(output=tmp_path / "run", unconditional=True, **options)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["sampling"]["guidance_scale"] == 1
    with pytest.raises(OptionError, match="unconditional"):
        sample(tmp_path / "run", output=tmp_path / "images", num_samples=2, guidance_scale=2, device="cpu")


def test_a_model_that_starts_with_a_null_condition_may_be_guided() -> None:
    asked: Any = _Other()
    assert guided(Sampling(guidance_scale=1.0), 5.0, NEVER, asked).guidance_scale == 5.0
    assert guided(Sampling(guidance_scale=1.0), None, NEVER, asked).guidance_scale == 1.0
