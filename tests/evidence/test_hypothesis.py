"""Hypothesis tests: exact tails, HSIC by a double loop, p-values under the null, and planted circuits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.circuit.random import RandomCircuits
from circuitfind.errors import UsageError
from circuitfind.evidence import hypothesis
from circuitfind.evidence.knockouts import NOISE, cut
from circuitfind.evidence.statistics import (
    at_least,
    at_most,
    binomial,
    far_from_half,
    gaussian_kernel,
    hsic,
    hsic_test,
)
from tests import families
from tests.evidence.measured import planted_case, turned_case

PLANTED = ("planted/ioi-planted:0", "planted/induction:0", "planted/and-gate:0")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


class Told(Evaluator):
    """An evaluator whose metrics are told, by a function of the mask."""

    def __init__(self, told: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(planted_case(PLANTED[0])[0].runs, "resample")
        self._told = told

    def values(self, masks: Any) -> np.ndarray:
        self.n_evaluations += len(masks)
        return np.stack([self._told(mask) for mask in masks])

    @property
    def full(self) -> np.ndarray:
        return self._told(self.runs.model.anatomy.edge_mask)


def told(difference: np.ndarray) -> tuple[Told, np.ndarray]:
    """An evaluator whose circuit differs from the model by so much on each prompt, and that circuit."""
    mask = planted_case(PLANTED[0])[1]

    def values(edges: np.ndarray) -> np.ndarray:
        if not edges.any():
            return np.zeros(len(difference))
        return 10.0 + difference * (edges.sum() == mask.sum())

    return Told(values), mask


# --- exact tails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "p"), [(1, 0.5), (7, 0.6), (24, 0.9), (100, 0.9)])
def test_tails_are_exact(n: int, p: float) -> None:
    exact = [math.comb(n, k) * Fraction(p) ** k * (1 - Fraction(p)) ** (n - k) for k in range(n + 1)]
    for k in range(n + 1):
        assert binomial(k, n, p) == pytest.approx(float(exact[k]), rel=1e-9)
        assert at_least(k, n, p) == pytest.approx(float(sum(exact[k:])), rel=1e-9)
        assert at_most(k, n, p) == pytest.approx(float(sum(exact[: k + 1])), rel=1e-9)
    assert at_least(0, n, p) == at_most(n, n, p) == pytest.approx(1)


def test_tails_of_many_and_of_the_certain() -> None:
    assert at_most(900, 1000, 0.9) == pytest.approx(0.5, abs=0.03)
    assert 0 < at_least(5000, 5000, 0.6) < 1e-300 or at_least(5000, 5000, 0.6) == 0
    assert (binomial(0, 5, 0.0), binomial(5, 5, 1.0), binomial(2, 5, 1.0)) == (1, 1, 0)


@pytest.mark.parametrize("n", [1, 5, 24])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3])
def test_wins_far_from_half(n: int, epsilon: float) -> None:
    for doubled in range(2 * n + 1):
        wins = Fraction(doubled, 2)
        far = [k for k in range(n + 1) if abs(Fraction(k) - Fraction(n, 2)) >= abs(wins - Fraction(n, 2))]
        p = Fraction(1, 2) + Fraction(epsilon)
        exact = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in far)
        assert far_from_half(float(wins), n, epsilon) == pytest.approx(float(exact), rel=1e-9)
    assert far_from_half(n / 2, n, epsilon) == pytest.approx(1)


def test_the_p_value_is_the_largest_of_the_null() -> None:
    """Any chance of winning nearer to one half gives a smaller tail than the edge of the null."""
    for share in np.linspace(0.4, 0.6, 9):
        tail = sum(binomial(k, 30, share) for k in range(31) if abs(k - 15) >= 7)
        assert tail <= far_from_half(22, 30, 0.1) + 1e-12


# --- HSIC -----------------------------------------------------------------------------------------------------------


def slow_hsic(x: list[float], y: list[float]) -> float:
    """Three sums over prompts, as in Gretton et al. 2005, with kernels written out."""
    n = len(x)

    def kernel(values: list[float]) -> list[list[float]]:
        apart = sorted(abs(values[i] - values[j]) for i in range(n) for j in range(i + 1, n))
        middle = len(apart) // 2
        width = apart[middle] if len(apart) % 2 else (apart[middle - 1] + apart[middle]) / 2
        return [[math.exp(-((a - b) ** 2) / (2 * width**2)) for b in values] for a in values]

    k, m = kernel(x), kernel(y)
    both = sum(k[i][j] * m[i][j] for i in range(n) for j in range(n))
    cross = sum(k[i][j] * m[i][q] for i in range(n) for j in range(n) for q in range(n))
    alone = sum(map(sum, k)) * sum(map(sum, m))
    return (both - 2 * cross / n + alone / n**2) / (n - 1) ** 2


@pytest.mark.parametrize("seed", range(4))
def test_hsic_by_a_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=11)
    y = np.sin(2 * x) + 0.3 * rng.normal(size=11)
    assert hsic(x, y) == pytest.approx(slow_hsic(list(x), list(y)), rel=1e-9)
    assert hsic(x, y) == pytest.approx(hsic(y, x))
    assert hsic_test(x, y, permutations=5).statistic == pytest.approx(hsic(x, y))


def test_a_permutation_p_value_by_hand() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=9), rng.normal(size=9)
    again = np.random.default_rng(4)
    as_large = sum(hsic(x, y[again.permutation(9)]) >= hsic(x, y) - 1e-12 for _ in range(60))
    assert hsic_test(x, y, permutations=60, seed=4).p_value == (1 + as_large) / 61


def test_p_values_are_uniform_when_there_is_nothing() -> None:
    p = []
    for trial in range(300):
        rng = np.random.default_rng(trial)
        p.append(
            hsic_test(rng.normal(size=20), rng.exponential(size=20), permutations=99, seed=trial).p_value
        )
    for level in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9):
        share = np.mean(np.array(p) <= level)
        assert abs(share - level) < 3.5 * math.sqrt(level * (1 - level) / 300), level


def test_what_correlation_does_not_see() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x**2
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.3
    assert hsic_test(x, y, permutations=200).p_value == 1 / 201


def test_constant_values_are_independent_of_everything() -> None:
    x = np.random.default_rng(0).normal(size=12)
    for one, other in ((x, np.full(12, 3.3)), (np.full(12, 3.3), x), (np.zeros(12), np.ones(12))):
        found = hsic_test(one, other, permutations=50)
        assert (found.statistic, found.p_value) == (pytest.approx(0, abs=1e-12), 1.0)
    mostly = np.array([0.0] * 9 + [1.0, 2.0, 5.0])
    assert np.isfinite(gaussian_kernel(mostly)).all()
    assert gaussian_kernel(mostly)[0, 11] < 0.2
    with pytest.raises(ValueError, match="at least two prompts"):
        hsic(np.ones(1), np.ones(1))


# --- equivalence ----------------------------------------------------------------------------------------------------


def test_equivalence_counts_wins_where_the_mean_difference_says_otherwise() -> None:
    """The released code puts the mean difference of scores where the share of wins belongs; these tell the two apart."""
    n = 40
    # Half of the prompts a little better, half much worse: wins as often as it loses.
    evaluator, mask = told(np.array([0.01] * 20 + [-3.0] * 20))
    even = hypothesis.equivalence(evaluator, mask)
    mean = float(even.facts["mean_difference"])
    assert mean == pytest.approx(-1.495)
    assert (even.statistic, even.p_value, even.rejected) == (0.5, pytest.approx(1), False)
    assert far_from_half(-mean * n, n, 0.1) < 1e-6, "with the mean difference it would be rejected"
    # Better on every prompt, by half a unit of the metric: always wins, and the mean difference is just one half.
    evaluator, mask = told(np.full(n, 0.5))
    always = hypothesis.equivalence(evaluator, mask)
    assert (always.statistic, always.rejected, always.says) == (1.0, True, "against")
    assert always.p_value == pytest.approx(0.6**n + 0.4**n)
    assert far_from_half(always.facts["mean_difference"] * n, n, 0.1) == pytest.approx(1)


def test_equivalence_where_nothing_differs() -> None:
    evaluator, mask = planted_case(PLANTED[0])
    found = hypothesis.equivalence(evaluator, evaluator.runs.model.anatomy.edge_mask)
    assert (found.statistic, found.p_value, found.facts["ties"]) == (0.5, pytest.approx(1), 24)
    evaluator, mask = told(np.array([1e-7] * 10 + [1.0, -1.0]))
    assert hypothesis.equivalence(evaluator, mask).facts["ties"] == 10


def test_equivalence_with_too_few_prompts_says_so() -> None:
    evaluator, mask = told(np.full(4, 1.0))
    found = hypothesis.equivalence(evaluator, mask)
    assert found.smallest_p == pytest.approx(0.6**4 + 0.4**4)
    assert (found.rejected, found.says) == (False, "nothing")
    assert "so few" in found.meaning


# --- independence ---------------------------------------------------------------------------------------------------


def test_independence_finds_what_is_left_behind() -> None:
    rng = np.random.default_rng(0)
    ability = 10 + rng.normal(size=40)

    def of(rest: np.ndarray) -> hypothesis.Test:
        mask = planted_case(PLANTED[0])[1]

        def values(edges: np.ndarray) -> np.ndarray:
            if not edges.any():
                return np.zeros(40)
            return ability if edges.sum() == 61 else rest

        return hypothesis.independence(Told(values), mask, permutations=200)

    left, gone = of(0.2 * ability + 0.05 * rng.normal(size=40)), of(rng.normal(size=40))
    assert (left.p_value, left.rejected, left.says) == (1 / 201, True, "against")
    assert gone.p_value > 0.05
    assert (gone.says, gone.draws, gone.n_prompts) == ("nothing", 200, 40)
    assert of(np.full(40, 2.0)).p_value == 1


def test_independence_of_nothing_but_arithmetic() -> None:
    """The complement of the whole model is the empty circuit, here constant but for rounding."""
    evaluator, mask = told(np.zeros(12))
    noisy = np.random.default_rng(0).normal(size=12) * 1e-7

    def values(edges: np.ndarray) -> np.ndarray:
        return noisy + (10.0 if edges.sum() == 61 else 0.0)

    assert hypothesis.independence(Told(values), mask, permutations=100).p_value == 1
    assert evaluator.n_evaluations == 0


# --- minimality, sufficiency, partial necessity ---------------------------------------------------------------------


def apart(evaluator: Evaluator, one: np.ndarray, other: np.ndarray) -> float:
    a, b = evaluator.values([one])[0], evaluator.values([other])[0]
    return float(((a - b) ** 2).mean())


def random_case() -> tuple[Evaluator, np.ndarray]:
    model = families.model("ln")
    evaluator = turned_case(model, families.pairs_for(model, count=9))
    return evaluator, RandomCircuits(model.anatomy).draw(8, np.random.default_rng(0))


def test_minimality_by_hand() -> None:
    evaluator, mask = random_case()
    anatomy = evaluator.runs.model.anatomy
    found = hypothesis.minimality(evaluator, mask, draws=12, quantile=0.7, seed=3)
    random, rng = RandomCircuits(anatomy), np.random.default_rng(3)
    added = []
    for _ in range(12):
        inflated = random.inflate(mask, rng)
        w, r = rng.permutation(np.argwhere(inflated & ~mask))[0]
        added.append(apart(evaluator, inflated, cut(inflated, [(int(w), int(r))])))
    noise = (NOISE * evaluator.gap) ** 2
    for one in found.facts["edges"]:
        effect = apart(evaluator, mask, cut(mask, [anatomy.index_of(one["edge"])]))
        assert one["effect"] == pytest.approx(effect, rel=1e-3, abs=1e-9)
        wins = sum(effect > other + noise for other in added)
        assert one["share"] == wins / 12
        assert one["p_value"] == pytest.approx(min(1, 8 * at_most(wins, 12, 0.7)))
    assert found.p_value == min(one["p_value"] for one in found.facts["edges"])
    assert found.evaluations <= 1 + 1 + 8 + 2 * 12


@pytest.mark.parametrize("without", [False, True], ids=["sufficiency", "necessity"])
def test_random_circuits_by_hand(without: bool) -> None:
    evaluator, mask = random_case()
    anatomy = evaluator.runs.model.anatomy
    test = hypothesis.partial_necessity if without else hypothesis.sufficiency
    found = test(evaluator, mask, draws=15, quantile=0.4, seed=5)
    random, rng = RandomCircuits(anatomy), np.random.default_rng(5)
    every = anatomy.edge_mask
    masks = [mask, *(random.draw(8, rng) for _ in range(15))]
    own, *others = [apart(evaluator, every & ~m if without else m, every) for m in masks]
    wins = sum(own > other if without else own < other for other in others)
    assert found.statistic == wins / 15
    assert found.p_value == pytest.approx(at_least(wins, 15, 0.4))
    assert found.rejected == (found.p_value <= 0.05)
    assert found.facts["distance"] == pytest.approx(own, rel=1e-3)


@pytest.mark.parametrize("name", PLANTED)
def test_the_true_circuit_is_sufficient_and_minimal_and_a_random_one_is_not(name: str) -> None:
    evaluator, mask = planted_case(name)
    anatomy, size = evaluator.runs.model.anatomy, int(mask.sum())
    passed = hypothesis.sufficiency(evaluator, mask)
    assert (passed.rejected, passed.says) == (True, "for")
    assert passed.draws == 100
    assert passed.evaluations <= 2 + 100
    assert not hypothesis.minimality(evaluator, mask).rejected
    for seed in range(2):
        chance = RandomCircuits(anatomy).draw(size, np.random.default_rng(seed))
        if not (chance == mask).all():
            assert not hypothesis.sufficiency(evaluator, chance).rejected
            assert hypothesis.minimality(evaluator, chance).rejected


def test_an_edge_that_does_nothing_fails_minimality_alone() -> None:
    evaluator, true = planted_case("planted/ioi-planted:0")
    anatomy = evaluator.runs.model.anatomy
    mask = true.copy()
    spare = RandomCircuits(anatomy).inflate(true, np.random.default_rng(1)) & ~true
    mask |= spare
    found = hypothesis.minimality(evaluator, mask)
    assert found.rejected
    not_needed = {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(spare)}
    assert set(found.facts["not_needed"]) <= not_needed
    assert found.facts["not_needed"]


def test_a_circuit_that_does_it_all_is_necessary() -> None:
    """Only edges of the circuit change the metric, each alone: any random one changes it less."""
    evaluator, mask = planted_case(PLANTED[0])
    base = np.linspace(1, 2, 12)

    def values(edges: np.ndarray) -> np.ndarray:
        return base * float((edges & mask).sum())

    found = hypothesis.partial_necessity(Told(values), mask)
    assert (found.rejected, found.says) == (True, "for")
    other = RandomCircuits(evaluator.runs.model.anatomy).draw(4, np.random.default_rng(0))
    assert not hypothesis.partial_necessity(Told(values), other).rejected


def test_chance_is_rarely_called_better_than_chance() -> None:
    """Of 20 random circuits few are above the 0.9 quantile of random circuits for certain: the level of the test holds."""
    evaluator, _ = random_case()
    random, rng = RandomCircuits(evaluator.runs.model.anatomy), np.random.default_rng(0)
    hits = 0
    for seed in range(20):
        found = hypothesis.sufficiency(evaluator, random.draw(8, rng), draws=40, seed=100 + seed)
        hits += found.rejected
    assert hits <= 4, "a tenth of them is above that quantile"


# --- the rest -------------------------------------------------------------------------------------------------------


def test_all_of_them_are_plain_data() -> None:
    evaluator, mask = random_case()
    found = hypothesis.all_tests(evaluator, mask, draws=5, permutations=20)
    assert [test.name for test in found] == [
        "equivalence",
        "independence",
        "minimality",
        "sufficiency",
        "partial necessity",
    ]
    assert sum(test.evaluations for test in found) == evaluator.n_evaluations
    assert evaluator.n_evaluations <= 1 + 1 + 1 + (1 + 8 + 10) + 6 + 6
    for test in found:
        data = json.loads(json.dumps(test.as_dict(), allow_nan=False))
        assert data["rejected"] == (data["p_value"] <= data["alpha"])
        assert {"null", "meaning", "statistic", "smallest_p", "n_prompts", "draws", "evaluations"} <= set(
            data
        )
    assert all(test.says == "nothing" and "so few" in test.meaning for test in found[3:])
    again = hypothesis.all_tests(random_case()[0], mask, draws=5, permutations=20)
    assert [test.p_value for test in again] == [test.p_value for test in found]


def test_the_whole_model() -> None:
    evaluator, _ = random_case()
    every = evaluator.runs.model.anatomy.edge_mask
    found = {test.name: test for test in hypothesis.all_tests(evaluator, every, draws=30, permutations=30)}
    assert "minimality" not in found
    assert not any(test.rejected for name, test in found.items() if name != "independence")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda e, m: hypothesis.sufficiency(e, np.zeros_like(m)), "no edge"),
        (lambda e, m: hypothesis.minimality(e, m, draws=0), "0 draws show nothing"),
        (lambda e, m: hypothesis.independence(e, m, permutations=0), "nothing to permute"),
        (lambda e, m: hypothesis.minimality(e, e.runs.model.anatomy.edge_mask), "whole model"),
    ],
)
def test_what_cannot_be_tested(make: Callable[..., object], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        make(*random_case())
