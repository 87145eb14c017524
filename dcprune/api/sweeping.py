"""`sweep`: a grid of runs, each stage done once, and one file of results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcprune import formats
from dcprune.api.provenance import provenance
from dcprune.artifacts import DatasetIdentity, SweepCell, SweepResults
from dcprune.devices import resolve_device
from dcprune.errors import OptionError
from dcprune.formats.documents import SWEEP_FILE
from dcprune.interfaces import DatasetSource, Progress
from dcprune.progress import SILENT
from dcprune.sources import identify, open_dataset, open_or_imagine
from dcprune.sweep.cache import Cache
from dcprune.sweep.plan import Cell, Declaration, Planner, read_declaration, stages_of
from dcprune.sweep.runner import Slot, raise_failures, work
from dcprune.sweep.stages import Stage

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to be done or estimated.

    Attributes:
        files: what declares it.
        declaration: what they say.
        source: the dataset, open.
        identity: of the dataset.
        data_dir: where datasets lie.
        cells: those that were asked for.
        declared: all that the files declare, with their seeds and those that were asked for.
        cache: where stages leave their files.
        output: the folder of `results.json`.
    """

    files: tuple[Path, ...]
    declaration: Declaration
    source: DatasetSource
    identity: DatasetIdentity
    data_dir: StrPath | None
    cells: tuple[Cell, ...]
    declared: tuple[Cell, ...]
    cache: Cache
    output: Path

    def stages(self) -> list[Stage]:
        """What the cells need, inputs first, without what only finished stages need."""
        return stages_of(self.cells, lambda stage: self.cache.done(stage) is not None)

    def results(self, only: Sequence[str], seeds: Sequence[int] | None) -> SweepResults:
        """What there is so far, by this call or earlier ones with the same cache.

        A cell that was asked for appears when its run is finished, any other when all of it is.
        """
        config = {
            "sweep": [str(path) for path in self.files],
            "output": str(self.output),
            "cache": str(self.cache.folder) if self.cache.folder != self.output else None,
            "only": list(only),
            "seeds": None if seeds is None else ",".join(map(str, seeds)),
        }
        asked = {cell.last.key for cell in self.cells}
        found = [
            self._cell(cell)
            for cell in self.declared
            if self.cache.done(cell.train if cell.last.key in asked else cell.last) is not None
        ]
        record = provenance("sweep", config, seed=self.declaration.seeds[0], inputs=[str(path) for path in self.files])
        return SweepResults(dataset=self.identity, cells=tuple(found), provenance=record)

    def _cell(self, cell: Cell) -> SweepCell:
        run = self.cache.main_file(cell.train)
        measured = cell.evaluation is not None and self.cache.done(cell.evaluation) is not None
        metrics = (self.cache.output(cell.evaluation),) if measured and cell.evaluation is not None else ()
        return SweepCell(
            encoder=cell.encoder,
            scorer=cell.scorer,
            params=dict(cell.params),
            ratio=cell.ratio,
            weights=cell.weights,
            anneal=cell.anneal,
            dynamic=cell.dynamic,
            seed=cell.seed,
            run=formats.input_file(run),
            metrics=tuple(formats.input_file(path) for path in metrics),
            cost=formats.read_run(run.parent).ledger,
        )


