"""Sources complete a step's micro-batches by positions alone: fakes drawn online or from a pool, KTO's reference point."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from torch import Tensor
from training.harness import assert_same, make_trainer, step_batches, train

from align import sample, score
from align.generators import Generator, LlamaGen
from align.training.fakes import FakePool
from align.training.reference import FrozenReference
from align.types import Condition, SamplingConfig

FAMILIES: dict[str, Callable[..., Any]] = {"llamagen": tiny_llamagen, "var": tiny_var}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def moved(generator: Generator, seed: int = 0) -> None:
    """Other weights, in place."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))


def joined(batches: list[dict[str, Any]], name: str) -> Tensor:
    return torch.cat([batch[name] for batch in batches])


# --- fakes


def test_fakes_are_plain_samples_of_the_reference(tmp_path: Path, family: str) -> None:
    """Also once the policy has left it; dropped rows get samples of the unconditional model."""
    reference = FrozenReference(FAMILIES[family](seed=1))
    trainer = make_trainer(tmp_path, "ddo", generator=FAMILIES[family](), supplies={"reference": reference})
    (batch,) = step_batches(trainer)
    assert batch["dropped"].any()
    assert not batch["dropped"].all()
    condition = Condition({"label": torch.where(batch["dropped"], 4, batch["label"])})
    expected = sample(reference.generator, condition, SamplingConfig(seed=1), index_B=batch["position"])
    assert torch.equal(batch["fake"], expected.tokens_BL)
    # and the reference scores them as it drew them
    with torch.no_grad():
        scored = score(reference.generator, batch["fake"], condition, SamplingConfig())
    torch.testing.assert_close(scored, expected.logprobs_BL, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_fakes_depend_on_the_position_alone(tmp_path: Path, family: str, micro_batch: int) -> None:
    whole = make_trainer(tmp_path, "ddo", generator=FAMILIES[family]())
    parts = make_trainer(
        tmp_path,
        "ddo",
        generator=FAMILIES[family](),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=6 // micro_batch,
    )
    assert torch.equal(joined(step_batches(whole, 1), "fake"), joined(step_batches(parts, 1), "fake"))
    # other positions get other fakes
    assert not torch.equal(joined(step_batches(whole, 1), "fake"), joined(step_batches(whole, 0), "fake"))


def test_fakes_follow_a_reference_that_moves(tmp_path: Path) -> None:
    reference = FrozenReference(tiny_llamagen())
    trainer = make_trainer(tmp_path, "ddo", supplies={"reference": reference})
    before = joined(step_batches(trainer), "fake")
    moved(trainer.generator)
    assert torch.equal(joined(step_batches(trainer), "fake"), before)
    moved(reference.generator)
    assert not torch.equal(joined(step_batches(trainer), "fake"), before)


def test_fakes_need_a_reference_that_is_a_model(tmp_path: Path) -> None:
    reference = FrozenReference(tiny_llamagen())
    trainer = make_trainer(tmp_path, "ddo", supplies={"reference": reference})
    reference.generator = None  # as one of stored log-probs has none
    with pytest.raises(ValueError, match="drawing fakes needs a reference that is a model; set reference.kind=frozen"):
        step_batches(trainer)


# --- a pool of fakes


@pytest.fixture
def pool() -> FakePool:
    return FakePool.compute(tiny_llamagen(), per_class=5, seed=3, batch_size=2)


def test_a_pool_holds_plain_samples_of_each_class_and_of_none(pool: FakePool, generator: LlamaGen) -> None:
    assert pool.tokens_KNL.shape == (5, 5, 6)
    for row in range(5):
        condition = Condition({"label": torch.full((5,), row)})  # row 4 is the null class
        index_B = torch.arange(5) + 5 * row
        expected = sample(generator, condition, SamplingConfig(seed=3), index_B=index_B).tokens_BL
        assert torch.equal(pool.tokens_KNL[row], expected)
    other = FakePool.compute(generator, per_class=5, seed=3, batch_size=4)
    assert torch.equal(other.tokens_KNL, pool.tokens_KNL)  # whatever the batch size


def test_a_pool_is_drawn_evenly_by_position(pool: FakePool) -> None:
    marked = FakePool(torch.arange(25).view(5, 5, 1), pool.reference, pool.seed)
    positions = torch.arange(2000)
    labels, dropped = positions % 4, positions % 10 == 0
    drawn = marked.draw(labels, dropped, positions).flatten()
    assert torch.equal(drawn // 5, torch.where(dropped, 4, labels))
    # five standard errors of a share of one fifth
    shares = torch.bincount(drawn % 5, minlength=5) / 2000
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.045, rtol=0)
    backwards = marked.draw(labels.flip(0), dropped.flip(0), positions.flip(0)).flatten()
    assert torch.equal(backwards.flip(0), drawn)


def test_training_takes_its_fakes_from_the_pool(tmp_path: Path, pool: FakePool) -> None:
    """Then the reference need not be there to draw."""
    trainer = make_trainer(tmp_path, "ddo", supplies={"pool": pool})
    (batch,) = step_batches(trainer)
    for tokens, label, dropped in zip(batch["fake"], batch["label"], batch["dropped"], strict=True):
        assert (pool.tokens_KNL[4 if dropped else label] == tokens).all(dim=1).any()
    assert torch.equal(batch["fake"], pool.draw(batch["label"], batch["dropped"], batch["position"]))


def test_a_pool_round_trips_and_is_refused_for_another_reference(tmp_path: Path, pool: FakePool) -> None:
    path = tmp_path / "fakes.safetensors"
    pool.save(path)
    again = FakePool.load(path, tiny_llamagen())
    assert torch.equal(again.tokens_KNL, pool.tokens_KNL)
    assert (again.reference, again.seed) == (pool.reference, 3)
    with pytest.raises(ValueError, match="were drawn from another reference.*Delete the file to draw them anew"):
        FakePool.load(path, tiny_llamagen(seed=1))
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="is not a pool of fakes"):
        FakePool.load(path, tiny_llamagen())


