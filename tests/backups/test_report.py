"""The JSON form of a report: there and back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from circuitfind.backups.report import BackupReport
from circuitfind.errors import UsageError
from tests import families
from tests.backups.cases import found


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def as_json(report: BackupReport) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    return data


@pytest.mark.parametrize(
    ("name", "backups"), [("second-order", None), ("ioi-redundant", 0), ("relief", None), ("ln-repair", None)]
)
def test_a_report_survives_json(name: str, backups: int | None) -> None:
    report = found(name, 0, backups)
    assert report.findings
    again = BackupReport.from_dict(as_json(report))
    assert again == report
    assert again.as_dict() == report.as_dict()
    assert [f.share for f in again.findings] == [f.share for f in report.findings]
    assert again.backups == report.backups


def drop(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.pop(key)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data.update({key: value})


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another format": put("format", "circuitfind.circuit"),
    "no format": drop("format"),
    "another version": put("version", 999),
    "no version": drop("version"),
    **{
        f"no {key}": drop(key)
        for key in ("readers", "seeds", "sets", "findings", "groups", "scores", "cost", "conditions", "notes")
    },
    "no list of findings": put("findings", 3),
    "findings that are none": put("findings", ["a0.h0"]),
    "seeds that are a list": put("seeds", []),
    "sets that are none": put("sets", [None]),
    "an estimate that is a number": lambda data: data["findings"][0].update(direct=0.5),
    "an estimate without a bound": lambda data: data["findings"][0]["direct"].pop("low"),
    "a finding with too much": lambda data: data["findings"][0].update(more=1),
    "a finding without a class": lambda data: data["findings"][0].pop("kind"),
    "evidence without a freeze": lambda data: data["findings"][0]["evidence"][0].pop("freeze"),
    "an account without a gap": lambda data: data["sets"][0]["accounts"][0].pop("gap"),
    "a group without backups": lambda data: data["groups"][0].pop("backups"),
}


@pytest.mark.parametrize("change", list(BROKEN.values()), ids=list(BROKEN))
def test_what_is_broken_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    data = as_json(found("second-order", 0))
    assert data["groups"]
    change(data)
    with pytest.raises(UsageError) as caught:
        BackupReport.from_dict(data, where="backups.json")
    assert caught.value.where == "backups.json"
    later = data.get("version") == 999
    assert ("update circuitfind" if later else "circuitfind backups") in caught.value.hint
