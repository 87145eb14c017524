"""The hooks of the entry-point group `dcprune`, all of them.

Each hook receives `register(name, target, *, summary="", argument="", presets="")`. `target` is
`"package.module:Attribute"` and is imported only when the item is used. An item with an `argument` (a word for the
help, such as `"ENCODER"`) is called by `name:ARGUMENT`, and what stands behind the colon is passed to its constructor
as `argument`. A backend whose presets lie in a module of their own, which imports no torch, says where in `presets`,
and the help of `train` and `reweight` names them.
"""

from __future__ import annotations

from typing import Protocol

import pluggy

hookspec = pluggy.HookspecMarker("dcprune")
hookimpl = pluggy.HookimplMarker("dcprune")


class Register(Protocol):
    def __call__(self, name: str, target: str, *, summary: str = "", argument: str = "", presets: str = "") -> None: ...


@hookspec
def register_datasets(register: Register) -> None:
    """Register dataset sources: classes that look like `dcprune.interfaces.DatasetSource`."""


@hookspec
def register_encoders(register: Register) -> None:
    """Register encoders: classes that look like `dcprune.interfaces.Encoder`."""


@hookspec
def register_scorers(register: Register) -> None:
    """Register scorers: classes that look like `dcprune.interfaces.Scorer`."""


@hookspec
def register_backends(register: Register) -> None:
    """Register diffusion backends: classes that look like `dcprune.interfaces.Backend`."""


@hookspec
def register_metrics(register: Register) -> None:
    """Register metrics: classes that look like `dcprune.interfaces.Metric`."""
