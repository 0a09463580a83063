"""Leave-one-out Fréchet distance: by hand, against plain recomputation, and what it is for."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from align.data.mnist import load_mnist
from align.zoo_entries import zoo_entry
from evaluation.classifier import DigitClassifier, save_classifier
from evaluation.metrics import frechet_distance
from evaluation.reference import Reference, make_reference
from evaluation.user_files import load_from_file
from recipes.parts import zoo_file
from recipes.pretrain_digits import REWARD, REWARD_REFERENCE, save_reward_reference
from rewards.base import kind_of
from rewards.builtin.frechet import DISTANCES, DiagonalFrechet, LeaveOneOutFrechet, leave_one_out_frechet
from rewards.registry import load_reward


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_distance(covariance: str, dim: int = 3) -> DiagonalFrechet:
    factor = numbers(dim, dim, seed=9)
    return DISTANCES[covariance](numbers(dim, seed=8), factor @ factor.T)


def plain(distance: DiagonalFrechet, covariance: str, cov_DD: Tensor, features: Tensor, weights: Tensor) -> float:
    """The distance of weighted features, straight from its definition."""
    mean = (features.T @ weights) / weights.sum()
    cov = np.cov(features.numpy(), rowvar=False, aweights=weights.numpy(), ddof=0)
    if covariance == "full":
        return frechet_distance(mean.numpy(), cov, distance.mean_D.numpy(), cov_DD.numpy())
    stds = np.sqrt(np.diag(cov)) - np.sqrt(np.diag(cov_DD.numpy()))
    return float((mean - distance.mean_D).square().sum()) + float(np.square(stds).sum())


def test_three_images_by_hand() -> None:
    distance = DiagonalFrechet(torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double())
    rewards = leave_one_out_frechet(torch.tensor([[1.0], [3.0], [5.0]]), torch.zeros(3).double(), distance)
    # about the reference's mean they are 0, 2, 4: mean 2, variance 8/3, and the reference's standard deviation is 2
    with_all = 4 + (math.sqrt(8 / 3) - 2) ** 2
    # without the first 2, 4: mean 3, std 1; without the second 0, 4: mean 2, std 2; without the third 0, 2: mean 1, std 1
    expected = [2 * (without - with_all) for without in (9 + 1, 4 + 0, 1 + 1)]
    assert rewards.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_it_is_what_leaving_each_image_out_gives(covariance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewards.builtin.frechet.ROWS", 4)  # 7 images are then of two parts
    factor = numbers(3, 3, seed=9)
    distance, cov_DD = random_distance(covariance), factor @ factor.T
    earlier, now = numbers(6, 3, seed=1), numbers(7, 3, seed=2) + 0.5
    features = torch.cat([earlier, now])
    weights = torch.tensor([0.5] * 6 + [1.0] * 7).double()
    rewards = leave_one_out_frechet(now, 0.5 * distance.sums(earlier), distance)
    whole = plain(distance, covariance, cov_DD, features, weights)
    for index in range(7):
        others = torch.arange(13) != 6 + index
        without = plain(distance, covariance, cov_DD, features[others], weights[others])
        assert rewards[index].item() == pytest.approx(9 * (without - whole), rel=1e-9)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_reward_does_not_shrink_with_the_batch(covariance: str) -> None:
    distance, few = random_distance(covariance), numbers(5, 3)
    once, twice = (
        leave_one_out_frechet(few.repeat(copies, 1), torch.zeros_like(distance.sums(few)), distance)[:5]
        for copies in (200, 400)
    )
    torch.testing.assert_close(once, twice, rtol=0.02, atol=0.02)
    assert abs(once.mean()) < 0.01 * once.std()  # what some images bring nearer, others take away


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_rare_modes_are_worth_more_and_strangers_cost(covariance: str) -> None:
    """Real images are half at -1, half at 1; samples are mostly at 1, and one is at 9."""
    distance = DISTANCES[covariance](torch.zeros(1).double(), torch.ones(1, 1).double())
    samples = torch.tensor([[1.0]] * 13 + [[-1.0]] * 2 + [[9.0]])
    rewards = leave_one_out_frechet(samples, torch.zeros(3).double(), distance)
    common, rare, stranger = rewards[0], rewards[13], rewards[15]
    assert rare > common > 0 > stranger
    # with the balance right and nobody strange, one more of either is worth the same
    even = leave_one_out_frechet(samples[[0, 1, 13, 14]], torch.zeros(3).double(), distance)
    torch.testing.assert_close(even, even[:1].expand(4))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_far_features_lose_no_digits(covariance: str) -> None:
    features, cov_DD = numbers(6, 3), torch.eye(3).double()
    near, far = (
        leave_one_out_frechet(features + offset, torch.zeros_like(distance.sums(features)), distance)
        for offset in (0, 2**20)
        for distance in [DISTANCES[covariance](torch.full((3,), 0.5 + offset).double(), cov_DD)]
    )
    torch.testing.assert_close(near, far, rtol=1e-6, atol=0)


def test_one_image_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="at least 2 images a step, got 1; draw more rollouts"):
        leave_one_out_frechet(torch.zeros(1, 3), torch.zeros(7).double(), random_distance("diagonal"))


# --- the reward


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reward")
    classifier = DigitClassifier("strided5x5", seed=3)
    save_classifier(classifier, folder / "extractor.safetensors")
    make_reference(classifier, images(70, seed=4), name="noise").moments.save(folder / "real.npz")
    return {"weights": str(folder / "extractor.safetensors"), "reference": str(folder / "real.npz")}


EXTRACTOR = """
import torch
from evaluation import ExtractorOutput

