"""A class that is hard on purpose: one label for five kinds of clothing, beside five labels for one kind each.

planted_class.py images FOLDER             writes an image folder of real images, 400 in every class
planted_class.py report FILE WEIGHTS...    the class weights of several proxies, side by side
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dcprune import formats
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.interfaces import DatasetRequest

PLAIN = ("Trouser", "Dress", "Sneaker", "Bag", "Ankle boot")
PLANTED = "mixed"
IN_A_CLASS = 400


def write_images(folder: Path) -> None:
    """As many images of every plain class as of the planted one, which takes a fifth from each of the others."""
    source = FashionMini(DatasetRequest("fashion-mini"))
    labels = np.asarray(source.labels)
    for label, name in enumerate(source.class_names):
        target = folder / (name if name in PLAIN else PLANTED)
        target.mkdir(parents=True, exist_ok=True)
        for index in np.flatnonzero(labels == label)[: IN_A_CLASS if name in PLAIN else IN_A_CLASS // 5].tolist():
            Image.fromarray(source.image(index).squeeze()).save(target / f"{index:04d}.png")


def report(result: Path, files: list[str]) -> None:
    """Write the weights of every file, and print them."""
    found = [formats.read_class_weights(file) for file in files]
    environment = found[0].provenance.environment.model_dump(mode="json")
    seeds = {str(each.provenance.seed): dict(each.weights) for each in found}
    document = {
        "command": "examples/reweight/planted-class.sh",
        "environment": environment,
        "steps": found[0].objective.steps,
        "weights": seeds,
        "weights_at_the_end": {
            seed: dict(zip(each.weights, each.diagnostics.trajectory[-1][1], strict=True))
            for seed, each in zip(seeds, found, strict=True)
        },
    }
    result.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    for name in found[0].weights:
        sys.stdout.write(f"{name:12}" + "".join(f"{weights[name]:8.2f}" for weights in seeds.values()) + "\n")


def main() -> None:
    what, target, *files = sys.argv[1:]
    if what == "images":
        write_images(Path(target))
    else:
        report(Path(target), files)


if __name__ == "__main__":
    main()
