"""`doctor` and `prefetch` with a plugin whose files lie on a server of this machine; nothing leaves it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from typer.testing import CliRunner

from dcprune.api.machine import Machine, doctor, prefetch
from dcprune.cli.app import app
from dcprune.datasets.torchvision_sets import Cifar10, FashionMnist, ImageNette
from dcprune.errors import OptionError, UnknownName
from dcprune.interfaces import DatasetRequest, FetchesFiles, Outline
from dcprune.progress import SILENT

CONTENT = b"not a network, but bytes with a hash"
SHA256 = hashlib.sha256(CONTENT).hexdigest()

PLUGIN = """
import dcprune
import numpy as np
from dcprune.datasets.arrays import ArraySource
from dcprune.errors import DatasetError, OptionError
from dcprune.interfaces import Download, EncoderChoice

URL, SHA256 = {url!r}, {sha256!r}


@dcprune.hookimpl
def register_encoders(register):
    register("remote", "dcprune_remote:Remote")
    register("needy", "dcprune_remote:Needy")
    register("absent", "dcprune_remote:Absent")


@dcprune.hookimpl
def register_datasets(register):
    register("remote-set", "dcprune_remote:RemoteSet")


@dcprune.hookimpl
def register_metrics(register):
    register("remoteness", "dcprune_remote:Remoteness")


class Remote:
    weight_names = ("large",)

    def __init__(self, *, weights=None, size: int = 1):
        self.file = weights or f"small-{{size}}"

    def downloads(self, cache_dir):
        return [Download(f"{{URL}}/{{self.file}}.bin", cache_dir / f"{{self.file}}.bin", SHA256, 36)]


class Needy:
    def __init__(self, *, weights=None):
        if weights is None:
            raise OptionError("The encoder needy needs weights.")

    def downloads(self, cache_dir):
        return []


class Remoteness:
    def __init__(self, *, weights=None):
        self.encoder = EncoderChoice("remote", {{}}, weights)


class RemoteSet(ArraySource):
    @staticmethod
    def downloads(request):
        return [Download(f"{{URL}}/set.bin", request.data_dir / "set.bin", SHA256)]

    def __init__(self, request):
        if not (request.data_dir / "set.bin").is_file():
            raise DatasetError("set.bin is not there")
        super().__init__(request.name, request.split, np.zeros((2, 4, 4, 1), np.uint8), None, ())
