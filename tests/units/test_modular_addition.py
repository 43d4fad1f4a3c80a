"""Neurons of a model that adds modulo 113: the few that are kept, and the few frequencies that they have.

The arithmetic of frequencies is tested by itself; the rest needs CIRCUITFIND_MODELS.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitfind.errors import UnsupportedError
from circuitfind.model.load import load_model
from circuitfind.names import Kind
from circuitfind.units.find import Found
from scripts.modular_addition import (
    IMAGE,
    by_strength,
    fewest_for_accuracy,
    find_neurons,
    main,
    neurons_of,
)
from scripts.sums import PARTS, Addition, bins, every_sum, filtered, held_by, read_pairs, shares
from tests import families

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


# --- frequencies ------------------------------------------------------------------------------------------------------


def waves(p: int, k: int) -> np.ndarray:
    """A constant, cos and sin of ka and of kb, and their products: [a, b, wave]."""
    angle = 2 * np.pi * k * np.arange(p) / p
    one, cos, sin = np.ones(p), np.cos(angle), np.sin(angle)
    found = [np.outer(f, g) for f, g in product((one, cos, sin), repeat=2)]
    return np.stack(found, -1)


@pytest.mark.parametrize("p", [7, 11])
def test_shares_and_waves_are_those_of_a_regression(p: int) -> None:
    values = np.random.default_rng(0).random((p, p, 4))
    values[..., 3] = 2.5
    found = shares(values)
    assert found.shape == ((p + 1) // 2, 4)
    assert not found[0].any()
    assert not found[:, 3].any()
    for k in range(1, (p + 1) // 2):
        design, wanted = waves(p, k).reshape(-1, 9), values.reshape(-1, 4)
        fit = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
        explained = 1 - ((wanted - fit) ** 2).sum(0)[:3] / ((wanted - wanted.mean(0)) ** 2).sum(0)[:3]
        np.testing.assert_allclose(found[k, :3], explained, atol=1e-12)
        np.testing.assert_allclose(filtered(values, bins(p, [k])).reshape(-1, 4), fit, atol=1e-12)


def test_waves_add_up() -> None:
    p = 7
    values = np.random.default_rng(1).random((p, p, 3))
    some = bins(p, [2, 3], ["a", "a+b"])
    mean = values.mean((0, 1))
    np.testing.assert_allclose(filtered(values, some) + filtered(values, ~some) - mean, values, atol=1e-12)
    np.testing.assert_allclose(filtered(values, bins(p, [])), np.broadcast_to(mean, values.shape), atol=1e-12)
    assert held_by(values, some) + held_by(values, ~some) == pytest.approx(1)
    left = ((filtered(values, some) - mean) ** 2).sum() / ((values - mean) ** 2).sum()
    assert held_by(values, some) == pytest.approx(left)


def test_each_wave_is_found_where_it_is() -> None:
    p = 11
    a, b = np.meshgrid(np.arange(p), np.arange(p), indexing="ij")
    for k, part in product((1, 4), PARTS):
        argument = {"a": a, "b": b, "a+b": a + b, "a-b": a - b}[part]
        wave = 3 + np.cos(2 * np.pi * k * argument / p + 0.3)[..., None]
        for other_k, other in product((1, 4), PARTS):
            assert held_by(wave, bins(p, [other_k], [other])) == pytest.approx(
                float((k, part) == (other_k, other))
            )
        assert shares(wave)[k, 0] == pytest.approx(1)


def test_every_sum_has_another_with_the_same_a() -> None:
    pairs = every_sum(5)
    assert [pair.clean for pair in pairs] == [(a, b, 5) for a in range(5) for b in range(5)]
    for pair in pairs:
        (a, b, _), (c, d, _) = pair.clean, pair.corrupted
        assert a == c
        assert b != d
        assert (pair.answer, pair.wrong) == (((a + b) % 5,), ((c + d) % 5,))


# --- the trained model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def addition(models_dir: Path) -> Addition:
    return Addition(load_model(str(models_dir / "modadd-113"), device="cpu"))


@pytest.fixture(scope="module", params=["mean", pytest.param("resample", marks=pytest.mark.slow)])
def found(models_dir: Path, request: pytest.FixtureRequest) -> Found:
    folder = models_dir / "modadd-113"
    return find_neurons(load_model(str(folder), device="cpu"), read_pairs(folder), request.param)


def test_the_kept_neurons_add_when_all_others_carry_their_mean(addition: Addition, found: Found) -> None:
    kept = neurons_of(found)
    assert found.faithfulness >= 0.95
    assert len(kept) <= 200
    accuracy = addition.accuracy([kept], "mean")[0]
    assert accuracy >= 0.95
    for draws in (addition.random_sets(kept), addition.random_sets(kept, alike=True)):
        assert all(len(draw) == len(kept) for draw in draws)
        assert (addition.accuracy(draws[:3], "mean") < accuracy - 0.4).all()
    assert addition.faithfulness([kept], "mean")[0] > 0.9


def test_the_kept_neurons_have_few_frequencies(addition: Addition, found: Found) -> None:
    kept = neurons_of(found)
    assert len(addition.key) <= 6
    assert set(addition.frequencies(kept)) == set(addition.key)
    assert addition.shares.max(0)[sorted(kept)].mean() > 0.85
    alike = addition.random_sets(kept, alike=True)[0]
    assert addition.frequencies(alike) == addition.frequencies(kept)


def test_few_neurons_keep_the_accuracy(addition: Addition, found: Found) -> None:
    order = by_strength(found)
    assert sorted(order) == list(range(addition.n_neurons))
    sizes = [20, 40, 80]
    best = addition.accuracy([set(order[:size]) for size in sizes], "mean")
    assert best[0] < best[1] < best[2]
    assert best[2] >= 0.95


@pytest.mark.slow
def test_fewer_neurons_than_for_faithfulness_keep_the_accuracy(addition: Addition, found: Found) -> None:
    few = fewest_for_accuracy(addition, by_strength(found), 0.95)
    assert addition.accuracy([few], "mean")[0] >= 0.95
    assert len(few) <= 60
    assert set(addition.frequencies(few)) <= set(addition.key)


def test_waves_of_the_sum_alone_add(addition: Addition) -> None:
    values, p, key = addition.activations, addition.p, addition.key
    assert addition.accuracy_with(values) == addition.clean == 1
    assert addition.accuracy_with(filtered(values, bins(p, key))) >= 0.99
    assert addition.accuracy_with(filtered(values, bins(p, key, ["a+b"]))) >= 0.99
    assert addition.accuracy_with(filtered(values, ~bins(p, key))) <= 0.05


def test_replacing_neurons_is_setting_their_activations(addition: Addition) -> None:
    """Two ways to the same number: patches on nodes, and activations put in by hand."""
    kept = sorted(addition.random_sets(range(150), alike=True)[0])
    by_hand = {
        "mean": np.broadcast_to(addition.activations.mean((0, 1)), addition.activations.shape),
        "zero": np.zeros_like(addition.activations),
    }
    for ablation, values in by_hand.items():
        values = values.copy()
        values[..., kept] = addition.activations[..., kept]
        accuracy = addition.accuracy([kept], ablation)[0]  # type: ignore[arg-type]
        # A tie of two logits may fall either way.
        assert accuracy == pytest.approx(addition.accuracy_with(values), abs=3e-4)


def test_accuracy_is_that_of_the_model_itself(addition: Addition) -> None:
    rows = np.random.default_rng(0).choice(len(addition.pairs), 500, replace=False)
    tokens = torch.tensor([addition.pairs[int(row)].clean for row in rows])
    with torch.no_grad():
        logits = addition.model.bridge_logits(tokens, torch.full((500,), 2))
    assert (logits.argmax(-1) == tokens[:, :2].sum(1) % addition.p).all()
    kept = addition.kept([3, 5])
    names = [str(node) for node, one in zip(addition.model.anatomy.writers, kept, strict=True) if one]
    assert names == ["input", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0.n3", "m0.n5", "m0.rest"]
    assert sum(node.kind is Kind.NEURON for node in addition.model.anatomy.writers) == 512


def test_other_models_are_refused(
    models_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedError, match="3 layers"):
        Addition(load_model(str(models_dir / "letter-sort"), device="cpu"))
    monkeypatch.setattr("sys.argv", ["modular_addition.py", str(models_dir / "palindrome")])
    assert main() == 2
    assert "no neurons" in capsys.readouterr().err


# --- what is shipped --------------------------------------------------------------------------------------------------


def test_the_page_says_what_is_asked() -> None:
    page = (ROOT / "docs" / "modular-addition.md").read_text(encoding="utf-8")
    assert (ROOT / "docs" / "images" / IMAGE).read_text(encoding="utf-8").startswith("<svg")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| 95% faithfulness, ")]
    assert [row[0].split(", ")[1] for row in rows] == ["mean ablation", "resample ablation"]
    assert all(float(row[5]) >= 0.95 for row in rows)
