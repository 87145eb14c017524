from __future__ import annotations

import torch

from dcprune.interfaces import TrainingData
from dcprune.training.draws import Draw, Drawing, Purpose, derived_seed

ROWS = torch.arange(32)


def drawing(**options: object) -> Drawing:
    settings = {"seed": 0, "num_train_timesteps": 1000, "label_dropout": 0.25, "horizontal_flip": True, **options}
    return Drawing(**settings)  # type: ignore[arg-type]


def test_a_draw_is_a_function_of_seed_and_step(data: TrainingData) -> None:
    once, again = drawing()(data, ROWS, 3), drawing()(data, ROWS, 3)
    for name in ("timesteps", "noise", "inside_seed"):
        assert torch.equal(torch.as_tensor(getattr(once, name)), torch.as_tensor(getattr(again, name)))
    assert torch.equal(once.batch.x0, again.batch.x0)
    assert torch.equal(once.batch.dropped, again.batch.dropped)
    for other in (
        drawing()(data, ROWS, 4),
        drawing(seed=1)(data, ROWS, 3),
        drawing(purpose=Purpose.HELD_OUT_DRAW)(data, ROWS, 3),
    ):
        assert not torch.equal(once.noise, other.noise)
        assert once.inside_seed != other.inside_seed


def test_options_do_not_move_the_other_draws(data: TrainingData) -> None:
    with_flip, without = drawing()(data, ROWS, 0), drawing(horizontal_flip=False, label_dropout=0.0)(data, ROWS, 0)
    assert torch.equal(with_flip.noise, without.noise)
    assert torch.equal(with_flip.timesteps, without.timesteps)
    assert not without.batch.dropped.any()
    assert 0 < int(with_flip.batch.dropped.sum()) < 32
    mirrored = (with_flip.batch.x0 == without.batch.x0.flip(-1)).flatten(1).all(1)
    same = (with_flip.batch.x0 == without.batch.x0).flatten(1).all(1)
    assert bool((mirrored | same).all())
    assert 0 < int(same.sum()) < 32


def test_what_is_inside_the_loss_starts_afresh_at_every_call(data: TrainingData) -> None:
    draw = drawing()(data, ROWS, 0)
    first, second = torch.rand(4, generator=draw.inside()), torch.rand(4, generator=draw.inside())
    assert torch.equal(first, second)


def test_what_is_inside_the_loss_does_not_depend_on_how_a_batch_is_divided(data: TrainingData) -> None:
    whole = drawing()(data, ROWS, 0)
    parts = [whole.part(slice(0, 5)), whole.part(slice(5, 20)), whole.part(slice(20, 32))]

    def inside(draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        random = draw.inside()
        return draw.batch.drawn(torch.randn, random, 3, 2), torch.rand(1, generator=random)

    numbers, shared = inside(whole)
    assert numbers.shape == (32, 3, 2)
    assert torch.equal(torch.cat([inside(part)[0] for part in parts]), numbers)
    assert all(torch.equal(inside(part)[1], shared) for part in parts)


def test_timesteps_cover_the_whole_range(data: TrainingData) -> None:
    seen = torch.cat([drawing(num_train_timesteps=10)(data, ROWS, step).timesteps for step in range(20)])
    assert sorted(set(seen.tolist())) == list(range(10))


def test_derived_seeds_differ_and_do_not_use_global_state() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    seeds = {derived_seed(seed, purpose, step) for seed in range(3) for purpose in Purpose for step in range(50)}
    assert len(seeds) == 3 * len(Purpose) * 50
    assert torch.equal(state, torch.get_rng_state())
