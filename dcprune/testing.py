"""For authors of plugins: data to test on, and one contract suite for each kind of item.

A suite raises AssertionError with the broken promise of `dcprune.interfaces`:

    def test_contract() -> None:
        dcprune.testing.check_scorer(MyScorer, settings={"power": 2})
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dcprune.artifacts import DatasetIdentity, Embeddings, EncoderInfo, Environment, Provenance, Rows
from dcprune.errors import MissingInput
from dcprune.interfaces import (
    Backend,
    Batch,
    DatasetRequest,
    DatasetSource,
    EncoderContext,
    Features,
    Gaussian,
    HasInfluence,
    HasSplits,
    PreparationContext,
    Progress,
    Rehearses,
    Sampling,
    ScoringContext,
    Task,
    TrainedRun,
    TrainingData,
    condition_of,
)
from dcprune.plugins import converted
from dcprune.progress import SILENT
from dcprune.selection import KEEP_POLICIES

if TYPE_CHECKING:
    import torch


def _require(holds: bool, promise: str) -> None:
    if not holds:
        raise AssertionError(promise)


class ShapesDataset:
    """Drawn squares, discs and stripes in class-dependent colours: a small real `DatasetSource` without files.

    Args:
        num_samples: number of images N; the classes take turns.
        num_classes: 1 to 3, or 0 for class-less data.
        size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        seed: places, sizes and shades.
    """

    split = "train"
    ids = None
    captions = None
    encoded = False
    streaming = False

    def __init__(
        self, num_samples: int = 24, num_classes: int = 3, size: int = 16, channels: int = 3, seed: int = 0
    ) -> None:
        self.uri = f"shapes-{num_samples}-{num_classes}-{size}-{channels}-{seed}"
        self.class_names = ("square", "disc", "stripes")[:num_classes]
        kinds = np.arange(num_samples) % max(1, num_classes)
        self.labels = kinds.astype(np.int64) if num_classes else None
        rng = np.random.default_rng(seed)
        self.array = np.stack([_draw(int(kind), size, channels, rng) for kind in kinds])
        self.sizes = np.full(num_samples, self.array[0].nbytes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.array)

    def image(self, index: int) -> NDArray[np.uint8]:
        """See `dcprune.interfaces.DatasetSource`."""
        image: NDArray[np.uint8] = self.array[index]
        return image

    def content(self, index: int) -> bytes:
        """See `dcprune.interfaces.DatasetSource`."""
        return self.image(index).tobytes()


def _draw(kind: int, size: int, channels: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:size, :size]
    centre = rng.uniform(0.35, 0.65, 2) * size
    radius = rng.uniform(0.2, 0.35) * size
    inside = (
        np.maximum(abs(rows - centre[0]), abs(columns - centre[1])) < radius,
        np.hypot(rows - centre[0], columns - centre[1]) < radius,
        (columns + int(centre[0])) // 2 % 2 == 0,
    )[kind]
    shade = rng.integers(150, 256, channels)
    noise = rng.integers(0, 30, (size, size, channels))
    return (np.where(inside[..., None], shade, 20) * 0.85 + noise).astype(np.uint8)


def gaussian_embeddings(
    num_samples: int = 120, num_classes: int = 3, dim: int = 8, seed: int = 0, labels: NDArray[np.int64] | None = None
) -> Embeddings:
    """Embeddings drawn from one anisotropic Gaussian per class.

    Args:
        num_samples: number of rows N.
        num_classes: number of classes K; 0 for class-less data.
        dim: width D.
        seed: seed of the draw.
        labels: int64 [N], when the class sizes matter; at random otherwise.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, max(1, num_classes), num_samples)
    classes = np.asarray(labels if labels is not None else drawn, dtype=np.int64)
    centres, scales = rng.normal(0, 3, (max(1, num_classes), dim)), rng.uniform(0.5, 2, (max(1, num_classes), dim))
    values = centres[classes] + scales[classes] * rng.normal(size=(num_samples, dim))
    return Embeddings(
        embeddings=Rows([values.astype(np.float32)]),
        labels=classes if num_classes else None,
        indices=np.arange(num_samples, dtype=np.int64),
        ids=None,
        encoder=EncoderInfo(
            name="gaussian", dim=dim, weights="none", weights_sha256=None, layer="none", preprocessing={}
        ),
        dataset=DatasetIdentity(
            uri="gaussian",
            split="train",
            num_samples=num_samples,
            num_classes=num_classes,
            class_names=tuple(f"class {label}" for label in range(num_classes)),
            fingerprint=f"{seed:064x}",
        ),
        provenance=_provenance("embed", {}, seed),
    )


