"""`dcprune config`: what may stand in a TOML file of options, and what is in effect."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from dcprune.cli import options
from dcprune.errors import UnknownName

app = typer.Typer(help="Show what may stand in a TOML file for --config, and what is in effect.", no_args_is_help=True)

_NOT_IN_FILES = ("config", "context")
_NULL = "null"
_JSON_TYPES: dict[Any, str] = {int: "integer", float: "number", bool: "boolean"}


@dataclass(frozen=True)
class FileOption:
    """An option of a command as a TOML file has it.

    Attributes:
        key: its name there.
        annotation: its Python type.
        info: what Typer knows of it: help and bounds.
        default: its value where nobody gives one.
    """

    key: str
    annotation: Any
    info: Any
    default: Any


@app.command()
def show(
    command: Annotated[str, typer.Argument(help="A command, such as train.")],
    config: Annotated[Path | None, typer.Option(dir_okay=False, help="A file whose options go before.")] = None,
    backend: Annotated[str | None, typer.Option(help="For train: of this backend.", show_default="ddpm")] = None,
    preset: Annotated[
        str | None, typer.Option(help="For train: every value of this recipe.", show_default="paper")
    ] = None,
) -> None:
    """Every option of COMMAND with its value, as a TOML file for --config; for train, every value of the recipe, too.

    dcprune config show train --preset tiny > train.toml
    """
    with options.exit_codes():
        found = _options_of(command)
        values = {each.key: each.default for each in found}
        if config is not None:
            values |= options.file_options(config, command, values, options_by_command())
        values |= {name: value for name, value in (("backend", backend), ("preset", preset)) if value is not None}
        if command == "train":
            values |= _recipe(values)
        typer.echo("\n".join(_toml(command, values, {each.key: each.info.help for each in found})))


@app.command()
def schema() -> None:
    """The JSON Schema of the files that --config reads: a table for each command, and options of whichever command."""
    with options.exit_codes():
        tables = {name: _table_schema(name, found) for name, found in options_by_command().items()}
        document = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Options of dcprune",
            "type": "object",
            "properties": {**_anywhere(tables), **tables},
            "additionalProperties": False,
        }
        typer.echo(json.dumps(document, indent=1, ensure_ascii=False))


def options_by_command() -> dict[str, list[FileOption]]:
    """What a file may have for every command that reads one, by the command's name."""
    from dcprune.cli.app import app as program

    return {each.name: file_options_of(each.callback) for each in program.registered_commands if each.name}


def _options_of(command: str) -> list[FileOption]:
    known = options_by_command()
    if command not in known:
        raise UnknownName("command", command, known)
    return known[command]


def file_options_of(callback: Any) -> list[FileOption]:
    """The options of one command that a file may have, read from its signature."""
    found = []
    for parameter in inspect.signature(callback).parameters.values():
        if parameter.name in _NOT_IN_FILES:
            continue
        annotation, info = get_args(parameter.annotation)
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        # Typer reads the first name of an `Annotated` option as what it calls the default.
        names = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
        key = options.config_key(names, parameter.name)
        found.append(FileOption(key, annotation, info, {} if key == "set" else _plain(default)))
    return found


def _plain(value: Any) -> Any:
    """A value as TOML has it; None stands for no value."""
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's options with every value that its recipe gives, those without an option of their own under `set`."""
    from dcprune.api.recipes import resolve_recipe
    from dcprune.training.config import TrainingConfig

    own = {name: value for name, value in values.items() if name in TrainingConfig.model_fields}
    asked = {name: None if value is False else value for name, value in own.items()}
    recipe = resolve_recipe(str(values["backend"]), str(values["preset"]), values["set"], asked)
    resolved = recipe.config.model_dump(mode="json")
    if values["class_weights"] is None:
        resolved["class_weighting"] = None  # it needs weights
    settings = {name: value for name, value in resolved.items() if name not in own}
    return {**{name: resolved[name] for name in own}, "set": {**settings, **recipe.backend.settings()}}


def _toml(command: str, values: Mapping[str, Any], helps: Mapping[str, str | None]) -> Iterator[str]:
    """Lines of a TOML file; an option without a value stands in a comment."""
    yield f"[{command}]"
    for name, value in values.items():
        if name != "set":
            yield f"# {helps.get(name) or ''}"
            yield f"# {name} =" if value is None else f"{name} = {_value(value)}"
    settings = values.get("set")
    if settings:
        yield ""
        yield f"[{command}.set]"
        for name, value in settings.items():
            yield f"{name} = {_value(_NULL if value is None else value)}"


def _value(value: Any) -> str:
    """A value as TOML writes it: lists, numbers, strings and booleans look as in JSON."""
    return json.dumps(value, ensure_ascii=False)


def _anywhere(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What may stand above the tables: the options of all commands, each of any of the kinds that commands know."""
    kinds: dict[str, list[Any]] = {}
    for table in tables.values():
        for key, found in table["properties"].items():
            kind = {name: value for name, value in found.items() if name not in ("default", "description")}
            if kind not in kinds.setdefault(key, []):
                kinds[key].append(kind)
    return {key: found[0] if len(found) == 1 else {"anyOf": found} for key, found in kinds.items()}


def _table_schema(name: str, found: list[FileOption]) -> dict[str, Any]:
    properties = {each.key: _option_schema(each) for each in found}
    if name == "train":
        from dcprune.training.config import TrainingConfig

        training = TrainingConfig.model_json_schema()["properties"]
        own = {key: value for key, value in training.items() if key not in properties}
        properties["set"]["properties"] = {key: _with_null(value) for key, value in own.items()}
    return {
        "type": "object",
        "description": f"Options of `dcprune {name}`.",
        "properties": properties,
        "additionalProperties": False,
    }


def _with_null(found: dict[str, Any]) -> dict[str, Any]:
    """A schema that takes no value as TOML has to write it, too."""
    kinds = found.get("anyOf", [])
    return {**found, "anyOf": [*kinds, {"const": _NULL}]} if {"type": "null"} in kinds else found


def _option_schema(option: FileOption) -> dict[str, Any]:
    described = {"description": option.info.help} if option.info.help else {}
    if option.key == "set":
        return {**described, "type": "object"}
    default = {} if option.default is None else {"default": option.default}
    return {**described, **_kind(option.annotation, option.info), **default}


def _kind(annotation: Any, info: Any) -> dict[str, Any]:
    """The type, choices and bounds of a value of the Python type `annotation`."""
    (kind, *_) = [each for each in get_args(annotation) if each is not type(None)] or [annotation]
    if get_origin(annotation) is list:
        return {"type": "array", "items": _kind(kind, info)}
    if issubclass(kind, Enum):
        return {"type": "string", "enum": [each.value for each in kind]}
    bounds = {"minimum": info.min, "maximum": info.max}
    return {
        "type": _JSON_TYPES.get(kind, "string"),
        **{name: value for name, value in bounds.items() if value is not None},
    }
