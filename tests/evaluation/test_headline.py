"""The sentence says what the rows support and nothing else."""

from collections.abc import Sequence

import pytest

from evaluation.arms import paired, summarize
from evaluation.headline import Verdict, headline, judge, number
from evaluation.metric_names import METRICS
from evaluation.results import ResultRow

BASE = (16.0, 17.0, 16.5)


def rows(label: str, fids: Sequence[float], *, accuracy: float = 0.8, **settings: object) -> list[ResultRow]:
    return [
        ResultRow(
            label=label,
            seed=1001 + index,
            n=2000,
            protocol="mnist-cnn",
            metrics={"fid_mnist-cnn_2k": fid, "accuracy_mnist-cnn_2k": accuracy},
            stderr={"fid_mnist-cnn_2k": 0.3},
            forwards_per_image=98.0 if settings.get("guidance_scale", 1.0) != 1.0 else 49.0,
            **settings,
        )
        for index, fid in enumerate(fids)
    ]


def swept() -> list[ResultRow]:
    temperatures = [item for t in (0.7, 0.8) for item in rows("base", (12.0,), temperature=t, split="select")]
    return temperatures + [item for s in (1.5, 2.0) for item in rows("base", (9.0,), guidance_scale=s, split="select")]


def study(aligned: Sequence[float], temperature: Sequence[float] = (12.0, 12.5, 12.2)) -> list[ResultRow]:
    return [
        *swept(),
        *rows("base", BASE),
        *rows("base", temperature, temperature=0.7),
        *rows("base", (8.8, 8.6, 9.0), guidance_scale=2.0),
        *rows("sft", (16.2, 17.1, 16.4)),
        *rows("aligned", aligned, accuracy=0.96),
    ]


def said(items: Sequence[ResultRow]) -> str:
    return headline(summarize(items), "CCA").sentence


def test_gain() -> None:
    assert said(study((9.6, 10.2, 9.8))) == (
        "CCA lowers guidance-free FID from 16.5 to 9.80 "
        "(medians of 3 paired seeds; change −6.80 to −6.40; ratio 0.60), "
        "better than the best temperature (T=0.7: 12.2), against 8.80 for the best CFG (scale 2) at twice the forwards "
        "per image."
    )


def test_notes_name_the_control_and_the_side_effects() -> None:
    notes = headline(summarize(study((9.6, 10.2, 9.8))), "CCA").notes
    assert notes == (
        "Control: the same data without the objective (SFT) gives FID 16.4 (median of 3 seeds, 16.2 to 17.1), "
        "so the gain is not just further training.",
        "CCA against base, both without guidance: accuracy 0.800 → 0.960 (better).",
    )


def test_a_gain_that_a_temperature_gives_for_free() -> None:
    assert "but worse than the best temperature (T=0.7: 12.2), which needs no training" in said(
        study((14.0, 14.5, 14.2))
    )
    assert "but not clearly better than the best temperature" in said(study((11.9, 12.6, 12.1)))


def test_untuned_alternatives_are_not_called_best() -> None:
    sentence = said([item for item in study((9.6, 10.2, 9.8)) if item.split == "report"])
    assert "better than the base at T=0.7 (12.2), against 8.80 for CFG (scale 2)" in sentence


def test_a_control_that_does_as_well_takes_the_credit() -> None:
    items = [*rows("base", BASE), *rows("sft", (9.7, 10.1, 9.9)), *rows("aligned", (9.6, 10.2, 9.8))]
    assert "so the gain cannot be credited to CCA" in headline(summarize(items), "CCA").notes[0]


@pytest.mark.parametrize("aligned", [(15.2, 16.1, 16.7), (15.9, 16.9, 16.4)])  # signs differ; less than the base moves
def test_no_clear_gain(aligned: Sequence[float]) -> None:
    sentence = said(study(aligned))
    assert sentence.startswith("CCA shows no clear gain: guidance-free FID goes from 16.5 to ")
    assert "better" not in sentence
    assert "; compare the best temperature (T=0.7: 12.2)" in sentence


def test_worse() -> None:
    sentence = said(study((390.0, 395.0, 400.0)))
    assert sentence.startswith("CCA raises guidance-free FID from 16.5 to 395 (")
    assert "which is worse" in sentence


