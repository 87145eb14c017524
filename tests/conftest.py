from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dcprune import plugins

# Each of several processes that share the tests computes in one thread, and so do those that it starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no fixture of any scope, reads or fills the caches of the user who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the test run was started in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch computes in one thread, for modules that ask for it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of a machine that would fetch, from an address where nobody answers."""
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "caches"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "caches" / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "caches" / "torch"))
    monkeypatch.setattr("dcprune.downloads._from_hub", lambda *_: pytest.fail("a dry run fetched a file"))
    monkeypatch.setattr("dcprune.downloads._from_address", lambda *_: pytest.fail("a dry run fetched a file"))
    return tmp_path / "caches"


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[type[BaseHTTPRequestHandler]], str]]:
    """Starts a server on this machine for a handler of requests; returns its address."""
    with ExitStack() as stack:

        def start(handler: type[BaseHTTPRequestHandler]) -> str:
            running = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=running.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(running.shutdown)
            return f"http://127.0.0.1:{running.server_address[1]}"

        yield start


@pytest.fixture
def install_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Installs a distribution with one module and a `dcprune` entry point, as pip would leave it on disk."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(name: str, source: str) -> None:
        module = name.replace("-", "_")
        (site / f"{module}.py").write_text(source)
        info = site / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[dcprune]\n{name} = {module}\n")
        plugins.registry.cache_clear()

    plugins.registry.cache_clear()
    yield install
    plugins.registry.cache_clear()
    for module in site.glob("*.py"):
        sys.modules.pop(module.stem, None)
