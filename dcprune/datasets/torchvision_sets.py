"""The public datasets that torchvision knows how to fetch.

Each is looked for in `data_dir` and in a folder of its own name below it. torchvision checks, unpacks and reads what it
downloads (CIFAR's official files are pickles; it compares their MD5 before it opens them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torchvision
from torchvision.datasets.utils import check_integrity

from dcprune.datasets.arrays import ArraySource, check_split
from dcprune.datasets.folder import FileSource, ImageFiles, list_images
from dcprune.datasets.idx import FASHION_CLASSES, SPLITS, fashion_folders, find_split, read_split
from dcprune.errors import DatasetError, DatasetMissing
from dcprune.interfaces import DatasetRequest, Download, Outline

# Published by those who check what they fetch: Keras and TensorFlow Datasets.
_SHA256 = {
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    "imagenette2-320.tgz": "569b4497c98db6dd29f335d1f109cf315fe127053cedf69010d047f0188e158c",
}
_NUM_BYTES = {
    "cifar-10-python.tar.gz": 170_498_071,
    "cifar-100-python.tar.gz": 169_001_437,
    "train-images-idx3-ubyte.gz": 26_421_880,
    "train-labels-idx1-ubyte.gz": 29_515,
    "t10k-images-idx3-ubyte.gz": 4_422_102,
    "t10k-labels-idx1-ubyte.gz": 5_148,
    "imagenette2-320.tgz": 341_663_724,
}
_WHERE = "--data-dir or the environment variable DCPRUNE_DATA_DIR says where datasets lie."


def _folders(request: DatasetRequest) -> list[Path]:
    return [request.data_dir, request.data_dir / request.name]


def _download(url: str, target: Path, others: Iterable[Path]) -> Download:
    """A file that belongs at `target`; at the first of `others` that exists, when it is not there."""
    name = url.rpartition("/")[2]
    found = next((path for path in (target, *others) if path.exists()), target)
    return Download(url, found, _SHA256[name], _NUM_BYTES[name])


def _fetched(request: DatasetRequest, fetch: Callable[[], Any], what: str, folder: Path) -> Any:
    """What `fetch` returns; when it fails, the error says what to put where."""
    fix = f"Fetch {what} into {str(folder)!r}; {_WHERE}"
    if not request.download:
        raise DatasetMissing(f"{request.name} is not in {str(request.data_dir)!r}. {fix}")
    try:
        return fetch()
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DatasetError(f"{request.name} cannot be downloaded: {reason}. {fix}") from error


class _Cifar(ArraySource):
    """32 x 32 colour images from `cifar-*-python.tar.gz`, splits `train` and `test`."""

    source: ClassVar[Any]
    outline: ClassVar[Outline]

    @classmethod
    def downloads(cls, request: DatasetRequest) -> list[Download]:
        """The archive; see `dcprune.interfaces.FetchesFiles`."""
        folders = _folders(request)
        unpacked = [folder / cls.source.base_folder for folder in folders]
        packed = [folder / cls.source.filename for folder in folders]
        return [_download(cls.source.url, packed[0], (*unpacked, *packed))]

    def __init__(self, request: DatasetRequest) -> None:
        split = check_split(request, tuple(self.outline.num_samples))
        found = self._open(request, split == "train")
        labels = np.asarray(found.targets, dtype=np.int64)
        super().__init__(request.name, split, np.ascontiguousarray(found.data), labels, found.classes)

    def _open(self, request: DatasetRequest, train: bool) -> Any:
        for folder in _folders(request):
            # An archive that was put there by hand is unpacked, which needs no network.
            archive = check_integrity(folder / self.source.filename, self.source.tgz_md5)
            try:
                return self.source(root=folder, train=train, download=archive)
            except RuntimeError:  # how torchvision says that the files are not there or not whole
                continue
        folder = request.data_dir
        return _fetched(request, lambda: self.source(root=folder, train=train, download=True), self.source.url, folder)


class Cifar10(_Cifar):
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 10 classes."""

    source = torchvision.datasets.CIFAR10
    outline = Outline({"train": 50_000, "test": 10_000}, 10, (32, 32, 3))


class Cifar100(_Cifar):
    """CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 100 classes."""

    source = torchvision.datasets.CIFAR100
    outline = Outline({"train": 50_000, "test": 10_000}, 100, (32, 32, 3))


class FashionMnist(ArraySource):
    """Fashion-MNIST (arXiv 1708.07747): 28 x 28 grey images, splits `train` (60,000) and `test` (10,000).

    Its IDX files are read gzipped or plain, from `data_dir`, `data_dir/fashion-mnist`, or where torchvision puts them.
    """

    outline = Outline({"train": 60_000, "test": 10_000}, 10, (28, 28, 1))

    @staticmethod
    def downloads(request: DatasetRequest) -> list[Download]:
        """Four IDX files; see `dcprune.interfaces.FetchesFiles`."""
        source = torchvision.datasets.FashionMNIST
        places = fashion_folders(request.data_dir)
        return [
            _download(
                source.mirrors[0] + name,
                request.data_dir / "FashionMNIST" / "raw" / name,
                [folder / each for folder in places for each in (name, name.removesuffix(".gz"))],
            )
            for name, _ in source.resources
        ]

    def __init__(self, request: DatasetRequest) -> None:
        split = check_split(request, tuple(SPLITS))
        folders = fashion_folders(request.data_dir)
        paths = find_split(folders, split)
        if paths is None:
            source = torchvision.datasets.FashionMNIST
            names = ", ".join(name for name, _ in source.resources)
            what = f"{names} from {source.mirrors[0]}"
            _fetched(request, lambda: source(root=request.data_dir, download=True), what, request.data_dir)
            paths = find_split(folders, split)
        if paths is None:
            raise DatasetError(f"torchvision has put Fashion-MNIST somewhere else than {str(request.data_dir)!r}.")
        images, labels = read_split(paths)
        super().__init__(request.name, split, images[..., None], labels, FASHION_CLASSES)