def test_one_seed() -> None:
    items = [*rows("base", BASE[:1]), *rows("aligned", (9.6,))]
    result = headline(summarize(items), "CCA")
    assert result.sentence == (
        "On one seed, CCA takes guidance-free FID from 16.0 ± 0.3 to 9.60 ± 0.3 (ratio 0.60); "
        "how much seeds differ is unknown."
    )
    assert result.notes[-1] == "Not compared in this run: another temperature, CFG, an SFT control."


def test_no_base() -> None:
    assert said(rows("aligned", (9.6, 10.2, 9.8))) == (
        "CCA has a guidance-free FID of 9.80 (median of 3 seeds, 9.60 to 10.2); "
        "the base was not evaluated in this run, so no gain can be claimed."
    )


def test_one_evaluation() -> None:
    assert (
        said(rows("base", (8.8,), guidance_scale=2.0)) == "base, guidance 2, T=1: FID 8.80 ± 0.3 (one seed), n = 2000."
    )


def test_a_sweep_claims_nothing() -> None:
    result = headline(summarize(swept()), "CCA")
    assert (
        result.sentence == "On the selection seeds, the lowest FID is 9.00: base, guidance 1.5, T=1 (4 settings tried)."
    )
    assert "before claiming a gain" in result.notes[0]


def test_selection_rows_never_carry_the_claim() -> None:
    items = [*rows("base", BASE), *rows("aligned", (1.0, 1.0, 1.0), split="select")]
    assert said(items).startswith("base, no guidance, T=1: FID 16.5")


def test_nothing_evaluated() -> None:
    assert said([]) == "This run holds no evaluation yet, so nothing can be said about a gain."


def test_seeds_that_do_not_meet_are_refused() -> None:
    with pytest.raises(ValueError, match="share no seed"):
        said([*rows("base", BASE)[:1], *rows("aligned", (9.0, 9.0))[1:]])


def test_other_metrics_are_better_when_higher() -> None:
    def scored(label: str, values: Sequence[float]) -> list[ResultRow]:
        return [
            ResultRow(label=label, seed=seed, n=553, protocol="geneval-hf", metrics={"geneval-hf/overall": value})
            for seed, value in enumerate(values)
        ]

    assert said(scored("base", (0.61, 0.62)) + scored("aligned", (0.70, 0.72))).startswith(
        "CCA raises guidance-free geneval-hf/overall from 0.615 to 0.710 (medians of 2 paired seeds; change "
        "+0.090 to +0.100; ratio 1.15)"
    )


def test_no_ratio_of_values_that_are_not_positive() -> None:
    items = [ResultRow("base", seed, 8, "toy", {"reward": -0.6 - seed / 10}) for seed in (0, 1)]
    items += [ResultRow("aligned", seed, 8, "toy", {"reward": -0.2}) for seed in (0, 1)]
    assert said(items) == (
        "CCA raises guidance-free reward from −0.650 to −0.200 (medians of 2 paired seeds; change +0.400 to +0.500)."
    )


def test_undefined_values_support_no_direction() -> None:
    base, aligned = summarize([*rows("base", BASE), *rows("aligned", (9.0, float("nan"), 9.0))])
    assert judge(paired(aligned, base, "fid"), METRICS[0]) is Verdict.UNCLEAR