def _provenance(command: str, config: Mapping[str, Any], seed: int = 0) -> Provenance:
    return Provenance(
        dcprune_version=metadata.version("dcprune"),
        command=command,
        config=dict(config),
        seed=seed,
        environment=Environment(python="", torch="", device="cpu", dtype="fp32"),
    )


def _rows_of(embeddings: Embeddings, rows: NDArray[np.int64]) -> Embeddings:
    return Embeddings(
        embeddings=Rows([embeddings.embeddings[rows]]),
        labels=None if embeddings.labels is None else embeddings.labels[rows],
        indices=embeddings.indices[rows],
        ids=None,
        encoder=embeddings.encoder,
        dataset=embeddings.dataset,
        provenance=embeddings.provenance,
    )


def scoring_context(
    seed: int = 0,
    ratio: float = 1.0,
    device: str = "cpu",
    open_dataset: Callable[[], DatasetSource] = ShapesDataset,
    open_run: Callable[[Path], TrainedRun] | None = None,
) -> ScoringContext:
    """A `ScoringContext` for calling a scorer in a test; without `open_run` there are no trained runs."""
    import torch

    def no_run(folder: Path) -> TrainedRun:
        raise MissingInput(f"There is no run {folder} in this test.")

    return ScoringContext(
        seed=seed,
        device=torch.device(device),
        ratio=ratio,
        progress=SILENT,
        open_dataset=open_dataset,
        open_run=open_run or no_run,
    )


def check_scorer(
    scorer: Callable[..., Any],
    *,
    settings: Mapping[str, Any] | None = None,
    context: Callable[[Embeddings, int, float], ScoringContext] | None = None,
) -> None:
    """Contract of `dcprune.interfaces.Scorer`.

    N finite float scores; the same for the same seed; they follow their samples when the rows are shuffled; classes of
    one sample, absent classes and class-less data work; the embeddings are left alone; the keep policy exists; a class
    of a `per_class` scorer gets the same scores when it is alone.

    Args:
        scorer: the class.
        settings: its parameters.
        context: `(embeddings, seed, ratio)` -> what the scorer may use, for scorers that need images or a run;
            `scoring_context` by default.
    """
    item = scorer(**converted(scorer, settings or {}, "scorer under test"))
    make = context or (lambda data, seed, ratio: scoring_context(seed, ratio))
    _require(item.keep in KEEP_POLICIES, f"keep is {item.keep!r}, not one of {', '.join(KEEP_POLICIES)}")
    _require(isinstance(item.per_class, bool), "per_class says whether a class is scored by itself")
    uneven = np.array([0] * 40 + [2] * 30 + [3], dtype=np.int64)
    for data in (
        gaussian_embeddings(),
        gaussian_embeddings(num_classes=0),
        gaussian_embeddings(len(uneven), num_classes=5, labels=uneven),
        gaussian_embeddings(num_samples=12, num_classes=2, dim=20),
    ):
        before = data.embeddings[:].copy()
        scores = np.asarray(item.score(data, make(data, 1, 1.0)))
        again = np.asarray(item.score(data, make(data, 1, 1.0)))
        _require(scores.shape == (len(before),), f"score returned shape {scores.shape} for {len(before)} samples")
        _require(bool(np.isfinite(scores).all()), "score returned NaN or infinity")
        _require(bool(np.array_equal(scores, again)), "score differs between two calls with the same seed")
        _require(bool(np.array_equal(before, data.embeddings[:])), "score changed the embeddings")
        order = np.random.default_rng(2).permutation(len(before))
        shuffled = np.asarray(item.score(_rows_of(data, order), make(data, 1, 1.0)))
        _require(_close(shuffled, scores[order]), "scores depend on the order of rows")
        partial = np.asarray(item.score(data, make(data, 1, 0.25)))
        _require(bool(np.isfinite(partial).all()), "score returned NaN or infinity at a smaller ratio")
        if item.per_class:
            for label, rows in data.classes():
                alone = np.asarray(item.score(_rows_of(data, rows), make(data, 1, 1.0)))
                _require(_close(alone, scores[rows]), f"the scores of class {label} depend on the other classes")


