"""Tables beside images: CSV, TSV, JSON lines and parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcprune.errors import DatasetError

EXTRA = "pip install 'dcprune[datasets]'"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Table:
    """Named columns of one length.

    Attributes:
        path: the file.
        columns: names to values, in the order of the file.
        lines: the line of every row, counted from 1; None where a file has rows and no lines.
    """

    path: Path
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] | None

    @property
    def title(self) -> str:
        """What to call it in an error."""
        return repr(str(self.path))

    def place(self, row: int) -> str:
        """Where a row stands, for an error."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"


def read_table(path: Path) -> Table:
    """Read a whole table; what it is follows from the suffix (.csv, .tsv, .jsonl, .parquet).

    Text is UTF-8; the first line of a CSV or TSV file names its columns, and every other has as many fields.

    Raises:
        DatasetError: it cannot be read, has columns of one name, or lines that do not fit; parquet without pyarrow.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path)
        if path.suffix.lower() == ".jsonl":
            return _read_json_lines(path)
        return _read_delimited(path, _DELIMITERS[path.suffix.lower()])
    except OSError as error:
        raise DatasetError(f"Cannot read {str(path)!r}: {error.strerror or error}.") from error
    except (ValueError, csv.Error) as error:
        raise DatasetError(f"Cannot read {str(path)!r}: {error}.") from error


def _read_delimited(path: Path, delimiter: str) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        names = next(reader, [])
        if not names or len(set(names)) != len(names):
            raise DatasetError(f"The first line of {str(path)!r} must name its columns, each once; it is {names}.")
        rows, lines = [], []
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(names):
                raise DatasetError(
                    f"{str(path)!r} line {reader.line_num} has {len(fields)} fields, not {len(names)} as the first "
                    f"line. Put a field that holds {delimiter!r} into double quotes."
                )
            rows.append(fields)
            lines.append(reader.line_num)
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    return Table(path, dict(zip(names, columns, strict=True)), lines)


def _read_json_lines(path: Path) -> Table:
    rows, lines = [], []
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DatasetError(f"{str(path)!r} line {number} is no JSON object.")
            rows.append(row)
            lines.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(path, {name: [row.get(name) for row in rows] for name in names}, lines)


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, binary, large_binary, parquet
    except ImportError as error:
        raise DatasetError(f"{str(path)!r} needs pyarrow to be read: {EXTRA}.") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if any(each.type.num_fields or each.type in (binary(), large_binary()) for each in file.schema_arrow):
                raise DatasetError(
                    f"{str(path)!r} is no list of files: it holds bytes or nested values. Where those are the images, "
                    f"name the dataset 'hf:{path}'."
                )
            table = file.read()
    except ArrowException as error:
        raise DatasetError(f"Cannot read {str(path)!r}: {error}.") from error
    if len(set(names)) != len(names):
        raise DatasetError(f"{str(path)!r} has columns of one name: {', '.join(names)}.")
    return Table(path, {name: table.column(name).to_pylist() for name in names}, None)
