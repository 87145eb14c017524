"""Where stages leave their files, and how a stage that is done is told from one that is not.

FOLDER/embed/resnet18-3f2a9c01d4/embeddings.safetensors   what the command wrote
FOLDER/embed/resnet18-3f2a9c01d4.toml                     its options: dcprune embed --config FILE
FOLDER/embed/resnet18-3f2a9c01d4.log                      what it said
FOLDER/embed/resnet18-3f2a9c01d4.json                     the key, and hashes of the output: only when it is done
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcprune import formats
from dcprune.artifacts import Record, Sha256
from dcprune.errors import ArtifactError
from dcprune.formats.documents import RUN_FILE
from dcprune.sweep.stages import OUTPUTS, Stage


class Done(Record):
    """That a stage is done.

    Attributes:
        key: of the stage.
        sha256: of the output; of a run, of its `run.json`, which has the hash of the model.
        seconds: how long the call took that finished it.
        device: where that was.
    """

    key: Sha256
    sha256: Sha256
    seconds: float
    device: str


@dataclass(frozen=True)
class Cache:
    """The stages under one folder."""

    folder: Path

    def output(self, stage: Stage) -> Path:
        """What the stage writes: a file, or the folder of a run."""
        return self._place(stage, "") / OUTPUTS[stage.command]

    def options_file(self, stage: Stage) -> Path:
        """The TOML file of its options."""
        return self._place(stage, ".toml")

    def log(self, stage: Stage) -> Path:
        """What it said."""
        return self._place(stage, ".log")

    def lock(self, stage: Stage) -> Path:
        """The file that whoever works on it holds."""
        return self._place(stage, ".lock")

    def main_file(self, stage: Stage) -> Path:
        """The file that stands for the output."""
        output = self.output(stage)
        return output / RUN_FILE if stage.command == "train" else output

    def done(self, stage: Stage) -> Done | None:
        """The record of a stage that is done, and whose output is still what it was; None for any other."""
        file, output = self._place(stage, ".json"), self.main_file(stage)
        if not (file.is_file() and output.exists()):
            return None
        try:
            record = Done.model_validate_json(file.read_bytes())
        except ValueError as error:
            raise ArtifactError(f"{file} is damaged: {error}. Remove it to do the stage again.") from error
        # A large file that was written whole and renamed is not read again to find out whether to go on.
        known = record.key == stage.key and (stage.command == "embed" or formats.sha256(output) == record.sha256)
        return record if known else None

    def mark_done(self, stage: Stage, seconds: float, device: str) -> None:
        """Say that a stage is done."""
        sha256 = formats.sha256(self.main_file(stage))
        record = Done(key=stage.key, sha256=sha256, seconds=round(seconds, 3), device=device)
        formats.atomic_write(self._place(stage, ".json"), record.model_dump_json(indent=1).encode(), overwrite=True)

    def arguments(self, stage: Stage, free: Mapping[str, Any]) -> list[str]:
        """Write the file of options, and say how the command is called with it.

        Args:
            stage: what to do; its inputs are there.
            free: options of this call that decide nothing, such as `device`; unknown ones are left out.
        """
        output = self.output(stage)
        output.parent.mkdir(parents=True, exist_ok=True)
        options = {**stage.options, **free}
        for name, source in stage.inputs.items():
            table, _, setting = name.rpartition(".")
            if table:
                options[table] = {**options.get(table, {}), setting: str(self.output(source))}
            else:
                options[name] = str(self.output(source))
        options["output"] = str(output)
        options["resume" if stage.command in ("embed", "reweight", "train") else "overwrite"] = True
        text = toml(stage.command, options)
        formats.atomic_write(self.options_file(stage), text.encode(), overwrite=True)
        return [stage.command, "--config", str(self.options_file(stage))]

    def _place(self, stage: Stage, suffix: str) -> Path:
        return self.folder / stage.command / f"{stage.slug}{suffix}"


def toml(command: str, options: Mapping[str, Any]) -> str:
    """Options as the file that `--config` of a command reads; those that are None are left out."""
    tables = {name: value for name, value in options.items() if isinstance(value, Mapping)}
    lines = [f"[{command}]"]
    lines += [
        f"{name} = {_value(value)}" for name, value in options.items() if value is not None and name not in tables
    ]
    for name, table in tables.items():
        lines += ["", f"[{command}.{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A value as TOML writes it, which for lists, numbers, strings and booleans is as JSON does."""
    return json.dumps("null" if value is None else value, ensure_ascii=False)
