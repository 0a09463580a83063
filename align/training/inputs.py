"""What an objective takes, by name, and how each of it is computed from a batch.

An objective is a pure function whose parameters name its inputs; this module supplies exactly those, and a new
objective needs nothing here as long as it speaks this vocabulary:

    {policy|reference}_{view}_B     log p of the whole image, nats
    {policy|reference}_{view}_BL    of each token
    {policy|reference}_{view}_BLV   raw logits
    policy_{view}_entropy_BL        entropy of each position's distribution, nats
    any name of `FIELDS`            the rest of the batch

A view says which tokens are scored given which condition (`VIEWS`). All views of a batch share one forward of the
network, and views that read the same logits share their rows as well.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from align.generators.base import Generator
from align.generators.deferred import DeferredLogits
from align.objectives.logprobs import token_entropy, token_logprobs
from align.sampling import distribution, is_guided
from align.types import Condition, LossOutput, SamplingConfig

Objective = Callable[..., LossOutput]
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """Tokens to score (a batch field), the condition, and the network's input where it is not the tokens themselves."""

    tokens: str
    condition: str
    meaning: str
    context: str | None = None

    @property
    def rows(self) -> tuple[str, str]:
        """What decides the logits: views that agree in this share them."""
        return self.context or self.tokens, self.condition


VIEWS = {
    "positive": View("tokens", "own", "a real image given its own condition"),
    "negative": View("tokens", "negative", "a real image given another image's condition"),
    "null": View("tokens", "null", "a real image given the null condition"),
    "fake": View("fake", "own", "a sample of the reference, given the condition it was drawn for"),
    "chosen": View("chosen", "own", "the better image of a preference pair"),
    "rejected": View("rejected", "own", "the worse image of a preference pair"),
    "mismatched": View("chosen", "negative", "the better image of a pair given another pair's condition"),
    "rollout": View("rollout", "own", "the policy's own sample, under the distribution that it is trained under"),
    "unfiltered": View("rollout", "own", "the same, without its filters: what KL is taken under"),
    "unconditional": View("rollout", "null", "the policy's own sample given the null condition"),
    "actions": View("actions", "own", "tokens drawn at every position of a teacher-forced image", "context"),
    "real": View("tokens", "own", "the real tokens given the same, possibly noised, context", "context"),
}
FIELDS = {
    "tokens_BL": ("tokens", "the real image's tokens"),
    "label_B": ("label", "class ids"),
    "dropped_B": ("dropped", "rows whose condition was replaced by the null condition"),
    "collision_B": ("collision", "rows whose negative condition equals their own"),
    "old_rollout_BL": ("old", "log p of the rollout when it was collected"),
    "old_actions_BGL": ("old", "log p of the actions when they were drawn"),
    "advantages_BL": ("advantages", "advantage of each token: reward, credit and importance weight"),
    "advantages_BG": ("advantages", "advantage of each action sequence"),
    "kept_B": ("kept", "rollouts that carry a signal"),
    "num_kept": ("num_kept", "kept rollouts of the whole optimiser step"),
    "mismatched_gap": ("mismatched_gap", "mean gap of the step's pairs of an image and another one's condition"),
    "beta_B": ("beta", "the sampled temperature of guidance-free training"),
    "num_tokens": ("num_tokens", "tokens in an image"),
    "decoded_BCHW": ("decoded", "pixels of straight-through tokens, with gradient"),
    "real_BCHW": ("real_pixels", "pixels of the real tokens"),
    "perceptual_B": ("perceptual", "perceptual distance of the two, with gradient"),
}
_MODEL_INPUT = re.compile(r"(policy|reference)_([a-z]+)_(B|BL|BGL|BLV|entropy_BL)")
EXCLUDED = -1e4  # nats: log-prob of a token that a filter excludes
# what each batch field that the plain stream of real images lacks is made by
SOURCES = {
    "fake": "fakes",
    "chosen": "pairs",
    "rejected": "pairs",
    "rollout": "rollouts",
    "old": "rollouts",
    "advantages": "rollouts",
    "kept": "rollouts",
    "num_kept": "rollouts",
    "actions": "actions",
    "context": "actions",
    "decoded": "pixels",
    "real_pixels": "pixels",
    "perceptual": "pixels",
    "beta": "betas",
}


@dataclass(frozen=True)
class ModelInput:
    """One parsed name: whose (policy or reference), which view, in which shape."""

    name: str
    model: str
    view_name: str
    shape: str

    @property
    def view(self) -> View:
        return VIEWS[self.view_name]

    @staticmethod
    def parse(name: str) -> ModelInput | None:
        match = _MODEL_INPUT.fullmatch(name)
        if match is None or match[2] not in VIEWS:
            return None
        return ModelInput(name, match[1], match[2], match[3])


