"""`dcprune embed` against the encoder's own ceiling and against a plain DataLoader loop, in the same run.

The ceiling is the same network (compiled where `embed` compiles it), pass size and dtype on one fixed tensor. The
plain loop is what one writes first: ImageFolder or a TensorDataset, torchvision's PIL transforms, two workers, the
network of torchvision as it comes. `embed` reads, decodes, encodes and writes its file; loading weights and compiling
are not counted, and reported beside.

Run by hand, from the repository:

    python tests/benchmarks/embed.py [--case memory jpeg] [--num-samples 2048] [--batch-size 256] [--rounds 3]
        [--compile auto|on|off] [--device auto] [--dtype auto] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dcprune.api import embeddings as api
from dcprune.datasets.arrays import ArraySource
from dcprune.datasets.folder import ImageFolder
from dcprune.devices import autocast
from dcprune.embedding.pipeline import pass_size
from dcprune.encoders.residual import Network
from dcprune.interfaces import DatasetRequest, DatasetSource
from dcprune.processes import ALONE
from dcprune.progress import SILENT

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures(count: int, size: tuple[int, int], seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth random colour images, which JPEG compresses about as well as photos: uint8 [count, H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 12, 12, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic").add(
        0.05 * torch.randn(count, 3, *size, generator=generator)
    )
    return fine.clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).contiguous().numpy()


class Memory:
    """32 x 32 images in memory through ResNet-18 with the CIFAR stem."""

    size = 32

    def __init__(self, folder: Path, count: int) -> None:
        self.images = pictures(count, (32, 32), 0)
        self.source: DatasetSource = ArraySource("memory", "train", self.images, None, ())
        self.network = Network(64, "cifar", 0).eval()
        self.weights = folder / "cifar.pt"
        torch.save(self.network.state_dict(), self.weights)

    def plain(self) -> tuple[nn.Module, Dataset[Any]]:
        images = self.images
        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

        class Images(Dataset[Any]):
            def __len__(self) -> int:
                return len(images)

            def __getitem__(self, index: int) -> torch.Tensor:
                pixels: torch.Tensor = transform(Image.fromarray(images[index]))
                return pixels

        return Features(self.network), Images()


class Features(nn.Module):
    """The pooled features of our network as a module of their own."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network.features(pixels)


class Jpeg:
    """A folder of 500 x 375 JPEG files through torchvision's ResNet-18 at 224 px."""

    size = 224

    def __init__(self, folder: Path, count: int) -> None:
        self.root = folder / "jpeg"
        (self.root / "all").mkdir(parents=True)
        for start in range(0, count, 256):
            for number, image in enumerate(pictures(min(256, count - start), (375, 500), start)):
                Image.fromarray(image).save(self.root / "all" / f"{start + number:06d}.jpg", quality=90)
        self.source: DatasetSource = ImageFolder(DatasetRequest("folder", str(self.root)))
        torch.manual_seed(0)
        self.network = torchvision.models.resnet18().eval()
        self.weights = folder / "imagenet.pt"
        torch.save(self.network.state_dict(), self.weights)

    def plain(self) -> tuple[nn.Module, Dataset[Any]]:
        transform = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        self.network.fc = nn.Identity()
        return self.network, torchvision.datasets.ImageFolder(self.root, transform)


CASES: dict[str, type[Memory] | type[Jpeg]] = {"memory": Memory, "jpeg": Jpeg}


def measure(case: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Images per second of the three ways, interleaved."""
    data = CASES[case](folder, arguments.num_samples)
    options = api.EmbedOptions(
        weights=str(data.weights),
        batch_size=arguments.batch_size,
        compile=arguments.compile,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    started = time.perf_counter()
    job = api.prepare(data.source, "resnet18", options, progress=SILENT)
    loading = time.perf_counter() - started
    network, dataset = data.plain()
    device, dtype = job.pipeline.device, job.pipeline.dtype
    network.to(device)
    images = pass_size(device, job.pipeline.batch_size, data.size)
    pixels = torch.rand(images, 3, data.size, data.size, device=device).contiguous(memory_format=torch.channels_last)
    batches = -(-arguments.num_samples // images)

    @torch.inference_mode()
    def ceiling() -> int:
        for _ in range(batches):
            with autocast(device, dtype):
                encoded = job.pipeline._encode(pixels)
        encoded.float().cpu()
        return int(batches * len(pixels))

    @torch.inference_mode()
    def plain() -> int:
        done = 0
        for batch in DataLoader(dataset, arguments.batch_size, num_workers=2):
            images = batch[0] if isinstance(batch, list) else batch
            with autocast(device, dtype):
                done += len(network(images.to(device)).float().cpu())
        return done

    def ours() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            output = Path(place, "e.safetensors")
            partial, cost = api._embedded(job, Path(place, "partial"), ALONE, SILENT)
            api._write(job, partial, cost, output, None, False, SILENT)
        return len(job.source)

    ways: dict[str, Callable[[], int]] = {"embed": ours, "ceiling": ceiling, "plain loop": plain}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for warm_up in (True, *[False] * arguments.rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            done = way()
            if not warm_up:
                rates[name].append(done / (time.perf_counter() - begun))
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "case": case,
        "of_ceiling": median["embed"] / median["ceiling"],
        "of_plain_loop": median["embed"] / median["plain loop"],
        "images_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "compiled": job.pipeline.compiled,
        "loading_seconds": round(loading, 1),
        "num_samples": arguments.num_samples,
        "batch_size": job.pipeline.batch_size,
        "dtype": str(dtype),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--num-samples", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="off")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.case:
            found = measure(case, arguments, Path(folder))
            rates = {name: statistics.median(values) for name, values in found["images_per_second"].items()}
            shown = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
            ratios = f"{found['of_ceiling']:.2f} x ceiling, {found['of_plain_loop']:.2f} x plain loop"
            print(f"{ratios}   {case}: {shown} img/s")
            results.append(found)
    if arguments.json:
        record = {
            "command": sys.argv,
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        }
        arguments.json.write_text(json.dumps({**record, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
