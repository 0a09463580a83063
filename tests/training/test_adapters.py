"""LoRA: zero at first, the only thing that trains, off as if it were not there, and merged away for export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from torch import Tensor
from training.harness import assert_same, killed_at, logs, train, weights

from align import load_generator, sample
from align.generators import Generator
from align.training.adapters import (
    adapters_off,
    add_adapters,
    has_adapters,
    merge_adapters,
    merge_saved_adapters,
    save_adapters,
)
from align.training.preflight import preflight
from align.training.reference import AdapterOffReference, FrozenReference

FAMILIES: dict[str, Callable[..., Any]] = {"llamagen": tiny_llamagen, "var": tiny_var}


def adapted(family: str = "llamagen", **settings: Any) -> Any:
    generator = FAMILIES[family](**settings)
    add_adapters(generator, rank=2, alpha=4, seed=1)
    return generator


def logits(generator: Generator) -> Tensor:
    condition = generator.encode_condition([0, 1, 2])
    tokens = torch.arange(3 * generator.layout.length).view(3, -1) % 16
    with torch.no_grad():
        return generator(tokens, condition)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_zero_at_first_and_all_that_trains(family: str) -> None:
    plain, generator = FAMILIES[family](), adapted(family)
    assert not has_adapters(plain)
    assert has_adapters(generator)
    assert torch.equal(logits(plain), logits(generator))
    trains = {name for name, parameter in generator.named_parameters() if parameter.requires_grad}
    assert trains
    assert all("lora_" in name for name in trains)
    again, other = adapted(family), FAMILIES[family]()
    add_adapters(other, rank=2, alpha=4, seed=2)
    assert_same(generator, again)
    name = next(name for name in trains if "lora_A" in name)
    assert not torch.equal(generator.get_parameter(name), other.get_parameter(name))


def test_adding_adapters_leaves_the_random_state() -> None:
    before = torch.random.get_rng_state()
    adapted()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_without_its_adapters_is_a_frozen_reference(tmp_path: Path, family: str) -> None:
    frozen, off = adapted(family), adapted(family)
    train(tmp_path / "frozen", "cca", generator=frozen, supplies={"reference": FrozenReference(frozen)}, max_steps=3)
    train(tmp_path / "off", "cca", generator=off, supplies={"reference": AdapterOffReference(off)}, max_steps=3)
    assert_same(frozen, off, atol=1e-6, rtol=1e-5)
    records = logs(tmp_path / "off")
    assert records[0]["abs_gap"] == 0
    assert records[-1]["abs_gap"] > 0.01
    assert records == logs(tmp_path / "frozen")
    with adapters_off(off):
        assert torch.equal(logits(off), logits(FAMILIES[family]()))
    assert not torch.equal(logits(off), logits(FAMILIES[family]()))


def test_adapters_come_back_after_an_error() -> None:
    generator = adapted()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    before = logits(generator)
    with pytest.raises(RuntimeError, match="inside"), adapters_off(generator):
        raise RuntimeError("inside")
    assert torch.equal(logits(generator), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_adapters_leave_the_published_format(tmp_path: Path, family: str) -> None:
    generator = adapted(family)
    train(tmp_path / "run", "sft", generator=generator, supplies={"reference": None}, max_steps=2)
    before = logits(generator)
    merge_adapters(generator)
    plain = FAMILIES[family]()
    assert list(generator.state_dict()) == list(plain.state_dict())
    assert not has_adapters(generator)
    torch.testing.assert_close(logits(generator), before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, logits(plain), atol=1e-2)
    generator.save_published(tmp_path / "generator.pt")
    if family == "llamagen":
        loaded = load_generator("llamagen", tmp_path / "generator.pt", grid=(3, 2), num_heads=2)
        assert torch.equal(logits(loaded), logits(generator))
        tokens = sample(loaded, loaded.encode_condition([1, 2])).tokens_BL
        assert torch.equal(tokens, sample(generator, generator.encode_condition([1, 2])).tokens_BL)


def test_resuming_adapters_equals_never_stopping(tmp_path: Path) -> None:
    def run(folder: Path, **more: Any) -> Generator:
        generator = adapted(dropout=0.2, with_tokenizer=False)
        return train(folder, "cca", generator=generator, supplies={"reference": AdapterOffReference(generator)}, **more)

    unbroken = run(tmp_path / "unbroken")
    with killed_at(3):
        run(tmp_path / "broken")
    assert_same(unbroken, run(tmp_path / "broken", resume=True))
    assert logs(tmp_path / "unbroken") == logs(tmp_path / "broken")


def test_rollouts_and_preflight_see_the_adapted_policy(tmp_path: Path) -> None:
    from training.harness import make_trainer, with_visible_tokens

    generator = with_visible_tokens(adapted(with_tokenizer=False))
    reference = AdapterOffReference(generator)
    supplies = {"reference": reference, "rollout": {"kl_in_reward": 0.1}}
    trainer = make_trainer(tmp_path, "grpo", generator=generator, supplies=supplies)
    assert any("the gradient is finite" in line for line in preflight(trainer))
    before = weights(generator)
    train(tmp_path / "run", "grpo", generator=generator, supplies=supplies, max_steps=2)
    assert logs(tmp_path / "run")[1]["kl_charged"] != 0
    changed = {name for name, tensor in weights(generator).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="lora_rank is 0; it must be at least 1"):
        add_adapters(tiny_llamagen(with_tokenizer=False), rank=0, alpha=4, seed=1)
    with pytest.raises(ValueError, match="adapter_off needs a policy that trains adapters; set trainer.lora_rank"):
        AdapterOffReference(tiny_llamagen(with_tokenizer=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_adapters_added_to_the_base_are_the_merged_generator(tmp_path: Path, family: str) -> None:
    generator = adapted(family)
    train(tmp_path / "run", "sft", generator=generator, supplies={"reference": None}, max_steps=2)
    save_adapters(generator, tmp_path / "adapter")
    merge_adapters(generator)
    again = FAMILIES[family]()
    merge_saved_adapters(again, tmp_path / "adapter")
    assert_same(generator, again)
    assert not torch.equal(logits(again), logits(FAMILIES[family]()))


def test_saved_adapters_are_a_folder_of_pefts(tmp_path: Path) -> None:
    from peft import PeftModel

    generator = adapted()
    train(tmp_path / "run", "sft", generator=generator, supplies={"reference": None}, max_steps=2)
    save_adapters(generator, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").glob("adapter*")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    peft_model = PeftModel.from_pretrained(tiny_llamagen(), tmp_path / "adapter").merge_and_unload()
    merge_adapters(generator)
    torch.testing.assert_close(logits(peft_model), logits(generator))


def test_adapters_of_another_generator_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no adapters at"):
        merge_saved_adapters(tiny_llamagen(), tmp_path)
    save_adapters(adapted("var"), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"the adapters in .* do not fit|are of another generator"):
        merge_saved_adapters(tiny_llamagen(), tmp_path / "adapter")
