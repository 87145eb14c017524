"""Finds plugins, looks their items up by name, constructs them with settings.

Loading is isolated: a package that raises at import is remembered as a `PluginFailure`, and matters only when a name is
asked for that nobody registered. `DCPRUNE_LOAD_PLUGINS` limits loading to a comma-separated list of packages (empty:
none); `DCPRUNE_STRICT_PLUGINS=1` makes any failure fatal.
"""

from __future__ import annotations

import importlib
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy

from dcprune import builtin, hookspecs
from dcprune.errors import OptionError, PluginError, UnknownName

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from dcprune.presets import Preset

GROUP = "dcprune"
KINDS = ("dataset", "encoder", "scorer", "backend", "metric")
BUILTIN_PACKAGE = "dcprune"


@dataclass(frozen=True)
class Item:
    """One registered name.

    Attributes:
        kind: one of `KINDS`.
        name: how it is asked for.
        target: where its class is, `package.module:Attribute`.
        summary: a few words for lists.
        argument: the word for what follows a colon, empty when nothing does.
        presets: where a backend's presets are, in a module that imports no torch; empty when only the class has them.
        package, version: what it comes from.
    """

    kind: str
    name: str
    target: str
    summary: str
    argument: str
    presets: str
    package: str
    version: str

    @property
    def usage(self) -> str:
        return f"{self.name}:{self.argument}" if self.argument else self.name

    def load(self) -> Callable[..., Any]:
        """Import the item's class.

        Raises:
            PluginError: the module or the attribute cannot be imported.
        """
        found: Callable[..., Any] = self._imported(self.target)
        return found

    def load_presets(self) -> Mapping[str, Preset]:
        """A backend's presets by name, without its class where they were registered on their own.

        Raises:
            PluginError: a module or an attribute cannot be imported.
        """
        found: Mapping[str, Preset] = self._imported(self.presets) if self.presets else self.load().presets  # type: ignore[attr-defined]
        return found

    def _imported(self, target: str) -> Any:
        module_name, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except Exception as error:
            fix = f" {_removal(self.package)}" if self.package != BUILTIN_PACKAGE else ""
            raise PluginError(
                f"The {self.kind} {self.name!r} of {self.package} {self.version} does not load from {target!r}: "
                f"{type(error).__name__}: {error}.{fix}"
            ) from error


@dataclass(frozen=True)
class PluginFailure:
    """A package that did not load, or an item that was refused."""

    package: str
    version: str
    reason: str

    def __str__(self) -> str:
        return f"Plugin {self.package} {self.version}: {self.reason}. {_removal(self.package)}"


def _removal(package: str) -> str:
    return f"Update it, or remove it: pip uninstall {package}."


@dataclass
class Registry:
    """All items of all packages; see `registry()` for the one that the installed packages fill."""

    items: dict[tuple[str, str], Item] = field(default_factory=dict)
    failures: list[PluginFailure] = field(default_factory=list)

    def add_plugin(self, plugin: object, package: str, version: str) -> None:
        """Run every registration hook of one plugin; if one raises, nothing of the plugin is registered.

        Raises:
            Exception: whatever the plugin's hooks raise.
        """
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin)
        found: list[Item] = []
        for kind in KINDS:

            def register(
                name: str, target: str, *, summary: str = "", argument: str = "", presets: str = "", kind: str = kind
            ) -> None:
                found.append(Item(kind, name, target, summary, argument, presets, package, version))

            getattr(manager.hook, f"register_{kind}s")(register=register)
        for item in found:
            taken = self.items.get((item.kind, item.name))
            if taken:
                reason = f"its {item.kind} {item.name!r} is refused, {taken.package} {taken.version} has that name"
                self.failures.append(PluginFailure(package, version, reason))
            else:
                self.items[item.kind, item.name] = item

    def load_entry_points(self, entry_points: Iterable[metadata.EntryPoint]) -> None:
        """Load third-party plugins one by one, in the order of their names; failures are collected."""
        for entry_point in sorted(entry_points, key=lambda each: each.name):
            package = entry_point.dist.name if entry_point.dist else entry_point.name
            version = entry_point.dist.version if entry_point.dist else "unknown"
            try:
                self.add_plugin(entry_point.load(), package, version)
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything, and must not stop the others
                self.failures.append(PluginFailure(package, version, f"{type(error).__name__}: {error}"))

    def names(self, kind: str) -> list[str]:
        return sorted(name for item_kind, name in self.items if item_kind == kind)

    def get(self, kind: str, name: str) -> tuple[Item, str]:
        """The item called `name`, and the argument when `name` is `item:argument`.

        Raises:
            UnknownName: nothing of this kind has that name.
            OptionError: an argument is missing.
        """
        prefix, _, argument = name.partition(":")
        item = self.items.get((kind, name)) or self.items.get((kind, prefix))
        if item is None or (argument and not item.argument and item.name != name):
            hint = " ".join(f"A plugin that failed may have it. {failure}" for failure in self.failures)
            raise UnknownName(kind, name, (i.usage for (k, _), i in self.items.items() if k == kind), hint)
        if item.argument and not argument:
            raise OptionError(f"The {kind} {name!r} needs an argument: {item.usage}.")
        return item, argument if item.argument else ""

    def create(self, kind: str, name: str, settings: Mapping[str, Any], **fixed: Any) -> Any:
        """Construct an item: `settings` are a user's (strings are converted), `fixed` are the caller's.

        Raises:
            UnknownName: no such item, or a setting that it does not have.
            OptionError: a setting's value does not fit its type.
        """
        item, argument = self.get(kind, name)
        target = item.load()
        if argument:
            fixed["argument"] = argument
        return target(**converted(target, settings, f"{kind} {name!r}", exclude=fixed), **fixed)

    def presets(self) -> dict[str, list[str]]:
        """Names of the presets of every backend that registered them on their own; no backend is imported."""
        backends = (item for (kind, _), item in sorted(self.items.items()) if kind == "backend" and item.presets)
        return {item.name: list(item.load_presets()) for item in backends}

    def versions(self) -> list[tuple[str, str]]:
        """Third-party packages that registered something."""
        return sorted({(i.package, i.version) for i in self.items.values() if i.package != BUILTIN_PACKAGE})


