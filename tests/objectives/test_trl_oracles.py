"""TRL's trainers as oracles: on the same batch, our pure functions give the same loss and the same gradients.

A toy causal language model stands for the generator. TRL scores it by its own route (a fused head over the hidden
states), we by plain logits. Completions all have the same length, as images do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.objectives import cca, ddo, dpo, group_advantages, kl_penalty, kto, policy_gradient, token_logprobs
from align.types import LossOutput

trl = pytest.importorskip("trl", reason="needs trl 1.16: pip install 'ar-align[trl]'")

# transformers 5.23 renames what TRL 1.16 calls
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

VOCAB, PROMPT, LENGTH, ROWS = 24, 2, 7, 6
NEVER = torch.zeros(ROWS, dtype=torch.bool)
BETA = 0.3


def toy_model(seed: int) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes, tie_word_embeddings=False))
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.4)
    return model


def toy_tokens(rows: int, length: int, seed: int) -> Tensor:
    return torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def token_scores(model: nn.Module, prompt_BP: Tensor, completion_BL: Tensor) -> Tensor:
    """[B, L]: log p of each completion token, from the model's plain logits."""
    logits = model(input_ids=torch.cat([prompt_BP, completion_BL], dim=1)).logits
    return token_logprobs(logits[:, prompt_BP.shape[1] - 1 : -1], completion_BL)


def assert_same(model: nn.Module, theirs: Tensor, ours: Tensor) -> None:
    """Loss and gradient of every parameter agree, and there is a gradient."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    expected, found = (torch.autograd.grad(loss, list(model.parameters())) for loss in (theirs, ours))
    assert max(gradient.abs().max() for gradient in expected) > 1e-3
    for (name, _), ours_, theirs_ in zip(model.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def make_trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Builds a TRL trainer on the toy model, without any of its data preparation."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models

    folder: Path = tmp_path_factory.mktemp("trl")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    rows = Dataset.from_dict({"prompt": ["a"] * 4, "label": [True, False] * 2})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CI", "1")  # TRL's constructors then send nothing
        for trainer in (trl.DPOTrainer, trl.KTOTrainer):
            patch.setattr(trainer, "_prepare_dataset", lambda self, dataset, *_: dataset)

        def make(name: str, *, settings: dict[str, Any], **arguments: Any) -> Any:
            always = {"use_cpu": True, "bf16": False, "report_to": [], "gradient_checkpointing": False}
            args = getattr(trl, f"{name}Config")(str(folder), **always, **settings)
            trainer = getattr(trl, f"{name}Trainer")(
                model=toy_model(0), args=args, train_dataset=rows, processing_class=tokenizer, **arguments
            )
            trainer.current_gradient_accumulation_steps = 1  # set by the training loop
            trainer.model.train()
            return trainer

        yield make


# --- preferences


@dataclass(frozen=True)
class Pairs:
    """A batch for TRL, and the same pairs scored by us: (policy, reference) x (chosen, rejected)."""

    inputs: dict[str, Tensor]
    scores: tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def preference(make_trainer: Callable[..., Any]) -> Any:
    return make_trainer("DPO", settings={"beta": BETA}, ref_model=toy_model(1))


def pairs(trainer: Any, rows: int = ROWS) -> Pairs:
    prompt = toy_tokens(rows, PROMPT, 2)
    sides = [toy_tokens(rows, LENGTH, seed) for seed in (3, 4)]
    ids = torch.cat([torch.cat([prompt, side], dim=1) for side in sides])
    mask = torch.ones_like(ids)
    completion = mask.clone()
    completion[:, :PROMPT] = 0
    scores = [token_scores(trainer.model, prompt, side).sum(dim=-1) for side in sides]
    with torch.no_grad():
        scores += [token_scores(trainer.ref_model, prompt, side).sum(dim=-1) for side in sides]
    return Pairs({"input_ids": ids, "attention_mask": mask, "completion_mask": completion}, tuple(scores))


def their_preference_loss(trainer: Any, inputs: dict[str, Tensor], *loss_types: str, **changes: Any) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"loss_types": list(loss_types), "loss_weights": [1.0], **changes}.items():
            patch.setattr(trainer, name, value)
        return trainer._compute_loss(trainer.model, inputs, return_outputs=False)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("sigmoid", {"loss_type": "sigmoid"}),
        ("ipo", {"loss_type": "ipo"}),
        ("hinge", {"loss_type": "hinge"}),
        ("sigmoid_norm", {"loss_type": "sigmoid", "length_normalized": True}),
    ],
)
def test_dpo(preference: Any, theirs: str, ours: dict[str, Any]) -> None:
    batch = pairs(preference)
    expected = their_preference_loss(preference, batch.inputs, theirs)
    found = dpo(*batch.scores, NEVER, LENGTH, beta=BETA, **ours).loss
    assert_same(preference.model, expected, found)


def test_dpo_with_label_smoothing(preference: Any) -> None:
    """TRL's DPOTrainer smooths labels in `aot` only, which on a batch of one pair is DPO."""
    batch = pairs(preference, rows=1)
    expected = their_preference_loss(preference, batch.inputs, "aot", label_smoothing=0.2)
    found = dpo(*batch.scores, NEVER[:1], LENGTH, beta=BETA, label_smoothing=0.2).loss
    assert_same(preference.model, expected, found)


