"""Options that several commands share, and the wrapper that gives every command the same behaviour."""

from __future__ import annotations

import functools
import inspect
import json
import sys
import tomllib
import traceback
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from dcprune.cli import console
from dcprune.errors import DcpruneError, InputError, OptionError, OutOfTime
from dcprune.interrupts import terminated_as_interrupted

INTERRUPTED = 130


class Scope(StrEnum):
    """Whether a ratio holds in every class or over everything."""

    CLASS = "class"
    GLOBAL = "global"


class DtypeName(StrEnum):
    """Autocast precision."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class ClassWeighting(StrEnum):
    """What class weights act on."""

    LOSS = "loss"
    SAMPLING = "sampling"


class Dynamic(StrEnum):
    """Pruning that goes on while a model trains."""

    INFOBATCH = "infobatch"


def names_of(kind: str) -> Callable[[str], list[str]]:
    """Shell completion of registered names."""

    def complete(incomplete: str) -> list[str]:
        from dcprune.plugins import registry

        return [name for name in registry().names(kind) if name.startswith(incomplete)]

    return complete


def preset_names(context: typer.Context, incomplete: str) -> list[str]:
    """Shell completion of the presets of the backend that is named, or of any backend."""
    from dcprune.plugins import registry

    presets = registry().presets()
    asked = presets.get(context.params.get("backend") or "")
    names = asked if asked is not None else sorted({name for names in presets.values() for name in names})
    return [name for name in names if name.startswith(incomplete)]


class PresetCommand(TyperCommand):
    """A command whose help of `--preset` names those that there are, looked up when the help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        from dcprune.plugins import registry

        backends: dict[str, list[str]] = {}
        for backend, names in registry().presets().items():
            backends.setdefault(", ".join(names), []).append(backend)
        known = "; ".join(f"{', '.join(found)}: {names}" for names, found in backends.items())
        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.name == "preset":
                parameter.help = f"{parameter.help} {known}."
        super().format_help(ctx, formatter)


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it takes, and do nothing.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[DtypeName, typer.Option(help="Precision; auto is bf16 where the hardware has it, else fp32.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples at a time.", show_default="automatic")]
NumWorkers = Annotated[int, typer.Option(min=0, help="Threads that decode images.")]
Latents = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="What `dcprune prepare -o FOLDER` wrote for the dataset.", show_default="the user cache"
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(envvar="DCPRUNE_DATA_DIR", help="Where datasets lie.", show_default="the user cache"),
]
Split = Annotated[str, typer.Option(help="Split of the dataset.")]
Setting = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="A setting; may be repeated.")]
Sampler = Annotated[
    str | None,
    typer.Option(help="ddim, ddpm, dpmsolver++, heun, ...: one that the backend has.", show_default="of the preset"),
]
NumSamples = Annotated[int | None, typer.Option(min=1, help="Images to draw.", show_default="of the preset")]
NumInferenceSteps = Annotated[
    int | None, typer.Option(min=1, help="Denoising steps of an image.", show_default="of the preset")
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Classifier-free guidance as in diffusers: 1 + w, so the paper's w = 0.3 is 1.3; 1 is no guidance.",
        show_default="of the preset",
    ),
]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training samples.", show_default="of the preset")]
MaxTime = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION", help="Save and exit with 130 after this time: 3600, 55m, 1h30m.", show_default="no limit"
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Updates, instead of --epochs.")]


