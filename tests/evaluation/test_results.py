"""Rows on disk, arms, and comparisons seed by seed; every expected number is derived by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.arms import paired, summarize, text_table
from evaluation.metric_names import leading_metric
from evaluation.results import ResultRow, append_result, read_results


def row(label: str = "base", fid: float = 16.0, **changes: object) -> ResultRow:
    plain = ResultRow(
        label=label,
        seed=1,
        n=2000,
        protocol="mnist-cnn",
        metrics={"fid_mnist-cnn_2k": fid, "accuracy_mnist-cnn_2k": 0.8},
        stderr={"fid_mnist-cnn_2k": 0.3},
        reference_n=1000,
        extractor_fingerprint="cafe",
    )
    return replace(plain, **changes)


def test_a_guidance_schedule_makes_an_arm_of_its_own() -> None:
    shapes = [{}, {"guidance_schedule": "linear"}, {"guided_blocks": 3}]
    arms = summarize([row(guidance_scale=2.0, **shape) for shape in shapes])
    assert [arm.guidance for arm in arms] == ["2", "2 linear", "2, first 3"]
    assert [arm.guides_evenly for arm in arms] == [True, False, False]
    assert arms[1].settings == "guidance 2 linear, T=1"
    assert "2 linear" in text_table(arms)


# ---- rows on disk


def test_a_row_survives_the_file(tmp_path: Path) -> None:
    written = [
        row(samples="samples/base.png", forwards_per_image=49.0),
        row("aligned", 9.5, guidance_scale=1.5, top_k=20),
    ]
    for item in written:
        append_result(tmp_path / "new" / "results.jsonl", item)
    assert read_results(tmp_path / "new" / "results.jsonl") == written


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_results(tmp_path / "results.jsonl") == []


def test_undefined_metrics_are_null_in_the_file_and_nan_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, row(fid=math.nan))
    assert json.loads(path.read_text())["metrics"]["fid_mnist-cnn_2k"] is None
    assert math.isnan(read_results(path)[0].metrics["fid_mnist-cnn_2k"])


def test_half_written_last_line_is_skipped_and_then_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, row())
    path.write_text(path.read_text() + '{"label": "ali')
    with pytest.warns(UserWarning, match=r"results\.jsonl:2: skipped a half-written last line"):
        assert read_results(path) == [row()]
    append_result(path, row("aligned", 9.5))
    assert read_results(path) == [row(), row("aligned", 9.5)]


def test_a_whole_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(row().to_json()))
    append_result(path, row("aligned", 9.5))
    assert read_results(path) == [row(), row("aligned", 9.5)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json}", "not valid JSON"),
        ("[1, 2]", "an object was expected"),
        ('{"label": "base", "seed": 1, "n": 10, "protocol": "p"}', "missing field 'metrics'"),
        (
            '{"label": "base", "seed": 1, "n": 10, "protocol": "p", "metrics": {}, "guidance": 2}',
            "unknown field 'guidance'",
        ),
        ('{"label": "base", "seed": 1.5, "n": 10, "protocol": "p", "metrics": {}}', "field 'seed' cannot be 1.5"),
        ('{"label": 3, "seed": 1, "n": 10, "protocol": "p", "metrics": {}}', "field 'label' cannot be 3"),
        ('{"label": "base", "seed": 1, "n": 10, "protocol": "p", "metrics": [1]}', "field 'metrics' cannot be"),
        (
            '{"label": "base", "seed": 1, "n": 10, "protocol": "p", "metrics": {}, "split": "test"}',
            "unknown split 'test'",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(row().to_json()) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"results\.jsonl:2: ") as caught:
        read_results(path)
    assert message in str(caught.value)


# ---- arms


def test_statistics_of_an_arm() -> None:
    (arm,) = summarize([row(fid=16.0, seed=1), row(fid=19.0, seed=2), row(fid=16.0, seed=3)])
    spread = arm.metric("fid")
    assert spread is not None
    assert spread.values == {1: 16.0, 2: 19.0, 3: 16.0}
    assert (spread.median, spread.min, spread.max) == (16.0, 16.0, 19.0)
    assert spread.sd == pytest.approx(math.sqrt(3))  # mean 17, squared deviations 1 + 4 + 1 over 2
    assert math.isnan(summarize([row()])[0].metric("fid").sd)


def test_an_undefined_seed_makes_the_median_undefined() -> None:
    (arm,) = summarize([row(fid=16.0, seed=1), row(fid=math.nan, seed=2)])
    assert math.isnan(arm.metric("fid").median)


def test_settings_and_splits_make_arms_and_later_rows_win() -> None:
    rows = [
        row(fid=99.0, seed=1),
        row(fid=9.0, guidance_scale=2.0),
        row(fid=12.0, temperature=0.7),
        row(fid=15.0, split="select"),
        row(fid=16.0, seed=1),
    ]
    arms = summarize(rows)
    assert [(arm.settings, arm.split) for arm in arms] == [
        ("no guidance, T=1", "report"),
        ("guidance 2, T=1", "report"),
        ("no guidance, T=0.7", "report"),
        ("no guidance, T=1", "select"),
    ]
    assert arms[0].metric("fid").values == {1: 16.0}


def test_metric_lookup() -> None:
    (arm,) = summarize([row()])
    for name in ("fid", "fid_", "fid_mnist-cnn_2k"):
        assert arm.metric(name).median == 16.0
    assert arm.metric("precision") is None
    with pytest.raises(ValueError, match="'fid' is ambiguous: fid_a_2k, fid_b_2k"):
        row(metrics={"fid_a_2k": 1.0, "fid_b_2k": 2.0})


# ---- comparisons


def test_pairs_by_common_seed() -> None:
    base, aligned = summarize(
        [row(fid=16.0, seed=1), row(fid=20.0, seed=2), row(fid=10.0, seed=3)]
        + [row("aligned", fid, seed=seed) for seed, fid in ((2, 10.0), (3, 8.0), (4, 1.0))]
    )
    comparison = paired(aligned, base, "fid")
    assert comparison.differences.values == {2: -10.0, 3: -2.0}
    assert comparison.ratios.values == {2: 0.5, 3: 0.8}
    assert (comparison.differences.median, comparison.ratios.median) == (-6.0, 0.65)
    assert (comparison.base.median, comparison.arm.median) == (15.0, 9.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("protocol", "adm-inception"), ("n", 1000), ("reference_n", 5000), ("extractor_fingerprint", "beef")],
)
def test_refuses_to_mix(name: str, value: object) -> None:
    changed = replace(row(), **{name: value})
    base, aligned = summarize([row(), replace(changed, label="aligned")])
    with pytest.raises(ValueError, match=f"different {name}: .*'base' .*seed 1.*'aligned'"):
        paired(aligned, base, "fid")
    with pytest.raises(ValueError, match=f"different {name}"):
        summarize([row(), replace(changed, seed=2)])


def test_refuses_to_pair_without_common_seeds_or_metric() -> None:
    base, aligned = summarize([row(seed=1), row("aligned", seed=2)])
    with pytest.raises(ValueError, match="share no seed"):
        paired(aligned, base, "fid")
    with pytest.raises(ValueError, match="cannot be compared by 'recall'"):
        paired(aligned, base, "recall")


def test_text_table_is_aligned() -> None:
    rows = [row(fid=16.0, seed=1), row(fid=17.0, seed=2), row(fid=9.0, guidance_scale=2.0, split="select", top_k=5)]
    lines = text_table(summarize([replace(item, forwards_per_image=49.0) for item in rows])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[:4] == ["arm", "guidance", "T", "FID"]
    assert "16.50 [16.00-17.00]" in lines[2]
    assert "base top-k 5 (select)" in lines[3]


def test_text_tables_show_what_was_measured() -> None:
    prompts = row(metrics={"geneval_geneval-hf_2k": 0.5, "counting_geneval-hf_2k": 0.25}, protocol="geneval-hf")
    assert text_table(summarize([prompts])).split()[:5] == ["arm", "guidance", "T", "geneval-hf", "forwards/img"]
    rewards = row(metrics={"hpsv2_prompts-mine_2k": 0.5, "accuracy-class3": 0.1}, protocol="prompts-mine")
    assert text_table(summarize([rewards])).split()[:5] == ["arm", "guidance", "T", "hpsv2", "forwards/img"]


# ---- what is chosen by


def test_the_leading_metric_is_the_first_known_one() -> None:
    metric, value = leading_metric({"accuracy_m_2k": 0.5, "fid_m_2k": 4.0})
    assert (metric.name, value) == ("fid", 4.0)
    metric, value = leading_metric({"counting_g_2k": 0.5, "geneval_g_2k": 0.25})
    assert (metric.name, value) == ("geneval", 0.25)
    metric, value = leading_metric({"hpsv2_p_2k": 0.5, "clip_p_2k": 0.25})
    assert (metric.name, value) == ("hpsv2_p_2k", 0.5)
    with pytest.raises(ValueError, match="without metrics"):
        leading_metric({})


def test_ranks_put_the_best_first_and_the_undefined_last() -> None:
    fid, _ = leading_metric({"fid": 1.0})
    geneval, _ = leading_metric({"geneval": 1.0})
    assert sorted([3.0, math.nan, 1.0], key=fid.rank)[:2] == [1.0, 3.0]
    assert sorted([1.0, math.nan, 3.0], key=geneval.rank)[:2] == [3.0, 1.0]


def test_intervals_survive_the_file_but_for_undefined_ones(tmp_path: Path) -> None:
    append_result(tmp_path / "results.jsonl", row(intervals={"a": (0.1, 0.2), "b": (math.nan, 0.2)}))
    (found,) = read_results(tmp_path / "results.jsonl")
    assert found.intervals == {"a": (0.1, 0.2)}
