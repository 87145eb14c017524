"""The runs that a page is about: given one by one, or as the cells of sweeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dcprune import formats
from dcprune.artifacts import SweepCell, SweepResults
from dcprune.errors import ArtifactError, OptionError
from dcprune.formats.documents import RUN_FILE, SWEEP_FILE

RANDOM: Final = "random"


@dataclass(frozen=True)
class Entry:
    """A run folder, and the cell of a sweep that it is, if any."""

    folder: Path
    cell: SweepCell | None = None


def entries(paths: Sequence[Path], note: Callable[[str], None]) -> tuple[list[Entry], list[SweepResults]]:
    """The runs at `paths`, each a run folder or a sweep (its folder or its results file), and the sweeps.

    A page is about the first run. Of a sweep that is the first with class weights, else the first that is neither a
    random choice nor the full data. `note` hears of cells whose run is not there.

    Raises:
        OptionError: no run at all.
        MissingInput, ArtifactError: a path is neither.
    """
    found: list[Entry] = []
    sweeps = []
    for path in paths:
        if path.name == RUN_FILE and path.is_file():
            found.append(Entry(path.parent))
        elif path.is_file() and (kind := formats.artifact_kind(path)) != "sweep":
            raise ArtifactError(f"{path} holds {kind}. A page is about runs: name run folders, or results of a sweep.")
        elif path.is_file() or (path / SWEEP_FILE).is_file():
            sweeps.append(formats.read_sweep(path))
            found += _of_sweep(sweeps[-1], note)
        else:
            found.append(Entry(path))
    distinct = list({entry.folder.absolute(): entry for entry in reversed(found)}.values())[::-1]
    if not distinct:
        empty = ", ".join(str(sweep.origin) for sweep in sweeps)
        raise OptionError(f"No run of {empty} is there." if sweeps else "A report needs at least one run folder.")
    return distinct, sweeps


def _of_sweep(sweep: SweepResults, note: Callable[[str], None]) -> list[Entry]:
    there = []
    for cell in sweep.cells:
        if Path(cell.run.path).is_file():
            there.append(Entry(Path(cell.run.path).parent, cell))
        else:
            note(f"The run {Path(cell.run.path).parent} of the sweep is not there any more.")
    chosen = [entry for entry in there if entry.cell and entry.cell.scorer not in (None, RANDOM)]
    weighted = [entry for entry in chosen if entry.cell and entry.cell.weights]
    first = next(iter((*weighted, *chosen)), None)
    return there if first is None else [first, *(entry for entry in there if entry is not first)]


def cell_names(found: Sequence[Entry]) -> list[str] | None:
    """What cells are called, after what they are; None where that does not tell all runs apart."""
    names = [_cell_name(entry.cell) for entry in found if entry.cell is not None]
    return names if len(names) == len(set(names)) == len(found) else None


def _cell_name(cell: SweepCell) -> str:
    """`resnet18-moderate-0.2-weights-seed0`."""
    pruned = cell.scorer or cell.dynamic
    words = (
        cell.encoder,
        cell.scorer or cell.dynamic or "full",
        cell.dynamic if cell.scorer else None,
        *(f"{name}={value}" for name, value in cell.params.items()),
        f"{cell.ratio:g}" if pruned else None,
        "weights" if cell.weights else None,
        "anneal" if cell.anneal else None,
        f"seed{cell.seed}",
    )
    return "-".join(word for word in words if word)
