"""What DDO gains over plain fine-tuning on the shipped digits, and what stands in its way: measured in one run.

    python benchmarks/ddo.py --results benchmarks/results/ddo.json      (half an hour on one core)

DDO (arXiv 2503.01103) asks the log-ratio of policy to reference to tell real images from samples of the reference. Where
policy and reference are the same, as they are when training starts, half of its gradient is that of the likelihood of
real images, halved, and the other half is a score function averaged over the model's own samples: zero in expectation,
whatever alpha and beta. So the first steps are fine-tuning plus noise, and where fine-tuning has nothing left to gain
they are noise. What could be gained later is bounded by how well a likelihood ratio of this size can tell the two apart
on images that neither was trained on. Measured here, for the shipped generator and for one that was trained too briefly:

1. gradient: squared norm of the expected gradient of each half (unbiased, from disjoint batches) over its variance in a
   batch of 64, and the cosine of the expected DDO gradient with that of fine-tuning.
2. discriminator: held-out accuracy of a small free network on decoded images, the signal that there is, beside the
   accuracy of the trained policies' own log-ratios, on held-out digits and fresh samples.
3. arms: guidance-free FID of DDO's variants beside fine-tuning for the same steps on the same data, paired by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.data.mnist import load_mnist
from align.files import write_text
from align.generators import Generator, LlamaGen
from align.objectives.logprobs import token_logprobs
from align.sampling import sample
from align.types import SamplingConfig
from evaluation.results import ResultRow
from recipes.config import compose
from recipes.judge import Judge, fid
from recipes.parts import make_generator
from recipes.protocols import make_class_protocol
from recipes.run import describe_device
from recipes.tasks import make_task
from recipes.train import align_generator
from recipes.training_data import make_codes

SEEDS = (1, 2, 3)
BATCH = 64
QUIET = ["trainer.sample_every=0", "trainer.save_steps=100000", "trainer.report_to=[]", "preflight=false"]
# one round of as many steps as fine-tuning makes
EQUAL = [f"trainer.per_device_train_batch_size={BATCH}", "trainer.max_steps=60", "trainer.learning_rate=2e-4"]
ONE_ROUND = ["rounds.number=1", *EQUAL]
ARMS = {
    "shipped": {
        "sft": ["experiment=mnist/sft", *EQUAL],
        "ddo": ["experiment=mnist/ddo", *ONE_ROUND],
        "ddo, beta .5, alpha 2": ["experiment=mnist/ddo", *ONE_ROUND, "objective.beta=0.5", "objective.alpha=2"],
        "ddo, reference follows (EMA .05)": [
            "experiment=mnist/ddo",
            *ONE_ROUND,
            "reference.sync_steps=1",
            "reference.mixup=0.05",
        ],
        "ddo, stored fakes": ["experiment=mnist/ddo", *ONE_ROUND, "fakes.per_class=100"],
        "sft, deformed digits": ["experiment=mnist/sft", *EQUAL, "data.deformed_copies=7"],
        "ddo, deformed digits": ["experiment=mnist/ddo", *ONE_ROUND, "data.deformed_copies=7"],
    },
    "under-fitted": {
        "sft": ["experiment=mnist/sft", *EQUAL],
        "ddo": ["experiment=mnist/ddo", *ONE_ROUND],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, help="file for the figures as JSON")
    parser.add_argument(
        "--bases", nargs="+", choices=list(ARMS), default=list(ARMS), help="others stay in the file as they are"
    )
    parser.add_argument("--steps", type=int, help="steps of each training, for a quick look")
    parser.add_argument("--images", type=int, default=2000, help="images of each evaluation")
    arguments = parser.parse_args()
    earlier = arguments.results is not None and arguments.results.exists()
    found: dict[str, Any] = json.loads(arguments.results.read_text()) if earlier else {}
    found |= {"command": "python benchmarks/ddo.py", "device": describe_device(), "seeds": list(SEEDS)}
    with tempfile.TemporaryDirectory() as name:
        for base in arguments.bases:
            found[base] = measure(Path(name) / base, base, ARMS[base], arguments.images, arguments.steps)
            if arguments.results:
                write_text(arguments.results, json.dumps(found, indent=2) + "\n")


def measure(folder: Path, name: str, arms: dict[str, list[str]], images: int, steps: int | None) -> dict[str, Any]:
    quick = [f"trainer.max_steps={steps}"] if steps else []
    checkpoint = [] if name == "shipped" else [f"generator.checkpoint={under_fitted(folder, quick)}"]
    base = make_generator(compose("train", checkpoint).generator)
    judge = make_judge(folder, images)
    result: dict[str, Any] = {"gradient": gradients(base), "free_discriminator": free_discriminator(base)}
    print(f"--- {name}\ngradient: {result['gradient']}\nfree discriminator: {result['free_discriminator']}", flush=True)
    held_out = base.encode(load_mnist("held_out").images_NHWC)
    labels_N = load_mnist("held_out").labels_N
    fresh = draw(base, labels_N, seed=77)
    rows: dict[str, list[ResultRow]] = {"base": []}
    ratios: dict[str, list[float]] = {}
    for seed in SEEDS:
        sampling = SamplingConfig(seed=1000 + seed)
        rows["base"].append(judge.score(base, "base", sampling, split="report"))
        for arm, overrides in arms.items():
            where = folder / f"{arm}-{seed}".replace(" ", "-")
            where.mkdir(parents=True)
            config = compose(
                "train", [*overrides, *checkpoint, *QUIET, *quick, f"seed={seed}", f"output_dir={where.as_posix()!r}"]
            )
            trained, _ = align_generator(config, where, resume=False, description=f"{arm} {seed}")
            rows.setdefault(arm, []).append(judge.score(trained, arm, sampling, split="report"))
            told = [
                (gap(trained, base, tokens, labels_N) * sign > 0).float().mean().item()
                for tokens, sign in ((held_out, 1), (fresh, -1))
            ]
            ratios.setdefault(arm, []).append(sum(told) / 2)
    result["arms"] = {arm: summary(own, rows, ratios.get(arm)) for arm, own in rows.items()}
    for arm, figures in result["arms"].items():
        print(f"{arm:<36}{figures}", flush=True)
    return result


def under_fitted(folder: Path, quick: list[str]) -> Path:
    """The shipped architecture and tokenizer, the generator trained from nothing for a quarter of the shipped one's steps."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = make_generator(compose("train", []).generator)
    assert isinstance(generator, LlamaGen)
    generator.initialize(torch.Generator().manual_seed(0))
    generator.save_published(folder / "untrained.pt")
    config = compose(
        "train",
        [
            *("experiment=mnist/sft", f"generator.checkpoint={folder / 'untrained.pt'}", "data.deformed_copies=7"),
            *(
                "trainer.max_steps=400",
                "trainer.lr_scheduler_type=cosine",
                f"trainer.per_device_train_batch_size={BATCH}",
                "trainer.learning_rate=2e-3",
            ),
            *(*QUIET, *quick, f"output_dir={folder}"),
        ],
    )
    align_generator(config, folder, resume=False, description="under-fitted base")
    return folder / "generator.pt"


