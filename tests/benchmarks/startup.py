"""`dcprune --help` against a bare Typer program, interleaved: `python tests/benchmarks/startup.py`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

HELLO = """
import typer
app = typer.Typer()
@app.command()
def hello(name: str = "world"):
    print(f"Hello {name}")
app(["--help"])
"""
OURS = "from dcprune.cli.app import app\napp(['--help'])"
ROUNDS = 15


def seconds(program: str) -> float:
    """Wall-clock seconds of one new interpreter that runs `program`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print the ratio of the medians first."""
    seconds(HELLO), seconds(OURS)
    pairs = [(seconds(OURS), seconds(HELLO)) for _ in range(ROUNDS)]
    ours, hello = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{ours / hello:.2f} x  dcprune --help {ours * 1e3:.0f} ms, Typer hello {hello * 1e3:.0f} ms, {ROUNDS} rounds"
    )


if __name__ == "__main__":
    main()
