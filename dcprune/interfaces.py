"""What a plugin supplies: one Protocol per kind of item, with shapes and dtypes.

A plugin class needs none of these as a base; it only has to look like one. `dcprune.testing` has a contract suite for
each. Every item is constructed with keyword settings (`--set key=value`); their types and defaults are read from the
constructor's signature, and values are converted to the annotated types before the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings, EncoderInfo
from dcprune.presets import Preset as Preset
from dcprune.presets import Sampling as Sampling

if TYPE_CHECKING:
    import torch


# --- progress ---------------------------------------------------------------------------------------------------------


class Task(Protocol):
    """One piece of long work that is being counted."""

    def advance(self, amount: int = 1, **values: float | str) -> None:
        """Count `amount` more units; `values` are shown beside the bar (`loss=0.03`)."""


@runtime_checkable
class ClassTask(Protocol):
    """What a `Task` may be, too: one that also shows a number for every class."""

    def show_classes(self, values: Mapping[str, float | None]) -> None:
        """Replace the numbers by class name; None where there is none."""


class Progress(Protocol):
    """How long work reports; the command line draws it, a library caller gets silence."""

    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Task]:
        """Open a task of `total` units (None: unknown)."""

    def note(self, message: str) -> None:
        """Say something that a user wants to know."""

    def warn(self, message: str) -> None:
        """Say something that a user should act on."""


# --- downloads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Download:
    """One file that an item fetches when it is not on this machine yet.

    Attributes:
        url: where from: an https address, or `hf://org/name@revision/file` for a file on the Hugging Face hub.
        path: where it belongs on this machine, and where a file that was fetched by hand is found.
        sha256: its hash, whole or a prefix; empty when nobody publishes one.
        num_bytes: its size, where that is known.
    """

    url: str
    path: Path
    sha256: str = ""
    num_bytes: int | None = None


# --- datasets ---------------------------------------------------------------------------------------------------------


COLUMNS = ("image", "label", "caption")


@dataclass(frozen=True)
class DatasetRequest:
    """What a dataset source is constructed with, as its only positional argument.

    Attributes:
        name: the registered name.
        location: what followed the name and a colon, or the path of a folder; empty for plain names.
        split: the split that was asked for.
        data_dir: where datasets lie on this machine.
        download: whether the source may fetch what is missing.
        columns: which columns of a table hold what, where a user says so: keys of `COLUMNS` to column names. A source
            that takes them says which in a class attribute `takes_columns`; others are never given any.
    """

    name: str
    location: str = ""
    split: str = "train"
    data_dir: Path = Path("data")
    download: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def query(self) -> str:
        """The columns as they end a URI (`?label=kind`), empty without any: a source that takes columns appends it."""
        given = {role: self.columns[role] for role in COLUMNS if role in self.columns}
        return f"?{urlencode(given)}" if given else ""


@runtime_checkable
class DatasetSource(Protocol):
    """Labelled or class-less images.

    Attributes:
        uri: what a user types to get this dataset again.
        split: the split.
        class_names: K distinct names in label order; empty for class-less data.
        labels: int64 [N] in [0, K), or None for class-less data.
        ids: N distinct strings, or None when the id is the index.
        captions: N texts, for text-to-image backends; None when there are none. A source that leaves them out because
            only some samples have one may say how many in an attribute `num_captioned`.
        sizes: int64 [N], stored bytes of every sample (of the raw array when there is no file).
        array: all decoded images as one uint8 [N, H, W, C] where they lie in memory, else None.
        encoded: whether `content` is an image file whose decoding `image` returns; then a caller may decode it in its
            own way (reduced in size, or on a GPU).
        streaming: whether samples are cheap only in ascending order; going back starts over.
    """

    uri: str
    split: str
    class_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    encoded: bool
    streaming: bool

    @property
    def captions(self) -> Sequence[str] | None: ...

    @property
    def array(self) -> NDArray[np.uint8] | None: ...

    @property
    def labels(self) -> NDArray[np.int64] | None: ...

    @property
    def ids(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decoded sample as uint8 [H, W, C], C = 1 (grey) or 3 (RGB), the same C for all samples; from any thread.

        Raises:
            DatasetError: the sample cannot be decoded; the message names its id.
        """

    def content(self, index: int) -> bytes:
        """Stored bytes of a sample, from any thread.

        Raises:
            DatasetError: the bytes cannot be read; the message names the sample's id.
        """


