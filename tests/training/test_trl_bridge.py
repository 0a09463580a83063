"""The bridge into TRL: what we rely on in GRPOTrainer's private parts, and that it trains."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from torch import Tensor

from align.generators.base import Generator
from align.sampling import sample, score
from align.types import SamplingConfig
from rewards.base import RewardError, groupwise

trl = pytest.importorskip("trl", reason="needs trl 1.16: pip install 'ar-align[trl]'")

from trl import GRPOConfig  # noqa: E402

from align.training.trl_bridge import GeneratorGRPOTrainer, PolicyModel  # noqa: E402

# transformers 5.23 renames what TRL 1.16 calls
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

ROWS = [{"label": index % 4, "id": index} for index in range(32)]
GUIDED = SamplingConfig(guidance_scale=2.0, temperature=0.8, seed=3)
FILTERED = SamplingConfig(guidance_scale=1.7, temperature=0.9, top_k=9, top_p=0.8, seed=3)


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # TRL's constructor then sends nothing


@pytest.fixture(params=[tiny_llamagen, tiny_var], ids=lambda make: make.__name__)
def policy(request: pytest.FixtureRequest) -> Generator:
    """Token k is a pixel of a grey in proportion to k, so that brightness is a reward on tokens."""
    generator = request.param()
    step = 256 // generator.vocab_size
    generator.decode = lambda tokens_BL: (tokens_BL[:, :, None, None] * step).expand(-1, -1, 1, 3).to(torch.uint8)
    return generator


def brightness(images: Tensor, rows: list[dict[str, Any]]) -> Tensor:
    assert images.dtype == torch.uint8 and images.dim() == 4 and len(images) == len(rows)
    return images.float().mean(dim=(1, 2, 3)) / 255


def build(
    policy: Generator,
    folder: Path,
    rewards: Sequence[Any] = (brightness,),
    sampling: SamplingConfig | None = None,
    reference: Generator | None = None,
    **settings: Any,
) -> GeneratorGRPOTrainer:
    defaults = {
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "loss_type": "grpo",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_steps": 2,
        "logging_steps": 1,
        "gradient_checkpointing": False,
    }
    always = {"bf16": False, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    args = GRPOConfig(str(folder), **{"save_strategy": "no", **defaults, **settings, **always})
    return GeneratorGRPOTrainer(
        policy, list(rewards), args, conditions=ROWS, sampling=sampling or SamplingConfig(), reference=reference
    )


def logged(trainer: GeneratorGRPOTrainer, name: str) -> list[float]:
    return [record[name] for record in trainer.state.log_history if name in record]


def test_wrapping_keeps_the_weights(policy: Generator) -> None:
    before = copy.deepcopy(policy.state_dict())
    model = PolicyModel(policy, SamplingConfig()).train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    assert model.training and not policy.training, "rollouts and updates must both be without dropout"


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(seed=3),
        GUIDED,
        FILTERED,
        SamplingConfig(guidance_scale=3.0, guided_blocks=2, top_k=5),
        SamplingConfig(guidance_scale=3.0, guidance_schedule="linear", top_p=0.9),
    ],
    ids=["plain", "guided", "filtered", "guided_blocks", "linear"],
)
def test_scores_are_the_samplers_own(policy: Generator, sampling: SamplingConfig, tmp_path: Path) -> None:
    trainer = build(policy, tmp_path, sampling=sampling)
    rollout = sample(policy, policy.encode_condition([row["label"] for row in ROWS[:6]]), sampling)
    ids = torch.cat([torch.arange(6)[:, None], rollout.tokens_BL], dim=1)
    scored = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, torch.ones_like(ids), policy.layout.length, batch_size=4, compute_entropy=True
    )
    assert len(scored) == 3 and scored[2] is None
    torch.testing.assert_close(scored[0], rollout.logprobs_BL, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        scored[0], score(policy, rollout.tokens_BL, rollout.condition, sampling), atol=1e-5, rtol=0
    )
    assert scored[0].requires_grad and scored[1].isfinite().all()


def test_entropy_is_that_of_the_distribution(policy: Generator) -> None:
    condition = policy.encode_condition([0, 1])
    tokens = torch.zeros(2, policy.layout.length, dtype=torch.long)
    _, entropy_BL = PolicyModel(policy, SamplingConfig(temperature=0.7))(tokens, condition)
    expected = torch.distributions.Categorical(logits=policy(tokens, condition) / 0.7).entropy()
    torch.testing.assert_close(entropy_BL, expected)


def test_a_token_that_a_filter_excludes_has_no_probability_and_no_gradient(policy: Generator) -> None:
    condition = policy.encode_condition([0, 1])
    tokens = torch.zeros(2, policy.layout.length, dtype=torch.long)
    worst = policy(tokens, condition)[:, :1].argmin(dim=-1)
    tokens[:, :1] = worst
    logprobs_BL, entropy_BL = PolicyModel(policy, SamplingConfig(top_k=3))(tokens, condition)
    assert (logprobs_BL[:, 0].exp() == 0).all() and logprobs_BL.isfinite().all()
    (logprobs_BL[:, 0].sum() * 0.0 + entropy_BL.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in policy.parameters() if parameter.grad is not None)


def test_what_we_override_is_still_there() -> None:
    hook = inspect.signature(trl.GRPOTrainer._get_per_token_logps_and_entropies).parameters
    assert list(hook)[:7] == [
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy")
    ]
    assert "rollout_func" in inspect.signature(trl.GRPOTrainer.__init__).parameters
    assert list(inspect.signature(trl.GRPOTrainer._compute_loss).parameters) == ["self", "model", "inputs"]


def test_without_a_learning_rate_nothing_is_ever_clipped(policy: Generator, tmp_path: Path) -> None:
    """Old log-probs are scored by TRL through the same hook, so ratios are 1 on the first and on the second pass."""
    seen: list[list[int]] = []

    def reward(images: Tensor, rows: list[dict[str, Any]]) -> Tensor:
        seen.append([row["id"] for row in rows])
        return brightness(images, rows)

    trainer = build(
        policy, tmp_path, [reward], sampling=GUIDED, learning_rate=0.0, num_iterations=2, max_steps=4, epsilon=1e-4
    )
    before = copy.deepcopy(policy.state_dict())
    trainer.train()
    assert logged(trainer, "clip_ratio/region_mean") == [0.0] * 4
    assert logged(trainer, "sampling/sampling_logp_difference/max") == pytest.approx([0.0] * 2, abs=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    # two batches of rollouts for four steps; each prompt comes num_generations times in a row
    assert len(seen) == 2
    assert all(len(set(ids[i : i + 4])) == 1 for ids in seen for i in (0, 4)) and all(
        len(set(ids)) == 2 for ids in seen
    )
    assert not any(name.startswith("completions/") for record in trainer.state.log_history for name in record)


def test_rollouts_are_new_every_time_and_their_own_images(policy: Generator, tmp_path: Path) -> None:
    trainer = build(policy, tmp_path, sampling=FILTERED)
    first, second = trainer.roll_out([0, 0, 1]), trainer.roll_out([0, 0, 1])
    assert first["prompt_ids"] == [[0], [0], [1]]
    assert len({tuple(tokens) for tokens in first["completion_ids"] + second["completion_ids"]}) == 6
    images = policy.decode(torch.tensor(first["completion_ids"]))
    torch.testing.assert_close(torch.stack(first["pixels"]), images)
    trainer.state.global_step = 1
    third = trainer.roll_out([0, 0, 1])
    assert not set(map(tuple, third["completion_ids"])) & set(map(tuple, first["completion_ids"]))
    # evaluations compare policies on the same random numbers
    trainer.model.eval()
    before = trainer.roll_out([0, 1])["completion_ids"]
    trainer.state.global_step = 2
    assert trainer.roll_out([0, 1])["completion_ids"] == before


def test_scoring_another_distribution_than_the_sampled_one_shows(policy: Generator, tmp_path: Path) -> None:
    trainer = build(policy, tmp_path, sampling=GUIDED, max_steps=1)
    trainer.model.sampling = SamplingConfig(temperature=0.8)
    trainer.train()
    assert logged(trainer, "sampling/sampling_logp_difference/mean")[0] > 0.1


def test_the_reward_rises(policy: Generator, tmp_path: Path) -> None:
    trainer = build(policy, tmp_path, sampling=GUIDED, per_device_train_batch_size=16, max_steps=15)
    trainer.train()
    rewards = logged(trainer, "reward")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert max(logged(trainer, "sampling/sampling_logp_difference/max")) < 1e-4


def test_kl_starts_at_zero_and_grows(policy: Generator, tmp_path: Path) -> None:
    trainer = build(policy, tmp_path, sampling=GUIDED, beta=0.01, max_steps=3)
    trainer.train()
    kl = logged(trainer, "kl")
    assert kl[0] == pytest.approx(0.0, abs=1e-6) and min(kl[1:]) > 1e-3
    assert trainer.args.beta == 0.01


def test_kl_is_to_the_reference_that_was_given(policy: Generator, tmp_path: Path) -> None:
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    trainer = build(policy, tmp_path, reference=other, beta=0.01, max_steps=1)
    trainer.train()
    assert logged(trainer, "kl")[0] > 1e-2
    assert all(parameter.grad is None for parameter in other.parameters())


def test_a_reward_that_does_not_apply_is_left_out(policy: Generator, tmp_path: Path) -> None:
    def one(images: Tensor, rows: list[dict[str, Any]]) -> list[float]:
        return [1.0 if row["label"] % 2 else float("nan") for row in rows]

    def never(images: Tensor, rows: list[dict[str, Any]]) -> Tensor:
        return torch.full((len(images),), float("nan"))

    trainer = build(policy, tmp_path, [one, never], max_steps=1, per_device_train_batch_size=32)
    before = copy.deepcopy(policy.state_dict())
    trainer.train()
    assert logged(trainer, "reward") == [1.0], "rows without any reward must not count as 0"
    assert logged(trainer, "rewards/one/mean") == [1.0] and logged(trainer, "rewards/never/mean") == [None]
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


def test_rewards_that_fail_or_compare_are_refused(policy: Generator, tmp_path: Path) -> None:
    def broken(images: Tensor, rows: list[dict[str, Any]]) -> list[float]:
        return [0.0]

    @groupwise
    def compare(images: Tensor, rows: list[dict[str, Any]]) -> list[float]:
        return [0.0] * len(images)

    with pytest.raises(RewardError, match=r"reward 'broken' returned shape \[1\]"):
        build(policy, tmp_path, [broken], max_steps=1).train()
    with pytest.raises(ValueError, match="reward 'compare' scores a group, and TRL hands rewards single images"):
        build(policy, tmp_path, [compare], max_steps=1)


def test_gradient_checkpointing_reaches_the_generator(policy: Generator, tmp_path: Path) -> None:
    """TRL turns it on by default."""
    start = copy.deepcopy(policy.state_dict())
    build(policy, tmp_path, max_steps=1).train()
    plain = copy.deepcopy(policy.state_dict())
    policy.load_state_dict(start)
    build(policy, tmp_path, max_steps=1, gradient_checkpointing=True).train()
    assert policy.gradient_checkpointing
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(tensor, plain[name], atol=1e-6, rtol=0, msg=name)


def test_a_resumed_run_ends_in_the_same_weights(policy: Generator, tmp_path: Path) -> None:
    start = copy.deepcopy(policy.state_dict())
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "beta": 0.01}
    build(policy, tmp_path / "whole", sampling=GUIDED, **steps).train()
    whole = copy.deepcopy(policy.state_dict())
    policy.load_state_dict(start)
    resumed = build(policy, tmp_path / "resumed", sampling=GUIDED, **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert not torch.equal(next(iter(whole.values())), next(iter(start.values())))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in policy.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_truncated_completions": True}, "mask_truncated_completions is True"),
        ({"temperature": 0.9}, "temperature is 0.9.*sampling=SamplingConfig"),
        ({"sync_ref_model": True, "beta": 0.1}, "sync_ref_model is True"),
        ({"beta": 0.1, "sampling": FILTERED}, "KL is infinite"),
        ({"sampling": SamplingConfig(temperature=0.0)}, "all rollouts of a condition are the same"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    policy: Generator, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        build(policy, tmp_path, **arguments)


def test_a_reference_without_beta_is_refused(policy: Generator, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="beta is 0"):
        build(policy, tmp_path, reference=policy)
