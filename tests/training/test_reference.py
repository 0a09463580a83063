"""References: frozen, moving and stored ones give the numbers they document, also through a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen
from torch import Tensor
from training.harness import (
    OBJECTIVES,
    SETTINGS,
    assert_same,
    killed_at,
    logs,
    make_generator,
    make_supplies,
    train,
    weights,
)

from align.data import Stream
from align.generators import Generator
from align.training import callbacks
from align.training.inputs import Needs
from align.training.reference import CachedReference, FrozenReference
from recipes.supplies import REFERENCE_FILE

COMPARING = [name for name, objective in OBJECTIVES.items() if Needs.of(objective).reference]
CACHEABLE = ["cca", "dpo", "kto"]


def inputs(reference: Any, objective: str) -> dict[str, Tensor]:
    """What a reference gives for a batch of three rows."""
    from align.training.inputs import Scoring, conditions

    generator = make_generator(objective)
    stream = make_supplies(generator, objective, SETTINGS).stream
    rows = [stream[index] for index in range(3)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    given, _ = conditions(generator, batch)
    wanted = Needs.of(OBJECTIVES[objective]).of_model("reference")
    return reference.inputs(batch, given, wanted, Scoring())


# --- frozen


def test_a_frozen_reference_stays_what_the_generator_was() -> None:
    generator = tiny_llamagen(dropout=0.5, with_tokenizer=False).train()
    reference = FrozenReference(generator)
    before = inputs(reference, "cca")
    with torch.no_grad():
        generator.output.weight.zero_()
    after = inputs(reference, "cca")
    assert all(torch.equal(before[name], after[name]) for name in before)  # and without dropout's noise
    assert not any(value.requires_grad for value in after.values())
    assert not any(parameter.requires_grad for parameter in reference.generator.parameters())
    assert generator.training


def test_a_reference_drops_out_on_request_only() -> None:
    generator = tiny_llamagen(dropout=0.5, with_tokenizer=False)
    torch.manual_seed(0)
    plain, noisy = FrozenReference(generator), FrozenReference(generator, dropout=True)
    first, second = inputs(noisy, "cca"), inputs(noisy, "cca")
    name = "reference_positive_B"
    assert not torch.equal(first[name], second[name])
    assert torch.equal(inputs(plain, "cca")[name], inputs(plain, "cca")[name])
    assert not first[name].requires_grad


def test_a_copy_shares_the_tokenizer() -> None:
    generator = tiny_llamagen()
    reference = FrozenReference(generator)
    assert reference.generator.tokenizer is generator.tokenizer
    assert reference.generator.output.weight is not generator.output.weight


# --- moving


def step_by_hand(reference: dict[str, Tensor], policy: dict[str, Tensor], mixup: float) -> dict[str, Tensor]:
    return {name: mixup * policy[name] + (1 - mixup) * tensor for name, tensor in reference.items()}


@pytest.mark.parametrize(("sync_steps", "mixup"), [(2, 1.0), (1, 0.1), (3, 0.5)])
def test_a_snapshot_moves_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync_steps: int, mixup: float
) -> None:
    """After the update of every sync_steps-th step: mixup * policy + (1 - mixup) * itself."""
    generator = make_generator("cca")
    reference = FrozenReference(generator, sync_steps=sync_steps, mixup=mixup)
    policies: list[dict[str, Tensor]] = []
    original = callbacks.ProgressBar.on_step_end

    def watch(self: Any, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        policies.append(weights(model))
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(callbacks.ProgressBar, "on_step_end", watch)
    expected = weights(generator)
    train(tmp_path, "cca", generator=generator, supplies={"reference": reference})
    for step, policy in enumerate(policies, start=1):
        if step % sync_steps == 0:
            expected = step_by_hand(expected, policy, mixup)
    torch.testing.assert_close(weights(reference.generator), expected, atol=1e-6, rtol=1e-6)
    # a replaced reference leaves no gap until the next update
    gaps = [record["abs_gap"] for record in logs(tmp_path)]
    if (sync_steps, mixup) == (2, 1.0):
        assert [gap == 0 for gap in gaps] == [True, False, True, False]


@pytest.mark.parametrize(("sync_steps", "mixup"), [(2, 1.0), (1, 0.1)])
def test_a_moving_reference_is_resumed_exactly(tmp_path: Path, sync_steps: int, mixup: float) -> None:
    def run(folder: Path, **more: Any) -> tuple[Generator, FrozenReference]:
        generator = make_generator("cca")
        reference = FrozenReference(generator, sync_steps=sync_steps, mixup=mixup)
        return train(
            folder, "cca", generator=generator, supplies={"reference": reference}, save_steps=3, **more
        ), reference

    unbroken, moved = run(tmp_path / "unbroken")
    with killed_at(4):
        run(tmp_path / "broken")
    resumed, again = run(tmp_path / "broken", resume=True)
    assert_same(unbroken, resumed)
    assert_same(moved.generator, again.generator)
    assert logs(tmp_path / "unbroken") == logs(tmp_path / "broken")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sync_steps": 0}, "reference.sync_steps is 0; it must be at least 1, or null"),
        ({"mixup": 0.0}, r"reference.mixup is 0.0; it must be in \(0, 1\]"),
        ({"mixup": 1.5}, "reference.mixup is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrozenReference(tiny_llamagen(with_tokenizer=False), **settings)


# --- stored


@pytest.mark.parametrize("objective", CACHEABLE)
def test_stored_logprobs_train_as_a_frozen_copy_does(tmp_path: Path, objective: str) -> None:
    frozen = train(tmp_path / "frozen", objective)
    cached = train(tmp_path / "cached", objective, supplies={"reference": "cached"})
    assert_same(frozen, cached, atol=1e-5, rtol=1e-4)
    for one, other in zip(logs(tmp_path / "frozen"), logs(tmp_path / "cached"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=2e-5)


def test_which_objectives_can_use_stored_logprobs() -> None:
    """All others that compare are refused: they ask for logits, for tokens, or for images that are drawn on the way."""
    refused = set()
    for objective in COMPARING:
        generator = make_generator(objective)
        stream = make_supplies(generator, objective, SETTINGS).stream
        try:
            CachedReference.check(Needs.of(OBJECTIVES[objective]).of_reference, list(stream[0]))
        except ValueError as error:
            assert "set reference.kind=frozen" in str(error)
            refused.add(objective)
    assert refused == {"ddo", "spin", "erasure"}
    assert set(COMPARING) - refused == set(CACHEABLE)


def test_a_table_is_found_again_and_refused_against_anything_else(tmp_path: Path) -> None:
    generator, other = make_generator("cca"), tiny_llamagen(seed=1, with_tokenizer=False)
    stream = make_supplies(generator, "cca", SETTINGS).stream
    assert isinstance(stream, Stream)
    wanted = Needs.of(OBJECTIVES["cca"]).of_model("reference")
    path = tmp_path / REFERENCE_FILE
    table = CachedReference.compute(generator, stream, wanted, batch_size=5)
    table.save(path, stream)
    again = CachedReference.load(path, generator, stream, wanted)
    assert torch.equal(again.table_NK, table.table_NK)
    assert again.names == ["reference_positive_B", "reference_negative_B"]
    assert torch.equal(table.table_NK, CachedReference.compute(generator, stream, wanted, batch_size=5).table_NK)
    with pytest.raises(ValueError, match="computed with another reference.*delete the file to compute it anew"):
        CachedReference.load(path, other, stream, wanted)
    for drop, kind in ((0.1, None), (0.3, "pairs")):
        changed = make_supplies(generator, "cca", SETTINGS, kind=kind, label_drop=drop).stream
        assert isinstance(changed, Stream)
        with pytest.raises(ValueError, match="computed with another stream"):
            CachedReference.load(path, generator, changed, wanted)
    with pytest.raises(ValueError, match="computed with another names"):
        CachedReference.load(path, generator, stream, wanted[:1])


def test_stored_logprobs_are_those_of_a_frozen_copy() -> None:
    generator = make_generator("cca")
    stream = make_supplies(generator, "cca", SETTINGS).stream
    assert isinstance(stream, Stream)
    wanted = Needs.of(OBJECTIVES["cca"]).of_model("reference")
    stored = inputs(CachedReference.compute(generator, stream, wanted, batch_size=7), "cca")
    frozen = inputs(FrozenReference(generator), "cca")
    torch.testing.assert_close(stored, frozen, atol=1e-5, rtol=1e-5)


def test_a_run_that_is_repeated_with_its_table_is_the_same(tmp_path: Path) -> None:
    """As `recipes.supplies` does: the table of one run, found in the folder of another."""
    generator = make_generator("cca")
    stream = make_supplies(generator, "cca", SETTINGS).stream
    assert isinstance(stream, Stream)
    wanted = Needs.of(OBJECTIVES["cca"]).of_model("reference")
    CachedReference.compute(generator, stream, wanted, batch_size=5).save(tmp_path / "table.safetensors", stream)
    runs = []
    for name in ("one", "two"):
        shutil.copy(tmp_path / "table.safetensors", tmp_path / f"{name}.safetensors")
        policy = make_generator("cca")
        table = CachedReference.load(tmp_path / f"{name}.safetensors", policy, stream, wanted)
        runs.append(train(tmp_path / name, "cca", generator=policy, supplies={"reference": table}, max_steps=2))
    assert_same(*runs)
