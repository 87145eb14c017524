"""Rows of memory-mapped tensors, brought to the device batch by batch, or all at once where they fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.artifacts import LatentsRecord, Rows
from dcprune.backends.pixels import fit_square
from dcprune.errors import ArtifactError, DatasetError
from dcprune.formats import is_whole, map_tensor
from dcprune.interfaces import DatasetSource

# Of the memory that a GPU has free, for all tables together.
_RESIDENT_SHARE = 0.5


class Table:
    """Rows [N, ...] by number, as float32 on a device.

    `load_where_they_fit` brings them into the memory of a GPU. Otherwise, and on a CPU, they stay in their files, and
    the host waits for the row numbers.

    Raises:
        ArtifactError: a file is not there, or damaged.

    Args:
        files: safetensors files, in order.
        name: of the tensor [n, ...], float16, in each of them.
        leading: axes that number the rows; two of them are counted as one, row by row.
        device: where the rows are needed.
    """

    def __init__(self, files: Sequence[Path], name: str, device: torch.device, *, leading: int = 1) -> None:
        for file in files:
            if not is_whole(file):
                raise ArtifactError(
                    f"{file} is damaged or gone. Encode again: `dcprune prepare --overwrite`, or, in the cache, call "
                    "the same command once more."
                )
        parts = [map_tensor(file, name, str(file))[0] for file in files]
        self.shape = tuple(parts[0].shape[leading:])
        self.device = device
        self._rows = Rows([part.reshape(int(np.prod(part.shape[:leading])), -1) for part in parts], "float16")
        self.nbytes = sum(part.nbytes for part in parts)
        self._resident: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def load(self) -> None:
        """Bring all rows into the device's memory."""
        everything = torch.empty((len(self), *self.shape), dtype=torch.float16, device=self.device)
        start = 0
        for part in self._rows.parts:
            everything[start : start + len(part)] = torch.from_numpy(np.array(part)).view(-1, *self.shape)
            start += len(part)
        self._resident = everything

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [B, ...] of `rows` int64 [B] on the device."""
        if self._resident is not None:
            return self._resident[rows].float()
        found = torch.from_numpy(self._rows[rows.cpu().numpy()]).view(-1, *self.shape)
        return found.to(self.device, non_blocking=True)


def load_where_they_fit(*tables: Table) -> None:
    """Bring tables of one device into its memory, if all of them fit."""
    device = tables[0].device
    if device.type == "cpu":
        return
    total = sum(table.nbytes for table in tables)
    if device.type != "cuda" or total <= _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        for table in tables:
            table.load()


class Latents:
    """Latents of a dataset, drawn from their posterior; a `dcprune.interfaces.TrainingData`.

    Args:
        record: of the folder.
        folder: where the files of `record` lie.
        rows: int64 [N], the row of every sample in the files; None where sample i is row i.
        dataset: the N samples.
        device: where training reads them.
    """

    def __init__(
        self,
        record: LatentsRecord,
        folder: Path,
        dataset: DatasetSource,
        device: torch.device,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        count = len(dataset)
        files = [folder / shard.file for shard in record.shards]
        if (record.num_rows if rows is None else len(rows)) != count:
            raise DatasetError(f"The latents in {folder} are of {record.num_rows} samples, the dataset has {count}.")
        self.record = record
        self.folder = folder
        self.dataset = dataset
        self.sample_shape: tuple[int, ...] = record.sample_shape
        labels = np.zeros(count, dtype=np.int64) if dataset.labels is None else dataset.labels
        self.labels = torch.from_numpy(np.array(labels, dtype=np.int64)).to(device)
        self._rows = None if rows is None else torch.from_numpy(np.array(rows)).to(device)
        self._mean, self._std = (Table(files, name, device, leading=2) for name in ("mean", "std"))
        load_where_they_fit(self._mean, self._std)

    def __len__(self) -> int:
        return len(self.labels)

    def x0(self, rows: torch.Tensor, flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """float32 [B, C, h, w]: (mean + std * noise - shift) * scale, of the mirror image where `flip` is True.

        Where no mirror images were encoded, the mean and the deviation are mirrored, not the noise.
        """
        own = rows if self._rows is None else self._rows[rows]
        record = self.record
        if record.flips:
            own = 2 * own + flip
        mean, std = self._mean(own), self._std(own)
        if not record.flips:
            mean, std = (torch.where(flip[:, None, None, None], each.flip(-1), each) for each in (mean, std))
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return torch.addcmul(mean, std, noise).sub_(record.shift_factor).mul_(record.scaling_factor)

    def to_resolution(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, C, H, W] of any size, as the autoencoder was given them: uint8 [B, C, R, R]."""
        return fit_square(images, self.record.resolution)

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W]: the dataset's own images, decoded anew and not by the autoencoder."""
        found = [torch.tensor(self.dataset.image(row)) for row in rows.tolist()]
        images = [self.to_resolution(image.permute(2, 0, 1)[None]) for image in found]
        return torch.cat(images).to(self.labels.device)