def make_judge(folder: Path, images: int) -> Judge:
    evaluation = compose("train", []).evaluation
    return Judge(make_task(evaluation, num_images=images), evaluation.batch_size, folder)


def draw(generator: Generator, labels_N: Tensor, *, seed: int) -> Tensor:
    parts = []
    for rows in torch.arange(len(labels_N)).split(500):
        condition = generator.encode_condition(labels_N[rows])
        parts.append(sample(generator, condition, SamplingConfig(seed=seed), index_B=rows).tokens_BL)
    return torch.cat(parts)


def log_likelihood(generator: Generator, tokens_NL: Tensor, labels_N: Tensor) -> Tensor:
    """[N], nats an image."""
    return token_logprobs(generator(tokens_NL, generator.encode_condition(labels_N)), tokens_NL).sum(dim=1)


@torch.no_grad()
def gap(policy: Generator, reference: Generator, tokens_NL: Tensor, labels_N: Tensor) -> Tensor:
    return log_likelihood(policy, tokens_NL, labels_N) - log_likelihood(reference, tokens_NL, labels_N)


def gradients(base: Generator, batches: int = 32) -> dict[str, float]:
    """Of the mean log-likelihood of real images (half of DDO's gradient at the start) and of own samples (the other)."""
    codes = make_codes(compose("train", []).data, base)
    order = torch.from_numpy(codes.labels_N.numpy().copy()).argsort(stable=True)  # even classes in every batch
    rows = order.view(10, -1)[:, : batches * BATCH // 10 + 1].T.reshape(-1)[: batches * BATCH]
    labels_N = codes.labels_N[rows]
    real = batch_gradients(base, codes.tokens_NL[rows], labels_N)
    fake = batch_gradients(base, draw(base, labels_N, seed=78), labels_N)
    ddo = real - fake
    return {
        "signal_to_noise_real": signal(real) / noise(real),
        "signal_to_noise_fake": signal(fake) / noise(fake),
        "signal_to_noise_ddo": signal(ddo) / noise(ddo),
        "noise_of_ddo_over_fine_tuning": noise(ddo) / noise(real),
        "cosine_of_one_batch_with_expected_fine_tuning": cosine_of_one(ddo, real),
        "the_same_of_fine_tuning_itself": cosine_of_one(real, real),
    }


def batch_gradients(base: Generator, tokens_NL: Tensor, labels_N: Tensor) -> Tensor:
    """[batches, parameters]"""
    base.requires_grad_(True)
    parameters = [p for name, p in base.named_parameters() if not name.startswith("tokenizer.")]
    found = []
    for tokens, labels in zip(tokens_NL.split(BATCH), labels_N.split(BATCH), strict=True):
        grads = torch.autograd.grad(log_likelihood(base, tokens, labels).mean(), parameters, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in grads if g is not None]))
    return torch.stack(found)


