"""The shared U-Net: layout in memory, guidance, noise, and that neither loss nor sampling waits for a device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dcprune.backends import unet
from dcprune.backends.ddpm import Ddpm
from dcprune.backends.edm import Edm
from dcprune.backends.noise import ImageNoise
from dcprune.backends.pixels import ResidentPixels
from dcprune.devices import layout
from dcprune.interfaces import Backend, Batch, Sampling

BACKENDS: list[Any] = [Ddpm, Edm]
SAMPLERS = [(kind, sampler) for kind in BACKENDS for sampler in kind.samplers]


@pytest.fixture(scope="module")
def model(backend: Ddpm, loud: Callable[[torch.nn.Module], torch.nn.Module]) -> torch.nn.Module:
    return loud(backend.build(num_classes=10, sample_shape=(1, 8, 8), seed=0)).eval()


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_on_a_gpu_every_convolution_sees_and_gives_channels_last(
    backend: Ddpm, size: int, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from 64 images up and in training, where diffusers' own blocks go through contiguous memory."""
    for module in ("layout", "unet"):
        monkeypatch.setattr(f"dcprune.backends.{module}.layout", lambda _: torch.channels_last)
    model = backend.build(num_classes=10, sample_shape=(3, 8, 8), seed=0).to("cpu").train(training)
    wrong: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            both = (inputs[0], output)
            wrong.extend(name for each in both if not each.is_contiguous(memory_format=torch.channels_last))

        return hook

    convolutions = [(name, each) for name, each in model.named_modules() if isinstance(each, torch.nn.Conv2d)]
    hooks = [each.register_forward_hook(look(name)) for name, each in convolutions]
    with torch.no_grad():
        unet.forward(model, torch.randn(size, 3, 8, 8), torch.arange(size), torch.arange(size) % 11)
    for hook in hooks:
        hook.remove()
    assert len(convolutions) > 10
    assert wrong == []


@pytest.mark.parametrize("size", [2, 64])
def test_the_network_computes_what_diffusers_own_computes(model: torch.nn.Module, size: int) -> None:
    theirs = UNet2DModel.from_config(dict(unet.config(model))).eval()
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    times, labels = torch.arange(size) * 3, torch.arange(size) % 11
    with torch.no_grad():
        found, expected = unet.forward(model, x, times, labels), theirs(x, times, labels).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_networks_lie_contiguous_on_a_cpu(backend: Ddpm, model: torch.nn.Module, tmp_path: Path) -> None:
    backend.save(model, tmp_path)
    for network in (model, backend.load(tmp_path), copy.deepcopy(model).to(torch.device("cpu"))):
        assert all(parameter.is_contiguous() for parameter in network.parameters())
    assert layout(torch.device("cuda", 1)) == torch.channels_last


def test_tensors_lie_in_training_as_in_evaluation(model: torch.nn.Module) -> None:
    network = copy.deepcopy(model)
    strides: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: strides.append(inputs[0].stride()))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    times = labels = torch.arange(2)
    outputs = [unet.forward(network.train(mode), x, times, labels) for mode in (True, False)]
    assert strides[: len(strides) // 2] == strides[len(strides) // 2 :]
    assert torch.equal(*outputs)


def test_settings_are_found_behind_wrappers(model: torch.nn.Module) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    compiled: Any = torch.compile(model, backend="eager")
    for wrapped in (compiled, Wrapper(model), Wrapper(compiled)):
        assert unet.null_label(wrapped) == 10
        assert unet.sample_shape(wrapped) == (1, 8, 8)
    with pytest.raises(TypeError, match="Linear"):
        unet.config(torch.nn.Linear(1, 1))


# --- guidance and noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 3), (1.0, 3), (0.5, 6), (2.5, 6)])
def test_guidance_extrapolates_and_computes_no_more_than_it_needs(
    model: torch.nn.Module, scale: float, rows: int
) -> None:
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    x, labels = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2, 3])
    with torch.no_grad():
        found = unet.Guided(model, labels, scale)(x, 500)
    hook.remove()
    assert sizes == [rows]
    times = torch.full((3,), 500)
    with torch.no_grad():
        conditional, null = (unet.forward(model, x, times, each) for each in (labels, torch.full((3,), 10)))
    torch.testing.assert_close(found, null + scale * (conditional - null), rtol=1e-3, atol=1e-5)


def test_class_less_networks_have_no_guidance(backend: Ddpm) -> None:
    model = backend.build(num_classes=0, sample_shape=(1, 8, 8), seed=0).eval()
    labels = torch.zeros(2, dtype=torch.int64)
    assert unet.null_label(model) is None
    images = [backend.sample(model, labels, [3, 4], Sampling("ddim", 3, scale)) for scale in (0.0, 1.0, 3.0)]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[1], images[2])


