"""JUnit XML: what the common schemas (Ant's and Jenkins's) ask for and allow."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from circuitfind.check.junit import junit_xml
from circuitfind.check.outcome import Outcome, Verdict, counts, exit_code
from circuitfind.check.reasons import Reason

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc)

ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "testsuites": (set(), {"name", "tests", "failures", "errors", "time", "disabled"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "timestamp"},
        {"skipped", "id", "hostname", "package", "disabled"},
    ),
    "properties": (set(), set()),
    "property": ({"name", "value"}, set()),
    "testcase": ({"name", "classname", "time"}, {"assertions", "status"}),
    "failure": ({"type"}, {"message"}),
    "error": ({"type"}, {"message"}),
    "skipped": (set(), {"message"}),
}
"""Elements with the attributes that they must and that they may have."""

CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase"},
    "properties": {"property"},
    "testcase": {"failure", "error", "skipped"},
}


def check_schema(element: ET.Element) -> None:
    must, may = ALLOWED[element.tag]
    assert must <= set(element.attrib) <= must | may, element.tag
    for child in element:
        assert child.tag in CHILDREN.get(element.tag, set()), f"{child.tag} in {element.tag}"
        check_schema(child)
    for name in ("tests", "failures", "errors", "skipped"):
        if name in element.attrib and element.tag != "testcase":
            assert int(element.attrib[name]) >= 0
    if "time" in element.attrib:
        assert float(element.attrib["time"]) >= 0
    if "timestamp" in element.attrib:
        assert datetime.fromisoformat(element.attrib["timestamp"]) == NOW.replace(microsecond=0, tzinfo=None)


def outcome(label: str, verdict: Verdict, tier: int = 1, **more: Any) -> Outcome:
    return Outcome(label, label.partition(" ")[0], "mini", None, tier, verdict, seconds=1.5, **more)


OUTCOMES = [
    outcome("ioi", "as expected", has_baseline=True),
    outcome(
        "capitals on <gpt2> & more",
        "differs",
        reasons=(
            Reason("edges", "baseline", 'lost a0.h0->a1.h1<k> "x"', ("- a0.h0->a1.h1<k>  0, was 1",)),
            Reason("faithfulness", "expectation", "too low \x1b[31m\x00"),
        ),
    ),
    outcome("docstring", "error", problem="KeyError: 'x'", trace="Traceback\n  KeyError: 'x'"),
    outcome("greater-than", "skipped", tier=2, problem="the hub did not give it"),
]


def test_the_document_fits_the_schema() -> None:
    text = junit_xml(OUTCOMES, NOW)
    root = ET.fromstring(text.encode("utf-8"))
    check_schema(root)
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites ')
    assert root.attrib["tests"] == "4"


def test_a_suite_for_each_tier() -> None:
    root = ET.fromstring(junit_xml(OUTCOMES, NOW))
    first, second = root.findall("testsuite")
    assert [suite.attrib["name"] for suite in (first, second)] == ["tier 1", "tier 2"]
    told = {name: first.attrib[name] for name in ("tests", "failures", "errors", "skipped", "time")}
    assert told == {"tests": "3", "failures": "1", "errors": "1", "skipped": "0", "time": "4.500"}
    assert second.attrib["skipped"] == "1"
    assert len(first.findall("testcase")) == 3


def test_what_a_case_says() -> None:
    root = ET.fromstring(junit_xml(OUTCOMES, NOW))
    good, differs, broke, skipped = root.iter("testcase")
    assert list(good) == []
    assert good.attrib["classname"] == "circuitfind.tier1.ioi"
    assert differs.attrib["name"] == "capitals on <gpt2> & more"
    (failure,) = differs
    assert failure.attrib == {"message": 'lost a0.h0->a1.h1<k> "x"', "type": "edges"}
    assert failure.text is not None
    assert "  - a0.h0->a1.h1<k>  0, was 1\n" in failure.text
    assert "too low \N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}" in failure.text
    (error,) = broke
    assert error.attrib == {"message": "KeyError: 'x'", "type": "KeyError"}
    assert error.text == "Traceback\n  KeyError: 'x'"
    (left,) = skipped
    assert left.attrib == {"message": "the hub did not give it"}


@pytest.mark.parametrize(
    ("chosen", "code", "strict"),
    [([0], 0, 0), ([0, 3], 0, 1), ([0, 1], 1, 1), ([3, 1], 1, 1), ([0, 1, 2], 3, 3), ([], 0, 0)],
)
def test_exit_codes(chosen: list[int], code: int, strict: int) -> None:
    some = [OUTCOMES[i] for i in chosen]
    assert exit_code(some) == code
    assert exit_code(some, strict=True) == strict
    assert sum(counts(some).values()) == len(some)


def test_a_case_without_a_baseline_is_not_compared() -> None:
    new = outcome("ioi", "as expected")
    assert exit_code([new]) == 0
    assert exit_code([new], strict=True) == 1
