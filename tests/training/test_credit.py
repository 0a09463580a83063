"""Token credit: the weight functions get what they look at, and their weights reach the advantages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from training.harness import make_trainer, step_batches

from align import score
from align.generators import Generator
from align.objectives import critical_token_weights, guidance_contrastive_weights, token_entropy
from align.training.credit import make_credit
from align.types import SamplingConfig

SQUARE = {"grid": (3, 3), "with_tokenizer": True}


def credited(folder: Path, generator: Generator, kind: str | None, **settings: Any) -> dict[str, Any]:
    credit = None if kind is None else make_credit(kind, generator, num_generations=3, rows=6, **settings)
    trainer = make_trainer(folder, "grpo", generator=generator, supplies={"credit": credit, "reference": None})
    return step_batches(trainer)[0]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("guidance_contrastive", {"power": 2.0}),
        ("critical", {"share": 0.2}),
        ("block_area", {"alpha": 0.7}),
        ("prefix", {"blocks": 2}),
    ],
)
def test_advantages_are_multiplied_by_weights_of_mean_one(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    generator = tiny_var() if kind == "block_area" else tiny_llamagen(**SQUARE)
    plain, weighed = (credited(tmp_path, generator, name, **more) for name, more in ((None, {}), (kind, settings)))
    assert torch.equal(plain["rollout"], weighed["rollout"])
    weights_BL = weighed["advantages"] / plain["advantages"]
    torch.testing.assert_close(weights_BL.mean(dim=1), torch.ones(6), atol=1e-4, rtol=1e-4)
    assert weights_BL.min() >= 0
    assert weights_BL.std() > 0.1


def test_guidance_contrast_compares_with_and_without_the_condition(tmp_path: Path) -> None:
    generator = tiny_llamagen()
    batch = credited(tmp_path, generator, None)
    credit = make_credit("guidance_contrastive", generator, num_generations=3, rows=6, power=1.5)
    condition = generator.encode_condition(batch["label"])
    with torch.no_grad():
        cond_BL, null_BL = (
            score(generator, batch["rollout"], given, SamplingConfig())
            for given in (condition, generator.null_condition(condition))
        )
    torch.testing.assert_close(credit(batch, generator), guidance_contrastive_weights(cond_BL, null_BL, power=1.5))
    assert not torch.allclose(credit(batch, generator), guidance_contrastive_weights(null_BL, cond_BL, power=1.5))


def test_critical_tokens_are_those_of_entropy_and_codes(tmp_path: Path) -> None:
    generator = tiny_llamagen(**SQUARE)
    batch = credited(tmp_path, generator, None)
    credit = make_credit("critical", generator, num_generations=3, rows=6, share=0.2)
    with torch.no_grad():
        entropy_BL = token_entropy(generator(batch["rollout"], generator.encode_condition(batch["label"])))
    expected = critical_token_weights(
        entropy_BL, generator.embed_tokens(batch["rollout"]), grid=(3, 3), num_generations=3, share=0.2
    )
    torch.testing.assert_close(credit(batch, generator), expected)


def test_credit_carries_no_gradient(tmp_path: Path) -> None:
    generator = tiny_llamagen(**SQUARE)
    for kind in ("guidance_contrastive", "critical"):
        settings = {"share": 0.2} if kind == "critical" else {}
        assert not credited(tmp_path, generator, kind, **settings)["advantages"].requires_grad


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "attention",
            {},
            "unknown token credit 'attention'; known: guidance_contrastive, critical, block_area, prefix",
        ),
        ("guidance_contrastive", {"powr": 2.0}, "rollout.credit=guidance_contrastive: .*powr"),
        ("critical", {"shares": 0.2}, "rollout.credit=critical: .*shares"),
        ("block_area", {}, "rollout.credit=block_area: .*alpha"),
        ("prefix", {"blocks": 99}, "blocks is 99; it must be 1 to 9"),
        ("critical", {"rows": 4}, "per_device_train_batch_size=4 must be a multiple of num_generations=3"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_credit(
            kind, tiny_llamagen(grid=(3, 3), with_tokenizer=False), **{"num_generations": 3, "rows": 6, **settings}
        )


def test_critical_tokens_need_a_square_raster() -> None:
    for generator in (tiny_llamagen(with_tokenizer=False), tiny_var(with_tokenizer=False)):
        with pytest.raises(ValueError, match="are no square raster.*use block_area or prefix"):
            make_credit("critical", generator, num_generations=3, rows=6)
