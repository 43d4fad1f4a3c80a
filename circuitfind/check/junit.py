"""JUnit XML of a check, as CI servers read it: a test suite for each tier, a test case for each case."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from xml.etree import ElementTree as ET

import circuitfind
from circuitfind.check.outcome import Outcome, counts

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(outcomes: Sequence[Outcome], started: datetime) -> str:
    """The document; attributes and elements are those that the schemas of Jenkins and Ant share."""
    root = ET.Element("testsuites", {"name": "circuitfind check", **_numbers(outcomes)})
    for number, tier in enumerate(sorted({one.tier for one in outcomes})):
        suite = _suite([one for one in outcomes if one.tier == tier], tier, number, started)
        root.append(suite)
    ET.indent(root, " ")
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _numbers(outcomes: Sequence[Outcome]) -> dict[str, str]:
    found = counts(outcomes)
    return {
        "tests": str(len(outcomes)),
        "failures": str(found["differs"]),
        "errors": str(found["error"]),
        "time": _seconds(sum(one.seconds for one in outcomes)),
    }


def _suite(outcomes: Sequence[Outcome], tier: int, number: int, started: datetime) -> ET.Element:
    suite = ET.Element(
        "testsuite",
        {
            "name": f"tier {tier}",
            "id": str(number),
            **_numbers(outcomes),
            "skipped": str(counts(outcomes)["skipped"]),
            "timestamp": started.replace(microsecond=0, tzinfo=None).isoformat(),
        },
    )
    properties = ET.SubElement(suite, "properties")
    ET.SubElement(properties, "property", {"name": "circuitfind", "value": circuitfind.__version__})
    for one in outcomes:
        suite.append(_case(one))
    return suite


def _case(outcome: Outcome) -> ET.Element:
    case = ET.Element(
        "testcase",
        {
            "classname": f"circuitfind.tier{outcome.tier}.{outcome.task}",
            "name": _clean(outcome.label),
            "time": _seconds(outcome.seconds),
        },
    )
    message = _clean(outcome.first_reason or "")
    if outcome.verdict == "differs":
        failure = ET.SubElement(case, "failure", {"message": message, "type": outcome.reasons[0].kind})
        failure.text = _clean("\n".join(told(outcome)))
    elif outcome.verdict == "error":
        broken = ET.SubElement(case, "error", {"message": message, "type": message.partition(":")[0]})
        broken.text = _clean(outcome.trace or message)
    elif outcome.verdict == "skipped":
        ET.SubElement(case, "skipped", {"message": message})
    return case


def told(outcome: Outcome) -> list[str]:
    """Every reason with its lines."""
    found = []
    for reason in outcome.reasons:
        found += [reason.text, *(f"  {line}" for line in reason.lines)]
    return found


def _clean(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _seconds(value: float) -> str:
    return f"{value:.3f}"