@runtime_checkable
class FetchesFiles(Protocol):
    """What the class of a `DatasetSource` also is when it fetches files that are not on this machine yet."""

    def downloads(self, request: DatasetRequest) -> Sequence[Download]:
        """Files that opening `request` fetches, a static method.

        The `path` of one is where it lies, packed or unpacked, when it is there already.
        """


@dataclass(frozen=True)
class Outline:
    """How large a published dataset is, which the class of its `DatasetSource` may say in an attribute `outline`.

    Then the cost of working on it can be told before anybody has fetched it.

    Attributes:
        num_samples: by split.
        num_classes: K.
        image_shape: (H, W, C) of a typical image.
    """

    num_samples: Mapping[str, int]
    num_classes: int
    image_shape: tuple[int, int, int]


@runtime_checkable
class FilesOnDisk(Protocol):
    """What a `DatasetSource` also is when every sample is a file of its own: then it can be linked to."""

    def path(self, index: int) -> Path:
        """Where the file of a sample lies."""


@runtime_checkable
class Relabels(Protocol):
    """What a `DatasetSource` also is when its samples are those of another source, under labels of its own."""

    @property
    def base(self) -> DatasetSource:
        """The other source."""


@runtime_checkable
class HoldsTable(Protocol):
    """What a `DatasetSource` also is when its samples are rows of a `datasets.Dataset`: then no column need be lost."""

    @property
    def table(self) -> Any:
        """The `datasets.Dataset`, its rows in the order of the samples."""


# --- encoders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderContext:
    """What an encoder may need to load its weights.

    Attributes:
        dataset: the dataset about to be embedded, for encoders that are trained on it.
        fingerprint: its fingerprint, the key of the surrogate cache.
        device: where the network runs.
        dtype: autocast dtype of the forward pass.
        seed: seed of any training.
        cache_dir: where downloaded and trained weights are kept.
        progress: for long work.
        may_train: whether `load` may train weights that are not there; otherwise it raises WeightsError.
    """

    dataset: DatasetSource
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    seed: int
    cache_dir: Path
    progress: Progress
    may_train: bool = True


class Encoder(Protocol):
    """Maps images to vectors. Constructed with `weights` (a path, a name or None for its default) and its settings.

    `encode(preprocess(images))` of an image must not depend on the other images of the batch.

    Attributes:
        shorter_side: pixels that `preprocess` brings an image's shorter side to, so that a larger JPEG need not be
            decoded whole; None when it takes images as they are. Known after `load`.
        compilable: whether `torch.compile` may be tried on `encode`.
        weight_names: names that `weights` may be besides a path; an encoder without any need not have it.
    """

    shorter_side: int | None
    compilable: bool

    def __init__(self, *, weights: str | None = None) -> None: ...

    def downloads(self, cache_dir: Path) -> Sequence[Download]:
        """Files that `load` fetches unless they are there; empty when the weights are local or trained here."""

    def load(self, context: EncoderContext) -> EncoderInfo:
        """Get the weights onto `context.device`, in inference mode, and describe the encoder.

        Raises:
            WeightsError: no weights, a failed download, or tensors that do not fit.
        """

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] with C in (1, 3) -> float32 [B, 3, S, S] on the same device."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels float [B, 3, S, S] -> vectors floating [B, D]."""


