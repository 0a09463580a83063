"""A run's model card: README.md for the Hub, filled from run.json and results.jsonl, and from nothing else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.generators import BETA_PREFIX
from evaluation.results import ResultRow
from recipes.card_results import GUIDANCE, results_section
from recipes.card_training import (
    hash_in_words,
    method,
    objective_name,
    settings_table,
    size_in_words,
    training_lines,
)

FAMILY_NAMES = {
    "llamagen": "LlamaGen",
    "llamagen-t2i": "LlamaGen (text to image)",
    "var": "VAR",
    "janus": "Janus-Pro",
    "infinity": "Infinity",
}
# where the authors keep the files of these names; a file of another name may be anything
HUB_NAMES = {
    r"c2i_(B|L|XL|XXL|3B)_(256|384)": "FoundationVision/LlamaGen",
    r"t2i_XL_stage[12]_(256|512)": "peizesun/llamagen_t2i",
    r"var_d(16|20|24|30|36)": "FoundationVision/var",
    r"Janus-Pro-1B": "deepseek-ai/Janus-Pro-1B",
    r"Janus-Pro-7B": "deepseek-ai/Janus-Pro-7B",
    r"infinity_2b_reg": "FoundationVision/Infinity",
}


@dataclass(frozen=True)
class Export:
    """The weights in the repository.

    name: of the file or folder; tensors: their names; form: in words; hashes: (file, bytes, sha256).
    """

    name: str
    tensors: Sequence[str]
    form: str
    hashes: Sequence[tuple[str, int, str]]

    @property
    def is_folder(self) -> bool:
        return "." not in self.name


def model_card(
    record: Mapping[str, Any],
    rows: Sequence[ResultRow],
    exported: Export | None,
    *,
    repo_id: str,
    files: Mapping[str, str],
    license: str | None,
    base_model: str | None,
) -> str:
    """Markdown with the Hub's front matter.

    Args:
        record: run.json's content.
        rows: of the run's results.jsonl; those of the split "report" are shown. Without any the card says so.
        exported: the weights; None where the adapters go by themselves.
        files: the repository's other files, and what each is.
        license: for the front matter; None leaves it to be set later.
        base_model: the base's repository on the Hub; None: as a published file's name tells, or none.

    Raises:
        ValueError: an objective of the user's own that cannot be found from here.
    """
    config: DictConfig = OmegaConf.create(record["config"])
    facts = record.get("generator_facts", {})
    title, paper = method(config)
    base_model = base_model or _hub_name(facts.get("checkpoint", {}).get("name", ""))
    parts = [
        _front_matter(config, facts, license=license, base_model=base_model, lora="adapter/" in files),
        _opening(record, facts, title, exported),
        "## Results\n\n" + results_section(record, rows, files),
        "## Guidance\n\n" + GUIDANCE,
        "## How to load it\n\n" + _loading(config, facts, repo_id, exported),
        "## How it was trained\n\n" + "\n".join(training_lines(record, config, facts, title, paper, base_model)),
        settings_table(config),
        "## How to make it again\n\n" + _reproduction(record),
        "## What is here\n\n" + _contents(exported, files),
        "## License\n\n" + _license(license),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    config: DictConfig, facts: Mapping[str, Any], *, license: str | None, base_model: str | None, lora: bool
) -> str:
    from huggingface_hub import ModelCardData

    family = facts.get("family")
    tags = ["image-generation", "autoregressive", "alignment", family, objective_name(config)]
    data = ModelCardData(
        license=license,
        library_name="ar-align",
        base_model=base_model,
        tags=[tag for tag in (*tags, "lora" if lora else None) if tag],
        pipeline_tag="text-to-image" if facts.get("num_classes", 0) is None else None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _hub_name(file: str) -> str | None:
    stem = Path(file).stem if Path(file).suffix in (".pt", ".pth", ".safetensors") else file
    return next((repository for pattern, repository in HUB_NAMES.items() if re.fullmatch(pattern, stem)), None)


def _opening(record: Mapping[str, Any], facts: Mapping[str, Any], title: str, exported: Export | None) -> str:
    family = FAMILY_NAMES.get(str(facts.get("family")), str(facts.get("family", "an autoregressive generator")))
    size = f" {facts['size']}" if facts.get("size") else ""
    measures = []
    if "parameters" in facts:
        measures.append(f"{facts['parameters'] / 1e6:,.1f} M parameters")
    if "tokens_per_image" in facts:
        measures.append(f"{facts['tokens_per_image']} tokens an image")
    what = "LoRA adapters for" if exported is None else "The weights of"
    measured = f" ({', '.join(measures)})" if measures else ""
    return (
        f"# {record['name']}\n\n"
        f"{what} a {family}{size} image generator{measured}, trained further by "
        f"{title} with ar-align, a library for the post-training of such generators. This page was written from the "
        "run's own record."
    )


# --- loading


def _loading(config: DictConfig, facts: Mapping[str, Any], repo_id: str, exported: Export | None) -> str:
    text = facts.get("num_classes", 0) is None
    raw = '["a red bicycle on a beach"]' if text else "[0]"
    code = ["import align", *_load_lines(config, facts, repo_id, exported)]
    code += [
        f"condition = generator.encode_condition({raw})",
        "rollout = align.sample(generator, condition, align.SamplingConfig(seed=0))",
        "images = generator.decode(rollout.tokens_BL)  # uint8 [1, H, W, 3]"
        if _has_pixels(config)
        else "tokens = rollout.tokens_BL  # for images, give load_generator a tokenizer_checkpoint and decode them",
    ]
    block = "```python\n" + "\n".join(code) + "\n```"
    tokenizer = facts.get("tokenizer")
    if tokenizer:
        block += f"\n\nThe tokenizer is not in this repository: `{tokenizer['name']}`, {size_in_words(tokenizer['bytes'])}, {hash_in_words(tokenizer)}."
    return block + "\n\n" + _authors_code(facts, exported)


def _has_pixels(config: DictConfig) -> bool:
    """Whether the generator was loaded with its tokenizer, which zoo entries and Janus bring along."""
    name = config.generator.name
    return config.generator.tokenizer_checkpoint is not None or name == "janus" or name not in FAMILY_NAMES


def _load_lines(config: DictConfig, facts: Mapping[str, Any], repo_id: str, exported: Export | None) -> Iterator[str]:
    name, tokenizer = config.generator.name, facts.get("tokenizer")
    whole = exported is None or exported.is_folder
    yield f"from huggingface_hub import {'snapshot_download' if whole else 'hf_hub_download'}"
    if exported is None:
        yield "from pathlib import Path\nfrom align.training.adapters import merge_saved_adapters"
    yield ""
    if exported is None:
        base = facts.get("checkpoint", {}).get("name", "base.pt")
        # a zoo entry brings the weights that the adapters are for
        weights = None if config.generator.checkpoint is None else f'"{base}"'
    elif exported.is_folder:
        yield f'folder = snapshot_download("{repo_id}", allow_patterns="{exported.name}/*")'
        weights = f'f"{{folder}}/{exported.name}"'
    else:
        weights = f'hf_hub_download("{repo_id}", "{exported.name}")'
    arguments = [f'"{name}"', *([weights] if weights else [])]
    if tokenizer:
        arguments.append(f'tokenizer_checkpoint="{tokenizer["name"]}"')
    if encoder := config.generator.get("text_encoder"):
        arguments.append(f'text_encoder="{Path(encoder).name}"')
    arguments += [f"{key}={_literal(value)}" for key, value in facts.get("load", {}).items()]
    yield f"generator = align.load_generator({', '.join(arguments)})"
    if exported is None:
        yield f'folder = snapshot_download("{repo_id}", allow_patterns="adapter/*")'
        yield 'merge_saved_adapters(generator, Path(folder) / "adapter")'


def _literal(value: Any) -> str:
    """As Python has what is a list in JSON: a tuple, of tuples."""
    if not isinstance(value, list):
        return repr(value)
    return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"


def _authors_code(facts: Mapping[str, Any], exported: Export | None) -> str:
    family = FAMILY_NAMES.get(str(facts.get("family")), "")
    if exported is None:
        return (
            "`adapter/` is in the format of the package peft: `PeftModel.from_pretrained` adds it to a model that has the "
            f"tensor names of {family}'s own code."
        )
    form = f"`{exported.name}` is in the form of {family}'s published files ({exported.form}), with their tensor names, order and dtypes"
    added = [name for name in exported.tensors if name.startswith(BETA_PREFIX)]
    if added:
        return (
            f"{form}, and {len(added)} tensors more, `{BETA_PREFIX}*`: the extra input of guidance-free training. The "
            "authors' own code does not know it and will not sample as this generator does."
        )
    return f"{form}. The authors' own code loads it as it loads theirs."


def _reproduction(record: Mapping[str, Any]) -> str:
    versions, git = record["versions"], record.get("git")
    source = ""
    if git:
        source = f", git revision `{git['revision'][:12]}`" + (" with changes of its own" if git["dirty"] else "")
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = ("output_dir=", "overwrite=", "resume=")  # of the machine, not of the training
    command = shlex.join(word for word in shlex.split(record["command"]) if not word.startswith(where))
    return f"    {command}\n\nwith {names}{source}. `run.json` holds every setting, and all hashes."


def _contents(exported: Export | None, files: Mapping[str, str]) -> str:
    lines = ["| file | what it is |", "|---|---|"]
    for name, size, digest in exported.hashes if exported else ():
        lines.append(f"| `{name}` | the generator's weights, {size_in_words(size)}, sha256 `{digest}` |")
    return "\n".join([*lines, *(f"| `{name}` | {what} |" for name, what in files.items())])


def _license(license: str | None) -> str:
    told = f"`{license}`, as set by who published this." if license else "Not set by who published this."
    return f"{told} Mind the terms of the base checkpoint."