def signal(gradients_NP: Tensor) -> float:
    """Unbiased squared norm of the expectation: products of different batches only."""
    n, total = len(gradients_NP), gradients_NP.sum(dim=0)
    return ((total @ total - gradients_NP.square().sum()) / (n * (n - 1))).item()


def noise(gradients_NP: Tensor) -> float:
    """Variance of one batch's gradient, summed over parameters."""
    return gradients_NP.var(dim=0).sum().item()


def cosine_of_one(one_NP: Tensor, expected_NP: Tensor) -> float:
    """Mean cosine of a batch of the one with the mean over all other batches of the other."""
    n, total = len(expected_NP), expected_NP.sum(dim=0)
    others = (total - expected_NP) / (n - 1)
    return torch.cosine_similarity(one_NP, others, dim=1).mean().item()


def free_discriminator(base: Generator) -> float:
    """Held-out accuracy at telling decoded real tokens from decoded samples, of a network that is free to: it reads the
    evaluator's features and logits and the label. A lower bound of what there is to tell them by."""
    extractor = make_class_protocol(compose("train", []).evaluation.protocol).extractor
    sets = []
    for seed, split in enumerate(("train", "held_out")):
        part = load_mnist(split)
        images = [base.decode(base.encode(part.images_NHWC)), base.decode(draw(base, part.labels_N, seed=80 + seed))]
        labels_N = part.labels_N.repeat(2)
        with torch.no_grad():
            seen = extractor(torch.cat(images))
        known = [seen.features_BD, seen.logits_BK, F.one_hot(labels_N, 10), seen.logits_BK.gather(1, labels_N[:, None])]
        sets.append((torch.cat([item.float() for item in known], dim=1), torch.arange(2).repeat_interleave(len(part))))
    (train_NF, train_N), (held_out_NF, held_out_N) = sets
    mean_F, std_F = train_NF.mean(dim=0), train_NF.std(dim=0).clamp_min(1e-3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(train_NF.shape[1], 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    for _ in range(600):
        rows = torch.randint(len(train_N), (256,))
        loss = F.cross_entropy(network((train_NF[rows] - mean_F) / std_F), train_N[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        told = network.eval()((held_out_NF - mean_F) / std_F).argmax(dim=1)
    return (told == held_out_N).float().mean().item()


def summary(own: list[ResultRow], rows: dict[str, list[ResultRow]], ratios: list[float] | None) -> dict[str, Any]:
    """Medians over the seeds, and the paired difference of FID to fine-tuning on the same data."""
    name = own[0].label
    control = "sft, deformed digits" if "deformed" in name else "sft"
    figures: dict[str, Any] = {
        "fid": round(statistics.median(map(fid, own)), 2),
        "fid_by_seed": [round(fid(row), 2) for row in own],
        "accuracy": round(statistics.median(metric(row, "accuracy") for row in own), 3),
        "recall": round(statistics.median(metric(row, "recall") for row in own), 3),
    }
    if ratios is not None:
        figures["log_ratio_discriminator"] = round(statistics.median(ratios), 3)
    if name not in ("base", control):
        figures["fid_minus_sft"] = [round(fid(a) - fid(b), 2) for a, b in zip(own, rows[control], strict=True)]
    return figures


def metric(row: ResultRow, name: str) -> float:
    return next(value for key, value in row.metrics.items() if key.split("_")[0] == name)


if __name__ == "__main__":
    main()