@dataclass(frozen=True)
class Untrained:
    """Weights drawn at random, in the form in which an encoder reads them from a file.

    Attributes:
        tensors: by name.
        metadata: of the safetensors file.
        training_seconds: how long it would take to train such weights on the device; 0 where they are fetched.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    training_seconds: float = 0.0


@runtime_checkable
class Rehearses(Protocol):
    """What an `Encoder` may be, too: one whose speed can be found out before its weights are there."""

    def untrained(self, context: EncoderContext) -> Untrained:
        """Weights for `weights=PATH` of the same encoder that take as long to run as the real ones."""


@runtime_checkable
class StandsOnEncoder(Protocol):
    """What an `Encoder` may be, too: one whose vectors are made from those of another, so that one pass serves both."""

    def encoder_below(self, choice: EncoderChoice) -> EncoderChoice | None:
        """The encoder whose vectors `from_below` takes, when `choice` is this one; None when it stands on no other."""

    def from_below(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors [B, D'] of the encoder below, on the device -> vectors [B, D]."""


# --- scorers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedRun:
    """A run that was trained.

    Attributes:
        backend: the family of its model.
        model: its model (EMA weights) on the device, in evaluation mode.
        prepare: a dataset -> its samples on the device, in the form that the model was trained on.
    """

    backend: Backend
    model: torch.nn.Module
    prepare: Callable[[DatasetSource], TrainingData]


@dataclass(frozen=True)
class ScoringContext:
    """What a scorer may use besides the embeddings.

    Attributes:
        seed: seed of scorers that draw; see `generator`.
        device: where heavy arithmetic runs.
        ratio: largest kept fraction that is asked for, in (0, 1]: a greedy order need not go further.
        progress: for long work.
        open_dataset: opens the dataset that was embedded.
        open_run: path of a run folder -> its model.
    """

    seed: int
    device: torch.device
    ratio: float
    progress: Progress
    open_dataset: Callable[[], DatasetSource]
    open_run: Callable[[Path], TrainedRun]

    def generator(self, label: int = 0) -> np.random.Generator:
        """A generator of its own for every class, so that a class does not depend on the others."""
        return np.random.default_rng([self.seed, label])


