"""How processes that share a job part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# The first to register at exit is the last to be called.
PROGRAM = """
import atexit, json, os, runpy, sys
from pathlib import Path

output = Path(sys.argv[1], os.environ["RANK"] + ".json")
sys.argv = ["dcprune", *sys.argv[2:]]
tasks = Path("/proc/self/task")
atexit.register(lambda: output.write_text(json.dumps([(task / "comm").read_text() for task in tasks.iterdir()])))
runpy.run_module("dcprune", run_name="__main__")
"""
EMBED = ("embed", "fashion-mini", "--split", "test", "--encoder", "pixels", "--batch-size", "100")
TRAIN = ("train", "fashion-mini", "--split", "test", "--preset", "tiny", "--steps", "1", "--batch-size", "4")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads by /proc")
@pytest.mark.parametrize("command", [EMBED, TRAIN])
def test_no_thread_of_gloo_outlives_the_command(tmp_path: Path, command: tuple[str, ...]) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    arguments = [str(program), str(tmp_path), *command, "--device", "cpu", "-o", str(tmp_path / "output")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*launcher, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    left = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [[name for name in names if "gloo" in name] for names in left] == [[], []]