def test_dpo_with_an_anchor(preference: Any) -> None:
    batch = pairs(preference)
    expected = their_preference_loss(preference, batch.inputs, "sigmoid", "sft", loss_weights=[1.0, 0.7])
    found = dpo(*batch.scores, NEVER, LENGTH, beta=BETA, nll_weight=0.7).loss
    assert_same(preference.model, expected, found)


def test_cca_and_ddo_of_equal_weights_are_bco(preference: Any) -> None:
    """Without label drop: CCA's positives and negatives, DDO's real and fake images are a pair judged one by one."""
    batch = pairs(preference)
    expected = their_preference_loss(preference, batch.inputs, "bco_pair")
    assert_same(preference.model, expected, cca(*batch.scores, NEVER, NEVER, beta=BETA, lambda_=1.0).loss)
    expected = their_preference_loss(preference, batch.inputs, "bco_pair")
    found = ddo(*pairs(preference).scores, NEVER, beta=BETA, alpha=1.0).loss
    assert_same(preference.model, expected, found)


@pytest.mark.parametrize("shift", [-40.0, 40.0], ids=["below_zero", "above_zero"])
def test_kto(make_trainer: Callable[..., Any], shift: float) -> None:
    """`shift` puts the mismatched gap on either side of zero, where it is cut off."""
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.6}
    trainer = make_trainer(
        "KTO", settings={"beta": 0.02, "precompute_ref_log_probs": False, **weights}, ref_model=toy_model(1)
    )
    batch = pairs(trainer)
    prompt, completions = batch.inputs["input_ids"][:, :PROMPT], batch.inputs["input_ids"][:, PROMPT:]
    mismatched = torch.cat([prompt, completions.roll(1, dims=0)], dim=1)
    with torch.no_grad():
        policy, reference = (
            token_scores(model, prompt, completions.roll(1, dims=0)).sum(dim=-1)
            for model in (trainer.model, trainer.ref_model)
        )
        policy_gap = (policy - reference).mean()
    trainer.precompute_ref_logps = True  # so that the reference's side of the gap can be set
    inputs = {
        **batch.inputs,
        **{f"KL_{name}": batch.inputs[name] for name in ("attention_mask", "completion_mask")},
        "KL_input_ids": mismatched,
        "label": torch.arange(2 * ROWS) < ROWS,
        "ref_logps": torch.cat(batch.scores[2:]),
        "ref_KL_logps": reference + policy_gap - shift,
    }
    found = kto(*batch.scores, torch.tensor(shift), NEVER, LENGTH, beta=0.02, **weights)
    assert_same(trainer.model, trainer._compute_loss(trainer.model, inputs, return_outputs=False), found.loss)


# --- policy gradient


@dataclass(frozen=True)
class Rollouts:
    """A batch for TRL, and the same completions scored by us."""

    inputs: dict[str, Tensor]
    policy_BL: Tensor
    old_BL: Tensor
    reference_BL: Tensor
    advantages_BL: Tensor


@pytest.fixture(scope="module")
def group_relative(make_trainer: Callable[..., Any]) -> Any:
    settings = {"num_generations": 4, "max_completion_length": LENGTH, "per_device_train_batch_size": 4}
    rewards = [lambda **_: None, lambda **_: None]
    return make_trainer("GRPO", settings=settings, reward_funcs=rewards)


@pytest.fixture(scope="module")
def leave_one_out(make_trainer: Callable[..., Any]) -> Any:
    settings = {"num_generations": 4, "max_completion_length": LENGTH, "per_device_train_batch_size": 4, "beta": 0.0}
    return make_trainer("RLOO", settings=settings, reward_funcs=[lambda **_: None, lambda **_: None])


