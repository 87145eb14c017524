"""The `dcprune` program: its commands, in the order of the chain."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from dcprune import __version__
from dcprune.cli import (
    compare,
    config,
    coreset,
    demo,
    doctor,
    embed,
    evaluate,
    explain,
    export,
    files,
    plugins,
    prefetch,
    prepare,
    report,
    reweight,
    sample,
    sweep,
    train,
)
from dcprune.cli.options import PresetCommand, command

app = typer.Typer(
    name="dcprune",
    help="Train diffusion models on the images that matter: prune the data, reweight the classes, train sooner.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command reads the file that the one before it wrote. `dcprune demo` shows the whole chain.",
)

CHAIN = "The chain"
for name, function, panel in (
    ("embed", embed.embed, CHAIN),
    ("score", coreset.score, CHAIN),
    ("select", coreset.select, CHAIN),
    ("reweight", reweight.reweight, CHAIN),
    ("train", train.train, CHAIN),
    ("eval", evaluate.evaluate, CHAIN),
    ("prepare", prepare.prepare, "Beyond"),
    ("sample", sample.sample, "Beyond"),
    ("report", report.report, "Beyond"),
    ("sweep", sweep.sweep, "Beyond"),
    ("export", export.export, "Beyond"),
    ("compare", compare.compare, "Beyond"),
    ("explain", explain.explain, "Beyond"),
    ("inspect", files.inspect, "Beyond"),
    ("verify", files.verify, "Beyond"),
    ("plugins", plugins.plugins, "Beyond"),
    ("doctor", doctor.doctor, "Beyond"),
    ("prefetch", prefetch.prefetch, "Beyond"),
    ("demo", demo.demo, "Beyond"),
):
    names_presets = "preset" in inspect.signature(function).parameters
    app.command(name, cls=PresetCommand if names_presets else None, rich_help_panel=panel)(command(function))


app.add_typer(config.app, name="config", rich_help_panel="Beyond")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dcprune {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train diffusion models on the images that matter: prune the data, reweight the classes, train sooner."""


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="dcprune")