def test_a_pool_needs_classes_and_samples(generator: LlamaGen) -> None:
    with pytest.raises(ValueError, match="fakes.per_class is 0; it must be at least 1"):
        FakePool.compute(generator, per_class=0, seed=0, batch_size=2)
    generator.num_classes = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="this generator has none; set fakes.per_class=null"):
        FakePool.compute(generator, per_class=2, seed=0, batch_size=2)


# --- KTO's reference point


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_the_mismatched_gap_is_that_of_the_whole_step(tmp_path: Path, micro_batch: int) -> None:
    policy = tiny_llamagen()
    trainer = make_trainer(
        tmp_path,
        "kto",
        generator=policy,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=6 // micro_batch,
    )
    moved(policy)
    batches = step_batches(trainer)
    chosen, dropped = joined(batches, "chosen"), joined(batches, "dropped")
    condition = Condition({"label": torch.where(dropped, 4, joined(batches, "negative_label"))})
    with torch.no_grad():
        gaps = [
            score(model, chosen, condition, SamplingConfig()).sum(dim=1)
            for model in (policy, trainer.reference.generator)  # type: ignore[union-attr]
        ]
    expected = (gaps[0] - gaps[1]).mean()
    assert abs(expected) > 0.1
    for batch in batches:
        torch.testing.assert_close(batch["mismatched_gap"], expected, atol=1e-4, rtol=1e-5)
        assert not batch["mismatched_gap"].requires_grad


# --- a step's rows over processes


class TwoRanks:
    """What rank 0 sees of a gather: its own rows, then those of rank 1."""

    def __init__(self, *others: Tensor) -> None:
        self.others = list(others)

    def gather(self, own: Tensor) -> Tensor:
        return torch.cat([own, self.others.pop(0)])


def test_gathering_puts_rows_in_the_order_of_their_positions(tmp_path: Path) -> None:
    from align.training.sources import Step

    trainer = make_trainer(tmp_path, "sft")
    ranks: Any = TwoRanks(torch.tensor([1, 3, 5]), torch.tensor([10.0, 30.0, 50.0]))
    step = Step(0, 6, trainer.generator, None, trainer.needs, ranks, print, trainer.shards.whole)
    values, own = step.gather(torch.tensor([40.0, 0.0, 20.0]), torch.tensor([4, 0, 2]))
    assert values.tolist() == [0, 10, 20, 30, 40, 50]
    assert values[own].tolist() == [40, 0, 20]


def test_fakes_train_the_same_from_micro_batches_and_a_pool(tmp_path: Path, pool: FakePool) -> None:
    whole = train(tmp_path / "whole", "spin", supplies={"pool": pool}, max_steps=2)
    parts = train(
        tmp_path / "parts",
        "spin",
        supplies={"pool": pool},
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
    )
    assert_same(whole, parts, atol=2e-5, rtol=1e-4)
