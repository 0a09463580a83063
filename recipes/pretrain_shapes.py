"""Pretraining on the shapes world: tokenizer, generator with its text encoder, a held-out judge, prompts, card.

Captions speak of everything that GenEval's grammar can say of these shapes, tag by tag in equal shares; what alignment and
evaluation ask for are two disjoint parts of it (evaluation/shapes_world/prompts.py). Cut short, it goes on with resume=auto
after the last part that was finished.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from align.checkpoints import load_generator, load_tokenizer
from align.data import Codes
from align.files import sha256_of_tensors, write_text
from align.generators import Generator, LlamaGenConfig, LlamaGenT2I
from align.objectives import token_logprobs
from align.progress import progress_bar
from align.text.words import make_word_encoder, make_word_tokenizer, save_word_encoder
from align.tokenizers import VQTokenizer
from align.training.text_to_image import train_text_to_image
from evaluation.geneval.requests import TAGS
from evaluation.prompted import PromptProtocol
from evaluation.protocol import Protocol
from evaluation.results import ResultRow, read_results
from evaluation.shapes_world import lay_out, prompt_rows, render
from evaluation.shapes_world.neural import save_neural_shapes
from evaluation.shapes_world.prompts import all_rows, vocabulary
from evaluation.shapes_world.train_neural import train_neural
from recipes.card_shapes import card, figures
from recipes.judge import Judge, base_settings
from recipes.pretrain_parts import FILES, Stages, make_tokenizer, tokenizer_facts
from recipes.protocols import make_protocol
from recipes.run import Run
from recipes.tasks import PromptTask

TEXT_ENCODER, JUDGE = "text_encoder", "judge.safetensors"
PROMPTS = {"align": "prompts_align.jsonl", "test": "prompts_test.jsonl"}
HELD_OUT = 1000  # scenes that nothing is trained on
CHUNK = 2000
TRAINING = ("steps", "batch_size", "learning_rate", "warmup_steps", "weight_decay", "caption_drop")


def pretrain_on_shapes(config: DictConfig, run: Run) -> dict[str, Any]:
    """Fill the run's folder with an entry and its card; the facts that belong into run.json."""
    stages = Stages(run.folder, resume=config.resume == "auto")
    facts = stages.facts
    with stages.step("scenes"):
        images, captions = scenes(
            config.scenes.number + HELD_OUT, seed=config.seed, mislabelled=config.scenes.mislabelled
        )
        write_prompts(run.folder)
    if not stages.done("tokenizer"):
        with stages.step("tokenizer"):
            facts |= tokenizer_facts(
                make_tokenizer(config.tokenizer, images[HELD_OUT:], config.seed, run.folder), images[:HELD_OUT]
            )
    with stages.step("codes"):
        tokenizer = load_tokenizer(run.folder / FILES["tokenizer"])
        assert isinstance(tokenizer, VQTokenizer)
        tokens = torch.cat([tokenizer.encode_images(part) for part in images.split(CHUNK)])
        shipped = slice(HELD_OUT, HELD_OUT + config.scenes.shipped)
        Codes(tokens[shipped], captions[shipped], sha256_of_tensors(tokenizer.state_dict())).save(
            run.folder / FILES["codes"]
        )
    side = int(tokens.shape[1] ** 0.5)
    if not stages.done("generator"):
        with stages.step("generator"):
            _generator(config, tokens[HELD_OUT:], captions[HELD_OUT:], tokenizer, (side, side), run.folder)
    if not stages.done("judge"):
        with stages.step("judge"):
            _judge(config.judge_network, run.folder)
    write_text(run.folder / "config.json", json.dumps(_entry(config, side), indent=2) + "\n")
    with stages.step("evaluation"):
        (run.folder / "results.jsonl").unlink(missing_ok=True)
        # everything is loaded back from its file: what is measured is what ships
        generator = load_generator(str(run.folder))
        assert isinstance(generator, LlamaGenT2I)
        protocol = make_protocol(f"zoo:{run.folder}")
        assert not isinstance(protocol, Protocol)
        facts["ceiling"] = ceiling(protocol, generator, config.seed)
        facts["nll_train"], facts["nll_held_out"] = (
            _nll(generator, tokens[part], captions[part]) for part in (slice(HELD_OUT, 2 * HELD_OUT), slice(HELD_OUT))
        )
        judge = Judge(PromptTask(protocol), config.evaluation.batch_size, run.folder)
        base_settings(judge, generator, config.evaluation)
        rows = _without_verdicts(run.folder)
    write_text(run.folder / "card.md", card(generator, run.record, facts, rows))
    stages.finish()
    return facts


