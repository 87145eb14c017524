"""What the runs cost, and how much less that is than training on everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dcprune.report.collect import RunData
from dcprune.report.words import enumerated

Number = TypeVar("Number", int, float)

TRAINING = "train"
PROXY = "proxy"
REFERENCE = "reference"


@dataclass(frozen=True)
class CostRow:
    """Costs of one stage of a run, or of all of them together; None where nothing recorded them."""

    run: str
    stage: str
    updates: int | None
    images: int | None
    flops: int | None
    seconds: float | None
    total: bool = False


@dataclass(frozen=True)
class SpeedUp:
    """How many times less the headline run cost than a full-data run; None where that cannot be said."""

    against: str
    counted: str
    updates: float | None
    images: float | None
    flops: float | None
    seconds: float | None


def ledger(run: RunData) -> list[CostRow]:
    """The stages of a run; the proxy of its class weights is one of them, also where the ledger lacks it."""
    rows = [CostRow(run.name, e.stage, e.updates, e.images_seen, e.flops, e.device_seconds) for e in run.record.ledger]
    weights = run.class_weights
    if weights is not None and PROXY not in {row.stage for row in rows}:
        batch_size = weights.provenance.config.get("batch_size")
        images = weights.objective.steps * batch_size if isinstance(batch_size, int) else None
        rows.insert(0, CostRow(run.name, PROXY, weights.objective.steps, images, None, None))
    return rows


def _added(values: Sequence[Number | None]) -> Number | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], start=known[0]) if known and len(known) == len(values) else None


def total(rows: Sequence[CostRow]) -> CostRow:
    """The sum of some stages of one run; unknown as soon as one of them is."""
    return CostRow(
        run=rows[0].run,
        stage="total",
        updates=_added([row.updates for row in rows]),
        images=_added([row.images for row in rows]),
        flops=_added([row.flops for row in rows]),
        seconds=_added([row.seconds for row in rows]),
        total=True,
    )


def cost_rows(runs: Sequence[RunData]) -> list[CostRow]:
    """The ledger of every run, with a total where it has more than one stage."""
    rows = []
    for run in runs:
        stages = ledger(run)
        rows += stages + ([total(stages)] if len(stages) > 1 else [])
    return rows


def speed_ups(runs: Sequence[RunData]) -> list[SpeedUp]:
    """The headline coreset run against every full-data run: training alone as in the paper, and all that was counted.

    Where the ledger holds the full-data reference, the sum without it comes between: who has a reference pays that.
    """
    found = []
    ours = ledger(runs[0])
    for run in [each for each in runs[1:] if each.is_full and not runs[0].is_full]:
        theirs = ledger(run)
        training = [[row for row in rows if row.stage == TRAINING] for rows in (ours, theirs)]
        pairs = [("training alone", training[0], training[1])]
        without = [row for row in ours if row.stage != REFERENCE]
        sums = (without, ours) if len(without) < len(ours) else (ours,)
        pairs += [(enumerated([row.stage for row in rows]), rows, theirs) for rows in sums if len(rows) > 1]
        for counted, mine, full in pairs:
            if mine and full:
                found.append(_speed_up(run.name, counted, total(mine), total(full)))
    return found


def _speed_up(against: str, counted: str, ours: CostRow, theirs: CostRow) -> SpeedUp:
    def ratio(full: float | None, mine: float | None) -> float | None:
        return full / mine if full and mine else None

    return SpeedUp(
        against=against,
        counted=counted,
        updates=ratio(theirs.updates, ours.updates),
        images=ratio(theirs.images, ours.images),
        flops=ratio(theirs.flops, ours.flops),
        seconds=ratio(theirs.seconds, ours.seconds),
    )


def compared_costs(
    runs: Sequence[RunData], stages: Sequence[str] | None, *, timed: bool = False
) -> tuple[str, Mapping[str, float]]:
    """The cost of some stages of every run, and its unit: the first of the following that is known of all of them.

    Floating-point operations, which are the same on every machine; then time on a device, where all were on devices of
    one name; then images seen.

    Args:
        runs: at least one.
        stages: the stages; all when None.
        timed: time comes first.
    """
    rows = {run.name: [row for row in ledger(run) if stages is None or row.stage in stages] for run in runs}
    sums = {name: total(each) for name, each in rows.items() if each}
    devices = {run.record.provenance.environment.device for run in runs}
    flops: dict[str, float | None] = {name: each.flops for name, each in sums.items()}
    seconds: dict[str, float | None] = {name: each.seconds for name, each in sums.items()} if len(devices) == 1 else {}
    candidates = [("FLOP", flops), ("seconds of device time", seconds)]
    for unit, values in reversed(candidates) if timed else candidates:
        known = {name: float(value) for name, value in values.items() if value}
        if known and len(known) == len(values):
            return unit, known
    return "images seen", {name: float(each.images) for name, each in sums.items() if each.images}


def uncounted(runs: Sequence[RunData]) -> str:
    """A sentence about what went into the headline run and is in no row; empty when that is nothing."""
    run, stages = runs[0], {row.stage for row in ledger(runs[0])}
    missing: list[str] = []
    if run.coreset is not None and "embed" not in stages:
        missing += ["embedding", "scoring"]
    if run.class_weights is not None and REFERENCE not in stages:
        missing.append("the full-data reference that the class weights were learned against")
    return f"Not counted: {enumerated(missing)}." if missing else ""
