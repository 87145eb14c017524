"""`dcprune.api.runs` from artifact to artifact, on real images."""

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
from dcprune.api.runs import balanced_labels, generate, image_seeds, open_run, reweight, sample, train
from dcprune.artifacts import ClassWeights, Coreset, Diagnostics, Objective
from dcprune.datasets.fashion_mini import FashionMini
from dcprune.errors import ArtifactError, DatasetMismatch, DcpruneError, OptionError, OutputExists, UnknownName
from dcprune.interfaces import DatasetSource, Sampling
from dcprune.sources import open_dataset

Options = dict[str, Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, coreset: Coreset) -> Path:
    folder = tmp_path_factory.mktemp("files")
    formats.write_coreset(coreset, folder / "coreset.json")
    return folder


@pytest.fixture(scope="module")
def options(network: dict[str, Any], files: Path) -> Options:
    return {
        "coreset": files / "coreset.json",
        "preset": "tiny",
        "settings": {**network, "dropout": 0.1, "log_every": 2},
        "steps": 6,
        "batch_size": 10,
        "checkpoint_every": 4,
    }


@pytest.fixture(scope="module")
def reference(files: Path, options: Options) -> Path:
    """A finished run, for everything that starts from one."""
    train(output=files / "reference", **options)
    return files / "reference"


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


# --- train ------------------------------------------------------------------------------------------------------------


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
    assert cost.device_seconds > 0
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
    assert finished.ledger[0].device_seconds > stopped.ledger[0].device_seconds


def test_a_run_that_stopped_after_its_last_step_only_needs_its_model(
    options: Options, reference: Path, scripted: Any, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(output=tmp_path / "run", **options, progress=scripted(6, interrupt))
    finished = train(output=tmp_path / "run", **options, resume=True)
    assert finished.model_sha256 == formats.read_run(reference).model_sha256


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
        ({"settings": {"resolution": 16}}, "attention_levels="),
    ],
)
def test_a_run_is_not_resumed_with_other_options(
    change: Options, named: str, options: Options, reference: Path
) -> None:
    with pytest.raises(OptionError, match=named):
        train(output=reference, **{**options, **change}, resume=True)


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
    for flags in ({}, {"resume": True}, {"overwrite": True}):
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
        number = next(index for index, end in enumerate(self._ends) if self.step < end)
        seen.append((self.phases[number], self.step))
        original(self)

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    train(output=tmp_path / "run", class_weights=tilted, anneal=0.5, **options)
    coreset_phase, full_phase = seen[0][0], seen[-1][0]
    assert [phase is full_phase for phase, _ in seen] == [False] * 3 + [True] * 3
    assert coreset_phase.rows.tolist() == rows.tolist()
    assert full_phase.rows.tolist() == list(range(4000))
    np.testing.assert_allclose(full_phase.objective.class_weights, 1.0)
    assert coreset_phase.objective.class_weights[9] == pytest.approx(91 * coreset_phase.objective.class_weights[0])


# --- reweight ---------------------------------------------------------------------------------------------------------


def test_class_weights_are_complete_and_repeatable(files: Path, reference: Path, tmp_path: Path) -> None:
    once, again = (reweight(files / "coreset.json", reference, steps=4) for _ in range(2))
    assert once == again
    assert np.mean(list(once.weights.values())) == pytest.approx(1.0)
    assert once.objective.reference_sha256 == formats.read_run(reference).model_sha256
    assert (once.objective.steps, once.objective.held_out) == (4, False)
    assert [step for step, _ in once.diagnostics.trajectory] == [0, 1, 2, 3, 4]
    mean = np.mean([weights for _, weights in once.diagnostics.trajectory], axis=0) * 10
    np.testing.assert_allclose(list(once.weights.values()), mean, rtol=1e-6)
    assert {each.path for each in once.provenance.inputs} == {
        str(files / "coreset.json"),
        str(reference / "model"),
    }
    formats.write_class_weights(once, tmp_path / "weights.json")
    assert formats.read_class_weights(tmp_path / "weights.json") == once
    other = reweight(files / "coreset.json", reference, steps=4, seed=1, held_out=True, eta=0.5)
    assert other.weights != once.weights
    assert other.objective.held_out