@dataclass(frozen=True)
class Needs:
    """The inputs of one or more functions, by name."""

    names: tuple[str, ...]

    @staticmethod
    def of(function: Objective) -> Needs:
        """Read off a signature: every parameter without a value but `normalizer`.

        Raises:
            ValueError: a name that nothing supplies, or no `normalizer` parameter.
        """
        signature = inspect.signature(function)
        if "normalizer" not in signature.parameters:
            raise ValueError(f"objective {function} must take normalizer=, the rows of the whole optimiser step")
        names = [
            name
            for name, parameter in signature.parameters.items()
            if parameter.default is inspect.Parameter.empty and name != "normalizer"
        ]
        if unknown := [name for name in names if name not in FIELDS and ModelInput.parse(name) is None]:
            raise ValueError(
                f"objective {function} takes {', '.join(unknown)}, which nothing supplies; set them in its "
                f"configuration, or use {{policy|reference}}_{{view}}_{{B|BL|BLV}} with a view of "
                f"{', '.join(VIEWS)}, or: {', '.join(FIELDS)}"
            )
        return Needs(tuple(names))

    def __or__(self, other: Needs) -> Needs:
        return Needs(tuple(dict.fromkeys([*self.names, *other.names])))

    def of_model(self, model: str) -> list[ModelInput]:
        parsed = [ModelInput.parse(name) for name in self.names]
        return [item for item in parsed if item is not None and item.model == model]

    @property
    def of_reference(self) -> list[ModelInput]:
        """All that the reference is asked for: in the update, and for the mean gap beside it."""
        names = (*self.names, "reference_mismatched_B") if "mismatched_gap" in self.names else self.names
        return Needs(names).of_model("reference")

    @property
    def reference(self) -> bool:
        return bool(self.of_reference)

    @property
    def source(self) -> str:
        """What the data must be: real, fakes, pairs, rollouts, actions, pixels or betas."""
        fields = [FIELDS[name][0] for name in self.names if name in FIELDS]
        for item in (*self.of_model("policy"), *self.of_model("reference")):
            fields += [item.view.tokens, *([item.view.context] if item.view.context else [])]
        found = {SOURCES[name] for name in fields if name in SOURCES}
        # the actions of a teacher-forced image carry advantages and old log-probs as rollouts do
        if "actions" in found and "rollout" not in fields:
            found.discard("rollouts")
        # and the straight-through pixels are decoded under its context
        if "pixels" in found:
            found.discard("actions")
        if len(found) > 1:
            raise ValueError(f"an objective cannot mix data of {' and '.join(sorted(found))}: {', '.join(self.names)}")
        return next(iter(found), "real")

    @property
    def primary(self) -> str:
        """The view that a penalty on the whole policy (KL, entropy) is taken on: the first that the policy is scored in."""
        for name in self.names:
            if name.startswith("policy_"):
                return name.split("_")[1]
        raise ValueError(f"this objective never scores the policy: it takes {', '.join(self.names)}")


@dataclass(frozen=True)
class Term:
    """A function of the loss with where each of its parameters comes from: the objective itself, or a penalty."""

    function: Objective
    inputs: Mapping[str, str]

    @staticmethod
    def of(objective: Objective) -> Term:
        return Term(objective, {name: name for name in Needs.of(objective).names})

    @property
    def needs(self) -> Needs:
        return Needs(tuple(self.inputs.values()))

    def __call__(self, inputs: Mapping[str, Any], normalizer: float) -> LossOutput:
        arguments = {parameter: inputs[name] for parameter, name in self.inputs.items()}
        return self.function(**arguments, normalizer=normalizer)


@dataclass(frozen=True)
class Scoring:
    """How rollouts are scored: under the distribution that they were drawn from, or another one, knowingly.

    null_branch: with guidance, whether the null logits `trains`, is `detached`, or comes from the `reference`.
    """

    config: SamplingConfig = field(default_factory=SamplingConfig)
    null_branch: str = "trains"

    def __post_init__(self) -> None:
        if self.null_branch not in ("trains", "detached", "reference"):
            raise ValueError(f"null_branch is {self.null_branch!r}; known: trains, detached, reference")


def conditions(generator: Generator, batch: Batch) -> tuple[dict[str, Condition], Tensor]:
    """Own, negative and null condition of each row, with one label-drop mask for all, and the collision mask.

    A batch without negatives has none.
    """
    labels = [batch[name] for name in ("label", "negative_label") if name in batch]
    # in one go: equal captions then have equal features, and a text encoder runs once
    encoded, rows = generator.encode_condition(_joined(labels)), len(batch["dropped"])
    own, negative = encoded[:rows], encoded[rows:]
    collision_B = own.equals(negative) if len(negative) else torch.zeros_like(batch["dropped"])
    if "beta" in batch:
        own = Condition({**own.tensors, "beta": batch["beta"].to(own.tensors["beta"].dtype)})
    null = generator.null_condition(own)
    found = {"null": null, "own": own.where(batch["dropped"], null)}
    if len(negative):
        found["negative"] = negative.where(batch["dropped"], null)
    return found, collision_B


def _joined(labels: Sequence[Any]) -> Any:
    """Class ids one after another, or captions."""
    if isinstance(labels[0], Tensor):
        return torch.cat(list(labels))
    return [label for part in labels for label in part]