def open_sweep(
    files: Sequence[StrPath],
    *,
    output: StrPath,
    cache: StrPath | None = None,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    data_dir: StrPath | None = None,
    imagine: bool = False,
) -> Sweep:
    """Read what is declared, open the dataset and plan; nothing is written.

    Args:
        files: TOML files; this and what follows as for `sweep`.
        output: folder of `results.json`.
        cache: folder of the stages.
        only: names of cells.
        seeds: instead of the file's.
        data_dir: where datasets lie.
        imagine: do not fetch a dataset that is not here, but take noise of its size.

    Raises:
        InputError: whatever does not fit; see `sweep`.
    """
    paths = tuple(Path(path) for path in files)
    declaration = read_declaration(paths, seeds)
    place = declaration.data_dir if data_dir is None else data_dir
    opened = open_or_imagine if imagine else open_dataset
    folder = None if place is None else Path(place)
    source = opened(declaration.dataset, split=declaration.split, data_dir=folder)
    identity = identify(source)
    cells = tuple(Planner(declaration, identity).cells(only))
    every_seed = tuple(dict.fromkeys((*read_declaration(paths).seeds, *declaration.seeds)))
    declared = tuple(Planner(replace(declaration, seeds=every_seed), identity).cells())
    results = Path(output)
    stages = Cache(results if cache is None else Path(cache))
    return Sweep(paths, declaration, source, identity, place, cells, declared, stages, results)


def sweep(
    files: Sequence[StrPath],
    *,
    output: StrPath,
    cache: StrPath | None = None,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    devices: Sequence[str] = (),
    workers: int | None = None,
    data_dir: StrPath | None = None,
    progress: Progress | None = None,
) -> SweepResults:
    """Do every stage of a grid of runs that is not done yet, and write `results.json`.

    A stage is one call of `embed`, `select`, `reweight`, `train` or `eval` in a process of its own. Its key is the hash
    of its options and of the keys of what it reads, and the cache has its output under that key: the same work is never
    done twice, in this sweep or in another one with the same cache. Killed at any moment, the sweep goes on where it
    stopped, inside a training, too, when it is called again.

    Args:
        files: TOML files; see `dcprune.sweep.plan.read_declaration`.
        output: folder of `results.json`, which is rewritten after every stage.
        cache: folder of the stages; `output` by default.
        only: names of cells, patterns as in a shell; the whole grid by default.
        seeds: instead of the file's.
        devices: `cuda:0`, `cuda:1`, `cpu`, ...: one stage at a time runs on each. Every GPU by default, else the CPU.
        workers: stages at a time on a CPU, which share its cores; 1 by default.
        data_dir: where datasets lie.
        progress: counts stages.

    Returns:
        The results, with all cells of the files that are finished.

    Raises:
        OptionError, UnknownName: the files declare what is not there or does not fit.
        DatasetError: the dataset cannot be opened.
        DcpruneError: stages failed; everything that does not need them is done.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the stages at work have saved their state.
    """
    found = open_sweep(files, output=output, cache=cache, only=only, seeds=seeds, data_dir=data_dir)
    slots = _slots(devices, workers)
    found.output.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        formats.write_sweep(found.results(only, seeds), found.output / SWEEP_FILE, overwrite=True)

    free: dict[str, Any] = {} if found.data_dir is None else {"data_dir": str(found.data_dir)}
    failures = work(found.stages(), found.cache, slots, free, progress=progress or SILENT, on_done=write)
    write()
    raise_failures(failures, sum(found.cache.done(cell.last) is None for cell in found.cells))
    return formats.read_sweep(found.output)


def _slots(devices: Sequence[str], workers: int | None) -> list[Slot]:
    """One place to work for every device; several of them on a CPU, with its cores shared out.

    Raises:
        OptionError: no such device, or workers on a GPU.
    """
    import torch

    chosen = list(devices) or [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    if workers is not None and (workers < 1 or chosen != ["cpu"]):
        raise OptionError(f"workers={workers}: at least 1, and on a CPU only; there is one for each of {chosen}.")
    if chosen == ["cpu"]:
        count = 1 if workers is None else workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # Read when a process loads OpenMP, which the server of the children does before they are forked.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
        return [Slot("cpu")] * count
    return [_slot(name) for name in chosen]


def _slot(name: str) -> Slot:
    device = resolve_device(name)
    if device.type != "cuda":
        return Slot(name)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    index = device.index or 0
    return Slot("cuda", {"CUDA_VISIBLE_DEVICES": visible.split(",")[index] if visible else str(index)})
