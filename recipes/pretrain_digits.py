"""Pretraining on digits: tokenizer, generator, two digit classifiers, reference statistics, card.

Further entries of the same digits are judged as the first one is, and bring no classifiers of their own (`judge:`).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from align.checkpoints import load_generator
from align.data import Codes, TrainingStream
from align.data.codes import Labels
from align.data.mnist import NUM_CLASSES, Digits, deformed, load_mnist
from align.files import sha256_of_tensors, write_text
from align.generators import VAR, LlamaGen, LlamaGenConfig, VARConfig
from align.objectives import sft, token_logprobs
from align.progress import progress_bar
from align.tokenizers import VQTokenizer
from align.training.sources import RealData
from evaluation.classifier import load_classifier, save_classifier
from evaluation.evaluator import Evaluator
from evaluation.reference import make_reference, self_check
from evaluation.results import ResultRow, read_results
from evaluation.train_classifier import train_classifier
from recipes.card_digits import card
from recipes.judge import Judge, base_settings
from recipes.pretrain_parts import FILES, Stages, Tokenizer, make_tokenizer, tokenizer_facts
from recipes.protocols import make_class_protocol
from recipes.run import Run
from recipes.supplies import Supplies
from recipes.tasks import ClassTask
from recipes.train import train_generator

EVALUATOR, REFERENCE, REWARD = "evaluator.safetensors", "reference.npz", "reward_classifier.safetensors"
REWARD_REFERENCE = "reward_reference.npz"
# the judge, and another of other shape and seed that is kept for rewards: what is optimised never judges itself
CLASSIFIERS = {EVALUATOR: ("conv3x3", 0), REWARD: ("strided5x5", 1)}


def pretrain_on_digits(config: DictConfig, run: Run) -> dict[str, Any]:
    """Fill the run's folder with an entry and its card; the facts that belong into run.json."""
    train, held_out = load_mnist("train"), load_mnist("held_out")
    stages = Stages(run.folder)
    facts = stages.facts

    with stages.step("tokenizer"):
        tokenizer = make_tokenizer(config.tokenizer, train.images_NHWC, config.seed, run.folder)
        codes = Codes(
            tokenizer.encode_images(train.images_NHWC), train.labels_N, sha256_of_tensors(tokenizer.state_dict())
        )
        codes.save(run.folder / FILES["codes"])
        facts |= tokenizer_facts(tokenizer, held_out.images_NHWC)
    with stages.step("generator"):
        copies = [
            tokenizer.encode_images(deformed(train.images_NHWC, seed=copy))
            for copy in range(config.generator.deformed_copies)
        ]
        more = Codes(torch.cat([codes.tokens_NL, *copies]), train.labels_N.repeat(1 + len(copies)), codes.tokenizer)
        generator = _generator(config.generator, more, tokenizer, config.seed, run.folder)
    judged: dict[str, Any] = {"reward": config.judge, "reward_reference": config.judge, "protocol": config.judge}
    if config.judge is None:
        with stages.step("classifiers"):
            _classifiers(config.classifiers, train, held_out, run.folder, facts)
        save_reward_reference(run.folder, train.images_NHWC)
        judged |= {"reward": REWARD, "reward_reference": REWARD_REFERENCE}
        judged["protocol"] = {"name": "mnist-cnn", "extractor": EVALUATOR, "reference": REFERENCE}
    entry = {"family": generator.family, **FILES, "config": _untold(generator), **judged}
    write_text(run.folder / "config.json", json.dumps(entry, indent=2) + "\n")

    with stages.step("evaluation"):
        # everything is loaded back from its file: what is measured is what ships
        rows = _evaluate(config.evaluation, run.folder, train.images_NHWC, train.labels_N, facts)
        shipped = load_generator(str(run.folder))
        held_out_codes = tokenizer.encode_images(held_out.images_NHWC)
        facts["nll_train"], facts["nll_held_out"] = (
            _nll(shipped, tokens, labels)
            for tokens, labels in ((codes.tokens_NL[:1000], codes.labels_N[:1000]), (held_out_codes, held_out.labels_N))
        )
    judge = None if config.judge is None else config.judge.removeprefix("zoo:")
    write_text(run.folder / "card.md", card(shipped, run.record, facts, rows, judge))
    stages.finish()
    return facts


