"""What the samples of a dataset are called, and what generated images are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import DatasetSource

PromptSource = Literal["auto", "captions", "classes"]

EMPTY = ""
FILE = "prompts.json"
# Captions of a class that a run remembers: enough for the images of an evaluation to differ.
_REMEMBERED = 1000


@dataclass(frozen=True)
class Prompts:
    """Texts that a model draws the images of a label for; what `prompts.json` of a model folder holds.

    Attributes:
        by_label: one or more texts for every label; of class-less data for the one label 0.
    """

    by_label: tuple[tuple[str, ...], ...]

    def choose(self, label: int, seed: int) -> str:
        """The text for an image: a function of its label and its seed."""
        texts = self.by_label[label]
        return texts[0] if len(texts) == 1 else texts[int(np.random.default_rng(seed).integers(len(texts)))]

    def save(self, folder: Path) -> None:
        """Write `prompts.json` into a folder."""
        text = json.dumps({"by_label": self.by_label}, indent=1, ensure_ascii=False)
        (folder / FILE).write_text(f"{text}\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """The inverse of `save`.

        Raises:
            WeightsError: there is no such file, or a damaged one.
        """
        try:
            found: Any = json.loads((folder / FILE).read_text(encoding="utf-8"))
            by_label = tuple(tuple(str(text) for text in texts) for texts in found["by_label"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{folder / FILE} cannot be read: {error}.") from error
        if not by_label or not all(by_label):
            raise WeightsError(f"{folder / FILE} is damaged: a label has no prompt.")
        return cls(by_label)


UNCONDITIONAL = Prompts(((EMPTY,),))


@dataclass(frozen=True)
class PromptedSamples:
    """Distinct texts, and which of them every sample of a dataset has.

    Attributes:
        texts: M distinct ones.
        of_sample: int64 [N], positions in `texts`.
        prompts: what images are drawn for.
    """

    texts: tuple[str, ...]
    of_sample: np.ndarray[Any, np.dtype[np.int64]]
    prompts: Prompts


def check_template(template: str) -> None:
    """Raise OptionError for a template that does not name the class, or names something else."""
    try:
        named = template.format_map(_Class("\0"))
    except (KeyError, IndexError, ValueError) as error:
        raise OptionError(
            f"template={template!r} does not fit: {error}. Write it like 'a photo of a {{class}}'."
        ) from error
    if "\0" not in named:
        raise OptionError(f"template={template!r} does not name the class: write it like 'a photo of a {{class}}'.")


class _Class(Mapping[str, str]):
    """The one word that a template may hold."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, key: str) -> str:
        if key != "class":
            raise KeyError(key)
        return self.name

    def __iter__(self) -> Any:
        return iter(("class",))

    def __len__(self) -> int:
        return 1


def prompted(dataset: DatasetSource, source: PromptSource, template: str) -> PromptedSamples:
    """The prompts of a dataset.

    Args:
        dataset: N samples.
        source: `captions`, or `classes` put into the template; `auto` takes captions where there are some, and the
            empty prompt where there are neither.
        template: text with `{class}` in it.

    Raises:
        OptionError: captions or classes that the dataset does not have.
    """
    count = len(dataset)
    labels = np.zeros(count, dtype=np.int64) if dataset.labels is None else np.asarray(dataset.labels)
    captions: Sequence[str] | None = dataset.captions
    if source == "captions" and captions is None:
        raise OptionError(
            f"prompts=captions, but {dataset.uri!r} has no captions for all images. Name their column, as in "
            "table.csv?caption=COLUMN, put a text beside every image of a folder, or use classes."
        )
    if source == "classes" and not dataset.class_names:
        raise OptionError(f"prompts=classes, but {dataset.uri!r} has no classes.")
    if captions is None or source == "classes":
        by_class = tuple(template.format_map(_Class(name.replace("_", " "))) for name in dataset.class_names) or (
            EMPTY,
        )
        texts = tuple(dict.fromkeys(by_class))
        position = np.array([texts.index(text) for text in by_class], dtype=np.int64)
        return PromptedSamples(texts, position[labels], Prompts(tuple((text,) for text in by_class)))
    texts = tuple(dict.fromkeys(captions))
    positions = {text: position for position, text in enumerate(texts)}
    of_sample = np.array([positions[caption] for caption in captions], dtype=np.int64)
    by_label = [
        _spread([texts[position] for position in np.unique(of_sample[labels == label])])
        for label in range(max(1, len(dataset.class_names)))
    ]
    return PromptedSamples(texts, of_sample, Prompts(tuple(found or (EMPTY,) for found in by_label)))


def doubts(dataset: DatasetSource, source: PromptSource) -> str | None:
    """What is odd about the captions of a dataset, for a warning; None when nothing is."""
    count = len(dataset)
    if source == "classes":
        return None
    if dataset.captions is None:
        some: int = getattr(dataset, "num_captioned", 0)
        if not some:
            return None
        return (
            f"Not all images of {dataset.uri!r} have a caption, so none of them is used: the prompts are made from "
            "the classes. Caption all, or say --set prompts=classes."
        )
    empty = sum(not text.strip() for text in dataset.captions)
    return f"{empty:,} of {count:,} captions of {dataset.uri!r} are empty." if empty else None


def _spread(texts: list[str]) -> tuple[str, ...]:
    """At most so many texts, from all over the list."""
    return tuple(texts[:: -(-len(texts) // _REMEMBERED)]) if texts else ()