class Scorer(Protocol):
    """Gives every sample one number. Constructed with its parameters.

    Attributes:
        keep: the keep policy that fits the score, a name of `dcprune.selection.KEEP_POLICIES`.
        per_class: whether the scores of a class depend on the samples of that class alone; then processes share the
            classes among them.

    A scorer whose choice at a smaller ratio is not the start of that at a larger one says `nested = False`; then
    `select` asks it once for every ratio.
    """

    keep: ClassVar[str]
    per_class: ClassVar[bool]

    def score(self, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
        """Scores [N], finite, in the order of `embeddings`."""


# --- backends ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Clean training samples, on the device.

    Attributes:
        x0: what is noised, float32 [B, ...] (pixels in [-1, 1], or scaled latents).
        labels: int64 [B]; 0 everywhere for class-less data.
        dropped: bool [B], True where the condition is replaced by the null condition.
        start: position of the first sample in the batch that processes and portions share.
        total: size of that batch; None when it is B.
        condition: [B, ...], what `Conditioned.condition` says about the samples; None for data that is not conditioned.
    """

    x0: torch.Tensor
    labels: torch.Tensor
    dropped: torch.Tensor
    start: int = 0
    total: int | None = None
    condition: torch.Tensor | None = None

    def drawn(self, draw: Callable[..., torch.Tensor], generator: torch.Generator, *shape: int) -> torch.Tensor:
        """Random numbers [B, *shape] for the samples, the same however the batch is divided.

        Args:
            draw: `torch.randn` or `torch.rand`.
            generator: that of the loss; it moves on by what the whole batch needs.
            shape: of what one sample gets.
        """
        count = len(self.labels)
        everything = draw((self.total or count, *shape), generator=generator, device=self.labels.device)
        return everything[self.start : self.start + count]


class TrainingData(Protocol):
    """Samples of a dataset in the form a backend trains on, resident or memory-mapped.

    Attributes:
        labels: int64 [N] on the device; 0 everywhere for class-less data.
        sample_shape: shape of one x0.
    """

    labels: torch.Tensor
    sample_shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def x0(self, rows: torch.Tensor, flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Clean samples float32 [B, ...] of `rows` int64 [B], mirrored left-right where `flip` bool [B] is True."""

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """The samples as a person sees them, at the model's resolution: uint8 [B, C, H, W] on the same device."""


@runtime_checkable
class Conditioned(Protocol):
    """What `TrainingData` also is when a sample is described by more than its label, such as by a caption."""

    def condition(self, rows: torch.Tensor) -> torch.Tensor:
        """What the model is told about `rows` int64 [B]: [B, ...] on the same device; nothing is drawn."""


def condition_of(data: TrainingData, rows: torch.Tensor) -> torch.Tensor | None:
    """`Batch.condition` of some rows."""
    return data.condition(rows) if isinstance(data, Conditioned) else None


class LatentCache(Protocol):
    """Gives a backend the latents of a dataset, encoded once and kept on the disk."""

    def __call__(self, dataset: DatasetSource, *, vae: str, resolution: int, flips: bool = True) -> TrainingData:
        """Latents as training reads them: x0 = (z - shift) * scale with z drawn from the posterior N(mean, std^2).

        All processes of a run call this together and share the work.

        Args:
            dataset: grey or RGB images of any size.
            vae: an `AutoencoderKL` by the name that `dcprune.autoencoder.load_autoencoder` takes.
            resolution: the shorter side of an image is resized to this, then the centre is cropped; a multiple of what
                the autoencoder divides by.
            flips: encode every image a second time, mirrored. Without, a flipped sample is the mirrored latent, which
                is half the work and half the disk, and not quite what the encoder would say.

        Raises:
            OptionError: a resolution that the autoencoder does not divide, or no such name.
            WeightsError: the autoencoder cannot be loaded, or gives values that are not finite.
            DatasetError: an image cannot be decoded.
        """


class TextCache(Protocol):
    """Gives a backend the embeddings of texts, computed once and kept on the disk."""

    def __call__(
        self,
        texts: Sequence[str],
        encode: Callable[[Sequence[str]], torch.Tensor],
        *,
        key: Mapping[str, Any],
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Embeddings of distinct texts, by row; all processes of a run call this together and share the work.

        Args:
            texts: M distinct texts.
            encode: some texts -> floating [b, ...]; called only for those that are not kept yet.
            key: whatever else the embeddings depend on, such as the hash of the encoder's weights, as JSON values.

        Returns:
            Rows int64 [B] of `texts`, on the device -> their embeddings [B, ...], in float32.
        """


@dataclass(frozen=True)
class PreparationContext:
    """What a backend may use to bring a dataset into the form that it trains on.

    Attributes:
        device: where training reads the samples.
        progress: for long work.
        latents, texts: whatever frozen networks say about the samples, computed once.
    """

    device: torch.device
    progress: Progress
    latents: LatentCache
    texts: TextCache


class Backend(Protocol):
    """A family of diffusion models. Constructed with its model settings; knows neither coresets nor weights.

    A backend whose models know the null condition without having been trained on it, for they start from a model that
    does, says `knows_null_condition = True`; the others can be guided only where `label_dropout` is above 0.

    Attributes:
        presets: at least `paper` and `tiny`.
        samplers: names `sample` understands.
        num_train_timesteps: T; training timesteps are integers in [0, T).
    """

    presets: ClassVar[Mapping[str, Preset]]
    samplers: ClassVar[Sequence[str]]
    num_train_timesteps: int

    def settings(self) -> dict[str, Any]:
        """Every resolved model setting, as JSON values, enough to construct this backend again."""

    def to_resolution(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, C, H, W] of any size, as the model is shown them: uint8 [B, C, H', W']."""

    def prepare(self, dataset: DatasetSource, context: PreparationContext) -> TrainingData:
        """Bring the whole dataset into the form that training reads."""

    def build(self, *, num_classes: int, sample_shape: tuple[int, ...], seed: int) -> torch.nn.Module:
        """A freshly initialised model on the CPU; the same seed gives the same weights."""

    def per_sample_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Loss of every sample, float32 [B]; nothing waits for the device.

        `timesteps` int64 [B], ascending with the noise, and `noise` (the shape of x0) are the caller's; any further
        randomness comes from `generator`, so that two models can be compared on the same draw. All parts of a batch
        that is divided get the same one: what belongs to a sample is drawn by `Batch.drawn`, and what is drawn
        otherwise is shared by all samples. Only dropout inside a model in training mode draws from the global
        generators. `model` may be wrapped by `torch.compile` or DDP.
        """

    def sample(
        self,
        model: torch.nn.Module,
        labels: torch.Tensor,
        seeds: Sequence[int],
        sampling: Sampling,
    ) -> torch.Tensor:
        """Images uint8 [B, C, H, W] of `labels` int64 [B]; image i depends on `seeds[i]` and `labels[i]` alone."""

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the model into the existing empty `folder`, in a form its own library opens."""

    def load(self, folder: Path) -> torch.nn.Module:
        """The model that `save` wrote, on the CPU.

        Raises:
            WeightsError: the folder does not hold such a model.
        """


@runtime_checkable
class FetchesWeights(Protocol):
    """What a `Backend` may be, too: one that fetches weights which are not on this machine yet."""

    def downloads(self, cache_dir: Path) -> Sequence[Download]:
        """Files that preparing a dataset, training and sampling fetch unless they are there."""


@runtime_checkable
class DrawsPrompts(Protocol):
    """What a `Backend` may be, too: one that draws images for texts."""

    def sample_prompts(
        self, model: torch.nn.Module, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling
    ) -> torch.Tensor:
        """Images uint8 [B, C, H, W] of B texts; image i depends on `seeds[i]` and `prompts[i]` alone."""


# --- metrics ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncoderChoice:
    """The encoder whose space a metric works in: a registered name, its settings and its weights."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True)
class Features:
    """Encoded images: `features` float32 [N, D] and `labels` int64 [N] (None for class-less data)."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    encoder: EncoderInfo


@dataclass(frozen=True)
class Gaussian:
    """Moments of the features of `count` images: `mean` float64 [D] and `covariance` float64 [D, D], by n - 1."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int


class Metric(Protocol):
    """A number about generated images against reference images. Constructed with its settings.

    Attributes:
        encoder: the space it needs; metrics that name the same encoder share one pass over the images.

    A metric may say more about itself in class attributes: `takes_moments = True` when the reference may also be a
    `Gaussian`; `needs_reference = False` when it looks at the generated images alone, and the reference may be None;
    `extrapolates = True` when its bias is a constant over the number of generated images, so that a sweep over that
    number has a limit.
    """

    encoder: EncoderChoice

    def value(self, generated: Features, reference: Any) -> float:
        """The metric between two sets of features; `reference` are `Features` unless the metric says otherwise."""

    def min_samples(self, dim: int) -> int:
        """Fewest images for a value that means something in a D-dimensional space.

        Per-class values of fewer are left out.
        """

    def protocol(self) -> dict[str, Any]:
        """Whatever else must agree before two values may be compared."""


@runtime_checkable
class HasInfluence(Protocol):
    """What a `Metric` may be, too: one that knows what each generated image does to its value.

    Then a bootstrap needs no resample to be measured again: where image i is taken c_i times, the value moves by
    mean_i (c_i - 1) influence_i to the first order.
    """

    def influence(self, generated: Features, reference: Any) -> NDArray[np.float64]:
        """N times what the value loses without the image, to the first order: float64 [N], of mean 0."""


@runtime_checkable
class HasSplits(Protocol):
    """What a `Metric` may be, too: one whose value is a mean over splits or subsets of the images.

    Where those are random subsets, it says `random_subsets = True`: then their choice adds to the spread of the value.
    """

    def splits(self, generated: Features, reference: Any) -> NDArray[np.float64]:
        """The value of every split, float64 [S]."""
