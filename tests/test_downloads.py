"""Finding and fetching files: real transfers from a server on this machine, and everything that can go wrong."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import huggingface_hub.constants
import pytest

from dcprune.downloads import address, checkpoint, fetch, hub_file, locate
from dcprune.errors import DatasetError, WeightsError
from dcprune.interfaces import Download, Task
from dcprune.progress import SILENT

CONTENT = bytes(range(256)) * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILES = {"/weights.pt", "/org/name/resolve/main/open_clip_pytorch_model.bin", "/org/name/resolve/v2/sub/config.json"}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send("short" not in self.path)

    def do_HEAD(self) -> None:
        self.send(False)

    def send(self, whole: bool) -> None:
        found = self.path.replace("/short", "") in FILES
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(CONTENT) if found else 0))
        self.send_header("ETag", f'"{SHA256}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(CONTENT if whole else CONTENT[:5000])

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def server(serve: Callable[[type[BaseHTTPRequestHandler]], str]) -> str:
    return serve(Handler)


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


class Counter:
    """A `Progress` that adds up what was counted."""

    def __init__(self) -> None:
        self.megabytes = 0
        self.notes: list[str] = []

    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Task]:
        return nullcontext(self)

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self.megabytes += amount

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("sha256", ["", SHA256[:8], SHA256])
def test_a_file_is_fetched_once(server: str, tmp_path: Path, sha256: str) -> None:
    file = Download(f"{server}/weights.pt", tmp_path / "cache" / "weights.pt", sha256)
    assert locate(file) is None
    progress = Counter()
    assert fetch(file, progress) == file.path == locate(file)
    assert file.path.read_bytes() == CONTENT
    assert (progress.megabytes, progress.notes) == (2, [f"Downloading {server}/weights.pt"])
    assert fetch(file, progress) == file.path
    assert len(progress.notes) == 1
    assert list(file.path.parent.iterdir()) == [file.path]


@pytest.mark.parametrize(
    ("path", "sha256", "problem"),
    [
        ("/weights.pt", "abcd", "sha256 " + SHA256 + ", not abcd"),
        ("/short/weights.pt", "", "broke after 5,000 of 2,560,000 bytes"),
        ("/absent.pt", SHA256, "404"),
    ],
)
def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    server: str, tmp_path: Path, path: str, sha256: str, problem: str
) -> None:
    file = Download(f"{server}{path}", tmp_path / "cache" / "weights.pt", sha256)
    with pytest.raises(WeightsError) as caught:
        fetch(file, SILENT)
    for part in (problem, f"Fetch {server}{path} elsewhere", f"put it at {file.path}", "--weights PATH", sha256):
        assert part in str(caught.value)
    assert list(file.path.parent.iterdir()) == []


def test_the_caller_chooses_the_error(server: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"x\.tar cannot be downloaded") as caught:
        fetch(Download(f"{server}/x.tar", tmp_path / "x.tar"), SILENT, error=DatasetError)
    assert "--weights" not in str(caught.value)


def test_a_place_that_cannot_be_written(server: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.raises(WeightsError, match=r"weights\.pt cannot be downloaded"):
        fetch(Download(f"{server}/weights.pt", tmp_path / "file" / "weights.pt"), SILENT)


def test_torch_hubs_own_cache_is_searched(tmp_path: Path) -> None:
    file = checkpoint("https://example.org/models/net-0123abcd.pth", "0123abcd")
    assert file.path == tmp_path / "torch" / "hub" / "checkpoints" / "net-0123abcd.pth"
    elsewhere = Download(file.url, tmp_path / "cache" / "net-0123abcd.pth")
    assert locate(elsewhere) is None
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"weights")
    assert locate(elsewhere) == file.path
    elsewhere.path.parent.mkdir()
    elsewhere.path.write_bytes(b"others")
    assert locate(elsewhere) == elsewhere.path


def test_hub_addresses(tmp_path: Path) -> None:
    file = hub_file("org/name", "sub/model.safetensors", tmp_path, revision="v2")
    assert file.url == "hf://org/name@v2/sub/model.safetensors"
    assert file.path == tmp_path / "hub" / "org--name@v2" / "sub" / "model.safetensors"
    assert address(file) == "https://huggingface.co/org/name/resolve/v2/sub/model.safetensors"
    assert address(hub_file("org/name", "m.bin", tmp_path)) == "https://huggingface.co/org/name/resolve/main/m.bin"
    assert address(checkpoint("https://example.org/a.pth")) == "https://example.org/a.pth"
    with pytest.raises(ValueError, match="hf://org/name@revision/file"):
        address(Download("hf://name", tmp_path / "x"))


def test_files_of_the_hub(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a server that answers as the hub does, into the cache of the hub's own client, and found there again."""
    template = f"{server}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    file = hub_file("org/name", "sub/config.json", tmp_path, revision="v2")
    assert locate(file) is None
    progress = Counter()
    path = fetch(file, progress)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path / "hf")
    assert progress.megabytes == 2
    assert locate(file) == path

    newer = hub_file("org/name", "open_clip_model.safetensors", tmp_path)
    older = fetch(newer, SILENT)
    assert (older.name, older.read_bytes()) == ("open_clip_pytorch_model.bin", CONTENT)
    assert locate(newer) == older

    absent = hub_file("org/name", "absent.json", tmp_path)
    with pytest.raises(WeightsError) as caught:
        fetch(absent, SILENT)
    for part in ("404", "https://huggingface.co/org/name/resolve/main/absent.json", str(absent.path)):
        assert part in str(caught.value)


def test_a_file_placed_by_hand_is_found_under_either_name(tmp_path: Path) -> None:
    file = hub_file("org/name", "model.safetensors", tmp_path)
    older = file.path.with_name("pytorch_model.bin")
    older.parent.mkdir(parents=True)
    older.write_bytes(b"old")
    assert locate(file) == older
    file.path.write_bytes(b"new")
    assert fetch(file, SILENT) == file.path


@pytest.mark.parametrize("url", ["https://example.org/a.pt", "hf://org/name/a.pt"])
def test_offline_mode_forbids_every_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"HF_HUB_OFFLINE is set\. Fetch https://.*a\.pt.* put it at .*a\.pt"):
        fetch(Download(url, tmp_path / "a.pt"), SILENT)