def parsed_settings(pairs: list[str]) -> dict[str, str]:
    """`["a=1", "b=x"]` as a mapping.

    Raises:
        OptionError: an entry without `=`, or a key given twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise OptionError(f"--set takes KEY=VALUE; {pair!r} is not of that form.")
        if key in found:
            raise OptionError(f"--set {key} is given twice.")
        found[key] = value
    return found


def config_key(declarations: Iterable[str], name: str) -> str:
    """What a parameter is called in a TOML file: its long option in snake_case, or its own name."""
    long = [each.partition("/")[0] for each in declarations if each.startswith("--")]
    return (long[0].removeprefix("--") if long else name).replace("-", "_")


def _setting(value: Any) -> str:
    """A value of a table `set` as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def file_options(path: Path, command: str, known: Container[str], commands: Container[str]) -> dict[str, Any]:
    """Options of a TOML file by `config_key`: those of the table named after the command go before top-level ones.

    Args:
        path: the file.
        command: the command's name.
        known: the keys of its options.
        commands: the names of all commands, whose tables may stand in the file, too.

    Raises:
        OptionError: the file cannot be read, or has something that the command does not know.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{path} cannot be read as TOML: {error}.") from error
    own = document.get(command, {})
    if not isinstance(own, dict):
        raise OptionError(f"{path} has {command} = {own!r} where a table [{command}] is expected.")
    flat = {key: value for key, value in document.items() if key not in commands}
    given = {key.replace("-", "_"): value for key, value in {**flat, **own}.items()}
    unknown = sorted(key for key in given if key not in known)
    if unknown:
        raise OptionError(f"{path} has {', '.join(unknown)}, which `dcprune {command}` does not know.")
    if not isinstance(given.get("set", {}), dict):
        raise OptionError(f"{path} has set = {given['set']!r} where a table [{command}.set] is expected.")
    return given


def _check_shape(path: Path, key: str, value: Any, parameters: Iterable[Any], names: Mapping[str, str]) -> None:
    """Refuse one value where a list is expected, which click says unclearly.

    Raises:
        OptionError: naming the option.
    """
    several = key != "set" and any(each.name == names[key] and (each.multiple or each.nargs < 0) for each in parameters)
    if several and not isinstance(value, list):
        shown = json.dumps(value, default=str)
        raise OptionError(f"{path} has {key} = {shown} where a list is expected, such as {key} = [{shown}].")


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options of a TOML file the defaults of a command."""
    if path is None or context.resilient_parsing:
        return path
    names = {config_key(each.opts, str(each.name)): each.name for each in context.command.params}
    commands: Any = context.find_root().command
    try:
        values = file_options(path, context.info_name or "", names, getattr(commands, "commands", {}))
        for name, value in values.items():
            _check_shape(path, name, value, context.command.params, names)
    except OptionError as error:
        raise _stop(str(error), error.exit_code) from error
    if "set" in values:
        values["set"] = [f"{key}={_setting(value)}" for key, value in values["set"].items()]
    context.default_map = {**(context.default_map or {}), **{names[key]: value for key, value in values.items()}}
    return path


_SHARED: dict[str, Any] = {
    "config": Annotated[
        Path | None,
        typer.Option(
            callback=_read_config, is_eager=True, dir_okay=False, help="TOML file with options; flags go before it."
        ),
    ],
    "json_output": Annotated[bool, typer.Option("--json", help="Print one JSON object.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings and errors.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}


# Two ways to say one thing: a flag for one of them goes before the other in a file, too.
_ALTERNATIVES = {"epochs": "steps", "steps": "epochs", "ratio": "num", "num": "ratio"}


def _without_replaced(options: dict[str, Any], context: typer.Context) -> dict[str, Any]:
    """Options without those of a file that a flag replaces by another name."""

    def is_flag(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    return {
        name: None if value is not None and not is_flag(name) and is_flag(_ALTERNATIVES.get(name, name)) else value
        for name, value in options.items()
    }


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options, one line per error and the exit codes of `dcprune.errors`."""

    @functools.wraps(function)
    def run(
        *,
        context: typer.Context,
        config: Path | None,
        json_output: bool,
        quiet: bool,
        verbose: bool,
        debug: bool,
        **options: Any,
    ) -> None:
        console.settings = console.Settings(json=json_output, quiet=quiet, verbose=verbose, debug=debug)
        with exit_codes(), terminated_as_interrupted():
            function(**_without_replaced(options, context))

    own = inspect.signature(function, eval_str=True)
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if name == "config" else False,
            annotation=annotation,
        )
        for name, annotation in _SHARED.items()
    ]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own.parameters.values()]
    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
    run.__signature__ = own.replace(parameters=[*parameters, *shared], return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in [*parameters, *shared]}
    del run.__wrapped__
    return run


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into a line on stderr and an exit status; with `--debug` a traceback goes before it."""
    try:
        yield
        _report_plugin_failures()
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as error:
        raise _stop("Interrupted.", INTERRUPTED) from error
    except OutOfTime as error:
        console.say(str(error))
        raise typer.Exit(error.exit_code) from error
    except DcpruneError as error:
        raise _stop(str(error), error.exit_code) from error
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        code = InputError.exit_code if isinstance(error, PermissionError) else DcpruneError.exit_code
        raise _stop(f"{error.strerror or error}{place}.", code) from error
    except Exception as error:
        if _left_by_another(error):
            raise _stop("Another process of this run has stopped; its own message says why.", 1) from error
        message = f"{type(error).__name__}: {error}. This is a bug in dcprune or in a plugin; --debug shows where."
        raise _stop(message, DcpruneError.exit_code) from error


def _left_by_another(error: Exception) -> bool:
    """Whether a process waited for one that is gone: what torch's backends then raise."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        return False
    lost = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe")
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in lost)
    )


def _stop(message: str, code: int) -> typer.Exit:
    if console.settings.debug:
        traceback.print_exc()
    console.fail(message)
    return typer.Exit(code)


def _report_plugin_failures() -> None:
    """One warning a broken plugin, when the command looked at plugins at all."""
    plugins = sys.modules.get("dcprune.plugins")
    if plugins is not None and plugins.registry.cache_info().currsize:
        for failure in plugins.registry().failures:
            console.warn(str(failure))
