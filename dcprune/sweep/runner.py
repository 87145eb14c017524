"""Does the stages of a sweep: each in a process of its own, as many at a time as there are devices.

A stage is a command of `dcprune`, run in a child process. A crash, or a kernel that runs out of memory and kills, takes
that stage and nothing else; what a stage held in memory is free when it ends; and its artifacts say which command made
them. The children are forked from a server that has imported what the commands need (`multiprocessing`'s `forkserver`),
so that a stage of a second takes a second.

When the parent dies, whatever way, a child stops as at SIGTERM: it saves its state. The next call goes on from there,
and waits where a child still holds the lock of its stage.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from dcprune.errors import DcpruneError
from dcprune.interfaces import Progress
from dcprune.interrupts import terminated_as_interrupted
from dcprune.locks import locked
from dcprune.plugins import registry
from dcprune.sweep.cache import Cache
from dcprune.sweep.stages import Stage

# Imported once by the server that children are forked from, with the backends and encoders of the sweep.
_PRELOAD: Final = ["dcprune.api.embeddings", "dcprune.api.runs", "dcprune.api.evaluation", "dcprune.cli.app"]
_PATIENCE: Final = 60.0  # seconds that a child gets to save its state
_INTERRUPTED: Final = 130


@dataclass(frozen=True)
class Slot:
    """A place where one stage at a time runs.

    Attributes:
        device: what `--device` of a stage says.
        environment: variables of its process.
    """

    device: str
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A stage that did not work, and what its last words were."""

    stage: Stage
    reason: str
    log: Path


def work(
    stages: Sequence[Stage],
    cache: Cache,
    slots: Sequence[Slot],
    free: Mapping[str, Any],
    *,
    progress: Progress,
    on_done: Callable[[], None],
) -> list[Failure]:
    """Do all stages that are not done, inputs first.

    Args:
        stages: each after those that it needs.
        cache: where they leave their files.
        slots: where they run.
        free: options of every call that decide nothing, such as `data_dir`.
        progress: counts stages.
        on_done: called after every stage that was done.

    Returns:
        What failed; stages that need something which failed are left out.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the stages at work have saved their state.
    """
    waiting = [stage for stage in stages if cache.done(stage) is None]
    progress.note(f"{len(stages) - len(waiting)} of {len(stages)} stages are done.")
    crew = _Crew(cache, list(slots), free, _modules(waiting))
    failures: list[Failure] = []
    blocked: set[str] = set()
    finished = {stage.key for stage in stages} - {stage.key for stage in waiting}
    with progress.task("sweep", len(waiting), "stages") as task, terminated_as_interrupted(), crew:
        while waiting or crew.busy:
            for stage in list(waiting):
                needs = {source.key for source in stage.inputs.values()}
                if needs & blocked:
                    blocked.add(stage.key)
                    waiting.remove(stage)
                    task.advance()
                elif needs <= finished and crew.idle:
                    waiting.remove(stage)
                    crew.start(stage)
                    progress.note(f"{stage.command} {stage.name}")
            for stage, reason in crew.ended():
                task.advance()
                if reason is None:
                    finished.add(stage.key)
                    on_done()
                else:
                    blocked.add(stage.key)
                    failures.append(Failure(stage, reason, cache.log(stage)))
                    progress.warn(f"{stage.command} {stage.name} failed: {reason}")
    return failures


@dataclass
class _Crew:
    """The children at work."""

    cache: Cache
    idle: list[Slot]
    free: Mapping[str, Any]
    modules: set[str]
    busy: dict[int, tuple[BaseProcess, Stage, Slot]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in known else "spawn")
        if "forkserver" in known:
            self._context.set_forkserver_preload([*_PRELOAD, *sorted(self.modules)])

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop whoever is still at work, and wait until the state is saved."""
        processes = [process for process, _, _ in self.busy.values()]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()

    def start(self, stage: Stage) -> None:
        """Begin a stage on an idle slot."""
        slot = self.idle.pop(0)
        arguments = self.cache.arguments(stage, {**self.free, "device": slot.device})
        target = (stage, self.cache, arguments, slot)
        process = self._context.Process(target=_do, args=target, name=f"{stage.command} {stage.name}")
        process.start()
        self.busy[process.sentinel] = process, stage, slot

    def ended(self) -> Iterator[tuple[Stage, str | None]]:
        """Wait until somebody is ready: the stages, and why they failed or None."""
        ready = wait(list(self.busy)) if self.busy else []
        for sentinel in [each for each in self.busy if each in ready]:
            process, stage, slot = self.busy.pop(sentinel)
            process.join()
            self.idle.append(slot)
            yield stage, None if self.cache.done(stage) is not None else self._reason(process, stage)

    def _reason(self, process: BaseProcess, stage: Stage) -> str:
        code = process.exitcode or 0
        if code < 0:
            return f"it was killed by {signal.Signals(-code).name}, as the system does when memory runs out."
        said = self.cache.log(stage).read_text(errors="replace").splitlines() if self.cache.log(stage).exists() else []
        errors = [line for line in said if line.strip()]
        start = next((number for number in reversed(range(len(errors))) if errors[number].startswith("Error:")), None)
        words = " ".join(errors[start:]).removeprefix("Error: ") if start is not None else (errors or ["no word"])[-1]
        return f"{words} (exit code {code})"


def _modules(stages: Sequence[Stage]) -> set[str]:
    """Where the backends and encoders of the stages are."""
    named = {("backend", str(stage.options.get("backend", "ddpm"))) for stage in stages if stage.command == "train"}
    named |= {("encoder", str(stage.options["encoder"])) for stage in stages if stage.command == "embed"}
    return {registry().get(kind, name)[0].target.partition(":")[0] for kind, name in named}


def _do(stage: Stage, cache: Cache, arguments: list[str], slot: Slot) -> None:
    """One stage, in the child."""
    os.environ.update(slot.environment)
    if hasattr(os, "setsid"):
        os.setsid()  # the Ctrl-C of a terminal is the parent's
    _follow_parent()
    with cache.log(stage).open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    with locked(cache.lock(stage)):
        if cache.done(stage) is not None:  # another sweep did it while this one waited
            return
        started = time.monotonic()
        sys.argv = ["dcprune", *arguments]
        try:
            runpy.run_module("dcprune", run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                raise
        cache.mark_done(stage, time.monotonic() - started, slot.device)


def _follow_parent() -> None:
    """Stop as at SIGTERM when the parent is gone."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()


def raise_failures(failures: Sequence[Failure], left_out: int) -> None:
    """Say what failed, after everything else was done.

    Raises:
        DcpruneError: anything failed.
    """
    if not failures:
        return
    lines = [f"  {each.stage.command} {each.stage.name}: {each.reason}\n    {each.log}" for each in failures]
    more = f" {left_out} cells could not be finished." if left_out else ""
    raise DcpruneError(f"{len(failures)} stages failed.{more}\n" + "\n".join(lines))