"""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = "large" not in self.path
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(CONTENT) if found else 0))
        self.end_headers()
        self.wfile.write(CONTENT if found else b"")

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def server(serve: Callable[[type[BaseHTTPRequestHandler]], str]) -> str:
    return serve(Handler)


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a data folder that does not exist yet."""
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("DCPRUNE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def remote(server: str, install_plugin: Callable[[str, str], None]) -> None:
    """The plugin is installed."""
    install_plugin("dcprune-remote", PLUGIN.format(url=server, sha256=SHA256))


def dcprune(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


# --- prefetch ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("remote")
def test_everything_that_was_asked_for_is_fetched_and_its_place_printed(caches: Path) -> None:
    code, out, _ = dcprune("prefetch", "--encoder", "remote", "--metric", "remoteness", "--dataset", "remote-set", "-q")
    places = [caches / "cache" / "small-1.bin", caches / "cache" / "small-1.bin", caches / "data" / "set.bin"]
    assert (code, out.splitlines()) == (0, [str(place) for place in places])
    assert {place.read_bytes() for place in places} == {CONTENT}


@pytest.mark.usefixtures("remote")
def test_a_dry_run_lists_and_fetches_nothing(caches: Path) -> None:
    code, out, _ = dcprune("prefetch", "--encoder", "remote", "--dataset", "remote-set", "--dry-run")
    assert code == 0
    for expected in (SHA256, "small-1.bin", str(caches / "data" / "set.bin"), "36 B", "missing", "http://127.0.0.1"):
        assert expected in out
    assert not (caches / "cache").exists()
    code, out, _ = dcprune("prefetch", "--encoder", "remote", "--dry-run", "--json")
    (file,) = json.loads(out)["files"]
    assert (file["found"], file["num_bytes"], file["target"]) == (None, 36, str(caches / "cache" / "small-1.bin"))


@pytest.mark.usefixtures("remote")
def test_a_file_that_is_there_is_taken_as_it_is(caches: Path) -> None:
    (caches / "cache").mkdir()
    (caches / "cache" / "small-7.bin").write_bytes(b"put there by hand")
    (file,) = prefetch(encoders=["remote"], settings={"size": "7"})
    assert file.found == file.target == str(caches / "cache" / "small-7.bin")
    assert Path(file.found).read_bytes() == b"put there by hand"


@pytest.mark.usefixtures("remote")
def test_what_cannot_be_fetched_does_not_stop_the_others(caches: Path) -> None:
    arguments = ("--encoder", "remote", "--weights", "remote=large", "--dataset", "remote-set", "-q")
    code, out, err = dcprune("prefetch", *arguments)
    assert (code, out) == (2, f"{caches / 'data' / 'set.bin'}\n")
    flat = " ".join(err.split())
    for expected in ("large.bin", "404", SHA256, str(caches / "cache" / "large.bin"), "--weights PATH"):
        assert expected in flat
    assert [path.name for path in (caches / "cache").iterdir()] == []


@pytest.mark.usefixtures("remote")
def test_offline_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = prefetch(encoders=["remote"], datasets=["remote-set"])
    assert ["HF_HUB_OFFLINE" in each.error for each in files] == [True, True]


def test_a_dataset_without_a_list_of_files_is_opened(caches: Path) -> None:
    assert prefetch(datasets=["fashion-mini"]) == []
    (failed,) = prefetch(datasets=["imagenet"])
    assert "ILSVRC2012_img_train.tar" in failed.error
    assert prefetch(datasets=["imagenet"], dry_run=True) == []


def test_named_weights_are_what_an_encoder_would_load(caches: Path) -> None:
    (file,) = prefetch(encoders=["resnet18"], weights={"resnet18": "imagenet"}, dry_run=True)
    assert file.target == str(caches / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    assert file.sha256 == "f37072fd"
    assert prefetch(encoders=["resnet18"]) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--encoder, --dataset, --metric or --backend"),
        (["--encoder", "resnet"], "Did you mean 'resnet18'"),
        (["--dataset", "cifar11"], "Did you mean 'cifar10'"),
        (["--metric", "fidd"], "Did you mean 'fid'"),
        (["--dataset", "cifar10", "--weights", "imagenet"], "goes with one --encoder"),
        (["--encoder", "resnet18", "--weights", "pixels=imagenet"], "pixels, which is not among"),
        (["--encoder", "resnet18", "--encoder", "pixels", "--set", "a=1"], "exactly one"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], says: str) -> None:
    code, out, err = dcprune("prefetch", *arguments)
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())
    assert "Traceback" not in err


# --- what datasets say that they fetch --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [Cifar10, FashionMnist, ImageNette])
def test_files_of_datasets_are_found_where_the_source_would_look(source: type, caches: Path) -> None:
    request = DatasetRequest("the-set", data_dir=caches / "data")
    assert isinstance(source, FetchesFiles)
    missing = source.downloads(request)
    assert all(len(each.sha256) == 64 and each.num_bytes and not each.path.exists() for each in missing)
    for each in missing:
        each.path.parent.mkdir(parents=True, exist_ok=True)
        each.path.write_bytes(b"")
    assert [each.path for each in source.downloads(request)] == [each.path for each in missing]


def test_unpacked_files_count_as_there(caches: Path) -> None:
    data = caches / "data"
    (data / "cifar10" / "cifar-10-batches-py").mkdir(parents=True)
    (data / "imagenette2-160").mkdir()
    (data / "fashion-mnist").mkdir()
    (data / "fashion-mnist" / "t10k-labels-idx1-ubyte").write_bytes(b"")
    request = DatasetRequest("cifar10", data_dir=data)
    assert Cifar10.downloads(request)[0].path == data / "cifar10" / "cifar-10-batches-py"
    assert ImageNette.downloads(request)[0].path == data / "imagenette2-160"
    assert FashionMnist.downloads(request)[3].path == data / "fashion-mnist" / "t10k-labels-idx1-ubyte"


@pytest.mark.filterwarnings("ignore:Python 3.14:DeprecationWarning")  # of tarfile, for torchvision
def test_an_archive_that_was_put_there_is_unpacked_without_a_download(
    caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    data = caches / "data"
    data.mkdir()
    with tarfile.open(data / "imagenette2-320.tgz", "w:gz") as archive:
        for wnid in torchvision.datasets.Imagenette._WNID_TO_CLASS:
            member = tarfile.TarInfo(f"imagenette2-320/val/{wnid}/a.JPEG")
            member.size = len(CONTENT)
            archive.addfile(member, io.BytesIO(CONTENT))
    md5 = hashlib.md5((data / "imagenette2-320.tgz").read_bytes(), usedforsecurity=False).hexdigest()
    archives = {
        **torchvision.datasets.Imagenette._ARCHIVES,
        "320px": ("https://nowhere.invalid/imagenette2-320.tgz", md5),
    }
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_ARCHIVES", archives)
    monkeypatch.setattr(ImageNette, "outline", Outline({"val": 10}, 10, (32, 32, 3)))
    source = ImageNette(DatasetRequest("imagenette", split="val", data_dir=data, download=False))
    assert len(source) == 10
    assert source.class_names[0] == "tench"


# --- doctor -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(remote: None) -> Machine:
    return doctor()


def test_doctor_lists_what_would_be_fetched_and_what_is_there(machine: Machine, caches: Path) -> None:
    by_need = {(each.kind, each.item, each.weights): each for each in machine.files}
    for need in (("encoder", "remote", ""), ("encoder", "remote", "large"), ("dataset", "remote-set", "")):
        assert by_need[need].found is None
        assert by_need[need].sha256 == SHA256
    assert ("encoder", "resnet18", "imagenet") in by_need
    assert ("dataset", "cifar10", "") in by_need
    assert not (caches / "cache").exists()
    prefetch(encoders=["remote"], progress=SILENT)
    again = {(each.item, each.weights): each.found for each in doctor().files}
    assert again["remote", ""] == str(caches / "cache" / "small-1.bin")
    assert again["remote", "large"] is None


def test_doctor_knows_versions_devices_and_caches(machine: Machine, caches: Path) -> None:
    assert machine.versions["torch"] == torch.__version__ or str(machine.versions["torch"]) in torch.__version__
    assert {"python", "dcprune", "numpy", "diffusers", "datasets", "cuda"} <= set(machine.versions)
    assert machine.devices[0].name == "cpu"
    assert len(machine.devices) == 1 + torch.cuda.device_count() + torch.backends.mps.is_available()
    assert "fp32" in machine.devices[0].dtypes
    assert ("dcprune-remote", "1.2") in machine.plugins
    assert machine.environment["DCPRUNE_DATA_DIR"] == str(caches / "data")
    (caches / "cache" / "deep").mkdir(parents=True)
    (caches / "cache" / "deep" / "a.bin").write_bytes(b"12345")
    (caches / "cache" / "loop").symlink_to(caches / "cache")
    weights, datasets, *_ = doctor().caches
    assert (weights.path, weights.num_bytes, weights.num_files) == (str(caches / "cache"), 5, 1)
    assert weights.writable
    assert weights.free_bytes > 0
    assert (datasets.path, datasets.num_files) == (str(caches / "data"), 0)


def test_an_item_that_does_not_load_is_a_warning(machine: Machine) -> None:
    (warning,) = [each for each in machine.warnings if "absent" in each]
    assert "dcprune-remote" in warning
    assert machine.problems == ()


def test_a_broken_plugin_is_a_problem(install_plugin: Callable[[str, str], None]) -> None:
    install_plugin("dcprune-broken", "import a_module_that_is_not_there")
    code, out, err = dcprune("doctor", "--json", "-q")
    assert code == 1
    document = json.loads(out)
    assert "a_module_that_is_not_there" in document["problems"][0]
    assert "pip uninstall dcprune-broken" in " ".join(err.split())


@pytest.mark.usefixtures("remote")
def test_doctor_prints_tables(caches: Path) -> None:
    code, out, _ = dcprune("doctor", "-q")
    assert code == 0
    for title in ("Versions", "Environment", "Devices", "Caches", "Plugins", "Files that are fetched"):
        assert title in out
    assert str(caches / "cache") in out


def test_little_space_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcprune.api.machine.LOW_SPACE", 1 << 62)
    assert any("GB are free" in each and "DCPRUNE_CACHE_DIR" in each for each in doctor().warnings)


def test_prefetch_from_python_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UnknownName):
        prefetch(encoders=["no-such-encoder"])
    with pytest.raises(OptionError):
        prefetch()
