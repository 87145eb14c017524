"""How a model is trained: every option, validated, in one frozen record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dcprune.errors import OptionError
from dcprune.plugins import is_json

Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingConfig(BaseModel):
    """The options of a training run. A backend's preset holds them as a mapping.

    Attributes:
        epochs: passes over the coreset; with `anneal`, passes over whichever data its part of the run sees. An epoch
            over fewer samples has fewer updates.
        steps: number of updates, instead of `epochs`.
        batch_size: samples of one update, over all processes and portions.
        gradient_accumulation_steps: portions that a process computes one after the other for one update; more of them
            need less memory and change nothing else.
        learning_rate: peak learning rate.
        optimizer, weight_decay: Adam, AdamW, or Adan (Xie et al. 2022, arXiv 2208.06677).
        betas: decay of the optimizer's averages: of the gradient and its square, (0.9, 0.999) unless given; for Adan of
            the gradient, its differences and its square, (0.98, 0.92, 0.99).
        lr_schedule: what follows the warm-up.
        lr_warmup_epochs, lr_warmup_steps: length of the linear warm-up; at most one of them is above 0.
        max_grad_norm: gradients are scaled down to this norm; None leaves them.
        ema_decay: decay of the weights' moving average.
        ema_ramp: the decay of a step is min(ema_decay, 1 - step^(-2/3)), 0.9999 from a million updates on.
        label_dropout: probability of training a sample without its label, for classifier-free guidance.
        horizontal_flip: mirror every second sample at random.
        unconditional: learn without classes, as if the data had none.
        anneal: fraction of the epochs or steps that runs on the coreset; the rest runs on the full data with weights 1.
            None never leaves the coreset.
        class_weighting: class weights multiply the loss, or set how often a class is drawn.
        dynamic: `infobatch` leaves out half of the samples with a small loss, anew in every epoch, for seven eighths of
            the run; see `dcprune.training.infobatch`. With `epochs` that makes fewer updates.
        compile: whether `torch.compile` makes the network faster; `auto` where the run is long enough to repay it.
        log_every: steps between lines of `metrics.jsonl`.
        checkpoint_every: steps between checkpoints.
        sample_every: steps between sample grids; 0 draws one at the end only.
        keep_checkpoints: newest checkpoints that are kept.
        seed: of initial weights, data order, flips, label drops, timesteps, noise and dropout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: Positive | None = None
    steps: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=0)] = 128
    gradient_accumulation_steps: Annotated[int, Field(gt=0)] = 1
    learning_rate: Positive = 1e-4
    optimizer: Literal["adam", "adamw", "adan"] = "adam"
    betas: tuple[Beta, ...] = ()
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lr_schedule: Literal["constant", "cosine"] = "constant"
    lr_warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0
    max_grad_norm: Positive | None = 1.0
    ema_decay: Beta = 0.9999
    ema_ramp: bool = True
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    horizontal_flip: bool = True
    unconditional: bool = False
    anneal: Annotated[float, Field(gt=0, lt=1)] | None = None
    class_weighting: Literal["loss", "sampling"] = "loss"
    dynamic: Literal["infobatch"] | None = None
    compile: Literal["auto", "on", "off"] = "auto"
    log_every: Annotated[int, Field(gt=0)] = 100
    checkpoint_every: Annotated[int, Field(gt=0)] = 5000
    sample_every: Annotated[int, Field(ge=0)] = 0
    keep_checkpoints: Annotated[int, Field(gt=0)] = 2
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="before")
    @classmethod
    def _betas_of_the_optimizer(cls, values: dict[str, Any]) -> dict[str, Any]:
        known = _BETAS.get(str(values.get("optimizer", "adam")), ())
        return values if values.get("betas") else {**values, "betas": known}

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if len(self.betas) != len(_BETAS[self.optimizer]):
            raise ValueError(f"{self.optimizer} takes {len(_BETAS[self.optimizer])} betas, not {self.betas}")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give epochs or steps, exactly one (epochs={self.epochs}, steps={self.steps})")
        if self.lr_warmup_epochs and self.lr_warmup_steps:
            raise ValueError("give lr_warmup_epochs or lr_warmup_steps, not both")
        if self.gradient_accumulation_steps > self.batch_size:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} portions of a batch of "
                f"{self.batch_size} samples would be empty"
            )
        if self.dynamic is not None and self.anneal is not None:
            raise ValueError(
                f"dynamic={self.dynamic} returns to all samples by itself, so anneal={self.anneal} does not go with it"
            )
        if self.dynamic is not None and self.class_weighting == "sampling":
            raise ValueError(
                f"dynamic={self.dynamic} decides how often a sample is drawn, and so does class_weighting=sampling"
            )
        return self

    @classmethod
    def resolve(cls, defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        """A recipe with some of its options replaced; an override of None leaves the recipe's value.

        Epochs replace the recipe's steps and the other way round. Text may be JSON, `"[0.9, 0.95]"`, and `"null"` is no
        value at all (`max_grad_norm`).

        Args:
            defaults: a preset's `training`.
            overrides: options a user gave.

        Raises:
            OptionError: an unknown option, a value out of range, or options that exclude each other.
        """
        given = {name: _from_text(name, value) for name, value in overrides.items() if value is not None}
        if "epochs" in given and "steps" in given:
            raise OptionError(f"Give epochs={given['epochs']} or steps={given['steps']}, not both.")
        kept = dict(defaults)
        for name, other in _ALTERNATIVES.items():
            if name in given:
                kept.pop(other, None)
        try:
            return cls(**{**kept, **given})
        except ValidationError as error:
            raise OptionError(_explain(error)) from error


_BETAS: dict[str, tuple[float, ...]] = {
    "adam": (0.9, 0.999),
    "adamw": (0.9, 0.999),
    "adan": (0.98, 0.92, 0.99),
}

_ALTERNATIVES = {
    "epochs": "steps",
    "steps": "epochs",
    "lr_warmup_epochs": "lr_warmup_steps",
    "lr_warmup_steps": "lr_warmup_epochs",
}


def _from_text(name: str, value: Any) -> Any:
    if not is_json(value):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise OptionError(f"Training option {name}={value!r} is no JSON: {error}.") from error


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return f"Training options contradict each other: {first['msg'].removeprefix('Value error, ')}."
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return f"Unknown training option {name!r}. Known: {', '.join(TrainingConfig.model_fields)}."
    return f"Training option {name}={first['input']!r} does not fit: {first['msg']}."