@pytest.mark.parametrize(
    ("value", "text"),
    [(16.61, "16.6"), (9.758, "9.76"), (394.4, "394"), (0.0421, "0.042"), (-7.1, "−7.10"), (0.0, "0")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


# ---- GenEval


def judged(label: str, geneval: Sequence[float], held_out: Sequence[float] = (), **settings: object) -> list[ResultRow]:
    settings = {"protocol": "geneval-hf", "forwards_per_image": 64.0} | settings
    return [
        ResultRow(
            label=label,
            seed=seed,
            n=553,
            metrics={f"geneval_{settings['protocol']}_553": value}
            | ({f"held-out_{settings['protocol']}_553": held_out[seed]} if held_out else {}),
            **settings,
        )
        for seed, value in enumerate(geneval)
    ]


@pytest.mark.parametrize(("protocol", "name"), [("geneval-hf", "geneval-hf"), ("geneval", "GenEval")])
def test_geneval_goes_by_its_protocols_name(protocol: str, name: str) -> None:
    rows = judged("base", (0.41, 0.42), protocol=protocol) + judged("aligned", (0.60, 0.63), protocol=protocol)
    assert said(rows).startswith(f"CCA raises guidance-free {name} from 0.415 to 0.615 (medians of 2 paired seeds; ")
    assert said(judged("base", (0.41,), protocol=protocol, split="select")).startswith(
        f"On the selection seeds, the highest {name} is 0.410"
    )


def test_geneval_of_several_protocols_goes_by_all_their_names() -> None:
    assert METRICS[1].under(["geneval-hf", "geneval", "geneval-hf"]).title == "geneval-hf / GenEval"
    assert METRICS[0].under(["geneval"]).title == "FID"


@pytest.mark.parametrize(
    ("held_out", "note"),
    [
        ((0.50, 0.52), "A judge that no reward used agrees: held-out judge 0.410 → 0.510 (better)."),
        (
            (0.39, 0.45),
            "A judge that no reward used sees no clear gain: held-out judge 0.410 → 0.420 (no clear change). "
            "The detector may have been gamed.",
        ),
        (
            (0.30, 0.31),
            "A judge that no reward used sees a loss: held-out judge 0.410 → 0.305 (worse). "
            "The detector may have been gamed.",
        ),
    ],
)
def test_a_second_judge_is_asked_about_a_gain(held_out: Sequence[float], note: str) -> None:
    rows = judged("base", (0.41, 0.42), (0.40, 0.42)) + judged("aligned", (0.60, 0.63), held_out)
    notes = headline(summarize(rows), "GRPO").notes
    assert notes[0] == note
    assert not any("against base" in text for text in notes), "it is told once"


@pytest.mark.parametrize(
    ("held_out", "note"),
    [
        (0.5, "A judge that no reward used agrees: held-out judge 0.400 → 0.500."),
        (
            0.4,
            "A judge that no reward used sees no clear gain: held-out judge 0.400 → 0.400. The detector may have been gamed.",
        ),
    ],
)
def test_a_second_judge_on_one_seed(held_out: float, note: str) -> None:
    rows = judged("base", (0.41,), (0.40,)) + judged("aligned", (0.60,), (held_out,))
    assert headline(summarize(rows), "GRPO").notes[0] == note


@pytest.mark.parametrize("aligned", [(0.30, 0.31), (0.40, 0.45)])
def test_a_second_judge_has_nothing_to_say_without_a_gain(aligned: Sequence[float]) -> None:
    rows = judged("base", (0.41, 0.42), (0.40, 0.42)) + judged("aligned", aligned, (0.40, 0.41))
    notes = headline(summarize(rows), "GRPO").notes
    assert notes[0].startswith("GRPO against base, both without guidance: held-out judge 0.410 → 0.405")


@pytest.mark.parametrize(
    ("searched", "said_of_it"),
    [
        ((0.50, 0.51), "GRPO is better"),
        ((0.80, 0.81), "GRPO is worse"),
        ((0.59, 0.64), "GRPO is not clearly different"),
    ],
)
def test_search_at_test_time_is_told_with_its_price(searched: Sequence[float], said_of_it: str) -> None:
    rows = judged("base", (0.41, 0.42)) + judged("aligned", (0.60, 0.63))
    rows += judged("base", searched, search="best of 4 by geneval", forwards_per_image=256.0)
    result = headline(summarize(rows), "GRPO")
    middle = sum(searched) / 2
    assert result.notes[0] == (
        f"Without training, the base with best of 4 by geneval gives geneval-hf {middle:.3f} (median of 2 seeds, "
        f"{searched[0]:.3f} to {searched[1]:.3f}) at 4 times the forwards per image; {said_of_it}."
    )
    assert "T=1" not in result.sentence, "it is no temperature"
    assert result.notes[-1] == "Not compared in this run: another temperature, CFG, an SFT control."


def test_a_guided_search_is_not_the_best_guidance() -> None:
    rows = judged("base", (0.41, 0.42)) + judged("aligned", (0.60, 0.63))
    rows += judged("base", (0.50, 0.51), guidance_scale=2.0, forwards_per_image=128.0)
    rows += judged("base", (0.70, 0.71), guidance_scale=2.0, search="best of 4 by geneval", forwards_per_image=512.0)
    result = headline(summarize(rows), "GRPO")
    assert result.sentence.endswith("against 0.505 for CFG (scale 2) at twice the forwards per image.")
    assert "best of 4 by geneval and guidance 2 gives" in result.notes[0]
