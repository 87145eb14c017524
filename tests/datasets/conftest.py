"""The same real images in every form that a source reads."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dcprune.datasets.fashion_mini import FashionMini
from dcprune.interfaces import DatasetRequest

CLASSES = ("bag", "shirt", "trouser")
ROWS_PER_CLASS = 7
SUFFIXES = ("png", "jpg")


@dataclass(frozen=True)
class Photos:
    """Files in the order of their paths: `content[i]` lies below `root` at `names[i]`."""

    root: Path
    names: list[str]
    contents: list[bytes]
    labels: list[int]
    captions: list[str]

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"image": name, "label": CLASSES[label], "caption": caption}
            for name, label, caption in zip(self.names, self.labels, self.captions, strict=True)
        ]

    def write_csv(self, name: str, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
        """A table below `root`."""
        path = self.root / name
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        return path


@pytest.fixture(scope="session")
def fashion_files() -> list[tuple[str, bytes, int]]:
    """21 images of Fashion-MNIST, grey and in colour, as PNG and JPEG files: path, bytes and label."""
    source = FashionMini(DatasetRequest("fashion-mini"))
    found = []
    for label, number in enumerate((8, 6, 1)):
        for position, row in enumerate(np.flatnonzero(source.labels == number)[:ROWS_PER_CLASS]):
            grey = source.image(int(row))[:, :, 0]
            colour = np.stack([grey, 255 - grey, np.roll(grey, position, axis=1)], axis=2)
            image = Image.fromarray(grey if position % 3 == 0 else colour)
            suffix = SUFFIXES[position % 2]
            stream = io.BytesIO()
            image.save(stream, {"png": "PNG", "jpg": "JPEG"}[suffix])
            found.append((f"{CLASSES[label]}/{position}.{suffix}", stream.getvalue(), label))
    return found


@pytest.fixture
def photos(tmp_path: Path, fashion_files: list[tuple[str, bytes, int]]) -> Photos:
    root = tmp_path / "photos"
    for name, content, _ in fashion_files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    names, contents, labels = (list(column) for column in zip(*fashion_files, strict=True))
    captions = [f'a "{CLASSES[label]}",\nnumber {row}, größer' for row, label in enumerate(labels)]
    return Photos(root, names, contents, labels, captions)


@pytest.fixture
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of Hugging Face reaches the network or the user's cache."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hf-cache"