def rollouts(trainer: Any, *, on_policy: bool = False) -> Rollouts:
    """Old and reference log-probs lie far enough off for both clips to act."""
    rng = torch.Generator().manual_seed(5)
    prompt, completion = toy_tokens(ROWS, PROMPT, 6), toy_tokens(ROWS, LENGTH, 7)
    policy_BL = token_scores(trainer.model, prompt, completion)
    off_BL, further_BL = (torch.randn(ROWS, LENGTH, generator=rng) * scale for scale in (0.4, 0.5))
    off_BL += torch.tensor([-0.4, 0.4, 0.4, -0.4, 0.0, 0.0])[:, None]  # whole rows, for GSPO: some are clipped
    old_BL = policy_BL.detach() if on_policy else policy_BL.detach() + off_BL
    reference_BL = policy_BL.detach() + further_BL
    advantages_B = torch.tensor([1.5, -0.5, 0.8, -1.2, 0.4, -1.0])
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": torch.ones_like(completion),
        "advantages": advantages_B,
        "old_per_token_logps": old_BL,
        "ref_per_token_logps": reference_BL,
        "num_items_in_batch": torch.tensor(ROWS * LENGTH),
    }
    return Rollouts(inputs, policy_BL, old_BL, reference_BL, advantages_B[:, None].expand(-1, LENGTH))


def their_policy_loss(trainer: Any, inputs: dict[str, Tensor], arguments: dict[str, Any], **changes: Any) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(trainer, name, value)
        for name, value in arguments.items():
            patch.setattr(trainer.args, name, value)
        return trainer._compute_loss(trainer.model, inputs)


LOSSES = [
    *[(name, {"loss_type": name}, {}) for name in ("grpo", "bnpo", "dr_grpo", "dapo")],
    ("gspo", {"loss_type": "grpo", "importance_sampling_level": "sequence"}, {}),
    ("cispo", {"loss_type": "cispo", "epsilon_high": 1.3}, {"epsilon_high": 1.3}),
    ("grpo", {"loss_type": "grpo", "epsilon_low": 0.1, "epsilon_high": 0.4}, {"epsilon": 0.1, "epsilon_high": 0.4}),
    ("grpo", {"loss_type": "grpo", "delta": 1.35}, {"delta": 1.35}),
    (
        "gspo",
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.01, "epsilon_high": 0.02},
        {"epsilon": 0.01, "epsilon_high": 0.02},
    ),
]


