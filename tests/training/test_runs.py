"""`dcprune.api.train`, on real images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from numpy.typing import NDArray
from PIL import Image

from dcprune import formats
from dcprune.api.provenance import command_line
from dcprune.api.runs import open_run, train
from dcprune.artifacts import ClassWeights, Coreset, Diagnostics, Objective
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.errors import ArtifactError, DatasetMismatch, DcpruneError, OptionError, OutputExists, UnknownName
from dcprune.interfaces import DatasetSource
from dcprune.subset import Subset

pytestmark = pytest.mark.usefixtures("small_grids")

Options = dict[str, Any]


@pytest.fixture
def tilted(coreset: Coreset, reference: Path) -> ClassWeights:
    """Weights that only class 9 has any use for."""
    names = coreset.dataset.class_names
    values = [0.1] * 9 + [9.1]
    run = formats.read_run(reference)
    return ClassWeights(
        dataset=coreset.dataset,
        weights=dict(zip(names, values, strict=True)),
        objective=Objective(
            eta=1.0, smoothing=1e-3, clip=True, steps=1, backend="ddpm", reference_sha256=run.model_sha256 or ""
        ),
        diagnostics=Diagnostics(trajectory=(), entropy=0.5, fraction_clipped=0.5, final_excess=(0.0,) * 10),
        provenance=coreset.provenance,
    )


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_folder_says_what_was_trained_on_what(reference: Path, coreset: Coreset, files: Path) -> None:
    run = formats.read_run(reference)
    assert (run.step, run.total_steps, run.num_trained_samples) == (6, 6, 40)
    assert run.dataset == coreset.dataset
    assert run.coreset is not None
    assert run.coreset.sha256 == formats.sha256(files / "coreset.json")
    assert run.model_sha256 == formats.sha256(reference / "model")
    assert run.training["steps"] == 6
    assert run.training["epochs"] is None
    assert (run.backend, run.preset, run.model["dropout"]) == ("ddpm", "tiny", 0.1)
    (cost,) = run.ledger
    assert (cost.stage, cost.updates, cost.images_seen) == ("train", 6, 60)
    assert (cost.device_seconds or 0) > 0
    assert [json.loads(line)["step"] for line in (reference / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6]
    assert sorted(path.name for path in reference.iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
        "model",
        "run.json",
        "samples",
    ]
    with Image.open(reference / "samples" / "step-00000006.png") as drawn:
        assert drawn.size == (8 * 8, 10 * 8)


def test_diffusers_opens_the_averaged_weights(reference: Path) -> None:
    from safetensors.torch import load_file

    averaged = load_file(reference / "checkpoints" / "step-00000006" / "ema.safetensors")
    opened = UNet2DModel.from_pretrained(reference / "model" / "unet").state_dict()
    assert all(torch.equal(opened[name], tensor) for name, tensor in averaged.items())
    current = load_file(reference / "checkpoints" / "step-00000006" / "model.safetensors")
    assert any(not torch.equal(opened[name], tensor) for name, tensor in current.items())


def test_only_the_coreset_is_decoded(
    options: Options, rows: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decoded: set[int] = set()
    original = FashionMini.image

    def image(self: FashionMini, index: int) -> NDArray[np.uint8]:
        decoded.add(index)
        return original(self, index)

    monkeypatch.setattr(FashionMini, "image", image)
    monkeypatch.setattr(Subset, "array", None)  # as of a dataset that does not lie in memory
    train(output=tmp_path / "run", **{**options, "steps": 1})
    assert decoded == set(rows.tolist())


def test_an_interrupted_run_resumes_to_the_same_model(
    options: Options, reference: Path, scripted: Any, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(output=output, **options, progress=scripted(3, interrupt))
    stopped = formats.read_run(output)
    assert (stopped.step, stopped.model_sha256, stopped.ledger[0].updates) == (3, None, 3)
    with pytest.raises(ArtifactError, match=r"step 3 of 6.*--resume"):
        open_run(output)

    progress = scripted()
    finished = train(output=output, **{**options, "checkpoint_every": 2}, resume=True, progress=progress)
    assert progress.notes == ["Resuming at step 3 of 6."]
    assert finished.model_sha256 == formats.read_run(reference).model_sha256
    assert finished.ledger[0].updates == 6
    assert (finished.ledger[0].device_seconds or 0) > (stopped.ledger[0].device_seconds or 0) > 0


def test_a_run_that_stopped_after_its_last_step_only_needs_its_model(
    options: Options, reference: Path, scripted: Any, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(output=tmp_path / "run", **options, progress=scripted(6, interrupt))
    finished = train(output=tmp_path / "run", **options, resume=True)
    assert finished.model_sha256 == formats.read_run(reference).model_sha256


def test_a_run_is_sampled_as_its_settings_allow(options: Options, tmp_path: Path) -> None:
    settings = {**options["settings"], "num_train_timesteps": 20}
    run = train(output=tmp_path / "run", **{**options, "settings": settings, "steps": 1})
    assert (run.step, run.sampling["num_inference_steps"]) == (1, 20)


def test_the_recorded_command_says_everything_once(options: Options, tmp_path: Path) -> None:
    settings = {**options["settings"], "sample_every": 5, "beta_schedule": "cosine"}
    run = train(output=tmp_path / "run", **{**options, "settings": settings, "steps": 1}, dtype="fp32")
    words = command_line(run.provenance)
    assert words.count("sample") == 1
    assert "--dtype fp32" in words
    assert run.model["beta_schedule"] == "squaredcos_cap_v2"


def test_a_finished_run_says_so(options: Options, reference: Path, scripted: Any) -> None:
    progress = scripted()
    before = formats.sha256(reference)
    assert train(output=reference, **options, resume=True, progress=progress) == formats.read_run(reference)
    assert "finished (6 steps)" in progress.notes[0]
    assert formats.sha256(reference) == before


def test_resume_without_a_run_starts_one(options: Options, tmp_path: Path) -> None:
    assert train(output=tmp_path / "run", **{**options, "steps": 1}, resume=True).step == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 7}, "steps=6, and now it is 7"),
        ({"batch_size": 11}, "batch_size=10"),
        ({"seed": 1}, "seed=0"),
        ({"preset": "paper"}, "preset=tiny"),
        ({"settings": {"resolution": 16}}, "resolution=8, and now it is 16"),
    ],
)
def test_a_run_is_not_resumed_with_other_options(
    change: Options, named: str, options: Options, reference: Path
) -> None:
    with pytest.raises(OptionError, match=named):
        train(output=reference, **{**options, **change}, resume=True)


def test_a_run_is_not_resumed_in_another_precision(options: Options, reference: Path) -> None:
    before = formats.read_run(reference).provenance.environment.dtype
    now = "fp32" if before == "bf16" else "bf16"
    with pytest.raises(OptionError, match=f"dtype={before}, and now it is {now}"):
        train(output=reference, **options, dtype=now, resume=True)


def test_a_run_is_not_resumed_on_another_coreset(
    options: Options,
    reference: Path,
    fashion: DatasetSource,
    rows: NDArray[np.int64],
    make_coreset: Callable[..., Coreset],
    tmp_path: Path,
) -> None:
    formats.write_coreset(make_coreset(fashion, rows[::2]), tmp_path / "half.json")
    with pytest.raises(OptionError, match="coreset=file"):
        train(output=reference, **{**options, "coreset": tmp_path / "half.json"}, resume=True)


def test_outputs_are_not_written_over(options: Options, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExists, match="--resume or --overwrite"):
        train(output=reference, **options)
    with pytest.raises(OptionError, match="choose one"):
        train(output=reference, **options, resume=True, overwrite=True)
    (tmp_path / "thesis.tex").write_text("years of work")
    ways: list[Options] = [{}, {"resume": True}, {"overwrite": True}]
    for flags in ways:
        with pytest.raises(OutputExists, match="not a run folder"):
            train(output=tmp_path, **options, **flags)
    assert (tmp_path / "thesis.tex").exists()


def test_overwrite_replaces_a_whole_run_and_an_error_before_it_does_not(options: Options, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(output=output, **{**options, "steps": 2})
    with pytest.raises(OptionError):
        train(output=output, **{**options, "steps": 0}, overwrite=True)
    assert formats.read_run(output).step == 2
    train(output=output, **{**options, "steps": 1}, overwrite=True)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000001"]


def test_artifacts_of_another_dataset_are_refused(options: Options, coreset: Coreset, tmp_path: Path) -> None:
    with pytest.raises(DatasetMismatch, match=r"The coreset was made from 'fashion-mini' \(split 'train'"):
        train("fashion-mini", split="test", output=tmp_path / "run", **options)
    identity = coreset.dataset.model_copy(update={"fingerprint": "0" * 64})
    forged = coreset.model_copy(update={"dataset": identity})
    with pytest.raises(DatasetMismatch):
        train(output=tmp_path / "run", **{**options, "coreset": forged})
    assert not (tmp_path / "run").exists()


def test_a_dataset_alone_is_trained_on_whole(options: Options, tmp_path: Path) -> None:
    run = train("fashion-mini", split="test", output=tmp_path / "run", **{**options, "coreset": None, "steps": 1})
    assert run.num_trained_samples == 1000
    assert (run.coreset, run.dataset.split) == (None, "test")


def test_nothing_to_train_on_is_an_error(options: Options, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a dataset, a coreset"):
        train(output=tmp_path / "run", **{**options, "coreset": None})


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"class_weighting": "sampling"}, OptionError, "class_weighting=sampling needs class_weights"),
        ({"coreset": None, "dataset": "fashion-mini", "anneal": 0.5}, OptionError, "needs a coreset"),
        ({"preset": "papre"}, UnknownName, "Did you mean 'paper'"),
        ({"backend": "dpm"}, UnknownName, "ddpm"),
        ({"settings": {"dropuot": 0.1}}, UnknownName, "Did you mean 'dropout'"),
        ({"settings": {"steps": 3}}, OptionError, "given twice"),
        ({"epochs": 1}, OptionError, "not both"),
        ({"device": "cuda:9"}, OptionError, "cuda:9"),
        ({"guidance_scale": float("inf")}, OptionError, "guidance_scale=inf is not a finite number"),
    ],
)
def test_options_that_do_not_fit_leave_nothing_behind(
    change: Options, error: type[DcpruneError], named: str, options: Options, tmp_path: Path
) -> None:
    with pytest.raises(error, match=re.escape(named)):
        train(output=tmp_path / "run", **{**options, **change})
    assert not (tmp_path / "run").exists()


def test_class_weights_change_what_is_learned(
    options: Options, reference: Path, tilted: ClassWeights, tmp_path: Path
) -> None:
    formats.write_class_weights(tilted, tmp_path / "weights.json")
    plain = formats.read_run(reference)
    hashes = {plain.model_sha256}
    for way in ("loss", "sampling"):
        run = train(output=tmp_path / way, class_weights=tmp_path / "weights.json", class_weighting=way, **options)
        assert run.class_weights is not None
        assert run.class_weights.sha256 == formats.sha256(tmp_path / "weights.json")
        hashes.add(run.model_sha256)
    assert len(hashes) == 3


def test_annealing_ends_on_the_full_data_with_weights_one(
    options: Options, tilted: ClassWeights, rows: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dcprune.training import trainer

    seen: list[tuple[Any, int]] = []
    original = trainer.Trainer._update

    def update(self: trainer.Trainer) -> None:
        seen.append((self.schedule.phase, self.step))
        original(self)

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    train(output=tmp_path / "run", class_weights=tilted, anneal=0.5, **options)
    coreset_phase, full_phase = seen[0][0], seen[-1][0]
    assert [phase is full_phase for phase, _ in seen] == [False] * 3 + [True] * 3
    assert coreset_phase.rows.tolist() == rows.tolist()
    assert full_phase.rows.tolist() == list(range(4000))
    np.testing.assert_allclose(full_phase.objective.class_weights, 1.0)
    assert coreset_phase.objective.class_weights[9] == pytest.approx(91 * coreset_phase.objective.class_weights[0])
