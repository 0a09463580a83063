"""Pairs are the best and the worst of each group; what does not make a pair is dropped, and bad files are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.data import Codes, PairStream, PreferencePairs, TrainingStream
from align.data.pairs import PickedPairs, best_and_worst, total_rewards

NAN = float("nan")


def pick(
    rewards: list[float], *, num_generations: int = 3, margin: float = 0.0, labels: Tensor | None = None
) -> PickedPairs:
    """Rollout i is the image [i, 100 + i]; groups have the labels 5, 6, ..."""
    number = len(rewards)
    tokens = torch.stack([torch.arange(number), 100 + torch.arange(number)], dim=1)
    labels = 5 + torch.arange(number) // max(num_generations, 1) if labels is None else labels
    return best_and_worst(tokens, torch.tensor(rewards), labels, num_generations=num_generations, margin=margin)


def pairs(number: int = 30) -> PreferencePairs:
    rows = torch.arange(number)
    return PreferencePairs(
        chosen_NL=rows.unsqueeze(1).repeat(1, 2),
        rejected_NL=100 + rows.unsqueeze(1).repeat(1, 2),
        labels_N=rows % 5,
        chosen_reward_N=rows.float(),
        rejected_reward_N=torch.full((number,), torch.nan),
        tokenizer="tokenizer",
        policy="policy",
    )


def test_each_group_gives_its_best_and_its_worst() -> None:
    picked = pick([0.5, -1.0, 2.0, 7.0, 7.5, 6.0])
    assert picked.chosen_PL.tolist() == [[2, 102], [4, 104]]
    assert picked.rejected_PL.tolist() == [[1, 101], [5, 105]]
    assert picked.labels_P.tolist() == [5, 6]
    assert (picked.chosen_reward_P.tolist(), picked.rejected_reward_P.tolist()) == ([2.0, 7.5], [-1.0, 6.0])
    assert picked.spread_M.tolist() == [3.0, 1.5]
    assert (picked.kept, picked.dropped) == (2, 0)


@pytest.mark.parametrize(("margin", "kept"), [(0.0, [5, 6]), (1.5, [5, 6]), (1.6, [5]), (3.1, [])])
def test_the_margin_is_the_least_difference(margin: float, kept: list[int]) -> None:
    picked = pick([0.5, -1.0, 2.0, 7.0, 7.5, 6.0], margin=margin)
    assert picked.labels_P.tolist() == kept
    assert picked.dropped == 2 - len(kept)


def test_equal_rewards_never_make_a_pair() -> None:
    picked = pick([1.0, 1.0, 1.0, 2.0, 1.0, 2.0])
    assert picked.labels_P.tolist() == [6]
    # the first of equals, and never an image against itself
    assert (picked.chosen_PL[0, 0], picked.rejected_PL[0, 0]) == (3, 4)


def test_not_applicable_is_never_picked() -> None:
    picked = pick([NAN, 1.0, 0.0, NAN, NAN, 3.0, NAN, NAN, NAN, -5.0, NAN, -7.0])
    assert picked.labels_P.tolist() == [5, 8]
    assert picked.chosen_PL[:, 0].tolist() == [1, 9]
    assert picked.rejected_PL[:, 0].tolist() == [2, 11]
    assert picked.spread_M.isnan().tolist() == [False, True, True, False]
    assert (picked.kept, picked.dropped) == (2, 2)


def test_every_pick_agrees_with_a_plain_search() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randint(-3, 4, (40, 4), generator=generator).float()
    rewards[torch.rand(40, 4, generator=generator) < 0.4] = torch.nan
    expected = []
    for group, row in enumerate(rewards.tolist()):
        known = [value for value in row if value == value]
        if len(known) >= 2 and max(known) - min(known) >= 2:
            expected.append((5 + group, max(known), min(known)))
    picked = pick(rewards.flatten().tolist(), num_generations=4, margin=2.0)
    found = zip(
        picked.labels_P.tolist(), picked.chosen_reward_P.tolist(), picked.rejected_reward_P.tolist(), strict=True
    )
    assert 5 < len(expected) < 40
    assert list(found) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_generations": 1}, "num_generations is 1; a pair needs at least 2"),
        ({"num_generations": 4}, "6 rollouts do not divide into groups of num_generations=4"),
        ({"margin": -1.0}, "margin is -1.0; it is a difference of rewards, at least 0"),
        ({"margin": NAN}, "margin is nan"),
        ({"labels": torch.tensor([1, 1, 2, 2, 2, 2])}, "rollouts of different labels within a group"),
        ({"labels": torch.tensor([1, 1, 1])}, "6 rollouts but 6 rewards and 3 labels"),
    ],
)
def test_groups_that_make_no_sense_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pick([0.0] * 6, **arguments)  # type: ignore[arg-type]


def test_rewards_add_up_by_weight_within_comparable_groups() -> None:
    values = torch.tensor(
        [
            [1.0, 10.0, 5.0],
            [2.0, 20.0, NAN],  # weight 0 does not count
            [3.0, NAN, 5.0],  # the second reward applies to no image of this group
            [4.0, NAN, 5.0],
            [5.0, 50.0, 5.0],
            [6.0, NAN, 5.0],  # it applies to the sibling only: not comparable
            [NAN, NAN, 5.0],
            [NAN, NAN, 5.0],
        ]
    )
    total = total_rewards(values, [2.0, -0.1, 0.0], num_generations=2)
    expected = torch.tensor([1.0, 2.0, 6.0, 8.0, 5.0, NAN, NAN, NAN])
    torch.testing.assert_close(total, expected, equal_nan=True)


def test_pairs_round_trip(tmp_path: Path) -> None:
    for largest in (129, 70000):
        before = replace(pairs(), rejected_NL=pairs().rejected_NL + largest - 129)
        before.save(tmp_path / "pairs.safetensors")
        after = PreferencePairs.load(tmp_path / "pairs.safetensors")
        for name in ("chosen_NL", "rejected_NL", "labels_N", "chosen_reward_N", "rejected_reward_N"):
            found, expected = getattr(after, name), getattr(before, name)
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert (after.tokenizer, after.policy, len(after)) == ("tokenizer", "policy", 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels_N": torch.zeros(29)}, r"30 pairs but labels of shape \[29\]; they must match row by row"),
        ({"chosen_reward_N": torch.zeros(30, 1)}, r"30 pairs but chosen rewards of shape \[30, 1\]"),
        ({"rejected_reward_N": torch.zeros(2)}, r"30 pairs but rejected rewards of shape \[2\]"),
        ({"rejected_NL": torch.zeros(30, 3)}, r"shape \[30, 2\] and rejected ones \[30, 3\]; both must be \[N, L\]"),
        ({"chosen_NL": torch.zeros(30)}, r"shape \[30\] and rejected ones \[30, 2\]"),
    ],
)
def test_tensors_that_do_not_match_are_refused(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(pairs(), **changes)


def test_no_pairs_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no preference pairs; check the path or the margin"):
        pairs(0)
    with pytest.raises(FileNotFoundError, match="no preference pairs at"):
        PreferencePairs.load(tmp_path / "missing.safetensors")
    Codes(torch.zeros(1, 2), torch.zeros(1), "tokenizer").save(tmp_path / "codes.safetensors")
    with pytest.raises(ValueError, match=r"codes.safetensors is not a file of preference pairs .*'chosen', 'rejected'"):
        PreferencePairs.load(tmp_path / "codes.safetensors")
    (tmp_path / "not.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"not.safetensors is not a file of preference pairs"):
        PreferencePairs.load(tmp_path / "not.safetensors")


# --- prompts in place of classes


def prompted(number: int = 30) -> PreferencePairs:
    return replace(pairs(number), labels_N=[f"a caption, the {row % 5}th: «ça»" for row in range(number)])


def test_groups_of_prompts_make_pairs() -> None:
    prompts = ["a cat"] * 3 + ["a dog"] * 3 + ["a cat"] * 3
    rewards = torch.tensor([0.0, 1.0, 2.0, 5.0, 5.0, 5.0, 4.0, 3.0, 2.0])
    picked = best_and_worst(torch.arange(9)[:, None], rewards, prompts, num_generations=3, margin=0.5)
    assert picked.labels_P == ["a cat", "a cat"]
    assert (picked.chosen_PL[:, 0].tolist(), picked.rejected_PL[:, 0].tolist()) == ([2, 6], [0, 8])
    with pytest.raises(ValueError, match="rollouts of different labels within a group of num_generations=2"):
        best_and_worst(torch.arange(6)[:, None], rewards[:6], prompts[:6], num_generations=2, margin=0.5)


def test_pairs_with_prompts_round_trip_without_pickle(tmp_path: Path) -> None:
    prompted().save(tmp_path / "pairs.safetensors")
    after = PreferencePairs.load(tmp_path / "pairs.safetensors")
    assert after.labels_N == prompted().labels_N
    assert torch.equal(after.chosen_NL, prompted().chosen_NL)
    with pytest.raises(ValueError, match="30 pairs but 29 prompts; they must match row by row"):
        replace(prompted(), labels_N=prompted().labels_N[:29])
    tensors = load_file(tmp_path / "pairs.safetensors")
    for content in (b'{"a": 1}', b"[1]", b"["):
        tensors["prompts"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        save_file(tensors, tmp_path / "bad.safetensors", {"tokenizer": "t", "policy": "p"})
        with pytest.raises(ValueError, match="bad.safetensors: "):
            PreferencePairs.load(tmp_path / "bad.safetensors")


def test_pairs_with_prompts_stream_as_those_with_classes() -> None:
    settings = {"length": 60, "seed": 3, "label_drop": 0.3}
    stream, classes = PairStream(prompted(), **settings), PairStream(pairs(), **settings)
    for position in range(60):
        item, other = stream[position], classes[position]
        assert item["label"] == f"a caption, the {int(other['label'])}th: «ça»"
        assert item["negative_label"] == f"a caption, the {int(other['negative_label'])}th: «ça»"
        assert torch.equal(item["chosen"], other["chosen"])
    assert stream.fingerprint != PairStream(replace(prompted(), labels_N=["x"] * 30), **settings).fingerprint


# --- the stream


def test_the_two_images_of_a_pair_stay_together() -> None:
    stream = PairStream(pairs(), length=60, seed=1, label_drop=0.5)
    items = [stream[j] for j in range(60)]
    assert len(stream) == 60
    for position, item in enumerate(items):
        assert (item["rejected"] - item["chosen"]).tolist() == [100, 100]
        assert item["label"] == item["chosen"][0] % 5
        assert item["position"] == position
    for epoch in (items[:30], items[30:]):
        assert sorted(item["chosen"][0].item() for item in epoch) == list(range(30))
    assert {item["dropped"].item() for item in items} == {True, False}
    assert any(item["negative_label"] != item["label"] for item in items)


def test_pairs_and_images_share_one_order() -> None:
    """The control on the chosen images alone sees them in the order, and with the drops, that the pairs have."""
    codes = Codes(pairs().chosen_NL, pairs().labels_N, "tokenizer")
    images = TrainingStream(codes, length=60, seed=3, label_drop=0.3)
    stream = PairStream(pairs(), length=60, seed=3, label_drop=0.3)
    for position in reversed(range(60)):
        assert torch.equal(stream[position]["chosen"], images[position]["tokens"])
        for name in ("label", "negative_label", "dropped", "position"):
            assert torch.equal(stream[position][name], images[position][name])


def test_one_class_may_be_every_negative() -> None:
    settings = {"length": 40, "seed": 3, "label_drop": 0.3}
    plain, fixed = PairStream(pairs(), **settings), PairStream(pairs(), **settings, negative_label=0)
    for position in range(40):
        assert fixed[position]["negative_label"].tolist() == 0
        for name in ("chosen", "label", "dropped"):
            assert torch.equal(plain[position][name], fixed[position][name])
    assert fixed.fingerprint != plain.fingerprint
    with pytest.raises(ValueError, match="negative_label is -1; it must be a class, at least 0, or None"):
        PairStream(pairs(), **settings, negative_label=-1)


@pytest.mark.parametrize(
    "other",
    [
        pairs(29),
        replace(pairs(), chosen_NL=pairs().chosen_NL + 1),
        replace(pairs(), rejected_NL=pairs().rejected_NL + 1),
        replace(pairs(), tokenizer="another"),
        replace(pairs(), policy="another"),
    ],
    ids=["number", "chosen", "rejected", "tokenizer", "policy"],
)
def test_the_fingerprint_tells_pairs_apart(other: PreferencePairs) -> None:
    settings = {"length": 60, "seed": 0, "label_drop": 0.1}
    assert PairStream(pairs(), **settings).fingerprint == PairStream(pairs(), **settings).fingerprint
    assert PairStream(other, **settings).fingerprint != PairStream(pairs(), **settings).fingerprint
