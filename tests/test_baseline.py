"""A frozen numeric baseline: twenty steps of every objective on the shipped generators, against recorded numbers.

A change that moves these numbers changes what users' runs do. If that is meant, record them anew,

    ALIGN_RECORD_BASELINE=1 python -m pytest tests/test_baseline.py

and commit the file by itself, with the reason.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from recipes.config import compose
from recipes.train import align_generator

FILE = Path(__file__).parent / "baseline.json"
GENERATORS = ("mnist-llamagen", "mnist-var")
REWARDED = "reward=classifier"
OBJECTIVES = {
    "sft": [],
    "cca": ["objective.beta=0.2", "objective.lambda_=5"],
    "gft": [],
    "gft_sampled": [],
    "ddo": ["objective.beta=0.5", "objective.alpha=2"],
    "spin": ["objective.beta=0.5"],
    "dpo": [REWARDED, "objective.beta=0.3", "pairs.num_prompts=20", "pairs.margin=0"],
    "kto": [REWARDED, "objective.beta=0.3", "pairs.num_prompts=20", "pairs.margin=0"],
    "simpo": [REWARDED, "pairs.num_prompts=20", "pairs.margin=0"],
    "grpo": [REWARDED, "kl.coefficient=0.1", "rollout.num_generations=4"],
    "gspo": [REWARDED, "rollout.num_iterations=2", "rollout.num_generations=4"],
    "va_pi": ["actions.num_generations=2"],
    "ste": [],
    "erasure": ["data.negative_label=3"],
}
STEPS = [
    # not Adam: its first steps are the signs of gradients, which rounding turns over where they are almost zero; the next
    # rollouts are then others on another machine, or with another number of threads
    *("trainer.optim=sgd", "trainer.learning_rate=0.05"),
    *("trainer.max_steps=20", "trainer.per_device_train_batch_size=8", "seed=5"),
    *("trainer.logging_steps=5", "trainer.sample_every=0", "trainer.save_steps=20", "trainer.report_to=[]"),
    *("evaluation=none", "preflight=false"),
]
COMPARED = ("loss", "grad_norm", "entropy", "gap_", "nll_", "kl", "erase_kl", "keep_kl", "reward/", "mse")


def run(generator: str, objective: str, folder: Path) -> list[dict[str, float]]:
    overrides = [f"generator={generator}", f"objective={objective}", *OBJECTIVES[objective], *STEPS]
    align_generator(compose("train", overrides), folder, resume=False, description=objective)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key.startswith(COMPARED)} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("generator", GENERATORS)
def test_twenty_steps_are_what_they_were(generator: str, objective: str, tmp_path: Path) -> None:
    found = run(generator, objective, tmp_path)
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    name = f"{generator}/{objective}"
    if os.environ.get("ALIGN_RECORD_BASELINE"):
        recorded[name] = [{key: float(f"{value:.6g}") for key, value in sorted(record.items())} for record in found]
        FILE.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")
        return
    assert len(found) == len(recorded[name]) == 4
    for index, (now, then) in enumerate(zip(found, recorded[name], strict=True)):
        assert now.keys() == then.keys()
        # rounding differs between machines, and grows with the steps
        tolerance = 0.002 * (1 + 4 * index)
        assert now == pytest.approx(then, rel=tolerance, abs=tolerance), f"step {5 * (index + 1)}"
