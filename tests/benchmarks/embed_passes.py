"""Forward passes on a CPU: as many images as `embed` takes at once against a whole batch, in the same run.

Random weights from a seed, normalisations folded, channels last, float32, 224 x 224. Run by hand, from the repository:

    python tests/benchmarks/embed_passes.py [--models resnet18 tf_efficientnet_lite0] [--batch-size 256] [--rounds 3]
        [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch

from dcprune.embedding.pipeline import pass_size
from dcprune.encoders.folding import fold_batch_norm

SIZE = 224


@torch.inference_mode()
def measure(model: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Seconds per image of both ways, interleaved."""
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=0).eval().requires_grad_(False)
    fold_batch_norm(network, network, SIZE)
    network.to(memory_format=torch.channels_last)
    batch = torch.randn(batch_size, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    size = pass_size(torch.device("cpu"), batch_size, SIZE)
    seconds: dict[int, list[float]] = {size: [], batch_size: []}
    for warm_up in (True, *[False] * rounds):
        for number, taken in seconds.items():
            begun = time.perf_counter()
            for part in torch.split(batch, number):
                network(part)
            if not warm_up:
                taken.append((time.perf_counter() - begun) / batch_size)
    median = {number: statistics.median(taken) for number, taken in seconds.items()}
    return {
        "model": model,
        "pass_size": size,
        "batch_size": batch_size,
        "ratio": median[batch_size] / median[size],
        "images_per_second": {number: [round(1 / each, 1) for each in taken] for number, taken in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0"])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for model in options.models:
        found.append(measure(model, options.batch_size, options.rounds))
        print("{ratio:4.2f} x  {model}: passes of {pass_size} against {batch_size}".format(**found[-1]), flush=True)
    if options.json:
        record = {"command": sys.argv, "torch": torch.__version__, "threads": options.threads, "results": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