def converted(
    target: Callable[..., Any], settings: Mapping[str, Any], what: str, exclude: Iterable[str] = ()
) -> dict[str, Any]:
    """Settings checked against the signature of `target` and converted to its annotations.

    A `**` parameter takes any further setting as it is.

    Raises:
        UnknownName: a setting that the signature does not have.
        OptionError: a value that does not fit its annotation.
    """
    from pydantic import TypeAdapter, ValidationError

    parameters = inspect.signature(target).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    known = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD) and name not in exclude
    ]
    result: dict[str, Any] = {}
    for raw_name, value in settings.items():
        name = raw_name.replace("-", "_")
        if name not in known:
            if not open_ended:
                raise UnknownName(f"setting of the {what}:", raw_name, known)
            result[name] = value
            continue
        try:
            result[name] = _fitted(TypeAdapter(hints.get(name, Any)), value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise OptionError(f"Setting {raw_name}={value!r} of the {what} does not fit: {problem}.") from error
    return result


def _fitted(adapter: TypeAdapter[Any], value: Any) -> Any:
    """A value of the adapter's type; a string that does not fit as it is may be JSON (`--set channels=[8,16]`)."""
    from pydantic import ValidationError

    try:
        return adapter.validate_python(value)
    except ValidationError:
        if not is_json(value):
            raise
        return adapter.validate_json(value)


def is_json(value: object) -> bool:
    """Whether the value of a setting is meant as JSON: a list, a table, or null for none."""
    return isinstance(value, str) and (value[:1] in ("[", "{") or value == "null")


@cache
def registry() -> Registry:
    """Items of dcprune and of every installed plugin that `DCPRUNE_LOAD_PLUGINS` admits.

    Raises:
        PluginError: a plugin failed and `DCPRUNE_STRICT_PLUGINS` is set.
    """
    found = Registry()
    found.add_plugin(builtin, BUILTIN_PACKAGE, metadata.version("dcprune"))
    entry_points: list[metadata.EntryPoint] = list(metadata.entry_points(group=GROUP))
    admitted = os.environ.get("DCPRUNE_LOAD_PLUGINS")
    if admitted is not None:
        names = {name.strip() for name in admitted.split(",")} - {""}
        available = {each.name for each in entry_points} | {each.dist.name for each in entry_points if each.dist}
        for name in sorted(names - available):
            found.failures.append(PluginFailure(name, "(absent)", "named in DCPRUNE_LOAD_PLUGINS but not installed"))
        entry_points = [
            each for each in entry_points if each.name in names or (each.dist is not None and each.dist.name in names)
        ]
    found.load_entry_points(entry_points)
    if found.failures and os.environ.get("DCPRUNE_STRICT_PLUGINS", "") not in ("", "0"):
        raise PluginError(" ".join(str(failure) for failure in found.failures))
    return found
