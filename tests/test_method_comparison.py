"""The page that compares the methods: its arithmetic on made-up results, and that it knows every method."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from circuitfind.circuit.curve import SHARES, Curve
from circuitfind.methods import METHODS
from tests import families

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "method-comparison.md"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_methods", ROOT / "scripts" / "compare_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def made(script: ModuleType, case: str, method: str, at: float, auc: float | None = None) -> object:
    """A method that is faithful from a share of the edges on."""
    found = Curve(SHARES, (1,) * 10, (np.array(SHARES) >= at).astype(float))
    return script.Result(case, method, "edge", found, found.cpr(), 32, 4.0, 0.5, auc, auc)


def test_the_page_of_made_up_results(script: ModuleType) -> None:
    mini = [
        made(script, task, method, at)
        for task in ("ioi", "induction")
        for method, at in (("eap", 0.05), ("relp", 0.02), ("random", 1.0))
    ]
    known = [
        made(script, "and-gate", method, 0.02, auc)
        for method, pair in (("eap", (1.0, 1.0)), ("relp", (0.9, 0.7)), ("random", (0.5, 0.5)))
        for auc in pair
    ]
    page = script.page(mini, known, {("ioi", "gim"): "not here"}, 2)
    rows = [line for line in page.splitlines() if line.startswith("| relp |")]
    # CMD: all of the area up to 0.01, and half of that between 0.01 and 0.02.
    assert rows[0].startswith(
        "| relp | 0.014 [0.014, 0.014] | 0.384 [0.384, 0.384] | 0.00 | 1.00 | 1.00 | 1.00 |"
    )
    assert "| relp | 0.800 [0.700, 0.900] |" in page
    assert "* `gim` on ioi: not here" in page
    assert "Lowest mean log CMD on `mini`: relp 0.384, eap 0.500" in page
    assert "ahead are relp (2 : 0, -0.116); behind are none." in page
    assert "and-gate: every true edge is above every other one, on all seeds that it ran on, for eap;" in page
    assert "mean ROC-AUC below 0.95: relp 0.800." in page


def test_rank_correlation(script: ModuleType) -> None:
    assert script.correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert script.correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert script.correlation([1, 2, 2, 3], [1, 5, 5, 9]) == pytest.approx(1)


def test_a_planted_model_from_start_to_end(script: ModuleType) -> None:
    refused: dict[tuple[str, str], str] = {}
    case = script.planted_case("or-gate", 0)
    found = script.results_of(case, ["eap", "activation-patching"], refused)
    assert [r.method for r in found] == ["eap", "activation-patching", "random"]
    assert (found[0].auc, found[0].prompts, found[0].cpr) == (1.0, 16, None)
    assert found[0].at_true == pytest.approx(1, abs=0.05)
    assert found[0].passes < found[1].passes
    assert not refused


def test_the_page_has_every_method(script: ModuleType) -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| ([a-z-]+)(?: \(nodes\))? \|", text, re.MULTILINE))
    assert set(METHODS) - set(script.LEFT_OUT) <= rows, "run: python scripts/compare_methods.py"
