"""docs/security.md names tests that are there, and every test of this folder stands in it."""

from __future__ import annotations

import re
from pathlib import Path

from circuitfind.cli.config_limits import NEVER_BY_FILE

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")


def test_the_tests_of_the_page_are_there() -> None:
    named = set(re.findall(r"`((?:tests/[\w/]+/)?test_\w+\.py)`", PAGE))
    assert len(named) > 10
    for name in named:
        path = REPOSITORY / name if "/" in name else Path(__file__).parent / name
        assert path.is_file(), name
    mine = {path.name for path in Path(__file__).parent.glob("test_*.py")} - {Path(__file__).name}
    assert mine <= named


def test_every_promise_has_its_test() -> None:
    table = PAGE.partition("| --- | --- | --- |\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) > 10
    for row in table:
        promise, how, held = row.strip("|").split(" | ")
        assert promise.strip()
        assert how.strip()
        assert "test_" in held, promise


def test_what_no_file_sets_is_told() -> None:
    for option in NEVER_BY_FILE:
        assert f"`{option}`" in PAGE
