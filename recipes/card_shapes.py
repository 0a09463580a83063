"""The card of a zoo entry of the shapes world: what it is, the command that made it, and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.generators.captions import CaptionConditional
from evaluation.geneval.requests import TAGS
from evaluation.results import ResultRow
from evaluation.shapes_world.prompts import all_rows, vocabulary

COLUMNS = ("geneval", "held-out", *TAGS)


def card(
    generator: CaptionConditional[Any], record: dict[str, Any], facts: dict[str, Any], rows: list[ResultRow]
) -> str:
    """Markdown. `record` is run.json's content; `facts` are those of `pretrain_on_shapes`."""
    config, seconds = record["config"], facts["seconds"]
    size = sum(parameter.numel() for parameter in generator.parameters()) / 1e6
    plain = next(row for row in rows if row.guidance_scale == row.temperature == 1.0)
    guided = [row for row in rows if row.guidance_scale > 1]
    best = max(guided, key=lambda row: figures(row.metrics)["geneval"], default=plain)
    before, after = (figures(row.metrics)["geneval"] for row in (plain, best))
    return f"""# LlamaGen text-to-image on shapes: {size:.2f}M parameters, {generator.layout.length} tokens, a T5 of {len(vocabulary(all_rows()))} words

Pretrained by us, for tests and demonstrations. The architecture and the file format are LlamaGen's text-to-image ones at
a small size; the text encoder is a T5 of the same kind as flan-t5, trained along with it, that knows whole words only.

- Command: `{record["command"].removesuffix(" resume=auto")}`
- Data: {config["scenes"]["number"]:,} scenes of 32x32 pixels with one to four shapes (evaluation/shapes_world), drawn at random, with a
  caption each in GenEval's grammar; another 1,000 held out. {100 * config["scenes"]["mislabelled"]:g} % of the captions are another scene's, as
  captions of the web are: without guidance the generator is as unreliable as they. The two sets of prompts, for
  alignment and for evaluation, share no combination; captions of pretraining have both.
- Time: {sum(seconds.values()) / 60:.1f} min on {record["device"]} ({", ".join(f"{name} {value} s" for name, value in seconds.items())}).
- Tokenizer: {config["tokenizer"]["codebook_size"]} codes, perplexity {facts["codebook_perplexity"]:.1f}, held-out reconstruction MSE {facts["reconstruction_mse_held_out"]:.5f} on [-1, 1]. Stored in float16.
- Generator: negative log-likelihood {facts["nll_train"]:.4f} (train), {facts["nll_held_out"]:.4f} (held out) nats a token.
- Ceilings: what true scenes score, and what they score after the tokenizer, is in the table.
- Guidance-free overall is {before:.3f} and the best guided one {after:.3f}: the room that alignment has.

Protocol geneval-shapes: GenEval's rules with the detector of evaluation/shapes_world, not comparable with GenEval; {plain.n:,}
images of {plain.reference_n} test prompts, seed {plain.seed}. `held-out` is the overall score under the network of judge.safetensors, which is
kept out of rewards.

| guidance scale (1 = off) | temperature | {" | ".join(name.replace("_", " ").replace("geneval", "overall") for name in COLUMNS)} | forwards per image |
|{"---|" * (len(COLUMNS) + 3)}
{_line("true scenes", "", facts["ceiling"]["scenes"], "")}
{_line("after the tokenizer", "", facts["ceiling"]["reconstructions"], "")}
{chr(10).join(_line(f"{row.guidance_scale:g}", f"{row.temperature:g}", figures(row.metrics), f"{row.forwards_per_image:g}") for row in rows)}
"""


def figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics by the names of COLUMNS, without protocol and count."""
    return {
        name: next(value for key, value in metrics.items() if key.startswith(f"{name}_geneval")) for name in COLUMNS
    }


def _line(scale: str, temperature: str, values: Mapping[str, float], forwards: str) -> str:
    cells = " | ".join(f"{values[name]:.3f}" for name in COLUMNS)
    return f"| {scale} | {temperature} | {cells} | {forwards} |"
