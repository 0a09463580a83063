"""For people whose stack is TRL: our policy, rollouts and rewards inside `trl.GRPOTrainer`.

    args = GRPOConfig("runs/grpo", learning_rate=1e-6, loss_type="grpo", num_generations=8)
    rows = [{"label": label} for label in range(1000)]
    GeneratorGRPOTrainer(generator, [redness], args, conditions=rows, sampling=SamplingConfig(top_k=900)).train()
    generator.save_published("aligned.pt")

TRL keeps the loop, the advantages, the loss and the logs. A row's number travels as the one-token prompt, the image's
tokens as the completion, and everything is scored under the very distribution it was sampled from (guidance,
temperature and filters included). Made for trl 1.16, in one process or under DDP; it overrides a private method of
GRPOTrainer, so another minor version may need changes here. TRL's constructor pings Hugging Face's
telemetry unless HF_HUB_DISABLE_TELEMETRY=1 or HF_HUB_OFFLINE=1 is set.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from align.generators.base import Generator
from align.generators.deferred import DeferredLogits
from align.sampling import distribution, is_guided, sample
from align.types import Condition, SamplingConfig
from rewards.base import Reward, RewardFunction
from rewards.scoring import score_rewards

try:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise ImportError("align.training.trl_bridge needs trl 1.16; try: pip install 'ar-align[trl]'") from error

Row = Mapping[str, Any]

# Log-prob of a token that a filter excludes, as it may under a policy updated since the token was drawn. Its probability
# and its gradient are 0, and 0 * -inf stays out of entropies and of the losses that multiply by log-probs (cispo, vespo).
EXCLUDED = -1e4

# GRPOConfig fields that must keep one value here, and why
FIXED: dict[str, tuple[Any, str]] = {
    "use_vllm": (False, "rollouts are drawn by align.sampling.sample"),
    "mask_truncated_completions": (False, "images do not end in a token, so all would be masked and never train"),
    "cast_lm_head_to_fp32": (False, "log-probs are float32 already, and there is no lm_head"),
    "sync_ref_model": (False, "the reference stays as it is"),
    "pad_to_multiple_of": (None, "all images have the same number of tokens"),
}
for _name, _value in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", None), ("repetition_penalty", 1.0)):
    FIXED[_name] = (_value, "rollouts follow sampling=SamplingConfig(...); set it there")


class PolicyModel(PreTrainedModel, GenerationMixin):
    """A generator in the shape that TRL expects. Every call that carries a gradient goes through `forward`.

    The generator stays in eval mode also while TRL trains: rollouts are drawn without dropout, so dropout in the
    update alone would make a ratio out of noise.
    """

    supports_gradient_checkpointing = True

    def __init__(self, generator: Generator, sampling: SamplingConfig) -> None:
        # TRL asks for pad and end-of-sequence ids; one past the vocabulary no image token is mistaken for them
        config = PreTrainedConfig()
        config.pad_token_id = config.eos_token_id = generator.vocab_size
        super().__init__(config)
        self.generator = generator
        self.sampling = sampling
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Keep the generator's weights: transformers would initialise linear layers anew."""

    def train(self, mode: bool = True) -> PolicyModel:
        super().train(mode)
        self.generator.eval()
        return self

    def forward(self, tokens_BL: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy [B, L] of given tokens under the distribution sampled from, nats, float32."""
        null: DeferredLogits | None = None
        if is_guided(self.sampling, self.generator.layout):
            null = self.generator(tokens_BL, self.generator.null_condition(condition), readout=lambda logits: logits)

        def read(cond_BnV: Tensor, span: slice) -> dict[str, Tensor]:
            null_BnV = None if null is None else null.part(span)
            logprobs_BnV = distribution(cond_BnV, null_BnV, self.generator.layout, self.sampling, span).clamp(
                min=EXCLUDED
            )
            logprobs_Bn = logprobs_BnV.gather(-1, tokens_BL[:, span].unsqueeze(-1)).squeeze(-1)
            return {"logprobs": logprobs_Bn, "entropy": -(logprobs_BnV.exp() * logprobs_BnV).sum(dim=-1)}

        found = self.generator(tokens_BL, condition, readout=lambda logits: logits.read(read))
        return found["logprobs"], found["entropy"]


class GeneratorGRPOTrainer(GRPOTrainer):
    """`trl.GRPOTrainer` for an image generator.

    Args:
        generator: the policy, trained in place.
        rewards: functions f(images uint8 [B, H, W, 3] on the CPU, rows of `conditions`) -> float [B]; NaN is not
            applicable: TRL leaves it out of the group's mean. The function's name is its name in the logs.
        args: TRL's settings. Mind its defaults: bf16, gradient checkpointing, learning rate 1e-6, loss_type dapo.
        conditions: one mapping per condition; TRL shuffles and repeats them. Rewards are handed them as they are.
        sampling: the distribution of the rollouts; the seed fixes their random numbers.
        reference: where args.beta > 0, what the KL is measured against; a frozen copy of the generator if None.
        condition_key: the entry of a row that `generator.encode_condition` takes: "label", or "prompt".
        **kwargs: callbacks and optimizers, as for GRPOTrainer.

    Logged besides TRL's: sampling/sampling_logp_difference/{mean,max}, |log p scored - log p when drawn| per token just
    after a rollout. It should be rounding; where it is not, training scores another distribution than it samples.

    Raises:
        ValueError: a setting that would be ignored, that makes the KL infinite, or that leaves nothing to learn.
        NotImplementedError: FSDP or DeepSpeed.
    """

    def __init__(
        self,
        generator: Generator,
        rewards: Sequence[RewardFunction],
        args: GRPOConfig,
        *,
        conditions: Sequence[Row],
        sampling: SamplingConfig | None = None,
        reference: Generator | None = None,
        condition_key: str = "label",
        **kwargs: Any,
    ) -> None:
        sampling = sampling or SamplingConfig()
        _check(args, sampling, reference)
        self.generator = generator
        self.sampling = sampling
        self.rows = list(conditions)
        self.condition_key = condition_key
        self._drawn = ((-1, True), 0)

        args = copy.copy(args)
        args.max_completion_length = generator.layout.length  # what dr_grpo divides by
        # given beta, TRL would look for the reference on the hub, by the model's name; both are set below instead
        beta, args.beta = args.beta, 0.0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*'rollout_func'")
            super().__init__(
                model=PolicyModel(generator, sampling),
                reward_funcs=[_for_trl(reward, self.rows) for reward in rewards],
                args=args,
                train_dataset=Dataset.from_dict({"prompt": list(range(len(self.rows)))}),
                processing_class=_tokenizer(generator.vocab_size),
                rollout_func=lambda prompts, trainer: trainer.roll_out(prompts),
                **kwargs,
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise NotImplementedError("rollouts need whole weights on every rank; use DDP instead of FSDP or DeepSpeed")
        self.beta = args.beta = beta
        if beta:
            model = PolicyModel(reference or copy.deepcopy(generator), sampling).eval()
            self.ref_model = self.accelerator.prepare_model(model, evaluation_mode=True)

    def condition(self, rows: Sequence[int]) -> Condition:
        return self.generator.encode_condition([self.rows[row][self.condition_key] for row in rows])

    def roll_out(self, prompts: Sequence[int]) -> dict[str, list[Any]]:
        """One image per prompt, in order. TRL has repeated the prompts already, num_generations times each."""
        index_B = self._fresh_indices(len(prompts))
        with self.accelerator.autocast():  # as when scoring
            rollout = sample(self.generator, self.condition(prompts), self.sampling, index_B=index_B)
        return {
            "prompt_ids": [[row] for row in prompts],
            "completion_ids": rollout.tokens_BL.tolist(),
            "logprobs": rollout.logprobs_BL.tolist(),
            "pixels": list(self.generator.decode(rollout.tokens_BL).cpu()),
        }

    def _fresh_indices(self, rows: int) -> Tensor:
        """Sample indices not drawn before in training. They follow from the step, so a resumed run draws what an
        unbroken one does; evaluations draw the same ones each time."""
        now = (self.state.global_step, self.model.training)
        first = self._drawn[1] if self._drawn[0] == now else 0
        self._drawn = (now, first + rows)
        base = (now[0] + 1 if self.model.training else 0) << 24
        index_B = torch.arange(base + first, base + first + rows)
        return index_B * self.accelerator.num_processes + self.accelerator.process_index

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """TRL's only way to a log-prob: of the policy now, of the old one, and of the reference."""
        parts = []
        for ids in input_ids.split(batch_size or len(input_ids)):
            with self.accelerator.autocast():
                parts.append(model(ids[:, -logits_to_keep:], self.condition(ids[:, 0].tolist())))
        logprobs_BL, entropy_BL = (torch.cat(part) for part in zip(*parts, strict=True))
        self._scored_BL = logprobs_BL.detach()
        return logprobs_BL, (entropy_BL if compute_entropy else None), None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        mode = "train" if self.model.training else "eval"
        # later micro-batches of a rollout may follow an update, and then differ because the policy has moved
        if mode == "eval" or self._step % (self.args.steps_per_generation * self.num_iterations) == 0:
            off_BL = self.accelerator.gather((self._scored_BL - inputs["sampling_per_token_logps"]).abs())
            self._metrics[mode]["sampling/sampling_logp_difference/mean"].append(off_BL.mean().item())
            self._metrics[mode]["sampling/sampling_logp_difference/max"].append(off_BL.max().item())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Without lengths and clipped_ratio: every image has the same length, and none ends in a token."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name in [name for name in metrics if name.startswith("completions/")]:
            del metrics[name]
        super().log(logs, start_time)


def _check(args: GRPOConfig, sampling: SamplingConfig, reference: Generator | None) -> None:
    for name, (value, why) in FIXED.items():
        if getattr(args, name) != value:
            raise ValueError(f"GRPOConfig.{name} is {getattr(args, name)!r}; it must be {value!r} here: {why}")
    if sampling.temperature == 0:
        raise ValueError("sampling.temperature is 0: all rollouts of a condition are the same; set it above 0")
    if args.beta and (sampling.top_k or sampling.top_p < 1):
        raise ValueError(
            f"GRPOConfig.beta is {args.beta}, but sampling filters tokens (top_k={sampling.top_k}, top_p={sampling.top_p}): "
            "the KL is infinite where policy and reference keep different tokens; turn the filters off, or set beta=0"
        )
    if reference is not None and not args.beta:
        raise ValueError("a reference was given, but GRPOConfig.beta is 0: it would not be used; set beta, or drop it")


def _for_trl(function: RewardFunction, rows: Sequence[Row]) -> Callable[..., list[float]]:
    """A reward in TRL's calling convention: lists with one entry per sample, by keyword. What fails stops the run."""
    reward = Reward(getattr(function, "__name__", type(function).__name__), function)
    if reward.kind != "image":
        raise ValueError(
            f"reward {reward.name!r} scores a {reward.kind}, and TRL hands rewards single images; use `align train` for it"
        )

    def call(prompts: list[int], pixels: list[Tensor], **_: Any) -> list[float]:
        own = [rows[row] for row in prompts]
        return score_rewards([reward], torch.stack(pixels), own, timeout=None).checked().values_NR[:, 0].tolist()

    call.__name__ = reward.name
    return call


def _tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """No text passes through TRL here, but it insists on a tokenizer: one that only knows padding."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": vocab_size}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>")