def test_held_out_losses_come_from_pruned_samples_only(
    files: Path, reference: Path, rows: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcprune.training import draws

    drawn: dict[draws.Purpose, set[int]] = {}
    original = draws.Drawing.__call__

    def call(self: draws.Drawing, data: Any, chosen: torch.Tensor, step: int) -> draws.Draw:
        drawn.setdefault(self.purpose, set()).update(chosen.tolist())
        return original(self, data, chosen, step)

    monkeypatch.setattr(draws.Drawing, "__call__", call)
    reweight(files / "coreset.json", reference, steps=5, held_out=True)
    kept = set(rows.tolist())
    assert drawn[draws.Purpose.DRAW] <= kept
    assert len(drawn[draws.Purpose.HELD_OUT_DRAW]) == 50
    assert drawn[draws.Purpose.HELD_OUT_DRAW].isdisjoint(kept)


def test_the_proxy_is_a_tenth_as_long_as_the_reference(
    files: Path, reference: Path, options: Options, tmp_path: Path
) -> None:
    assert reweight(files / "coreset.json", reference).objective.steps == 1  # a tenth of 6, rounded up
    in_epochs = {**options, "steps": None, "epochs": 5}
    train(output=tmp_path / "run", **in_epochs)
    assert reweight(files / "coreset.json", tmp_path / "run").objective.steps == round(0.5 * 40 / 10)
    proxy_epochs = open_run(reference).backend.presets["tiny"].proxy_epochs
    whole = reweight(files / "coreset.json", reference, preset="tiny", batch_size=20).objective.steps
    assert whole == round(proxy_epochs * 40 / 20)


def test_what_cannot_be_reweighted_is_refused(
    files: Path,
    reference: Path,
    coreset: Coreset,
    fashion: DatasetSource,
    make_coreset: Callable[..., Coreset],
) -> None:
    path = files / "coreset.json"
    with pytest.raises(OptionError, match="eta"):
        reweight(path, reference, eta=-1)
    with pytest.raises(OptionError, match="backend 'ddpm'"):
        reweight(path, reference, backend="mdt")
    with pytest.raises(UnknownName, match="preset"):
        reweight(path, reference, preset="papre")
    everything = make_coreset(fashion, np.arange(len(fashion)))
    with pytest.raises(OptionError, match="keeps every sample"):
        reweight(everything, reference, held_out=True)
    test_split = open_dataset("fashion-mini", split="test")
    with pytest.raises(DatasetMismatch, match="The reference was made from"):
        reweight(make_coreset(test_split, np.arange(20)), reference)


def test_weights_of_another_coreset_are_used_with_a_warning(
    files: Path,
    reference: Path,
    options: Options,
    fashion: DatasetSource,
    rows: NDArray[np.int64],
    make_coreset: Callable[..., Coreset],
    scripted: Any,
    tmp_path: Path,
) -> None:
    weights = reweight(files / "coreset.json", reference, steps=1)
    same, other = scripted(), scripted()
    train(output=tmp_path / "same", class_weights=weights, **{**options, "steps": 1}, progress=same)
    assert same.warnings == []
    formats.write_coreset(make_coreset(fashion, rows + 1), tmp_path / "other.json")
    changed = {**options, "steps": 1, "coreset": tmp_path / "other.json"}
    train(output=tmp_path / "other", class_weights=weights, **changed, progress=other)
    assert "another coreset" in other.warnings[0]


# --- sample -----------------------------------------------------------------------------------------------------------


def test_samples_are_balanced_in_one_folder_a_class(reference: Path, tmp_path: Path) -> None:
    folder = sample(reference, output=tmp_path / "out", num_samples=23, num_inference_steps=2)
    counts = {path.name: len(list(path.iterdir())) for path in folder.iterdir()}
    assert counts["T-shirt_top"] == counts["Trouser"] == counts["Pullover"] == 3
    assert sorted(counts.values()) == [2] * 7 + [3] * 3
    with Image.open(folder / "Ankle_boot" / "000009.png") as image:
        assert image.size == (8, 8)
    read_back = open_dataset(folder)
    assert len(read_back) == 23


def test_images_do_not_depend_on_the_batch_or_on_how_many_there_are(reference: Path) -> None:
    sampling = Sampling("ddpm", 3, 1.5)
    images = {}
    for batch_size, count in ((1, 5), (4, 12), (12, 12)):
        labels, seeds = balanced_labels(count, 10), image_seeds(7, count)
        images[batch_size] = torch.cat(list(generate(reference, labels, seeds, sampling, batch_size=batch_size)))
    assert images[4].shape == (12, 1, 8, 8)
    assert int((images[4].int() - images[12].int()).abs().max()) <= 1
    assert int((images[1].int() - images[12][:5].int()).abs().max()) <= 1


def test_seeds_never_meet_within_a_list_and_differ_between_lists() -> None:
    seeds = image_seeds(0, 50_000)
    assert len(set(seeds)) == 50_000
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert set(seeds).isdisjoint(image_seeds(1, 50_000))
    assert image_seeds(0, 10) == seeds[:10]


def test_some_classes_can_be_drawn(reference: Path, tmp_path: Path) -> None:
    chosen = ["Bag", "Shirt"]
    folder = sample(reference, output=tmp_path / "out", num_samples=4, num_inference_steps=1, class_names=chosen)
    assert sorted(path.name for path in folder.iterdir()) == ["Bag", "Shirt"]
    with pytest.raises(UnknownName, match="Did you mean 'Shirt'"):
        sample(reference, output=tmp_path / "no", num_samples=4, class_names=["Shrit"])


def test_sampling_that_cannot_be_done_leaves_nothing_behind(reference: Path, scripted: Any, tmp_path: Path) -> None:
    for change, named in (
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"sampler": "plms"}, "plms"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(DcpruneError, match=named):
            sample(reference, output=tmp_path / "out", **change)  # type: ignore[arg-type]
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputExists):
        sample(reference, output=tmp_path / "taken", num_samples=1)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# --- class-less data --------------------------------------------------------------------------------------------------


def test_class_less_images_train_and_sample(
    fashion: DatasetSource,
    rows: NDArray[np.int64],
    options: Options,
    make_coreset: Callable[..., Coreset],
    tmp_path: Path,
) -> None:
    (tmp_path / "images").mkdir()
    for row in rows[:12]:
        Image.fromarray(fashion.image(int(row))[..., 0]).save(tmp_path / "images" / f"{row}.png")
    changed = {**options, "coreset": None, "steps": 2}
    run = train(tmp_path / "images", output=tmp_path / "run", **changed)
    assert (run.dataset.num_classes, run.num_trained_samples) == (0, 12)
    folder = sample(tmp_path / "run", output=tmp_path / "out", num_samples=3, num_inference_steps=2)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    with pytest.raises(OptionError, match="no classes"):
        reweight(make_coreset(open_dataset(tmp_path / "images"), np.arange(4)), tmp_path / "run")