@pytest.mark.parametrize(
    ("name", "theirs", "ours"), LOSSES, ids=[f"{name}-{index}" for index, (name, *_) in enumerate(LOSSES)]
)
def test_policy_gradient(group_relative: Any, name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    batch = rollouts(group_relative)
    theirs = dict(theirs)
    arguments = {"delta": theirs.pop("delta", None)}
    group_relative._metrics["train"].clear()
    expected = their_policy_loss(group_relative, batch.inputs, arguments, beta=0.0, **theirs)
    kept = torch.ones(ROWS, dtype=torch.bool)
    found = policy_gradient(batch.policy_BL, batch.old_BL, batch.advantages_BL, kept, ROWS, loss_type=name, **ours)
    assert_same(group_relative.model, expected, found.loss)

    logged = group_relative._metrics["train"]
    names = (
        {"cispo_clip_ratio": "clip_high"}
        if name == "cispo"
        else {f"clip_ratio/{side}_mean": f"clip_{side}" for side in ("low", "high")}
    )
    for key, metric in names.items():
        assert logged[key][0] == pytest.approx(mean(found, metric), abs=1e-6)
    assert any(mean(found, metric) > 0 for metric in names.values()), "no clip acts: the batch does not test it"


def mean(output: LossOutput, metric: str) -> float:
    average = output.metrics[metric]
    return (average.total / average.count).item()


@pytest.mark.parametrize("name", ["grpo", "dapo"])
def test_kl_in_the_loss(group_relative: Any, name: str) -> None:
    batch = rollouts(group_relative)
    group_relative._metrics["train"].clear()
    arguments = {"use_bias_correction_kl": False, "delta": None}
    expected = their_policy_loss(group_relative, batch.inputs, arguments, beta=0.4, loss_type=name)
    found = policy_gradient(batch.policy_BL, batch.old_BL, batch.advantages_BL, ~NEVER, ROWS, loss_type=name)
    penalty = kl_penalty(batch.policy_BL, batch.reference_BL, coefficient=0.4)
    assert_same(group_relative.model, expected, found.loss + penalty.loss)
    assert group_relative._metrics["train"]["kl"][0] == pytest.approx(mean(penalty, "kl"), rel=1e-5)


@pytest.mark.parametrize("on_policy", [True, False])
def test_kl_with_importance_weights(group_relative: Any, on_policy: bool) -> None:
    batch = rollouts(group_relative, on_policy=on_policy)
    arguments = {"use_bias_correction_kl": True, "delta": None}
    expected = their_policy_loss(group_relative, batch.inputs, arguments, beta=0.4, loss_type="grpo")
    found = policy_gradient(batch.policy_BL, batch.old_BL, batch.advantages_BL, ~NEVER, ROWS)
    old_BL = None if on_policy else batch.old_BL
    penalty = kl_penalty(batch.policy_BL, batch.reference_BL, old_BL, coefficient=0.4, importance=True)
    assert_same(group_relative.model, expected, found.loss + penalty.loss)


# --- advantages

NAN = float("nan")
# two groups of four: terms and rows without a reward, a group with one rewarded row, a group of equal rewards
REWARDS = {
    "complete": [[0.1, 3.0], [0.9, 1.0], [0.4, 2.0], [0.3, 7.0], [0.5, 5.0], [0.5, 4.0], [0.7, 4.5], [0.2, 9.0]],
    "not_applicable": [[0.1, NAN], [0.9, 1.0], [NAN, NAN], [0.3, 7.0], [0.5, 5.0], [NAN, 4.0], [0.7, 4.5], [0.2, NAN]],
    "one_left": [[NAN, NAN], [NAN, NAN], [0.4, 2.0], [NAN, NAN], [0.5, 5.0], [0.1, 4.0], [0.7, 4.5], [0.2, 9.0]],
    "equal": [[0.5, 2.0], [0.5, 2.0], [0.5, 2.0], [0.5, 2.0], [0.5, 5.0], [0.1, 4.0], [0.7, 4.5], [0.2, 9.0]],
}


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())
@pytest.mark.parametrize(
    ("aggregation", "scale"),
    [*[("sum_then_normalize", scale) for scale in ("group", "batch", "none")], ("normalize_then_sum", None)],
)
def test_advantages(group_relative: Any, rewards: list[list[float]], aggregation: str, scale: str | None) -> None:
    rewards_NR, weights = torch.tensor(rewards), [1.0, 0.25]
    trainer = group_relative
    completions = toy_tokens(len(rewards), LENGTH, 8).tolist()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "scale_rewards": scale,
            "multi_objective_aggregation": aggregation,
            "reward_weights": torch.tensor(weights),
            "rollout_func": lambda prompts, _: {
                "prompt_ids": [[2]] * len(prompts),
                "completion_ids": completions,
                "logprobs": None,
            },
            "_calculate_rewards": lambda *_: rewards_NR,
        }.items():
            patch.setattr(trainer, name, value)
        expected = trainer._generate_and_score_completions([{"prompt": "a"} for _ in rewards])["advantages"]
    found = group_advantages(
        rewards_NR,
        num_generations=4,
        reward_weights=weights,
        scale_rewards=scale,
        multi_objective_aggregation=aggregation,
    )
    assert found.advantages_N.abs().max() > 0.1
    torch.testing.assert_close(found.advantages_N, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS.keys())
def test_leave_one_out_advantages(leave_one_out: Any, rewards: list[list[float]]) -> None:
    rewards_NR, weights = torch.tensor(rewards), [1.0, 0.25]
    completions = toy_tokens(len(rewards), LENGTH, 8).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leave_one_out, "reward_weights", torch.tensor(weights))
        patch.setattr(leave_one_out, "_calculate_rewards", lambda *_: rewards_NR)
        patch.setattr(
            leave_one_out, "_generate", lambda prompts: ([[2]] * len(prompts), completions, ["a"] * len(prompts))
        )
        expected = leave_one_out._generate_and_score_completions([{"prompt": "a"} for _ in rewards])["advantages"]
    found = group_advantages(rewards_NR, num_generations=4, reward_weights=weights, estimator="rloo")
    assert found.advantages_N.abs().max() > 0.1
    torch.testing.assert_close(found.advantages_N, expected, rtol=1e-4, atol=1e-5)
