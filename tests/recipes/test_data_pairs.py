"""`align data pairs` on the shipped generator, a few images each; and the rewards that a configuration names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from align import load_generator
from align.data import Codes, PreferencePairs
from align.files import sha256_of_tensors
from align.sampling import sample
from align.types import SamplingConfig
from recipes.cli import main
from recipes.reward_settings import make_rewards
from recipes.training_data import make_codes, make_pairs
from rewards.scoring import score_rewards

FEW = ["num_prompts=6", "num_generations=3", "batch_size=7"]


def codes(path: str) -> DictConfig:
    return OmegaConf.create({"codes": path, "deformed_copies": 0})


def run(*arguments: str) -> None:
    assert main(["data", *arguments]) == 0


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["data", *arguments]) == 1
    return capsys.readouterr().err


def test_pairs_are_the_best_and_worst_of_what_the_generator_draws(capsys: pytest.CaptureFixture[str]) -> None:
    run("pairs", *FEW, "seed=5", "winners=best.safetensors")
    said = capsys.readouterr().err.splitlines()[-2:]
    pairs = PreferencePairs.load("runs/pairs/pairs.safetensors")
    generator = load_generator("mnist-llamagen")
    # drawn anew in one batch: the images, their numbers and seed are those of any other sampling
    labels = [label for label in range(6) for _ in range(3)]
    rollout = sample(generator, generator.encode_condition(labels), SamplingConfig(seed=5))
    (reward,) = make_rewards(OmegaConf.load(Path(__file__).parents[2] / "recipes/conf/reward/classifier.yaml")).rewards
    rows = [{"label": label} for label in labels]
    values = score_rewards([reward], generator.decode(rollout.tokens_BL), rows, timeout=60.0).values_NR.view(6, 3)
    for row in range(len(pairs)):
        group = values[pairs.labels_N[row]]
        first = 3 * int(pairs.labels_N[row])
        assert torch.equal(pairs.chosen_NL[row], rollout.tokens_BL[first + int(group.argmax())])
        assert torch.equal(pairs.rejected_NL[row], rollout.tokens_BL[first + int(group.argmin())])
    torch.testing.assert_close(pairs.chosen_reward_N, values.max(dim=1).values)
    torch.testing.assert_close(pairs.rejected_reward_N, values.min(dim=1).values)
    assert pairs.labels_N.tolist() == list(range(6))
    # what says how they were made
    record = json.loads(Path("runs/pairs/run.json").read_text())
    assert (
        record["command"]
        == "align data pairs num_prompts=6 num_generations=3 batch_size=7 seed=5 winners=best.safetensors"
    )
    assert record["status"] == "finished"
    assert record["counts"] == {"images": 18, "kept": 6, "dropped": 0}
    assert record["mean_reward"]["chosen"] == pytest.approx(values.max(dim=1).values.mean().item(), rel=1e-4)
    assert record["mean_reward"]["rejected"] == pytest.approx(values.min(dim=1).values.mean().item(), rel=1e-4)
    assert record["rewards"]["classifier-log-prob"]["not_applicable"] == 0
    assert record["hashes"]["policy"] == pairs.policy == sha256_of_tensors(generator.state_dict())
    assert "versions" in record
    assert said[0] == "6 pairs kept, 0 dropped (margin 0): runs/pairs/pairs.safetensors"
    assert said[1].startswith("mean reward: chosen ")
    # both files fit the generator that drew them
    assert len(make_pairs("runs/pairs/pairs.safetensors", generator)) == 6
    winners = make_codes(codes("best.safetensors"), generator)
    assert torch.equal(winners.tokens_NL, pairs.chosen_NL)
    assert torch.equal(winners.labels_N, pairs.labels_N)


@pytest.mark.slow
def test_the_margin_drops_pairs_and_none_left_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    run("pairs", *FEW)
    spread = PreferencePairs.load("runs/pairs/pairs.safetensors")
    differences = (spread.chosen_reward_N - spread.rejected_reward_N).sort().values
    margin = float((differences[2] + differences[3]) / 2)
    run("pairs", *FEW, f"margin={margin}", "output_dir=some")
    assert json.loads(Path("some/run.json").read_text())["counts"] == {"images": 18, "kept": 3, "dropped": 3}
    error = fails(capsys, "pairs", *FEW, "margin=1000", "output_dir=none")
    assert f"differ by {differences[-1]:.3g} at most, and margin is 1000 (all 18 rewards: mean" in error
    assert "Lower the margin" in error
    # nothing was written, so another margin needs no overwrite=true
    assert json.loads(Path("none/run.json").read_text())["status"].startswith("failed: no pair was kept")
    run("pairs", *FEW, "output_dir=none")


def test_earlier_files_are_replaced_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    run("pairs", *FEW)
    before = Path("runs/pairs/pairs.safetensors").read_bytes()
    error = fails(capsys, "pairs", *FEW, "seed=2")
    assert "runs/pairs/pairs.safetensors exists already; add overwrite=true to replace it" in error
    assert Path("runs/pairs/pairs.safetensors").read_bytes() == before
    Path("mine.safetensors").write_text("precious")
    error = fails(capsys, "pairs", *FEW, "output_dir=other", "winners=mine.safetensors")
    assert "mine.safetensors exists already" in error
    assert Path("mine.safetensors").read_text() == "precious"
    run("pairs", *FEW, "seed=2", "overwrite=true")
    assert Path("runs/pairs/pairs.safetensors").read_bytes() != before


def test_a_reward_of_ones_own_that_applies_to_some(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(
        "def ink(images, conditions, *, least):\n"
        "    bright = images.float().mean(dim=(1, 2, 3))\n"
        "    return [float(b) if row['label'] >= least else float('nan') for b, row in zip(bright, conditions)]\n"
    )
    run("pairs", *FEW, 'reward.rewards=[{name:"mine.py:ink",kwargs:{least:4}}]')
    assert PreferencePairs.load("runs/pairs/pairs.safetensors").labels_N.tolist() == [4, 5]
    record = json.loads(Path("runs/pairs/run.json").read_text())
    assert record["counts"] == {"images": 18, "kept": 2, "dropped": 4}
    assert record["rewards"]["mine.py:ink"]["not_applicable"] == 12
    error = fails(
        capsys, "pairs", *FEW, 'reward.rewards=[{name:"mine.py:ink",kwargs:{least:100}}]', "output_dir=nothing"
    )
    assert "of 18 images the rewards apply to 0, never to two of one condition" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "align data does several things; known: encode, show, captions, pairs"),
        (["pears"], "unknown: align data pears; known: encode, show, captions, pairs"),
        (["pairs", "num_prompt=3"], "unknown key 'num_prompt'; near names: num_prompts"),
        (["pairs", "num_prompts=0"], "num_prompts is 0; it must be at least 1"),
        (["pairs", *FEW, "num_generations=1"], "num_generations is 1; a pair needs at least 2"),
        (["pairs", *FEW, "margin=-1"], "margin is -1; it is a difference of rewards, at least 0"),
        (["pairs", *FEW, "batch_size=0"], "batch_size is 0; it must be at least 1"),
        (["pairs", "reward=none"], "preference pairs need a reward of a weight other than 0"),
        (
            ["pairs", "reward=clasifier"],
            "unknown reward 'clasifier'; known: classifier, ",
        ),
        (["pairs", "reward.rewards=[{name:hps}]"], "unknown reward 'hps'; known: "),
        (
            ["pairs", "reward.rewards=[jpeg-compressibility]"],
            "holds 'jpeg-compressibility'; each reward is {name: NAME",
        ),
        (["pairs", "reward.rewards=[{name:jpeg-compressibility,wait:1}]"], "each reward is {name: NAME, weight: 1.0"),
        (["pairs", "reward.rewards=[{name:jpeg-compressibility,weight:big}]"], "has weight 'big'; it must be a number"),
        (
            ["pairs", "reward.rewards=[{name:jpeg-compressibility},{name:jpeg-compressibility}]"],
            "names 'jpeg-compressibility' twice",
        ),
        (
            ["pairs", "reward.rewards=[{name:classifier-log-prob,kwargs:{weights:'zoo:imagenet'}}]"],
            "unknown zoo entry 'imagenet'",
        ),
    ],
)
def test_mistakes_end_in_one_clear_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    error = fails(capsys, *arguments)
    assert message in error
    assert "Traceback" not in error
    assert not Path("runs/pairs/pairs.safetensors").exists()


def tiny_pairs(*, length: int = 49, largest: int = 63, label: int = 9, tokenizer: str = "") -> PreferencePairs:
    tokens, rewards = torch.zeros(2, length, dtype=torch.long), torch.zeros(2)
    rejected = tokens.clone()
    rejected[1, 0] = largest
    return PreferencePairs(tokens, rejected, torch.tensor([0, label]), rewards, rewards, tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"length": 48},
            r"pairs.safetensors: images of 48 tokens; this generator takes 49 \(7x7\): were they encoded at another image_size",
        ),
        ({"largest": 64}, "pairs.safetensors: tokens up to 64; the generator knows 0 to 63"),
        ({"label": 10}, "pairs.safetensors: class labels up to 10; the generator knows 0 to 9"),
        (
            {"tokenizer": "f" * 64},
            r"pairs.safetensors was made by another tokenizer \(ffffffffffff, the generator's is",
        ),
    ],
)
def test_pairs_of_another_generator_are_refused(changes: dict[str, object], message: str) -> None:
    generator = load_generator("mnist-llamagen")
    own = sha256_of_tensors(generator.tokenizer.state_dict())
    tiny_pairs(**{"tokenizer": own, **changes}).save(Path("pairs.safetensors"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        make_pairs("pairs.safetensors", generator)
    if "length" in changes:
        tiny_pairs(tokenizer=own).save(Path("pairs.safetensors"))
        assert len(make_pairs("pairs.safetensors", generator)) == 2


def test_codes_of_unknown_classes_are_refused() -> None:
    generator = load_generator("mnist-llamagen")
    own = sha256_of_tensors(generator.tokenizer.state_dict())
    Codes(torch.zeros(1, 49, dtype=torch.long), torch.tensor([10]), own).save(Path("codes.safetensors"))
    with pytest.raises(ValueError, match=r"codes.safetensors: class labels up to 10; the generator knows 0 to 9"):
        make_codes(codes("codes.safetensors"), generator)


@pytest.mark.parametrize(
    ("words", "usage", "setting"),
    [
        (["data", "--help"], "usage: align data {encode,show,captions,pairs,stats} [key=value ...]", None),
        (["data", "pairs", "--help"], "usage: align data pairs [key=value ...]", "  num_generations=8"),
        (["data", "pairs", "-h", "seed=2"], "usage: align data pairs [key=value ...]", "  reward={classifier,"),
    ],
)
def test_help_comes_without_torch(words: list[str], usage: str, setting: str | None) -> None:
    code = f"import sys; from recipes.cli import main; main({words!r}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == usage
    assert "align data pairs: " in done.stdout
    if setting is not None:
        assert setting in done.stdout