def scenes(number: int, *, seed: int, mislabelled: float) -> tuple[Tensor, list[str]]:
    """uint8 [number, 32, 32, 3] and their captions: each tag in turn, rows of a tag at random.

    A share `mislabelled` of them has the caption of another scene, as captions gathered on the web do: what a generator
    learns from them without guidance is as unreliable.
    """
    rng = np.random.default_rng(seed)
    by_tag = [[row for row in all_rows() if row["tag"] == tag] for tag in TAGS]
    rows = [by_tag[index % len(TAGS)][rng.integers(len(by_tag[index % len(TAGS)]))] for index in range(number)]
    images = np.stack([render(lay_out(row, rng)) for row in rows])
    order = rng.permutation(number)
    captions = [rows[index]["prompt"] for index in order]
    swapped = np.flatnonzero(rng.random(number) < mislabelled)
    wrong = [captions[index] for index in rng.permutation(swapped)]
    for index, caption in zip(swapped, wrong, strict=True):
        captions[index] = caption
    return torch.from_numpy(images[order]), captions


def write_prompts(folder: Path) -> None:
    """Both sets of prompts, as GenEval's metadata files."""
    for split, file in PROMPTS.items():
        write_text(folder / file, "".join(json.dumps(row) + "\n" for row in prompt_rows(split)))


def _generator(
    config: DictConfig,
    tokens_NL: Tensor,
    captions: list[str],
    tokenizer: VQTokenizer,
    grid: tuple[int, int],
    folder: Path,
) -> None:
    settings: dict[str, Any] = OmegaConf.to_container(config.generator)  # type: ignore[assignment]
    text, training = settings.pop("text"), {name: settings.pop(name) for name in TRAINING}
    words = vocabulary(all_rows())
    torch.manual_seed(config.seed)
    reader, encoder = make_word_tokenizer(words), make_word_encoder(words, **text)
    sizes = LlamaGenConfig(
        hidden_dim=LlamaGenConfig.hidden(settings["dim"]),
        vocab_size=tokenizer.config.codebook_size,
        grid=grid,
        caption_dim=text["width"],
        **settings,
    )
    generator = LlamaGenT2I(sizes, tokenizer)
    generator.initialize(torch.Generator().manual_seed(config.seed))
    null_caption = generator.get_buffer("cls_embedding.uncond_embedding")
    torch.nn.init.normal_(null_caption, std=text["width"] ** -0.5)
    bar = progress_bar(total=training["steps"], description="generator", unit="step")

    def show(step: int, metrics: dict[str, float]) -> None:
        bar.update()
        bar.set_postfix({name: f"{value:.3f}" for name, value in metrics.items()}, refresh=False)

    train_text_to_image(generator, encoder, reader, tokens_NL, captions, seed=config.seed, on_step=show, **training)
    bar.close()
    generator.save_published(folder / FILES["generator"])
    save_word_encoder(folder / TEXT_ENCODER, encoder, reader)


def _nll(generator: Any, tokens_NL: Tensor, captions: list[str]) -> float:
    """Nats a token."""
    with torch.no_grad():
        logits_BLV = generator(tokens_NL, generator.encode_condition(captions))
        return -token_logprobs(logits_BLV, tokens_NL).mean().item()


def _judge(config: DictConfig, folder: Path) -> None:
    bar = progress_bar(total=config.steps, description="judge", unit="step")
    network = train_neural(
        seed=config.seed, steps=config.steps, batch_size=config.batch_size, on_step=lambda *_: bar.update()
    )
    bar.close()
    save_neural_shapes(network, folder / JUDGE)


def _entry(config: DictConfig, side: int) -> dict[str, Any]:
    second = {"name": "shapes-neural", "path": JUDGE}
    return {
        "family": LlamaGenT2I.family,
        **FILES,
        "text_encoder": TEXT_ENCODER,
        "prompts": PROMPTS["align"],
        "judge": JUDGE,
        "config": {"num_heads": config.generator.num_heads, "grid": [side, side]},
        "protocol": {
            "kind": "geneval",
            "name": "geneval-shapes",
            "prompts": PROMPTS["test"],
            "images_per_prompt": config.images_per_prompt,
            "detector": {"name": "shapes"},
            "colors": {"name": "shapes"},
            "held_out": {"detector": second, "colors": second},
        },
    }


def _without_verdicts(folder: Path) -> list[ResultRow]:
    """The entry's result rows; verdicts on single images are too many to ship."""
    shutil.rmtree(folder / "verdicts")
    rows = [replace(row, verdicts=None) for row in read_results(folder / "results.jsonl")]
    write_text(folder / "results.jsonl", "".join(json.dumps(row.to_json()) + "\n" for row in rows))
    return rows


def ceiling(protocol: PromptProtocol, generator: Generator, seed: int) -> dict[str, dict[str, float]]:
    """What true scenes of the protocol's prompts score, as drawn and after the tokenizer."""
    rng = np.random.default_rng(seed)
    rows = [index for index in range(len(protocol.rows)) for _ in range(protocol.images_per_prompt)]
    images = torch.from_numpy(np.stack([render(lay_out(protocol.rows[row], rng)) for row in rows]))
    found = {}
    for name, source in (("scenes", images), ("reconstructions", generator.decode(generator.encode(images)))):
        evaluator = protocol.evaluator()
        evaluator.update(source, rows)
        found[name] = figures(evaluator.compute().metrics)
    return found