def _close(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return bool(np.allclose(one, other, rtol=1e-6, atol=1e-8))


def check_dataset(source: DatasetSource) -> None:
    """Contract of `dcprune.interfaces.DatasetSource`.

    Columns of one length; int64 labels within the distinct classes; ids distinct; captions that are texts; uint8 images
    of one channel count; the same image and bytes when read twice, from several threads and in any order, and through
    `array` and `content` where they are offered; as many bytes as `sizes` says; the fingerprint is reproducible.
    """
    from concurrent.futures import ThreadPoolExecutor

    from dcprune.datasets.decode import decode
    from dcprune.sources import identify

    count = len(source)
    _require(count > 0, "the dataset is empty")
    _require(len(source.sizes) == count, f"{len(source.sizes)} sizes for {count} samples")
    if source.labels is None:
        _require(source.class_names == (), "class_names without labels")
    else:
        _require(source.labels.shape == (count,), f"labels of shape {source.labels.shape} for {count} samples")
        _require(source.labels.dtype == np.int64, f"labels are {source.labels.dtype}, not int64")
        _require(len(set(source.class_names)) == len(source.class_names), "class_names are not distinct")
        inside = source.labels.min() >= 0 and source.labels.max() < len(source.class_names)
        _require(bool(inside), "labels outside class_names")
    if source.ids is not None:
        _require(len(set(source.ids)) == count, "ids are not distinct")
    if source.captions is not None:
        _require(len(source.captions) == count, f"{len(source.captions)} captions for {count} samples")
        _require(all(isinstance(source.captions[row], str) for row in (0, count - 1)), "a caption is no text")
    channels = source.image(0).shape[2]
    chosen = sorted({0, count // 2, count - 1})
    with ThreadPoolExecutor(len(chosen)) as pool:
        from_threads = list(pool.map(source.content, reversed(chosen)))[::-1]
    for index, content in zip(chosen, from_threads, strict=True):
        image = source.image(index)
        _require(content == source.content(index), f"the bytes of {index} differ when several threads read")
        _require(
            len(content) == source.sizes[index], f"{len(content)} bytes of {index}, {source.sizes[index]} in sizes"
        )
        _require(image.dtype == np.uint8 and image.ndim == 3, f"image {index} is {image.dtype} {image.shape}")
        _require(image.shape[2] == channels and channels in (1, 3), f"image {index} has {image.shape[2]} channels")
        _require(bool(np.array_equal(image, source.image(index))), f"image {index} differs when read twice")
        _require(source.content(index) == source.content(index), f"the bytes of {index} differ when read twice")
        if source.array is not None:
            _require(bool(np.array_equal(image, source.array[index])), f"array[{index}] is not image({index})")
        if source.encoded:
            same = np.array_equal(image, decode(source.content(index), str(index)))
            _require(same, f"the source is declared encoded, but image({index}) is not what its bytes decode to")
    _require(identify(source) == identify(source), "the fingerprint is not reproducible")


def check_encoder(
    encoder: Callable[..., Any],
    *,
    settings: Mapping[str, Any] | None = None,
    weights: str | None = None,
    dataset: DatasetSource | None = None,
    **fixed: Any,
) -> None:
    """Contract of `dcprune.interfaces.Encoder`.

    `load` describes the encoder in JSON values, and its settings construct it again; `preprocess` gives float32
    [B, 3, S, S] of one S, and a grey image what its three equal channels give; `encode` gives finite [B, D] of the
    width that was said, which does not depend on the batch an image is in; grey and RGB images of several sizes work;
    no gradient is kept; where no weights are given and it is a `Rehearses`, untrained ones load in their place. `fixed`
    are constructor arguments that are no settings, such as `argument`.
    """
    import torch

    from dcprune.sources import identify
    from dcprune.weights import write_weights

    exclude = ("weights", *fixed)
    named = converted(encoder, settings or {}, "encoder under test", exclude=exclude)
    item = encoder(weights=weights, **named, **fixed)
    source = dataset or ShapesDataset()
    with tempfile.TemporaryDirectory() as cache:
        for file in item.downloads(Path(cache)):
            _require("://" in file.url, f"downloads() names {file.url!r}, which is no address")
        context = EncoderContext(
            dataset=source,
            fingerprint=identify(source).fingerprint,
            device=torch.device("cpu"),
            dtype=torch.float32,
            seed=0,
            cache_dir=Path(cache),
            progress=SILENT,
        )
        info = item.load(context)
        if weights is None and isinstance(item, Rehearses):
            found = item.untrained(context)
            write_weights(path := Path(cache) / "untrained.safetensors", found.tensors, found.metadata)
            other = encoder(weights=str(path), **named, **fixed).load(context)
            _require(other.dim == info.dim, f"untrained weights give {other.dim} dimensions, the real ones {info.dim}")
    stored = json.loads(json.dumps(info.model_dump(mode="json")))["settings"]
    encoder(weights=weights, **converted(encoder, stored, "encoder under test", exclude=exclude), **fixed)
    _require(item.shorter_side is None or item.shorter_side > 0, f"shorter_side is {item.shorter_side}")
    _require(isinstance(item.compilable, bool), "compilable says whether torch.compile may be tried")
    generator = torch.Generator().manual_seed(0)
    edges = set()
    for channels, height, width in ((1, 28, 28), (3, 28, 28), (3, 40, 33)):
        images = torch.randint(0, 256, (3, channels, height, width), generator=generator, dtype=torch.uint8)
        pixels = item.preprocess(images)
        _require(
            pixels.dtype == torch.float32 and pixels.shape[:2] == (3, 3), "preprocess must give float32 [B, 3, S, S]"
        )
        edges |= set(pixels.shape[2:])
        if channels == 1:
            rgb = item.preprocess(images.expand(-1, 3, -1, -1))
            _require(torch.allclose(pixels, rgb, atol=1e-5 * float(rgb.abs().max())), "grey differs from equal RGB")
        with torch.inference_mode():
            together = item.encode(item.preprocess(images))
            alone = torch.cat([item.encode(item.preprocess(image[None])) for image in images])
        _require(tuple(together.shape) == (3, info.dim), f"encode gave {tuple(together.shape)}, dim is {info.dim}")
        _require(bool(torch.isfinite(together).all()), "encode gave NaN or infinity")
        close = torch.allclose(together, alone, rtol=1e-4, atol=1e-4)
        _require(close, "an embedding depends on the other images of its batch (is the network in eval mode?)")
    _require(len(edges) == 1, f"preprocess gives edges of {sorted(edges)} pixels, not one")
    _require(not item.encode(pixels).requires_grad, "encode keeps gradients")


def check_backend(
    backend: Callable[..., Any], *, settings: Mapping[str, Any] | None = None, dataset: DatasetSource | None = None
) -> None:
    """Contract of `dcprune.interfaces.Backend`.

    The presets `paper` and `tiny` exist, and every preset fits; settings rebuild the backend; the same seed builds the
    same model; losses are finite [B] at every timestep, with gradients, and draw from the generator they are given
    alone; with every sampler a sample depends on its seed and label, not on its batch; save and load keep the model.
    """
    import torch

    item = backend(**converted(backend, settings or {}, "backend under test"))
    _check_presets(backend)
    rebuilt = backend(**json.loads(json.dumps(item.settings())))
    _require(rebuilt.settings() == item.settings(), "settings() do not rebuild the backend")
    source = dataset or ShapesDataset()
    data = item.prepare(source, preparation_context())
    _require(len(data) == len(source), f"prepare kept {len(data)} of {len(source)} samples")
    shape = {"num_classes": len(source.class_names), "sample_shape": data.sample_shape}
    model, twin = item.build(**shape, seed=1), item.build(**shape, seed=1)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        _require(bool(torch.equal(one, other)), "build gives different weights for the same seed")
    _check_losses(item, data, model)
    _check_samples(item, data, model.eval())


def _check_presets(backend: Any) -> None:
    from dcprune.training.config import TrainingConfig

    _require({"paper", "tiny"} <= set(backend.presets), "presets must hold paper and tiny")
    for name, preset in backend.presets.items():
        made = backend(**converted(backend, preset.model, f"preset {name!r}"))
        TrainingConfig.resolve(preset.training, {})
        known = preset.sampling.sampler in made.samplers
        _require(known, f"preset {name!r} has the sampler {preset.sampling.sampler!r}, which samplers does not hold")
        _require(preset.proxy_epochs > 0 and preset.num_samples > 0, f"preset {name!r} has no proxy or no samples")


def _check_losses(item: Backend, data: TrainingData, model: torch.nn.Module) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    x0 = data.x0(torch.arange(4), torch.zeros(4, dtype=torch.bool), generator)
    _require(tuple(x0.shape) == (4, *data.sample_shape), f"x0 has shape {tuple(x0.shape)}")
    batch = Batch(
        x0=x0,
        labels=data.labels[:4],
        dropped=torch.tensor([False, False, True, False]),
        condition=condition_of(data, torch.arange(4)),
    )
    noise = torch.randn(x0.shape, generator=generator)
    last = item.num_train_timesteps - 1
    timesteps = torch.tensor([0, last // 3, last - last // 3, last])

    def losses() -> torch.Tensor:
        return item.per_sample_loss(model, batch, timesteps, noise, torch.Generator().manual_seed(1))

    found = losses()
    _require(tuple(found.shape) == (4,) and found.dtype == torch.float32, "losses must be float32, of shape [B]")
    _require(bool(torch.isfinite(found).all()), f"the losses at timesteps {timesteps.tolist()} are {found.tolist()}")
    found.mean().backward()  # type: ignore[no-untyped-call]
    _require(any(each.grad is not None for each in model.parameters()), "the loss has no gradient")
    model.eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        same = torch.equal(losses(), losses())
    _require(same, "the losses of a model in evaluation mode differ for the same draw")
    untouched = torch.equal(state, torch.get_rng_state())
    _require(untouched, "the loss of a model in evaluation mode draws from the global generator")


def _check_samples(item: Backend, data: TrainingData, model: torch.nn.Module) -> None:
    import torch

    labels, seeds = data.labels[:3], [5, 6, 7]
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        item.save(model, Path(folder))
        loaded = item.load(Path(folder)).eval()
        for sampler in item.samplers:
            sampling = Sampling(sampler=sampler, num_inference_steps=2, guidance_scale=1.5)
            images = item.sample(model, labels, seeds, sampling)
            _require(
                images.dtype == torch.uint8 and images.ndim == 4 and len(images) == 3, "samples must be uint8 NCHW"
            )
            last = item.sample(model, labels[2:], seeds[2:], sampling)
            apart = (images[2:].int() - last.int()).abs().max()
            _require(int(apart) <= 1, f"a sample of {sampler!r} depends on the batch it is drawn in")
            again = item.sample(loaded, labels, seeds, sampling)
            _require(bool(torch.equal(images, again)), f"with {sampler!r}, load is not what save wrote")


def check_metric(metric: Callable[..., Any], *, settings: Mapping[str, Any] | None = None, **fixed: Any) -> None:
    """Contract of `dcprune.interfaces.Metric`.

    A finite value; the same when the images are shuffled; the protocol and the encoder's settings are JSON values.
    What else it says about itself holds: a value from moments, or without a reference, is the same; its splits have
    the value as their mean; influences are finite, of mean 0.
    `fixed` are constructor arguments that are no settings, such as `argument`.
    """
    item = metric(**converted(metric, settings or {}, "metric under test", exclude=fixed), **fixed)
    json.dumps([item.protocol(), dict(item.encoder.settings)])
    dim = 4
    count = max(64, int(item.min_samples(dim)))
    rng = np.random.default_rng(0)
    encoder = gaussian_embeddings(dim=dim).encoder
    reference = Features(rng.normal(size=(count, dim)).astype(np.float32), None, encoder)
    generated = Features((rng.normal(size=(count, dim)) + 0.5).astype(np.float32), None, encoder)
    value = item.value(generated, reference)
    shuffled = Features(generated.features[rng.permutation(count)], None, encoder)
    _require(bool(np.isfinite(value)), "the value is not finite")
    _require(bool(np.isclose(value, item.value(shuffled, reference), rtol=1e-6)), "the value depends on the order")
    _check_abilities(item, value, generated, reference)


def _check_abilities(item: Any, value: float, generated: Features, reference: Features) -> None:
    if getattr(item, "takes_moments", False):
        moments = Gaussian(
            reference.features.mean(axis=0, dtype=np.float64),
            np.cov(reference.features.astype(np.float64), rowvar=False),
            len(reference.features),
        )
        same = np.isclose(value, item.value(generated, moments), rtol=1e-6)
        _require(bool(same), "takes_moments is true, and the value from moments is another")
    if not getattr(item, "needs_reference", True):
        _require(item.value(generated, None) == value, "needs_reference is false, and the reference changes the value")
    if isinstance(item, HasSplits):
        splits = item.splits(generated, reference)
        _require(splits.ndim == 1 and bool(np.isclose(splits.mean(), value)), "the value is not the mean of the splits")
    if isinstance(item, HasInfluence):
        effects = item.influence(generated, reference)
        _require(effects.shape == (len(generated.features),), f"influence has shape {effects.shape}")
        _require(bool(np.isfinite(effects).all()), "an influence is not finite")
        scale = float(np.abs(effects).max())
        _require(abs(float(effects.mean())) <= 1e-6 * max(scale, 1e-12), "influences do not have the mean 0")


class RecordingProgress:
    """A `Progress` that shows nothing and keeps what it is told, for a look at it afterwards.

    Attributes:
        notes, warnings: messages.
        tasks: descriptions of the tasks that were opened.
        done: units that all of them counted.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.tasks: list[str] = []
        self.done = 0

    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Task]:
        self.tasks.append(description)
        return nullcontext(self)

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self.done += amount

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def random_autoencoder(**config: Any) -> Any:
    """An `AutoencoderKL` of diffusers with random weights from a fixed seed: 3 channels, latents of 4, sides by 4.

    Args:
        config: more of its configuration, such as `scaling_factor`.
    """
    import torch
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            norm_num_groups=4,
            latent_channels=4,
            **config,
        ).eval()


def preparation_context(progress: Progress = SILENT) -> PreparationContext:
    """What `Backend.prepare` is given, on the CPU; latents are kept in the user's cache, as `train` keeps them."""
    import torch

    from dcprune.latents import preparation

    cpu = torch.device("cpu")
    return preparation(cpu, provenance=lambda options: _provenance("prepare", options), progress=progress)


def request(location: str = "", *, split: str = "train", data_dir: Path | None = None) -> DatasetRequest:
    """A `DatasetRequest` for constructing a dataset source in a test; nothing is downloaded."""
    return DatasetRequest("under-test", location, split, data_dir or Path("data"), download=False)
