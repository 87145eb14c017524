"""What a sweep file declares: the cells of its grid, and the stages that each of them needs."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from dcprune import formats
from dcprune.artifacts import DatasetIdentity
from dcprune.errors import InputError, OptionError, UnknownName
from dcprune.plugins import registry
from dcprune.presets import Preset
from dcprune.sweep.stages import OUTPUTS, Stage

RUN_PREFIX: Final = "run:"
REFERENCE: Final = "reference"
_TABLES: Final = tuple(OUTPUTS)
_TOP: Final = (
    "dataset",
    "split",
    "data_dir",
    "seeds",
    "ratios",
    "reference_seed",
    "grid",
    "encoders",
    "runs",
    *_TABLES,
)
_AXES: Final = ("encoder", "scorer", "params", "ratio", "weights", "anneal", "dynamic", "seed")

# Options that a sweep gives to its stages, so that no table may.
_GIVEN: Final = (
    "dataset",
    "split",
    "data_dir",
    "output",
    "overwrite",
    "resume",
    "coreset",
    "class_weights",
    "images",
    "source",
    "dry_run",
    "config",
    "device",
    "max_time",
    "anneal",
    "dynamic",
    "ratio",
    "num",
    "scorer",
)

# Of these, what a table may have nonetheless: images may be compared with another split than was trained on.
_ALLOWED: Final = (("eval", "split"),)

# A criterion that looks at labels alone takes the cheapest embeddings, which are not worth naming.
_LABELS_ONLY: Final = ("random",)
_ANY_EMBEDDINGS: Final = {"encoder": "pixels", "set": {"image_size": 1}}

# InfoBatch spends seven eighths of its run on fewer samples, as an annealed run does.
_INFOBATCH_SHARE: Final = 0.875


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        encoder, scorer, params, ratio, weights, anneal, dynamic, seed: as in `dcprune.artifacts.SweepCell`.
        train, evaluation: the last two of its stages; no evaluation where the sweep measures nothing.
    """

    encoder: str | None
    scorer: str | None
    params: Mapping[str, Any]
    ratio: float
    weights: bool
    anneal: float | None
    dynamic: str | None
    seed: int
    train: Stage
    evaluation: Stage | None

    @property
    def name(self) -> str:
        """What the cell is called in `--only` and in messages."""
        return _name(
            self.encoder, self.scorer, self.params, self.ratio, self.weights, self.anneal, self.dynamic, self.seed
        )

    @property
    def last(self) -> Stage:
        """The stage that everything else of the cell goes before."""
        return self.evaluation or self.train


