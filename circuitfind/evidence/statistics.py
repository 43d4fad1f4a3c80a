"""Exact binomial tails, and a permutation test of independence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Values = Float[np.ndarray, " prompt"]


def log_choose(n: int, k: int) -> float:
    """The logarithm of a binomial coefficient: that of a thousand things fits into no float."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def binomial(k: int, n: int, p: float) -> float:
    """The chance of k hits in n tries."""
    if p in (0.0, 1.0):
        return float(k == round(n * p))
    return math.exp(log_choose(n, k) + k * math.log(p) + (n - k) * math.log1p(-p))


def at_least(k: int, n: int, p: float) -> float:
    """The chance of k hits or more."""
    return min(1.0, math.fsum(binomial(j, n, p) for j in range(k, n + 1)))


def at_most(k: int, n: int, p: float) -> float:
    """The chance of k hits or fewer."""
    return min(1.0, math.fsum(binomial(j, n, p) for j in range(k + 1)))


def far_from_half(wins: float, n: int, epsilon: float) -> float:
    """How likely a share of wins at least as far from 1/2 is, when a win has the chance 1/2 + epsilon.

    That is the largest p-value under any chance between 1/2 - epsilon and 1/2 + epsilon.
    """
    distance = abs(wins - n / 2)
    far = (k for k in range(n + 1) if abs(k - n / 2) >= distance - 1e-9)
    return min(1.0, math.fsum(binomial(k, n, 0.5 + epsilon) for k in far))


@dataclass(frozen=True)
class Permuted:
    """A permutation test.

    Attributes:
        statistic: Of the values as they are.
        p_value: (1 + permutations with as large a statistic) / (1 + permutations): valid, and never 0.
    """

    statistic: float
    p_value: float


def gaussian_kernel(values: Values) -> Float[np.ndarray, "prompt prompt"]:
    """exp(-(x - y)^2 / (2 s^2)), with s the median distance of two different prompts.

    Where more than half of the distances are 0, s is the mean of the others; where all are, the kernel is 1 everywhere.
    """
    distance = np.abs(values[:, None] - values[None, :])
    apart = distance[np.triu_indices(len(values), 1)]
    width = float(np.median(apart)) if apart.size else 0.0
    if width == 0:
        width = float(apart[apart > 0].mean()) if (apart > 0).any() else 1.0
    return np.asarray(np.exp(-((distance / width) ** 2) / 2))


def hsic(one: Values, other: Values) -> float:
    """The Hilbert-Schmidt independence criterion, tr(K H L H) / (n - 1)^2 (Gretton et al. 2005, equation 9).

    Raises:
        ValueError: Fewer than two prompts, or different numbers of them.
    """
    centred, kernel = _kernels(one, other)
    return float((centred * kernel).sum() / (len(one) - 1) ** 2)


def hsic_test(one: Values, other: Values, *, permutations: int = 1000, seed: int = 0) -> Permuted:
    """Whether two quantities are independent, by permuting one of them (Gretton et al. 2007).

    Raises:
        ValueError: As in ``hsic``.
    """
    centred, kernel = _kernels(one, other)
    n, rng = len(one), np.random.default_rng(seed)
    observed = float((centred * kernel).sum())
    limit = (
        observed - 1e-12 * n * n
    )  # what is equal but for rounding counts as large: constant values give p = 1
    hits = 0
    for _ in range(permutations):
        order = rng.permutation(n)
        hits += float((centred * kernel[np.ix_(order, order)]).sum()) >= limit
    return Permuted(observed / (n - 1) ** 2, (1 + hits) / (1 + permutations))


def _kernels(
    one: Values, other: Values
) -> tuple[Float[np.ndarray, "prompt prompt"], Float[np.ndarray, "prompt prompt"]]:
    """H K H of one, and L of the other."""
    if len(one) != len(other) or len(one) < 2:
        raise ValueError(
            f"{len(one)} and {len(other)} values: two quantities of at least two prompts are compared"
        )
    kernel = gaussian_kernel(one)
    centred = kernel - kernel.mean(0)[None, :] - kernel.mean(1)[:, None] + kernel.mean()
    return centred, gaussian_kernel(other)