class ImageNette(FileSource):
    """Imagenette 2 (Howard, fastai): 10 easy ImageNet classes, splits `train` (9,469) and `val` (3,925).

    The largest of its three sizes that lies in `data_dir` is taken (`imagenette2`, `-320`, `-160`); the 320 px one is
    downloaded.
    """

    outline = Outline({"train": 9469, "val": 3925}, 10, (320, 426, 3))
    _sizes: ClassVar[tuple[str, ...]] = ("full", "320px", "160px")

    @classmethod
    def downloads(cls, request: DatasetRequest) -> list[Download]:
        """The archive of the 320 px images; see `dcprune.interfaces.FetchesFiles`."""
        url = torchvision.datasets.Imagenette._ARCHIVES["320px"][0]
        names = [Path(torchvision.datasets.Imagenette._ARCHIVES[size][0]).stem for size in cls._sizes]
        unpacked = [folder / name for folder in _folders(request) for name in names]
        return [_download(url, request.data_dir / url.rpartition("/")[2], unpacked)]

    def __init__(self, request: DatasetRequest) -> None:
        split = check_split(request, tuple(self.outline.num_samples))
        found = self._open(request, split)
        files = list_images(found)
        whole = self.outline.num_samples[split]
        if len(files.ids) != whole:
            raise DatasetError(
                f"{str(found)!r} holds {len(files.ids)} images, not {whole}: it was not unpacked to the "
                f"end. Remove {str(found.parent)!r} and try again, or name the folder itself as the dataset."
            )
        names = tuple(torchvision.datasets.Imagenette._WNID_TO_CLASS[wnid][0] for wnid in files.class_names)
        super().__init__(request.name, split, found, files, names)

    def _open(self, request: DatasetRequest, split: str) -> Path:
        archives = torchvision.datasets.Imagenette._ARCHIVES
        for folder in _folders(request):
            for size in self._sizes:
                found = folder / Path(archives[size][0]).stem / split
                if found.is_dir():
                    return found
        url, md5 = archives["320px"]

        def fetch() -> Any:
            return torchvision.datasets.Imagenette(request.data_dir, split, size="320px", download=True)

        if check_integrity(request.data_dir / Path(url).name, md5):
            fetch()  # an archive that was put there by hand is unpacked, which needs no network
        else:
            _fetched(request, fetch, url, request.data_dir)
        return request.data_dir / Path(url).stem / split


class ImageNet(FileSource):
    """ImageNet-1k (ILSVRC 2012), splits `train` and `val`, from class sub-folders named by WordNet id.

    The folder holds `train/` and `val/`, or the official archives, which torchvision unpacks. It is never downloaded.
    """

    outline = Outline({"train": 1_281_167, "val": 50_000}, 1000, (375, 500, 3))

    def __init__(self, request: DatasetRequest) -> None:
        split = check_split(request, tuple(self.outline.num_samples))
        found = self._open(request, split)
        files = list_images(found)
        super().__init__(request.name, split, found, files, _imagenet_names(found, files))

    def _open(self, request: DatasetRequest, split: str) -> Path:
        archive = f"ILSVRC2012_img_{split}.tar"
        for folder in reversed(_folders(request)):
            if not (folder / split).is_dir() and (folder / archive).is_file():
                try:
                    torchvision.datasets.ImageNet(folder, split)
                except (OSError, RuntimeError) as error:
                    raise DatasetError(f"imagenet cannot be unpacked in {str(folder)!r}: {error}") from error
            if (folder / split).is_dir():
                return folder / split
        raise DatasetMissing(
            f"imagenet is not in {str(request.data_dir / request.name)!r} and cannot be downloaded without an account: "
            f"fetch {archive} and ILSVRC2012_devkit_t12.tar.gz from https://image-net.org and put them there, or put "
            f"the class sub-folders (n01440764, ...) into {str(request.data_dir / request.name / split)!r}. {_WHERE}"
        )


def _imagenet_names(folder: Path, files: ImageFiles) -> tuple[str, ...]:
    """Readable names of the 1,000 classes, which torchvision lists in the order of their WordNet ids."""
    names: list[str] = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    if len(files.class_names) != len(names):
        raise DatasetError(
            f"{str(folder)!r} holds {len(files.class_names)} class sub-folders, not the {len(names)} of ImageNet-1k. "
            "To use some of the classes, name that folder itself as the dataset."
        )
    return tuple(names)
