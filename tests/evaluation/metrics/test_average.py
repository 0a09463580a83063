import pytest

from evaluation.metrics import mean_frechet_ratio


def test_the_mean_of_the_ratios_not_the_ratio_of_the_means():
    """(3.36 / 1.68 + 14.19 / 14.19) / 2, with the paper's baselines of Inception and DINOv2."""
    assert mean_frechet_ratio({"inception": 3.36, "dinov2": 14.19}, {"dinov2": 14.19, "inception": 1.68}) == 1.5


@pytest.mark.parametrize(
    ("distances", "baselines", "message"),
    [
        ({}, {}, "at least one; got"),
        ({"a": 1.0}, {"b": 1.0}, r"got \['a'\] and \['b'\]"),
        ({"a": 1.0}, {"a": 0.0}, "a: distance and baseline must be finite and the baseline above 0, got 1.0 and 0.0"),
        ({"a": float("nan")}, {"a": 1.0}, "a: .* got nan and 1.0"),
    ],
)
def test_refuses_what_has_no_ratio(distances, baselines, message):
    with pytest.raises(ValueError, match=message):
        mean_frechet_ratio(distances, baselines)