def model_inputs(
    forward: Callable[..., Any],
    generator: Generator,
    batch: Batch,
    given: Mapping[str, Condition],
    wanted: Sequence[ModelInput],
    scoring: Scoring,
    reference: Callable[..., Any] | None = None,
    watch: str | None = None,
) -> dict[str, Tensor]:
    """The wanted inputs of one model, by one forward of all rows, whose logits are whole only where they are wanted whole.

    Args:
        forward: `Generator.forward`: of the policy as the trainer wraps it, or of a reference.
        generator: the same model unwrapped, for its layout.
        reference: gives the null logits where `scoring.null_branch` says so.
        watch: a view whose entropy is wanted for the log only, without gradient, as "watched_entropy_BL".
    """
    if not wanted:
        return {}
    rows = list(dict.fromkeys(item.view.rows for item in wanted))
    rollout, null = VIEWS["rollout"].rows, VIEWS["unconditional"].rows
    guided = rollout in rows and is_guided(scoring.config, generator.layout)
    null_of: Callable[[slice], Tensor] | None = None
    if guided and scoring.null_branch == "trains":
        rows = list(dict.fromkeys([*rows, null]))
    elif guided:
        source = generator if scoring.null_branch == "detached" else reference
        if source is None:
            raise ValueError("null_branch=reference needs a reference; set reference.kind=frozen")
        null_of = _null_logits(source, batch["rollout"], given["null"], apart=source is not generator)

    def read(logits_RnV: Tensor, span: slice) -> dict[str, Tensor]:
        """Of some tokens: logits of all rows to the wanted inputs."""
        logits = dict(zip(rows, logits_RnV.chunk(len(rows)), strict=True))
        null_BnV = None
        if null_of is not None:
            null_BnV = null_of(span)
        elif guided:
            null_BnV = logits[null]

        def of_view(name: str) -> Tensor:
            found_BnV = logits[VIEWS[name].rows]
            if name not in ("rollout", "unfiltered"):
                return found_BnV
            config = scoring.config if name == "rollout" else replace(scoring.config, top_k=0, top_p=1.0)
            return distribution(found_BnV, null_BnV, generator.layout, config, span)

        views = {name: of_view(name) for name in dict.fromkeys(item.view_name for item in wanted)}
        found = {
            item.name: _shaped(views[item.view_name], batch[item.view.tokens][..., span], item.shape) for item in wanted
        }
        if watch is not None:
            with torch.no_grad():
                found["watched_entropy_BL"] = token_entropy(views[watch])
        return found

    def readout(logits: DeferredLogits) -> dict[str, Tensor]:
        if any(item.shape == "BLV" for item in wanted):
            return read(logits.whole(), slice(0, generator.layout.length))
        return logits.read(read)

    tokens_RL = torch.cat([batch[name] for name, _ in rows])
    found = forward(tokens_RL, Condition.cat([given[condition] for _, condition in rows]), readout=readout)
    return {name: value.sum(dim=-1) if name.endswith("_B") else value for name, value in found.items()}


@torch.no_grad()
def _null_logits(
    source: Callable[..., Any], tokens_BL: Tensor, null: Condition, *, apart: bool
) -> Callable[[slice], Tensor]:
    """Logits without gradient of any span of the tokens.

    apart: the source is another model than the one that reads them. If it is sharded, then its output layer is in pieces
        by that time, and so it gives all logits at once.
    """
    from align.training.sharding import is_sharded

    if apart and isinstance(source, nn.Module) and is_sharded(source):
        null_BLV = source(tokens_BL, null)
        return lambda span: null_BLV[:, span]
    deferred: DeferredLogits = source(tokens_BL, null, readout=lambda logits: logits)
    return torch.no_grad()(deferred.part)


def _shaped(logits_BnV: Tensor, tokens: Tensor, shape: str) -> Tensor:
    """What is asked for of some tokens; `B` is summed over all of them later."""
    if shape == "BLV":
        return logits_BnV
    if shape == "entropy_BL":
        return token_entropy(logits_BnV)
    if shape == "BGL":
        # G sequences an image read the same logits
        logprobs_BnV = logits_BnV.log_softmax(dim=-1)
        return logprobs_BnV.gather(-1, tokens.transpose(1, 2)).transpose(1, 2)
    # a token drawn within a filter may have left it since: its probability and its gradient are 0, but sums stay finite
    return token_logprobs(logits_BnV, tokens).clamp(min=EXCLUDED)


def field_inputs(names: Collection[str], batch: Batch) -> dict[str, Any]:
    """Inputs that are fields of the batch.

    Raises:
        ValueError: the batch lacks one, because the data is not what the objective needs.
    """
    wanted = {name: FIELDS[name][0] for name in names if name in FIELDS}
    if missing := [name for name, key in wanted.items() if key not in batch]:
        raise ValueError(f"the data does not supply {', '.join(missing)}; it has {', '.join(sorted(batch))}")
    return {name: batch[key] for name, key in wanted.items()}
