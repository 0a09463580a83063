"""How a run was trained, for its model card: method and paper, base, data, reward, and the settings that it read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipes.config import flatten
from recipes.parts import make_objective
from recipes.supplies import needs_of

# the policy gradients are one function; other objectives name their paper in their docstring
POLICY_GRADIENTS = {
    "grpo": ("group relative policy optimisation (GRPO)", "2402.03300"),
    "dr_grpo": ("Dr. GRPO", "2503.20783"),
    "dapo": ("DAPO", "2503.14476"),
    "cispo": ("CISPO", "2506.13585"),
    "gspo": ("group sequence policy optimisation (GSPO)", "2507.18071"),
}
# sections of the configuration that are read where an objective trains on such data
SECTIONS = {
    "fakes": ["fakes"],
    "pairs": ["pairs"],
    "rollouts": ["rollout"],
    "actions": ["actions"],
    "pixels": ["actions"],
    "betas": ["sampling_beta"],
}
# settings of the trainer that say how a run was watched and stored, not what it computed
HOUSEKEEPING = (
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "sample_every",
    "report_to",
    "gradient_checkpointing",
)


def objective_name(config: DictConfig) -> str:
    """`cca`, or of the policy gradients `grpo`."""
    name = str(config.objective._target_).rsplit(".", 1)[-1]
    return str(config.objective.loss_type) if name == "policy_gradient" else name


def method(config: DictConfig) -> tuple[str, str | None]:
    """What the objective is called, and the arXiv number of its paper where its docstring names one.

    Raises:
        ValueError: the objective cannot be found.
    """
    name = objective_name(config)
    if name in POLICY_GRADIENTS:
        return POLICY_GRADIENTS[name]
    function = make_objective(config.objective)
    docstring = inspect.getdoc(getattr(function, "func", function)) or ""
    first = " ".join(re.split(r"\n\n|:\s*\n", docstring)[0].split())
    found = re.match(r"([^(]*)\([^()]*arXiv (\d{4}\.\d{5})\)", first)
    if found is None or not found[1].strip():
        return name, None
    return found[1].strip(), found[2]


def training_lines(
    record: Mapping[str, Any],
    config: DictConfig,
    facts: Mapping[str, Any],
    title: str,
    paper: str | None,
    base_model: str | None,
) -> Iterator[str]:
    cited = f"[arXiv {paper}](https://arxiv.org/abs/{paper})" if paper else "no paper is named by its code"
    yield f"- **Method**: {title} (`{config.objective._target_}`), {cited}."
    yield f"- **Base**: {_base(record, config, facts, base_model)}"
    yield f"- **Data**: {_inline(_told(config.data)) or 'none'}."
    rewards = [_reward(entry) for entry in config.reward.rewards]
    yield f"- **Reward**: {', '.join(rewards) if rewards else 'none; this objective takes none'}."
    if config.trainer.lora_rank:
        yield f"- **Trained weights**: LoRA adapters of rank {config.trainer.lora_rank}, alpha {config.trainer.lora_alpha}."
    faults = {key: value for key, value in flatten(config.reproduce_bugs) if value}
    if faults:
        yield f"- **Faults of released code, reproduced on purpose**: {_inline(faults)}."
    processes = f" in {record['processes']} processes" if record.get("processes", 1) > 1 else ""
    yield f"- **Time**: {record['wall_seconds']:,.0f} s with its evaluation, on {record['device']}{processes}."


def _base(record: Mapping[str, Any], config: DictConfig, facts: Mapping[str, Any], base_model: str | None) -> str:
    found, name = facts.get("checkpoint"), config.generator.name
    source = f"`{found['name']}`, {size_in_words(found['bytes'])}, {hash_in_words(found)}" if found else f"`{name}`"
    if config.generator.checkpoint is None:
        source = f"the generator `{name}` that ar-align ships, {source}"
    if base_model:
        source += f", by its name the weights of `{base_model}` on the Hub"
    if weights := record.get("hashes", {}).get("base"):
        source += f"; its weights as they were trained from have sha256 `{weights}`"
    adapter = config.generator.get("adapter")
    return source + (f", with the adapters `{Path(adapter).name}` merged into it." if adapter else ".")


def _reward(entry: Mapping[str, Any]) -> str:
    weight = entry.get("weight", 1.0)
    said = [f"weight {weight:g}"] if weight else ["logged only"]
    if "ensemble" in entry:
        said.append(f"mean of {', '.join(entry['ensemble'])} less {entry.get('penalty', 1.0):g} standard deviations")
    if gate := entry.get("gate"):
        said.append(f"where {gate.reward} is at least {gate.at_least:g}")
    if label := entry.get("label"):
        said.append(f"as {label}")
    return f"`{_name(entry['name'])}` ({', '.join(said)})"


def settings_table(config: DictConfig) -> str:
    lines = ["| setting | value |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{key}` | {_shown(value)} |" for key, value in settings(config).items())])


def settings(config: DictConfig) -> dict[str, Any]:
    """The settings that this training read, by their dotted names: those of parts that it did not use are left out.

    Raises:
        ValueError: the objective cannot be found.
    """
    needs = needs_of(config)
    sections = ["objective", "trainer"]
    if needs.reference:
        sections.append("reference")
    sections += [name for name in ("kl", "entropy") if config[name].coefficient]
    sections += SECTIONS.get(needs.source, [])
    if config.rounds.number > 1 or config.rounds.search:
        sections.append("rounds")
    chosen = {name: OmegaConf.to_container(config)[name] for name in sections}  # type: ignore[call-overload,index]
    skipped = {
        "objective._target_",
        "objective._partial_",
        "rollout.probe_every",
        *(f"trainer.{name}" for name in HOUSEKEEPING),
    }
    if not config.trainer.lora_rank:
        skipped |= {"trainer.lora_rank", "trainer.lora_alpha"}
    found = {key: value for key, value in flatten(chosen) if value not in (None, {}, []) and key not in skipped}
    return {**found, "seed": config.seed}


def _told(section: DictConfig) -> dict[str, Any]:
    return {key: value for key, value in flatten(section) if value not in (None, {}, [])}


def _inline(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in values.items())


def _name(value: str) -> str:
    """Of a path the name alone: folders are of the machine that trained."""
    return Path(value).name if value.startswith(("/", "~", "..")) else value


def _shown(value: Any) -> str:
    text = _name(value) if isinstance(value, str) else str(value)
    return f"`{text}`" if isinstance(value, str) else text.replace("|", "\\|")


def size_in_words(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def hash_in_words(file: Mapping[str, Any]) -> str:
    kind = "sha256" if "sha256" in file else "fingerprint"
    note = "" if kind == "sha256" else " (as `align inspect` prints it)"
    return f"{kind} `{file[kind]}`{note}"
