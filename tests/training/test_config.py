from __future__ import annotations

from typing import Any

import pytest

from dcprune.errors import OptionError
from dcprune.training.config import TrainingConfig

RECIPE = {"epochs": 10, "batch_size": 32, "lr_warmup_epochs": 2}


def test_options_replace_the_recipe_and_none_leaves_it() -> None:
    config = TrainingConfig.resolve(RECIPE, {"batch_size": 8, "learning_rate": None, "seed": 3})
    assert (config.epochs, config.batch_size, config.seed) == (10, 8, 3)


def test_steps_replace_the_recipes_epochs() -> None:
    config = TrainingConfig.resolve(RECIPE, {"steps": 7})
    assert (config.epochs, config.steps) == (None, 7)
    config = TrainingConfig.resolve(RECIPE, {"lr_warmup_steps": 5})
    assert (config.lr_warmup_epochs, config.lr_warmup_steps) == (0, 5)


def test_text_may_be_json_and_null_is_no_value() -> None:
    recipe = {**RECIPE, "max_grad_norm": 1.0}
    config = TrainingConfig.resolve(recipe, {"betas": "[0.8, 0.95]", "max_grad_norm": "null"})
    assert (config.betas, config.max_grad_norm) == ((0.8, 0.95), None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"betas": "[0.9, "}, "betas.*no JSON"),
        ({"epochs": 1, "steps": 2}, "epochs=1 or steps=2"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": float("nan")}, "epochs=nan"),
        ({"steps": 1.5}, r"steps=1\.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": -1e-4}, r"learning_rate=-0\.0001"),
        ({"optimizer": "sgd"}, "optimizer='sgd'"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"anneal": 1.0}, r"anneal=1\.0"),
        ({"ema_decay": 1.0}, r"ema_decay=1\.0"),
        ({"class_weighting": "both"}, "class_weighting='both'"),
        ({"lr_warmup_epochs": 1, "lr_warmup_steps": 1}, "lr_warmup_epochs or lr_warmup_steps"),
        ({"batch": 3}, "'batch'.*batch_size"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        TrainingConfig.resolve(RECIPE, options)


def test_neither_epochs_nor_steps_is_refused() -> None:
    with pytest.raises(OptionError, match="exactly one"):
        TrainingConfig.resolve({}, {})


def test_it_survives_json() -> None:
    config = TrainingConfig.resolve(RECIPE, {"anneal": 0.875, "betas": (0.9, 0.99)})
    assert TrainingConfig(**config.model_dump(mode="json")) == config
