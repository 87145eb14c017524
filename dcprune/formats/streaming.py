"""Writes safetensors files whose tensors need not be in memory as a whole.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the header, then
the tensors' bytes one after the other. Tensors go by the width of their elements, widest first, so that each is
aligned, and then by name; so the same content gives the same bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# bfloat16, which numpy lacks, is kept as its bits in uint16.
CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "uint8": "U8"}
_WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Blocks:
    """A tensor that comes in pieces.

    Attributes:
        dtype: a key of `CODES`.
        shape: of the whole.
        blocks: its C-ordered pieces along the first axis, in order.
    """

    dtype: str
    shape: tuple[int, ...]
    blocks: Iterable[NDArray[Any]]


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any] | Blocks], metadata: Mapping[str, str]) -> None:
    """Write `tensors` to `path`, which is not replaced atomically: that is the caller's affair.

    Raises:
        ValueError: blocks that do not add up to the shape that was announced.
    """
    parts = {
        name: each if isinstance(each, Blocks) else Blocks(each.dtype.name, each.shape, [each])
        for name, each in tensors.items()
    }
    order = sorted(parts, key=lambda name: (-_WIDTHS[CODES[parts[name].dtype]], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        start, end = end, end + math.prod(parts[name].shape) * _WIDTHS[CODES[parts[name].dtype]]
        header[name] = {
            "dtype": CODES[parts[name].dtype],
            "shape": list(parts[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for block in parts[name].blocks:
                stream.write(np.ascontiguousarray(block).data)
            if stream.tell() != 8 + len(text) + header[name]["data_offsets"][1]:
                raise ValueError(f"The blocks of {name} do not add up to the shape {list(parts[name].shape)}.")
