"""DDO where every sequence can be enumerated: 3 tokens of a vocabulary of 4, known p_data, exact expectations."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from objectives.toy import minimise, row_losses
from torch import Tensor

from align.objectives import ddo, sft

VOCABULARY, LENGTH = 4, 3
SEQUENCES = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * LENGTH)  # [64, 3]
N = len(SEQUENCES)
UNIFORM = torch.full((N,), -math.log(N), dtype=torch.float64)


def data_counts() -> Tensor:
    """How often each sequence occurs among 256 real ones: correlated tokens, every sequence at least once."""
    rng = torch.Generator().manual_seed(0)
    counts = torch.ones(N, dtype=torch.long)
    bigram = torch.rand(VOCABULARY, VOCABULARY, generator=rng, dtype=torch.float64) ** 3
    a, b, c = SEQUENCES.T
    extra = torch.multinomial(bigram[a, b] * bigram[b, c], 256 - N, replacement=True, generator=rng)
    return counts + extra.bincount(minlength=N)


COUNTS = data_counts()
P_DATA = COUNTS.double() / COUNTS.sum()


class Autoregressive:
    """Logits for every prefix: any distribution over the sequences."""

    def __init__(self) -> None:
        shapes = [(VOCABULARY,) * (t + 1) for t in range(LENGTH)]
        self.parameters = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def logprobs(self) -> Tensor:
        """[64]: log p of each sequence."""
        steps = [logits.log_softmax(dim=-1)[tuple(SEQUENCES[:, : t + 1].T)] for t, logits in enumerate(self.parameters)]
        return torch.stack(steps).sum(dim=0)


class Unigram(Autoregressive):
    """The same logits at every position, whatever came before: cannot express p_data."""

    def __init__(self) -> None:
        self.parameters = [torch.zeros(VOCABULARY, dtype=torch.float64, requires_grad=True)]

    def logprobs(self) -> Tensor:
        return self.parameters[0].log_softmax(dim=-1)[SEQUENCES].sum(dim=-1)


def kl_from_data(logprobs: Tensor) -> float:
    return (P_DATA * (P_DATA.log() - logprobs.detach())).sum().item()


def batch_loss(policy: Autoregressive, *, beta: float, alpha: float) -> Tensor:
    """One batch of 256 rows whose real images have exactly the proportions of p_data, and whose fakes are uniform."""
    real = torch.arange(N).repeat_interleave(COUNTS)
    fake = torch.arange(N).repeat(len(real) // N)
    logp, never = policy.logprobs(), torch.zeros(len(real), dtype=torch.bool)
    return ddo(logp[real], logp[fake], UNIFORM[real], UNIFORM[fake], never, beta=beta, alpha=alpha).loss


def expected_loss(policy: Autoregressive, reference: Tensor, *, beta: float, alpha: float) -> Tensor:
    """Over all pairs of a real sequence, weighted by p_data, and a fake one, weighted by the reference."""
    pair = torch.cartesian_prod(torch.arange(N), torch.arange(N))
    real, fake = pair.T
    logp = policy.logprobs()
    rows = {
        "policy_positive_B": logp[real],
        "policy_fake_B": logp[fake],
        "reference_positive_B": reference[real],
        "reference_fake_B": reference[fake],
        "dropped_B": torch.zeros(len(pair), dtype=torch.bool),
    }
    return (P_DATA[real] * reference.exp()[fake] * row_losses(ddo, rows, beta=beta, alpha=alpha)).sum()


def test_the_two_ways_of_taking_expectations_agree() -> None:
    policy = Autoregressive()
    for parameter in policy.parameters:
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = {"beta": 0.7, "alpha": 3.0}
    torch.testing.assert_close(batch_loss(policy, **settings), expected_loss(policy, UNIFORM, **settings))


def test_the_optimum_is_the_data() -> None:
    """alpha = beta = 1, the GAN loss: one round from the uniform reference ends at p_data."""
    policy = Autoregressive()
    minimise(policy.parameters, lambda: batch_loss(policy, beta=1.0, alpha=1.0))
    torch.testing.assert_close(policy.logprobs().exp().detach(), P_DATA, atol=1e-6, rtol=0)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_another_beta_tilts_the_reference_by_its_inverse(beta: float) -> None:
    """p_ref (p_data / p_ref)^(1/beta) / Z, with alpha = Z^beta: then beta g = log p_data / (alpha p_ref) everywhere."""
    tilted = UNIFORM.exp() * (P_DATA / UNIFORM.exp()) ** (1 / beta)
    policy = Autoregressive()
    minimise(policy.parameters, lambda: batch_loss(policy, beta=beta, alpha=tilted.sum().item() ** beta))
    optimum = policy.logprobs().exp().detach()
    torch.testing.assert_close(optimum, tilted / tilted.sum(), atol=1e-5, rtol=0)
    # beta below 1 goes past the data: less entropy, as under guidance; above 1 it stops short of it
    entropies = [-(p * p.log()).sum().item() for p in (optimum, P_DATA)]
    assert (entropies[0] < entropies[1]) == (beta < 1)


def test_self_play_in_short_rounds_approaches_the_data() -> None:
    """A few gradient steps a round, then the policy becomes the reference: KL(p_data || policy) falls every round."""
    policy = Autoregressive()
    kls = [kl_from_data(policy.logprobs())]
    for _ in range(8):
        reference = policy.logprobs().detach()
        optimiser = torch.optim.SGD(policy.parameters, lr=8.0)
        for _ in range(5):
            optimiser.zero_grad()
            expected_loss(policy, reference, beta=0.5, alpha=1.0).backward()
            optimiser.step()
        kls.append(kl_from_data(policy.logprobs()))
    assert all(after < before for before, after in pairwise(kls)), kls
    assert kls[-1] < 0.1 * kls[0], kls


def test_self_play_of_a_model_that_cannot_fit_ends_at_the_best_of_its_family() -> None:
    """Fixed points of self-play are those of maximum likelihood (there the fake half has no gradient), which for a
    unigram model are the mean frequencies of the tokens. No single round gets there."""
    policy = Unigram()
    frequencies = torch.stack([(P_DATA[:, None] * SEQUENCES.eq(v)).sum() / LENGTH for v in range(VOCABULARY)])
    floor = kl_from_data(frequencies.log()[SEQUENCES].sum(dim=-1))
    excess = [kl_from_data(policy.logprobs()) - floor]
    for _ in range(4):
        reference = policy.logprobs().detach()
        minimise(policy.parameters, lambda reference=reference: expected_loss(policy, reference, beta=1.0, alpha=1.0))
        excess.append(kl_from_data(policy.logprobs()) - floor)
    assert floor > 0.1
    assert all(after < before for before, after in pairwise(excess)), excess
    assert excess[1] > 1e-4
    assert excess[-1] < 1e-6


@pytest.mark.parametrize(("beta", "alpha"), [(1.0, 1.0), (0.02, 50.0), (0.3, 0.5)])
def test_the_first_step_is_that_of_maximum_likelihood(beta: float, alpha: float) -> None:
    """At policy = reference the fakes' expected gradient is E_ref[grad log p] = 0; what is left is SFT's, times
    beta sigmoid(0) / max(alpha, 1), per image instead of per token."""
    policy = Autoregressive()
    for parameter in policy.parameters:
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    reference = policy.logprobs().detach()
    of_ddo = torch.autograd.grad(expected_loss(policy, reference, beta=beta, alpha=alpha), policy.parameters)

    rows = {"policy_positive_B": policy.logprobs(), "dropped_B": torch.zeros(N, dtype=torch.bool)}
    likelihood = (P_DATA * row_losses(sft, rows, num_tokens=LENGTH)).sum()
    of_sft = torch.autograd.grad(likelihood, policy.parameters)
    scale = beta / 2 * LENGTH / max(alpha, 1.0)
    torch.testing.assert_close(list(of_ddo), [scale * gradient for gradient in of_sft], atol=1e-12, rtol=1e-9)