class Colours:
    name, fingerprint = "colours", "0123456789abcdef"

    def __call__(self, images):
        features = images.float().mean(dim=(1, 2))
        return ExtractorOutput(features, features)
"""


def test_the_extractor_may_be_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "colours.py"
    file.write_text(EXTRACTOR)
    own = load_from_file(file, "Colours")()
    make_reference(own, images(70, seed=4), name="noise").moments.save(tmp_path / "real.npz")
    reward = load_reward("loo-fid", weights=f"{file}:Colours", reference=str(tmp_path / "real.npz"))
    assert isinstance(reward, LeaveOneOutFrechet)
    torch.testing.assert_close(reward.describe(images(3), [{}] * 3), images(3).float().mean(dim=(1, 2)))
    assert reward.score(images(8).float().mean(dim=(1, 2))).shape == (8,)
    file.write_text(EXTRACTOR.replace("0123", "3210"))
    with pytest.raises(
        ValueError, match="was made by extractor 0123456789abcdef, but .*colours.py:Colours is 3210456789"
    ):
        load_reward("loo-fid", weights=f"{file}:Colours", reference=str(tmp_path / "real.npz"))


def images(number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 28, 28, 3), dtype=torch.uint8, generator=generator)


def test_it_describes_by_features_and_scores_them_all(files: dict[str, str]) -> None:
    reward = load_reward("loo-fid", **files)
    assert kind_of(reward) == "distribution"
    assert isinstance(reward, LeaveOneOutFrechet)
    features = reward.describe(images(6), [{}] * 6)
    expected = DigitClassifier("strided5x5", seed=3)(images(6)).features_BD.detach()
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(torch.cat([reward.describe(part, [{}] * 3) for part in images(6).split(3)]), features)
    real = Reference.load(files["reference"])
    distance = DiagonalFrechet(torch.from_numpy(real.mu), torch.from_numpy(real.sigma))
    rewards = reward.score(features)
    torch.testing.assert_close(rewards, leave_one_out_frechet(features, torch.zeros(129).double(), distance))
    assert rewards.std() > 0


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_state_moves_with_each_step_and_can_be_stored(files: dict[str, str], covariance: str) -> None:
    steps = [numbers(4, 64, seed=seed) for seed in range(3)]
    reward = LeaveOneOutFrechet(**files, covariance=covariance, decay=0.25)
    first = reward.score(steps[2])
    assert torch.equal(reward.score(steps[2]), first), "to score moves nothing"
    for step in steps[:2]:
        reward.advance(step)
    sums = reward.distance.sums
    moved = leave_one_out_frechet(steps[2], 0.0625 * sums(steps[0]) + 0.25 * sums(steps[1]), reward.distance)
    torch.testing.assert_close(reward.score(steps[2]), moved)
    assert not torch.allclose(first, moved)

    resumed = LeaveOneOutFrechet(**files, covariance=covariance, decay=0.25)
    stored = reward.state_dict()
    resumed.load_state_dict(stored)
    reward.advance(steps[2])
    assert torch.equal(resumed.score(steps[2]), moved), "a stored state stays as it was"
    resumed.load_state_dict({})
    assert torch.equal(resumed.score(steps[2]), first)


def test_what_does_not_fit_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown covariance 'half'; known: diagonal, full"):
        load_reward("loo-fid", **files, covariance="half")
    with pytest.raises(ValueError, match="decay is 1; it must be at least 0 and below 1"):
        load_reward("loo-fid", **files, decay=1)
    full = LeaveOneOutFrechet(**files, covariance="full").state_dict()
    with pytest.raises(ValueError, match=r"loo-fid has shape \[4161\], .* need \[129\]; start the run anew"):
        LeaveOneOutFrechet(**files).load_state_dict(full)
    save_classifier(DigitClassifier("strided5x5", seed=4), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"was made by extractor .*, but .*other.safetensors is .*do not compare"):
        load_reward("loo-fid", **{**files, "weights": str(tmp_path / "other.safetensors")})


def test_the_shipped_moments_are_those_of_the_training_digits(tmp_path: Path) -> None:
    shutil.copy(zoo_entry("mnist-llamagen") / REWARD, tmp_path / REWARD)
    save_reward_reference(tmp_path, load_mnist("train").images_NHWC)
    made = Reference.load(tmp_path / REWARD_REFERENCE)
    shipped = Reference.load(zoo_file("zoo:mnist-var", "reward_reference"))
    assert (made.name, made.n, made.extractor_fingerprint) == ("mnist5k-train", 4000, shipped.extractor_fingerprint)
    np.testing.assert_allclose(made.mu, shipped.mu, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made.sigma, shipped.sigma, rtol=1e-4, atol=1e-5)
