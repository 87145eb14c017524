"""Which device a name stands for."""

from __future__ import annotations

import pytest
import torch

from dcprune.devices import resolve_device
from dcprune.errors import OptionError


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_every_process_has_its_own_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device(name) == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(OptionError, match=r"'cuda:2' is not here: 2 CUDA devices"):
        resolve_device(name)


def test_without_a_gpu_there_is_the_cpu() -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is a GPU")
    assert resolve_device() == torch.device("cpu")
    with pytest.raises(OptionError, match="0 CUDA devices"):
        resolve_device("cuda")
