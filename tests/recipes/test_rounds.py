"""Self-play rounds: each candidate starts from the best so far, the best by the held-out metric is what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny_llamagen
from omegaconf import DictConfig

import recipes.rounds
from align.files import sha256_of_tensors
from align.generators import Generator
from evaluation.metric_names import leading_metric
from recipes.config import compose
from recipes.rounds import ROUNDS_FILE, check_rounds, parse_search, play

BASE = ["objective=ddo", "evaluation.num_images=70"]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> dict[str, float]:
    """What each set of weights is to score, by its hash; the real judge takes minutes."""
    scores: dict[str, float] = {}
    metric = getattr(request, "param", "fid")

    class Row:
        def __init__(self, value: float) -> None:
            self.n, self.metrics = 70, {f"{metric}_toy_70": value}

    class Judge:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def leading(self, row: Row) -> Any:
            return leading_metric(row.metrics)

        def score(self, generator: Generator, label: str, *_: Any, **__: Any) -> Row:
            return Row(scores[sha256_of_tensors(generator.state_dict())])

    monkeypatch.setattr(recipes.rounds, "Judge", Judge)
    monkeypatch.setattr(recipes.rounds, "make_task", lambda *_, **__: SimpleNamespace(contaminated=lambda _: []))
    return scores


class Trainer:
    """Stands for training: candidate k of round r becomes the tiny generator of the next seed in line."""

    def __init__(self, scores: dict[str, float], fids: list[float]) -> None:
        self.scores, self.fids = scores, fids
        self.seen: list[tuple[str | None, float, int]] = []

    def __call__(self, config: DictConfig, folder: Path) -> Generator:
        generator = tiny_llamagen(seed=len(self.seen) + 1)
        self.scores[sha256_of_tensors(generator.state_dict())] = self.fids[len(self.seen)]
        self.seen.append((config.generator.checkpoint, config.objective.alpha, config.seed))
        folder.mkdir(parents=True, exist_ok=True)
        generator.save_published(folder / "generator.pt")
        (folder / "metrics.jsonl").write_text(f'{{"step": {len(self.seen)}}}\n')
        return generator


def start(monkeypatch: pytest.MonkeyPatch, scores: dict[str, float], fid: float) -> None:
    base = tiny_llamagen(seed=0)
    scores[sha256_of_tensors(base.state_dict())] = fid

    def load(config: DictConfig) -> Generator:
        if config.checkpoint is None:
            return tiny_llamagen(seed=0)
        from align.checkpoints import load_generator

        folder = Path(config.checkpoint)
        return load_generator("llamagen", folder / "generator.pt", grid=(3, 2), num_heads=2)

    monkeypatch.setattr(recipes.rounds, "make_generator", load)


def test_each_round_starts_from_the_best_so_far(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, judged, 10.0)
    config = compose("train", [*BASE, "rounds.number=3", 'rounds.search=["objective.alpha=1,3"]', "seed=7"])
    train = Trainer(judged, [9.0, 8.0, 8.5, 9.5, 7.0, 9.9])
    final = play(config, tmp_path, train, resume=False)
    best_of_first = str(tmp_path / "round-1" / "candidate-1")
    assert train.seen == [
        *((None, 1, 1007), (None, 3, 1007)),
        # nothing in the second round beats the first, so the third starts from the same weights on other data
        *((best_of_first, 1, 2007), (best_of_first, 3, 2007)),
        *((best_of_first, 1, 3007), (best_of_first, 3, 3007)),
    ]
    assert sha256_of_tensors(final.state_dict()) == sha256_of_tensors(tiny_llamagen(seed=5).state_dict())
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 5}\n'
    records = [json.loads(line) for line in (tmp_path / ROUNDS_FILE).read_text().splitlines()]
    assert [record["fid"] for record in records] == [10.0, 9.0, 8.0, 8.5, 9.5, 7.0, 9.9]
    assert records[2]["setting"] == {"objective.alpha": 3}


def test_where_nothing_is_better_the_start_is_kept(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, judged, 5.0)
    config = compose("train", [*BASE, "rounds.number=1", 'rounds.search=["objective.alpha=1,3"]'])
    final = play(config, tmp_path, Trainer(judged, [6.0, 7.0]), resume=False)
    assert sha256_of_tensors(final.state_dict()) == sha256_of_tensors(tiny_llamagen(seed=0).state_dict())
    assert (tmp_path / "generator.pt").exists()


@pytest.mark.parametrize("judged", ["geneval"], indirect=True)
def test_of_prompts_the_highest_score_is_the_best(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, judged, 0.4)
    config = compose("train", [*BASE, "rounds.number=2", 'rounds.search=["objective.alpha=1,3"]'])
    train = Trainer(judged, [0.6, 0.3, 0.5, 0.55])
    final = play(config, tmp_path, train, resume=False)
    assert [checkpoint for checkpoint, _, _ in train.seen[2:]] == [str(tmp_path / "round-1" / "candidate-0")] * 2
    assert sha256_of_tensors(final.state_dict()) == sha256_of_tensors(tiny_llamagen(seed=1).state_dict())
    records = [json.loads(line) for line in (tmp_path / ROUNDS_FILE).read_text().splitlines()]
    assert [record["geneval"] for record in records] == [0.4, 0.6, 0.3, 0.5, 0.55]


def test_resuming_trains_only_what_is_missing(
    tmp_path: Path, judged: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(monkeypatch, judged, 10.0)
    config = compose("train", [*BASE, "rounds.number=2", "rounds.search=[]"])

    class Killed(Exception): ...

    train = Trainer(judged, [9.0, 8.0])

    def dies_in_the_second(candidate: DictConfig, folder: Path) -> Generator:
        if train.seen:
            raise Killed
        return train(candidate, folder)

    with pytest.raises(Killed):
        play(config, tmp_path, dies_in_the_second, resume=False)
    play(config, tmp_path, train, resume=True)
    assert [seed for _, _, seed in train.seen] == [1001, 2001]
    assert len((tmp_path / ROUNDS_FILE).read_text().splitlines()) == 3


def test_search_is_read_as_values() -> None:
    config = compose("train", [*BASE, 'rounds.search=["objective.alpha=1,2.5","reference.kind=frozen,cached"]'])
    assert parse_search(config) == {"objective.alpha": [1, 2.5], "reference.kind": ["frozen", "cached"]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rounds.number=0"], "rounds.number is 0; it must be at least 1"),
        (["rounds.number=2", "evaluation=none"], "rounds keep the best by a held-out metric"),
        (['rounds.search=["objective.alpa=1,2"]'], "rounds.search names 'objective.alpa', which is no setting"),
        (['rounds.search=["objective.alpha"]'], "each entry is KEY=VALUE,VALUE"),
    ],
)
def test_mistakes(overrides: list[str], message: str) -> None:
    base = [item for item in BASE if not item.startswith("evaluation") or "evaluation=none" not in overrides]
    with pytest.raises(ValueError, match=message):
        check_rounds(compose("train", [*base, *overrides]))