@dataclass(frozen=True)
class Declaration:
    """A sweep file, its tables checked.

    Attributes:
        dataset, split, data_dir: what every stage works on.
        seeds, ratios: of every entry of the grid that names none of its own.
        reference_seed: of the run on the full data that proxies are compared with; the first of the file's seeds.
        grid: entries; every combination of their lists is a cell.
        encoders: `[encoders.NAME]`: options of `embed` for the encoder that the grid calls NAME.
        runs: `[runs.NAME]`: options of `train` for a run on the full data that settings call `run:NAME`.
        options: options of every call of a command, by command.
    """

    dataset: str
    split: str
    data_dir: str | None
    seeds: tuple[int, ...]
    ratios: tuple[float, ...]
    reference_seed: int
    grid: tuple[Mapping[str, Any], ...]
    encoders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_declaration(paths: Sequence[Path], seeds: Sequence[int] | None = None) -> Declaration:
    """A sweep file, with what further files say instead.

    Args:
        paths: TOML files; a table of a later one is merged into that of an earlier one, other values replace it, and
            "null" takes one away.
        seeds: instead of the file's, of whose first one the reference remains.

    Raises:
        MissingInput, InputError: a file cannot be read.
        OptionError, UnknownName: it does not say what a sweep needs to know.
    """
    document: dict[str, Any] = {}
    for path in paths:
        formats.check_input(path, "The sweep file")
        try:
            document = _merged(document, tomllib.loads(path.read_text()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"{path} cannot be read as TOML: {error}.") from error
    declared = _declaration(document)
    return declared if seeds is None else replace(declared, seeds=_integers("seeds", list(seeds)))


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    both = {name for name in first if isinstance(first[name], dict) and isinstance(second.get(name), dict)}
    merged = {**first, **second, **{name: _merged(first[name], second[name]) for name in both}}
    return {name: value for name, value in merged.items() if not (name in first and value == "null")}


def _declaration(document: Mapping[str, Any]) -> Declaration:
    for name in document:
        if name not in _TOP:
            raise UnknownName("entry of a sweep file", name, _TOP)
    if not isinstance(document.get("dataset"), str):
        raise OptionError("A sweep file names its dataset: dataset = 'cifar10'.")
    grid = document.get("grid")
    if not isinstance(grid, list) or not grid or not all(isinstance(entry, dict) for entry in grid):
        raise OptionError("A sweep file has at least one table [[grid]]: the runs that are compared.")
    for entry in grid:
        for name in entry:
            if name not in _AXES:
                raise UnknownName("entry of [[grid]]", name, _AXES)
    seeds = _integers("seeds", document.get("seeds", [0]))
    return Declaration(
        dataset=document["dataset"],
        split=str(document.get("split", "train")),
        data_dir=document.get("data_dir"),
        seeds=seeds,
        ratios=_ratios(document.get("ratios", [])),
        reference_seed=_integers("reference_seed", document.get("reference_seed", seeds[0]))[0],
        grid=tuple(grid),
        encoders=_tables(document, "encoders"),
        runs=_tables(document, "runs"),
        options={name: _table(document, name) for name in _TABLES},
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _integers(name: str, value: Any) -> tuple[int, ...]:
    found = _listed(value)
    if not found or not all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in found):
        raise OptionError(f"{name} = {value!r}: need whole numbers of at least 0.")
    return tuple(found)


def _ratios(value: Any) -> tuple[float, ...]:
    found = _listed(value)
    if not all(isinstance(each, int | float) and not isinstance(each, bool) and 0 < each <= 1 for each in found):
        raise OptionError(f"Ratios {value!r}: need numbers above 0 and at most 1.")
    return tuple(float(each) for each in found)


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A table of options, its keys in snake_case."""
    found = document.get(name, {})
    if not isinstance(found, dict):
        raise OptionError(f"{name} = {found!r} where a table [{name}] is expected.")
    return {key.replace("-", "_"): value for key, value in found.items()}


def _tables(document: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    _table(document, name)
    return {each: _table(document[name], each) for each in document.get(name, {})}


@dataclass(frozen=True)
class Planner:
    """Turns a declaration into cells.

    Attributes:
        declaration: the sweep.
        identity: of its dataset.
    """

    declaration: Declaration
    identity: DatasetIdentity

    def cells(self, only: Sequence[str] = ()) -> list[Cell]:
        """The cells of the grid, each once.

        Args:
            only: patterns of names, as in a shell; a cell that fits none of them is left out.

        Raises:
            OptionError: nothing fits, or an entry of the grid contradicts itself.
            UnknownName: no such run, backend or preset.
        """
        found = {cell.name: cell for entry in self.declaration.grid for cell in self._cells_of(entry)}
        chosen = [cell for name, cell in found.items() if not only or any(fnmatchcase(name, each) for each in only)]
        if not chosen:
            raise OptionError(f"No cell is called like {', '.join(only)}. There are: {', '.join(found)}.")
        return chosen

    def _cells_of(self, entry: Mapping[str, Any]) -> Iterator[Cell]:
        full = entry.get("scorer") is None and entry.get("dynamic") is None
        ratios = _ratios(entry.get("ratio", [1.0] if full else list(self.declaration.ratios)))
        if not ratios:
            raise OptionError(f"The grid's entry {dict(entry)} has no ratio, and the file names no ratios.")
        axes = itertools.product(
            _listed(entry.get("encoder")),
            _listed(entry.get("scorer")),
            ratios,
            _listed(entry.get("weights", False)),
            _listed(entry.get("anneal")),
            _listed(entry.get("dynamic")),
            _integers("seed", entry.get("seed", list(self.declaration.seeds))),
        )
        for encoder, scorer, ratio, weights, anneal, dynamic, seed in axes:
            where = f"The grid's entry {dict(entry)}"
            if scorer is None and (weights or entry.get("encoder") or entry.get("params") or (full and ratio != 1)):
                raise OptionError(f"{where} has no scorer, so it is of the full data, without encoder or weights.")
            if scorer is not None and encoder is None and scorer not in _LABELS_ONLY:
                raise OptionError(f"{where} needs an encoder.")
            params = dict(entry.get("params", {}))
            share = None if anneal is False else anneal
            coreset = None if scorer is None else self._select(encoder, scorer, params, ratio, seed)
            # Where everybody has equally many updates, InfoBatch does not depend on a ratio.
            shared = scorer is None and dynamic is not None and self._fixed_steps()
            label = str(dynamic) if shared else _name(encoder, scorer, params, ratio, weights, share, dynamic, None)
            train = self._train(label, coreset, ratio, weights=bool(weights), anneal=share, dynamic=dynamic, seed=seed)
            yield Cell(
                None if scorer in _LABELS_ONLY else encoder,
                scorer,
                params,
                ratio,
                bool(weights),
                share,
                dynamic,
                seed,
                train,
                self._evaluation(train),
            )

    def _embed(self, encoder: str | None) -> Stage:
        own = _ANY_EMBEDDINGS if encoder is None else self.declaration.encoders.get(encoder, {})
        options = {"encoder": encoder, **self.declaration.options["embed"], **own, **self._dataset()}
        return self._with_runs("embed", str(encoder or "labels"), options, {}, self._data_identity())

    def _select(self, encoder: str | None, scorer: str, params: Mapping[str, Any], ratio: float, seed: int) -> Stage:
        base = self.declaration.options["select"]
        options = {
            **base,
            "scorer": scorer,
            "ratio": f"{ratio:g}",
            "set": {**base.get("set", {}), **params},
            "seed": seed,
        }
        name = _name(encoder, scorer, params, ratio, False, None, None, seed)
        return self._with_runs("select", name, options, {"source": self._embed(encoder)}, {})

    def _train(
        self,
        label: str,
        coreset: Stage | None,
        ratio: float,
        *,
        weights: bool,
        anneal: float | None,
        dynamic: str | None,
        seed: int,
    ) -> Stage:
        inputs = {} if coreset is None else {"coreset": coreset}
        if weights and coreset is not None:
            inputs["class_weights"] = self._reweight(coreset, seed)
        options: dict[str, Any] = {
            **self.declaration.options["train"],
            "anneal": anneal,
            "dynamic": dynamic,
            "seed": seed,
        }
        if dynamic is not None and coreset is None:
            options.update(epochs=None, anneal=None, steps=self._annealed_steps(ratio, anneal or _INFOBATCH_SHARE))
        if coreset is None:
            options.update(self._dataset())
        identity = {"recipe": asdict(self._preset()), **(self._data_identity() if coreset is None else {})}
        return Stage("train", f"{label}-seed{seed}", options, inputs, identity)

    def _reference(self) -> Stage:
        seed = self.declaration.reference_seed
        return self._train("full", None, 1.0, weights=False, anneal=None, dynamic=None, seed=seed)

    def _reweight(self, coreset: Stage, seed: int) -> Stage:
        options = {**self.declaration.options["reweight"], "seed": seed}
        return Stage("reweight", coreset.name, options, {"coreset": coreset, "reference": self._reference()})

    def _evaluation(self, train: Stage) -> Stage | None:
        options = self.declaration.options["eval"]
        if not options.get("metric"):
            return None
        return self._with_runs("eval", train.name, dict(options), {"images": train}, {})

    def _run(self, name: str) -> Stage:
        if name == REFERENCE:
            return self._reference()
        if name not in self.declaration.runs:
            raise UnknownName("run of the sweep", name, [REFERENCE, *self.declaration.runs])
        base, own = self.declaration.options["train"], self.declaration.runs[name]
        lengths = {each: None for each in ("epochs", "steps") if {"epochs", "steps"} & set(own)}
        options = {**base, **lengths, **own, "set": {**base.get("set", {}), **own.get("set", {})}, **self._dataset()}
        identity = {"recipe": asdict(self._preset(options)), **self._data_identity()}
        return Stage("train", name, {"seed": self.declaration.reference_seed, **options}, {}, identity)

    def _with_runs(
        self, command: str, name: str, options: dict[str, Any], inputs: Mapping[str, Stage], identity: Mapping[str, Any]
    ) -> Stage:
        """A stage; options and settings `run:NAME` become inputs."""
        settings = dict(options.pop("set", {}))
        found = dict(inputs)
        for prefix, values in (("", options), ("set.", settings)):
            for key, value in list(values.items()):
                if isinstance(value, str) and value.startswith(RUN_PREFIX):
                    found[f"{prefix}{key}"] = self._run(values.pop(key).removeprefix(RUN_PREFIX))
        return Stage(command, name, {**options, **({"set": settings} if settings else {})}, found, identity)

    def _dataset(self) -> dict[str, Any]:
        return {"dataset": self.declaration.dataset, "split": self.declaration.split}

    def _data_identity(self) -> dict[str, Any]:
        return {"fingerprint": self.identity.fingerprint}

    def _preset(self, options: Mapping[str, Any] | None = None) -> Preset:
        options = self.declaration.options["train"] if options is None else options
        backend, preset = str(options.get("backend", "ddpm")), str(options.get("preset", "paper"))
        presets = registry().get("backend", backend)[0].load_presets()
        if preset not in presets:
            raise UnknownName(f"preset of backend {backend!r}", preset, presets)
        return presets[preset]

    def _fixed_steps(self) -> bool:
        return "steps" in _length(self.declaration.options["train"], self._preset())

    def _annealed_steps(self, ratio: float, share: float) -> int:
        """Updates of a run that spends `share` of its length on a coreset of `ratio`, and the rest on the full data."""
        first, second = updates(
            self.declaration.options["train"], self._preset(), self.identity.num_samples, ratio, share
        )
        return first + second


def updates(
    options: Mapping[str, Any], preset: Preset, num_samples: int, ratio: float, anneal: float | None
) -> tuple[int, int]:
    """Updates on a coreset of `ratio` and on the full data; see `dcprune.training.schedule.phase_steps`.

    Args:
        options: of `train`.
        preset: its recipe.
        num_samples: of the full data.
        ratio: kept fraction.
        anneal: share of the length on the coreset; None for all of it.
    """
    length = _length(options, preset)
    share = 1.0 if anneal is None else anneal
    steps = length.get("steps")
    if steps is not None:
        first = min(max(1, round(share * steps)), steps)
        return first, steps - first
    batch_size = options.get("batch_size") or preset.training.get("batch_size", 128)
    epochs = float(length["epochs"])
    first = max(1, round(share * epochs * round(ratio * num_samples) / batch_size))
    return first, 0 if anneal is None else max(1, round((1 - share) * epochs * num_samples / batch_size))


def _length(options: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    """`epochs` or `steps`, as given or else the recipe's."""
    given = {name: options[name] for name in ("epochs", "steps") if options.get(name) is not None}
    return given or {name: preset.training[name] for name in ("epochs", "steps") if preset.training.get(name)}


def _name(
    encoder: str | None,
    scorer: str | None,
    params: Mapping[str, Any],
    ratio: float,
    weights: bool,
    anneal: float | None,
    dynamic: str | None,
    seed: int | None,
) -> str:
    words = [
        encoder if scorer is not None and scorer not in _LABELS_ONLY else None,
        scorer or (None if dynamic else "full"),
        *(f"{key}={value}" for key, value in params.items()),
        dynamic,
        f"{ratio:g}" if scorer or dynamic else None,
        "weights" if weights else None,
        "anneal" if anneal else None,
        None if seed is None else f"seed{seed}",
    ]
    text = "-".join(str(word) for word in words if word)
    return "".join(letter if letter.isalnum() or letter in "-_.=" else "_" for letter in text)


def stages_of(cells: Sequence[Cell], is_done: Callable[[Stage], bool] = lambda _: False) -> list[Stage]:
    """The stages that the cells need, once, each after those that it needs itself.

    Args:
        cells: the runs, and what is measured of them.
        is_done: whether a stage is finished. What only finished stages need is left out: a sweep whose embeddings were
            deleted to save space does not make them again.
    """
    found: dict[str, Stage] = {}

    def add(stage: Stage) -> None:
        if stage.key in found:
            return
        if not is_done(stage):
            for source in stage.inputs.values():
                add(source)
        found[stage.key] = stage

    for cell in cells:
        add(cell.train)
        add(cell.last)
    return list(found.values())


def check_options(declaration: Declaration, known: Mapping[str, Sequence[str]]) -> None:
    """Refuse options that the commands do not have, before anything is run.

    Args:
        declaration: the sweep.
        known: names of the options of every command.

    Raises:
        UnknownName: the first that there is not.
        OptionError: one that the sweep itself gives.
    """
    tables = [(name, name, options) for name, options in declaration.options.items()]
    tables += [(f"encoders.{name}", "embed", options) for name, options in declaration.encoders.items()]
    tables += [(f"runs.{name}", "train", options) for name, options in declaration.runs.items()]
    for table, command, options in tables:
        for name in options:
            if name not in known[command]:
                raise UnknownName(f"option of `dcprune {command}` in the table [{table}]", name, known[command])
            if name in _GIVEN and (command, name) not in _ALLOWED:
                raise OptionError(f"[{table}] has {name}, which the sweep gives by itself. Remove it.")
