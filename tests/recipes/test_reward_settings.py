"""A `reward:` section becomes rewards, gates and ensembles, each loaded once; what is none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from align.zoo_entries import zoo_entry
from evaluation.shapes_world.neural import NeuralShapes, save_neural_shapes
from recipes.reward_settings import make_rewards, with_zoo_files
from rewards.base import Gate
from rewards.combine import Ensemble, RewardSet
from rewards.scoring import score_rewards

CODE = """
loaded = []

def first(images, conditions, *, at=0):
    return images[:, 0, 0, 0].float() + at

class Model:
    def __init__(self, *, weights="none"):
        loaded.append(weights)
        self.weights = weights
    def __call__(self, images, conditions):
        return [float(len(loaded))] * len(images)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    return str(tmp_path / "mine.py")


def made(*entries: Any) -> RewardSet:
    return make_rewards(OmegaConf.create({"rewards": list(entries)}))


def test_rewards_keep_their_order_names_and_weights() -> None:
    rewards = made(
        {"name": "jpeg-compressibility", "weight": -2},
        {"name": "classifier-log-prob", "kwargs": {"weights": "zoo:mnist-llamagen"}},
    )
    assert [(reward.name, reward.weight) for reward in rewards.rewards] == [
        ("jpeg-compressibility", -2),
        ("classifier-log-prob", 1),
    ]
    images = torch.zeros(1, 28, 28, 3, dtype=torch.uint8)
    assert score_rewards(rewards.rewards, images, [{"label": 1}], timeout=60.0).checked().values_NR.shape == (1, 2)
    assert made() == RewardSet(())


def test_labels_tell_two_of_one_reward_apart(file: str) -> None:
    name = f"{file}:first"
    rewards = made({"name": name}, {"name": name, "label": "later", "kwargs": {"at": 5}, "weight": 0})
    assert [reward.name for reward in rewards.rewards] == [name, "later"]
    images = torch.full((1, 2, 2, 3), 7, dtype=torch.uint8)
    assert score_rewards(rewards.rewards, images, [{}], timeout=60.0).values_NR.tolist() == [[7, 12]]
    assert rewards.names(trained=False) == ["later"]


def test_gates_and_ensembles_are_read(file: str) -> None:
    rewards = made(
        {"name": f"{file}:first", "label": "a", "weight": 0},
        {"name": f"{file}:first", "label": "b", "gate": {"reward": "a", "at_least": 1}},
        {"ensemble": ["a", "b"], "name": "both", "penalty": 0.5, "weight": 2},
    )
    assert rewards.rewards[1].gate == Gate("a", 1.0)
    assert rewards.ensembles == (Ensemble("both", ("a", "b"), 0.5, 2.0),)
    assert rewards.names(trained=True) == ["b", "both"]


def test_equal_settings_are_loaded_once(file: str) -> None:
    name = f"{file}:Model"
    one, other = (made({"name": name, "kwargs": {"weights": "x"}}).rewards[0].function for _ in range(2))
    assert one is other
    assert made({"name": name, "label": "two", "weight": 0, "kwargs": {"weights": "x"}}).rewards[0].function is one
    assert made({"name": name, "kwargs": {"weights": "y"}}).rewards[0].function is not one
    Path(file).write_text(CODE + "# changed")
    assert made({"name": name, "kwargs": {"weights": "x"}}).rewards[0].function is not one


def test_rewards_are_put_on_the_gpu_of_their_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    made({"name": "jpeg-compressibility"})
    assert chosen == [torch.device("cuda", 3)]


def test_settings_may_refer_to_others(file: str) -> None:
    config = OmegaConf.create(
        {"weights": "w.pt", "rewards": [{"name": f"{file}:Model", "kwargs": {"weights": "${weights}"}}]}
    )
    assert make_rewards(config).rewards[0].function.weights == "w.pt"  # type: ignore[union-attr]


def test_a_zoo_entry_stands_for_its_files() -> None:
    reward = made({"name": "loo-fid", "kwargs": {"weights": "zoo:mnist-var", "reference": "zoo:mnist-var"}})
    assert reward.rewards[0].kind == "distribution"


def test_a_zoo_entrys_judge_may_stand_among_a_parts_settings() -> None:
    Path("entry").mkdir()
    Path("entry/config.json").write_text('{"judge": "judge.safetensors"}')
    save_neural_shapes(NeuralShapes(seed=1), "entry/judge.safetensors")
    kwargs = {"detector": "shapes-neural", "detector_kwargs": {"path": "zoo:entry"}}
    reward: Any = made({"name": "geneval", "kwargs": kwargs}).rewards[0].function
    assert reward.detector.net.fingerprint == NeuralShapes(seed=1).fingerprint
    assert with_zoo_files({"path": "zoo:entry", "detector": "zoo:entry", "size": [1]}) == {
        "path": str(zoo_entry("entry") / "judge.safetensors"),
        "detector": "zoo:entry",
        "size": [1],
    }


def test_a_zoo_entry_without_a_reward_is_refused() -> None:
    Path("entry").mkdir()
    Path("entry/config.json").write_text('{"family": "llamagen"}')
    with pytest.raises(ValueError, match=r"zoo:entry comes without 'reward'; its config.json has family"):
        made({"name": "classifier-log-prob", "kwargs": {"weights": "zoo:entry"}})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("jpeg-compressibility", "holds 'jpeg-compressibility'; each reward is {name: NAME"),
        ({"weight": 1.0}, "each reward is {name: NAME"),
        ({"name": "jpeg-compressibility", "wieght": 1.0}, "each reward is {name: NAME"),
        ({"name": "jpeg-compressibility", "penalty": 1.0}, "each reward is {name: NAME"),
        ({"name": "both", "ensemble": ["a", "b"], "kwargs": {}}, "an ensemble is {ensemble: .NAME, NAME."),
        ({"name": "jpeg-compressibility", "weight": True}, "has weight True; it must be a number"),
        ({"name": "jpeg-compressibility", "gate": "geneval"}, "the gate of reward 'jpeg-compressibility' is 'geneval'"),
        ({"name": "jpeg-compressibility", "gate": {"reward": "a"}}, "it is {reward: NAME, at_least: 1.0}"),
        ({"name": "jpeg-compressibility", "gate": {"reward": "a", "at_least": "1"}}, "has a gate at_least '1'"),
    ],
)
def test_other_forms_are_refused(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(entry)
