"""Names of metrics: which one leads, and what those of other extractors are read as."""

import math

import pytest

from evaluation.metric_names import METRICS, find_key, known_metric, known_metrics, leading_metric


def names(*keys: str, but: tuple[str, ...] = ()) -> list[str]:
    return [metric.name for metric in known_metrics([dict.fromkeys(keys, 1.0)], but=but)]


def test_the_order_does_not_depend_on_that_of_the_keys() -> None:
    keys = ["recall_toy_2k", "kid_toy_2k", "is_toy_2k", "fid_toy_2k", "accuracy_toy_2k"]
    assert names(*keys) == names(*reversed(keys)) == ["fid", "kid", "accuracy", "is", "recall"]


def test_another_extractors_metric_follows_its_own_kind() -> None:
    """After `fid` and before `kid`, wherever they stand; `fid-inf` is no `fid` of an extractor called inf."""
    keys = ["fid-inf-dinov2_toy_2k", "kid_toy_2k", "fid-dinov2_toy_2k", "fid-inf_toy_2k", "fid_toy_2k"]
    assert names(*keys) == ["fid", "fid-dinov2", "kid", "fid-inf", "fid-inf-dinov2"]


@pytest.mark.parametrize(
    ("name", "title", "lower_is_better", "digits"),
    [
        ("fid", "FID", True, 2),
        ("fid-dinov2", "FID (dinov2)", True, 2),
        ("fid-inf-dinov2", "FID∞ (dinov2)", True, 2),
        ("fid-mean", "mean FID ratio", True, 2),
        ("kid-clip-b32", "KID (clip-b32)", True, 5),
        ("is-dinov2", "IS (dinov2)", False, 2),
        ("recall-dinov2", "recall (dinov2)", False, 3),
        ("held-out", "held-out judge", False, 3),
    ],
)
def test_a_name_is_read(name: str, title: str, lower_is_better: bool, digits: int) -> None:
    metric = known_metric(name)
    assert metric is not None
    assert (metric.name, metric.title, metric.lower_is_better, metric.digits) == (name, title, lower_is_better, digits)


@pytest.mark.parametrize(
    "name",
    [
        *("correct-prompts", "correct-images", "credit", "two_object", "pick-score"),
        *("geneval-hf/overall", "geneval-hf", "held-out-color"),  # no extractor's
        *("accuracy-class3", "fidelity", "fid_toy", "dinov2-fid", ""),
    ],
)
def test_other_names_are_unknown(name: str) -> None:
    assert known_metric(name) is None


def test_keys_without_protocol_and_count_are_known_too() -> None:
    assert names("fid", "accuracy-class3_toy_2k", "pick-score_toy_2k") == ["fid"]


def test_metrics_of_several_rows_are_told_once() -> None:
    assert [metric.name for metric in known_metrics([{"kid_a_2k": 1.0}, {"fid_b_5k": 1.0}, {"kid_b_5k": 1.0}])] == [
        "fid",
        "kid",
    ]


def test_those_to_leave_out_are_left_out_by_their_whole_name() -> None:
    assert names("fid_toy_2k", "fid-dinov2_toy_2k", "kid_toy_2k", but=("fid",)) == ["fid-dinov2", "kid"]


ROW = {"pick-score_toy_2k": 0.2, "recall_toy_2k": 0.5, "fid-dinov2_toy_2k": 90.0, "fid_toy_2k": 4.0}


@pytest.mark.parametrize(
    ("contaminated", "name", "value"),
    [
        ((), "fid", 4.0),
        (("kid",), "fid", 4.0),
        (("fid",), "fid-dinov2", 90.0),
        (("fid", "fid-dinov2"), "recall", 0.5),
        (("fid", "fid-dinov2", "recall"), "fid", 4.0),  # there is no other one: the first at all
    ],
)
def test_what_leads_is_not_contaminated_if_it_can(contaminated: tuple[str, ...], name: str, value: float) -> None:
    metric, found = leading_metric(ROW, contaminated)
    assert (metric.name, found) == (name, value)


def test_what_leads_of_unknown_names_is_the_first() -> None:
    metric, value = leading_metric({"geneval-hf/overall": 0.6, "pick-score": 0.2})
    assert (metric.name, metric.title, metric.lower_is_better, value) == (
        "geneval-hf/overall",
        "geneval-hf/overall",
        False,
        0.6,
    )
    with pytest.raises(ValueError, match="an evaluation without metrics cannot tell which setting is best"):
        leading_metric({})


def test_rank_puts_the_better_first_and_the_undefined_last() -> None:
    lower, higher = METRICS[0], known_metric("recall-dinov2")
    assert higher is not None
    values = [2.0, math.nan, 1.0, 3.0]
    assert sorted(values, key=lower.rank)[:3] == [1.0, 2.0, 3.0]
    assert sorted(values, key=higher.rank)[:3] == [3.0, 2.0, 1.0]


def test_a_key_is_found_by_its_whole_name() -> None:
    row = {"fid-dinov2_toy_2k": 90.0, "fid_toy_2k": 4.0, "sfid_toy_2k": 9.0}
    assert find_key(row, "fid") == find_key(row, "fid_") == find_key(row, "fid_toy_2k") == "fid_toy_2k"
    assert find_key(row, "fid-dinov2") == "fid-dinov2_toy_2k"
    assert find_key(row, "fid-clip") is None
    with pytest.raises(ValueError, match="metric 'fid' is ambiguous: fid_a_2k, fid_b_2k; ask for one of them"):
        find_key({"fid_a_2k": 1.0, "fid_b_2k": 2.0}, "fid")