def test_noise_is_what_diffusers_draws_with_a_list_of_generators() -> None:
    noise = ImageNoise([3, 1, 3], (2, 5, 5), torch.device("cpu"))
    draws = [noise() for _ in range(3)]
    for image, seed in enumerate([3, 1, 3]):
        generator = torch.Generator().manual_seed(seed)
        for draw in draws:
            assert torch.equal(draw[image], torch.randn(1, 2, 5, 5, generator=generator)[0])
    assert not torch.equal(draws[0], draws[1])


# --- waiting for the device -------------------------------------------------------------------------------------------


READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2"}


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation for whose result, or for whose memory, the host would wait.

    What reads a value or a size off a device does; so does a copy between devices, unless it is marked otherwise.
    """

    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").partition(".")[0]
        masks = [each for each in args[1] if each is not None and each.dtype == torch.bool] if name == "index" else []
        if name in READS or masks:
            self.found.append(name)
        result = func(*args, **kwargs)
        if name in {"_to_copy", "copy_"}:
            waited = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            source = args[1] if name == "copy_" else args[0]
            if waited and source.device != result.device:
                self.found.append(f"{name} from {source.device} to {result.device}")
        return result


class Constructions(TorchFunctionMode):
    """Notes tensors that are made of the host's numbers on another device, which is a copy that is waited for."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.device.type != "cpu":
            self.found.append(func.__name__)
        return result


@contextmanager
def waits() -> Iterator[list[str]]:
    found: list[str] = []
    with Operations(found), Constructions(found):
        yield found


def test_the_watch_sees_waiting() -> None:
    """On the device called `meta`, as on a GPU, nothing can be read back."""
    tensor = torch.ones(3)
    with waits() as found:
        float(tensor.sum())
        tensor[tensor > 0]
        tensor.to("meta")
        torch.tensor([1, 2], device="meta")
        tensor.to("meta", non_blocking=True)
    assert found == ["_local_scalar_dense", "index", "_to_copy from cpu to meta", "tensor"]


def on_meta(kind: Any, small: dict[str, Any]) -> tuple[Backend, torch.nn.Module]:
    backend: Backend = kind(**{**small, "dropout": 0.1})
    model = backend.build(num_classes=10, sample_shape=(1, 8, 8), seed=0).to("meta")
    return backend, model


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_loss_waits_for_nothing(kind: Any, small: dict[str, Any]) -> None:
    backend, model = on_meta(kind, small)
    meta = torch.device("meta")
    x0, noise = torch.empty(4, 1, 8, 8, device=meta), torch.empty(4, 1, 8, 8, device=meta)
    batch = Batch(x0, torch.empty(4, dtype=torch.int64, device=meta), torch.empty(4, dtype=torch.bool, device=meta))
    timesteps = torch.empty(4, dtype=torch.int64, device=meta)
    backend.per_sample_loss(model, batch, timesteps, noise, torch.Generator())  # the tables are copied once
    with waits() as found:
        loss = backend.per_sample_loss(model.train(), batch, timesteps, noise, torch.Generator())
        loss.mean().backward()  # type: ignore[no-untyped-call]
    assert found == []


@pytest.mark.parametrize(("kind", "sampler"), SAMPLERS)
def test_sampling_waits_for_nothing(kind: Any, sampler: str, small: dict[str, Any]) -> None:
    backend, model = on_meta(kind, small)
    labels = torch.empty(3, dtype=torch.int64, device="meta")
    with waits() as found:
        images = backend.sample(model.eval(), labels, [1, 2, 3], Sampling(sampler, 4, 1.5))
    assert images.device.type == "meta"
    assert found == []


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_loss_compiles_as_one_graph(
    kind: Any, small: dict[str, Any], data: ResidentPixels, batch_of: Callable[..., Any]
) -> None:
    """Without breaks, and with the same numbers; the generator is an argument that the backends do not use."""
    backend = kind(**small)
    model = backend.build(num_classes=10, sample_shape=(1, 8, 8), seed=0)
    batch, timesteps, noise = batch_of(data, backend.num_train_timesteps)
    generator = torch.Generator()

    def loss(timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = backend.per_sample_loss(model, batch, timesteps, noise, generator)
        return found

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(timesteps, noise), loss(timesteps, noise), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BACKENDS)
def test_a_compiled_network_samples_the_same_images(kind: Any, small: dict[str, Any]) -> None:
    backend = kind(**small)
    model = backend.build(num_classes=10, sample_shape=(1, 8, 8), seed=0).eval()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=False, backend="eager")
    labels, sampling = torch.tensor([1, 2]), Sampling(backend.samplers[0], 4, 1.5)
    images = [backend.sample(each, labels, [5, 6], sampling) for each in (model, compiled)]
    assert int((images[0].int() - images[1].int()).abs().max()) <= 1