def _untrained(config: DictConfig, tokenizer: Tokenizer, tokens: int) -> LlamaGen | VAR:
    sizes: dict[str, Any] = {name: config[name] for name in ("dim", "num_layers", "num_heads", "dropout")}
    sizes |= {"vocab_size": tokenizer.config.codebook_size, "num_classes": NUM_CLASSES}
    if isinstance(tokenizer, VQTokenizer):
        side = int(tokens**0.5)
        hidden = LlamaGenConfig.hidden(config.dim)
        return LlamaGen(LlamaGenConfig(hidden_dim=hidden, grid=(side, side), **sizes), tokenizer)
    sizes |= {"patch_nums": tokenizer.config.patch_nums, "codebook_dim": tokenizer.config.codebook_dim}
    return VAR(VARConfig(hidden_dim=4 * config.dim, **sizes), tokenizer)


def _untold(generator: LlamaGen | VAR) -> dict[str, Any]:
    """What the generator's file does not tell, or not to a reader of its shapes alone."""
    if isinstance(generator, VAR):
        return {"patch_nums": list(generator.sizes.patch_nums)}
    return {"num_heads": generator.sizes.num_heads, "grid": list(generator.sizes.grid)}


def _generator(config: DictConfig, codes: Codes, tokenizer: Tokenizer, seed: int, folder: Path) -> LlamaGen | VAR:
    generator = _untrained(config, tokenizer, codes.tokens_NL.shape[1])
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
        Supplies(stream, RealData(), None, []),
        trainer_config,
        folder=work,
        resume=False,
        description="generator",
    )
    generator.save_published(folder / FILES["generator"])
    return generator


def _classifiers(config: DictConfig, train: Digits, held_out: Digits, folder: Path, facts: dict[str, Any]) -> None:
    for file, (architecture, seed) in CLASSIFIERS.items():
        bar = progress_bar(total=config.steps, description=architecture, unit="step")
        classifier = train_classifier(
            train.images_NHWC,
            train.labels_N,
            architecture=architecture,
            seed=seed,
            steps=config.steps,
            batch_size=config.batch_size,
            on_step=lambda *_, bar=bar: bar.update(),
        )
        bar.close()
        save_classifier(classifier, folder / file)
        with torch.no_grad():
            right = classifier(held_out.images_NHWC).logits_BK.argmax(-1) == held_out.labels_N
        facts[f"{architecture}_accuracy"] = right.float().mean().item()
        if file == EVALUATOR:
            make_reference(classifier, held_out.images_NHWC, name="mnist5k-held-out").save(folder / REFERENCE)


def save_reward_reference(folder: Path, images_NHWC: Tensor) -> None:
    """Moments of the training digits under the entry's reward classifier, for rewards that compare distributions.

    The shipped entry got its own by save_reward_reference(Path("align/zoo/mnist-llamagen"), load_mnist("train").images_NHWC).
    """
    reference = make_reference(load_classifier(folder / REWARD), images_NHWC, name="mnist5k-train")
    reference.moments.save(folder / REWARD_REFERENCE)


def _nll(generator: Any, tokens_NL: Tensor, labels_N: Labels) -> float:
    with torch.no_grad():
        condition = generator.encode_condition(labels_N)
        return -token_logprobs(generator(tokens_NL, condition), tokens_NL).mean().item()


def _evaluate(
    config: DictConfig, folder: Path, images_NHWC: Tensor, labels_N: Tensor, facts: dict[str, Any]
) -> list[ResultRow]:
    protocol = make_class_protocol(f"zoo:{folder}")
    facts["self_check"] = self_check(protocol.reference)
    generator = load_generator(str(folder))
    for name, source in (("train", images_NHWC), ("reconstruction", generator.decode(generator.encode(images_NHWC)))):
        evaluator = Evaluator(protocol)
        evaluator.update(source, labels_N)
        facts[f"fid_{name}"] = next(iter(evaluator.compute().metrics.values()))
    judge = Judge(ClassTask(protocol, config.num_images), config.batch_size, folder)
    base_settings(judge, generator, config)
    return read_results(folder / "results.jsonl")
