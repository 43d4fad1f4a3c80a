"""Pages: nothing in the data is markup or code, and nothing but their own scripts runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from circuitfind.output.report.page import ASSETS, json_text, page
from tests.browser import opened

EVIL = "</script><script>window.hacked=1</script><!--\u2028\u2029&lt;]]>"


def data_of(text: str) -> Any:
    """What a page carries."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


@pytest.mark.parametrize("text", [EVIL, "a\ud800b", "\x00\x1f", "é漢🙂", "\\u003c"])
def test_data_come_back_as_they_were(text: str) -> None:
    written = json_text({"text": text, text: [1, {"deep": text}]})
    assert not set("<>&\u2028\u2029") & set(written)
    written.encode("utf-8")
    assert json.loads(written) == {"text": text, text: [1, {"deep": text}]}


def test_numbers_that_json_does_not_have_are_null() -> None:
    found = json.loads(json_text({"a": [float("nan"), float("inf"), 1.5], "b": (True, None)}))
    assert found == {"a": [None, None, 1.5], "b": [True, None]}


def test_a_page_stands_alone() -> None:
    text = page(EVIL, {"title": EVIL, "missing": {}}, ["tables.js"])
    assert data_of(text)["title"] == EVIL
    assert not re.search(r'(src|href)="', text.partition("<script")[0])
    for name in (path.name for path in ASSETS.glob("*.js")):
        source = (ASSETS / name).read_text(encoding="utf-8")
        assert "innerHTML" not in source, name
        assert "document.write" not in source, name
        assert "</script" not in source, name
        assert len(source.splitlines()) <= 400, name
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", source), name


def test_only_its_own_scripts_run(browser: Any, tmp_path: Path) -> None:
    text = page("a page", {"missing": {}}, [])
    path = tmp_path / "page.html"
    path.write_text(
        text.replace("<main>", "<main><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>")
    )
    with opened(browser, path) as found:
        assert found.page.evaluate("window.hacked") is None
        assert any("Content Security Policy" in one for one in found.complaints)


def test_a_section_that_fails_leaves_the_others(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    data = {
        "verdict": {"broken": True},
        "manifest": {"name": "run", "stages": {}},
        "missing": {"prompts": "none were drawn"},
    }
    path.write_text(page("a page", data, ["tables.js", "verdict.js", "prompts.js", "manifest.js"]))
    with opened(browser, path) as found:
        assert "could not be drawn" in found.text("#verdict")
        assert "none were drawn" in found.text("#prompts")
        assert "Configuration" in found.text("#manifest")
        assert len(found.complaints) == 1


TABLE = {
    "metric": "logit-diff",
    "total": 3,
    "columns": ["pair", "clean", "right", "clean_metric", "outlier"],
    "rows": [
        [0, "=SUM(1)", True, 2.5, None],
        [1, 'say "a, b"', False, -10.0, None],
        [2, "c", True, 9.0, "far off"],
    ],
    "partial": None,
}


def test_tables_sort_filter_and_download(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page("a page", {"prompts": TABLE, "missing": {}}, ["tables.js", "prompts.js"]))

    def first_column() -> list[str]:
        return [str(text) for text in shown.locator("tbody tr td:first-child").all_inner_texts()]

    with opened(browser, path) as found:
        shown = found.page.locator("#prompts")
        assert first_column() == ["0", "1", "2"]
        assert shown.locator("tr.wrong").count() == shown.locator("tr.outlier").count() == 1
        head = shown.locator("th button", has_text="clean").nth(1)
        head.click()
        assert first_column() == ["2", "0", "1"]
        assert shown.locator("th[aria-sort=descending]").count() == 1
        head.click()
        assert first_column() == ["1", "0", "2"]
        shown.locator("input[type=search]").fill("SAY")
        assert first_column() == ["1"]
        shown.locator("input[type=search]").fill("")
        shown.locator("button", has_text="outliers (1)").click()
        assert first_column() == ["2"]
        shown.locator("button", has_text="outliers (1)").click()
        with found.page.expect_download() as download:
            shown.locator("button", has_text="download CSV").click()
        lines = Path(download.value.path()).read_bytes().decode("utf-8").split("\r\n")
        assert lines[0] == "pair,clean prompt,right,clean,outlier"
        assert lines[1:3] == ['1,"say ""a, b""",no,-10,', "0,'=SUM(1),yes,2.5,"]
        assert [request for request in found.requests if not request.startswith("blob:")] == []
        assert found.complaints == []
