"""`dcprune prefetch`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from dcprune.cli import console, options
from dcprune.cli.doctor import show_files


def prefetch(
    encoder: Annotated[
        list[str],
        typer.Option(
            help="An encoder, for its weights; may be repeated.",
            autocompletion=options.names_of("encoder"),
            show_default=False,
        ),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    dataset: Annotated[
        list[str],
        typer.Option(
            help="A dataset; may be repeated.", autocompletion=options.names_of("dataset"), show_default=False
        ),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    metric: Annotated[
        list[str],
        typer.Option(
            help="A metric, for the weights of its encoder; may be repeated.",
            autocompletion=options.names_of("metric"),
            show_default=False,
        ),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    backend: Annotated[
        list[str],
        typer.Option(
            help="A diffusion backend, for its pretrained parts; may be repeated.",
            autocompletion=options.names_of("backend"),
            show_default=False,
        ),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    preset: Annotated[str, typer.Option(help="Recipe.", autocompletion=options.preset_names)] = "paper",
    weights: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Weights that an encoder knows by name (imagenet), or ENCODER=NAME for one of several.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 - Typer reads the default, nothing changes it
    settings: options.Setting = [],  # noqa: B006 - Typer reads the default, nothing changes it
    split: options.Split = "train",
    data_dir: options.DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be fetched.")] = False,
) -> None:
    """Fetch weights and datasets now, for machines without a network: prints where each file lies.

    dcprune prefetch --encoder clip-rn50 --encoder resnet18 --weights resnet18=imagenet --dataset cifar10 --metric fid
    """
    from dcprune.api.machine import prefetch as api_prefetch
    from dcprune.errors import InputError

    files = api_prefetch(
        encoders=encoder,
        datasets=dataset,
        metrics=metric,
        backends=backend,
        preset=preset,
        weights=_named_weights(weights, [*encoder, *metric]),
        settings=options.parsed_settings(settings),
        split=split,
        data_dir=data_dir,
        dry_run=dry_run,
        progress=console.ConsoleProgress(),
    )
    if console.settings.json:
        typer.echo(json.dumps({"files": [asdict(each) for each in files]}, ensure_ascii=False))
    elif dry_run:
        show_files("Files", files, digits=64)
    else:
        for each in files:
            if each.found:
                typer.echo(each.found)
    failures = [each.error for each in files if each.error]
    if failures:
        raise InputError("\n".join(failures))


def _named_weights(entries: list[str], networks: list[str]) -> dict[str, str]:
    """`["resnet18=imagenet"]` as a mapping; a bare name belongs to the only encoder or metric.

    Raises:
        OptionError: a bare name beside several, or none.
    """
    from dcprune.errors import OptionError

    found = {}
    for entry in entries:
        owner, separator, name = entry.rpartition("=")
        if not separator and len(networks) != 1:
            raise OptionError(f"--weights {entry} goes with one --encoder; with several, say ENCODER={entry}.")
        found[owner or networks[0]] = name
    return found
