"""The index of a folder of runs, and the page of a sweep: what they say, in text and in a browser."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from circuitfind.cli import run as run_command
from circuitfind.output.report.index import index_page, write_index
from circuitfind.output.report.serve import INDEX, Server, Shelf
from circuitfind.output.report.sweep import sweep_page
from circuitfind.output.store import Store
from circuitfind.summary import stored
from tests.browser import opened
from tests.sweeps import Swept, said

EVIL = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>'


def rows_of(page: str, section: str) -> Any:
    """The data of a section."""
    text = page.split('id="data">')[1].split("</script>")[0]
    return json.loads(text)[section]


@pytest.fixture
def outputs(swept: Swept, tmp_path: Path) -> Path:
    """The runs of the sweep, and some that are damaged."""
    folder = tmp_path / "outputs"
    shutil.copytree(swept.outputs, folder)
    first, second, third, _ = swept.runs
    for name in ("no-manifest", "cut", "half"):
        shutil.copytree(folder / first, folder / name)
    (folder / "no-manifest" / "manifest.json").write_text("{", encoding="utf-8")
    (folder / "cut" / "circuit.json").write_text("{", encoding="utf-8")
    (folder / "half" / "scores.npz").unlink()
    manifest = json.loads((folder / second / "manifest.json").read_text(encoding="utf-8"))
    manifest |= {"task": EVIL, "status": "interrupted"}
    del manifest["stages"]["circuit"], manifest["stages"]["scores"]
    (folder / second / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / third / "report.html").unlink(missing_ok=True)
    return folder


def test_what_a_row_says_is_what_the_run_says(swept: Swept) -> None:
    store = Store(swept.outputs)
    rows = {row["name"]: row for row in rows_of(index_page(store), "runs")}
    assert len(rows) == 5
    for name in swept.runs:
        found, row = stored(store.find(name)), rows[name]
        evaluation = found.circuit.evaluations[0]
        assert row["status"] == "finished"
        assert (row["task"], row["model"]) == (found.circuit.conditions.task, found.circuit.conditions.model)
        assert row["method"] == found.circuit.conditions.method
        assert (row["edges"], row["nodes"]) == (len(found.circuit.edges), found.summary["counts"]["nodes"])
        assert row["faithfulness"]["value"] == pytest.approx(evaluation.faithfulness.value)
        assert row["faithfulness"]["low"] == pytest.approx(evaluation.faithfulness.low)
        assert row["certified"] is None
        assert len(row["thumbnail"]["edges"]) == len(found.circuit.edges)
        assert len(row["thumbnail"]["levels"]) == found.summary["counts"]["nodes"]
    refused = next(row for row in rows.values() if row["name"] not in swept.runs)
    assert (refused["status"], refused["link"]) == ("refused", None)
    assert "no tokenizer" in refused["problem"]
    (listed,) = rows_of(index_page(store), "sweeps")
    assert (listed["runs"], listed["counts"]["failed"]) == (5, 1)


def test_what_is_damaged_or_unfinished_is_said(outputs: Path, swept: Swept) -> None:
    rows = {row["name"]: row for row in rows_of(index_page(Store(outputs)), "runs")}
    assert len(rows) == 8, "nothing is hidden"
    for name, says in (
        ("no-manifest", "manifest"),
        ("cut", "cannot be read"),
        ("half", "scores.npz is missing"),
    ):
        assert rows[name]["status"] == "damaged"
        assert says in rows[name]["problem"]
        assert rows[name]["link"] is None
    broken = rows[swept.runs[1]]
    assert (broken["status"], broken["task"]) == ("interrupted", EVIL)
    assert rows[swept.runs[2]]["link"] is None, "it has no report"
    served = {row["name"]: row["link"] for row in rows_of(index_page(Store(outputs), served=True), "runs")}
    assert served[swept.runs[2]] == f"{swept.runs[2]}/report.html", "it is written when it is asked for"
    assert served["half"] is None
    if not (outputs / swept.runs[1] / "report.html").is_file():
        assert served[swept.runs[1]] is None


def test_a_damaged_sweep_is_listed(outputs: Path) -> None:
    (file,) = outputs.glob("sweep-*/sweep.json")
    file.write_text('{"name": 1}', encoding="utf-8")
    (row,) = rows_of(index_page(Store(outputs)), "sweeps")
    assert row["problem"].startswith("damaged")


def test_an_empty_folder(tmp_path: Path) -> None:
    page = index_page(Store(tmp_path))
    assert rows_of(page, "runs") is None
    assert "circuitfind discover ioi" in page


def test_the_command(swept: Swept, tmp_path: Path) -> None:
    shutil.copytree(swept.outputs, tmp_path / "outputs")
    made = said("report", "--index", "--outputs", tmp_path / "outputs", "--json").json
    assert (made["runs"], Path(made["index"]).name) == (5, "index.html")
    assert (tmp_path / "outputs" / "index.html").is_file()
    assert run_command(["report", "--index", "latest", "--outputs", str(tmp_path / "outputs"), "--json"]) == 2
    listed = said("list", "runs", "--outputs", tmp_path / "outputs", "--json").json
    assert len(listed["runs"]) == 5


def test_the_index_in_a_browser(browser: Any, outputs: Path, swept: Swept) -> None:
    with opened(browser, write_index(Store(outputs))) as found:
        page = found.page
        rows = page.locator("#runs tbody tr")
        assert rows.count() == 8
        text = found.text("#runs")
        assert EVIL in text, "as text"
        assert page.title().startswith("Runs in")
        for link in page.locator("a[href]").all():
            href = link.get_attribute("href")
            if not href.startswith("#"):
                assert (outputs / unquote(href)).is_file(), href
        # Sorted, filtered by a choice, by words, by a number.
        page.click("#runs th:has-text('edges') button")
        assert page.get_attribute("#runs th:has-text('edges')", "aria-sort") == "descending"
        page.select_option("#runs select[data-filter=status]", "damaged")
        assert sorted(rows.locator(".ix-name").all_inner_texts()) == ["cut", "half", "no-manifest"]
        page.select_option("#runs select[data-filter=status]", "")
        page.fill("#runs input[type=search]", "tokenizer")
        assert rows.count() == 1
        page.fill("#runs input[type=search]", "")
        page.fill("#runs input[data-filter=faithfulness]", "2")
        assert rows.count() == 0
        page.fill("#runs input[data-filter=faithfulness]", "0.5")
        assert rows.count() >= 3
        assert page.locator("#runs svg.thumb").count() >= 3
        found.fine()


def test_the_index_fits_a_laptop(browser: Any, outputs: Path) -> None:
    with opened(browser, write_index(Store(outputs)), color_scheme="dark") as found:
        wide = found.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0
        found.fine()


def test_the_page_of_a_sweep(browser: Any, swept: Swept) -> None:
    with opened(browser, swept.results / "sweep.html") as found:
        page = found.page
        rows = page.locator("#table tbody tr")
        assert rows.count() == 5
        assert "4 finished, 1 failed" in found.text("#about")
        assert "no tokenizer" in found.text("#table")
        assert page.locator("#faithfulness circle").count() == 4
        links = [a.get_attribute("href") for a in page.locator("#table a, #about a").all()]
        for href in links:
            assert (swept.results / unquote(href)).resolve().is_file(), href
        page.select_option("#table select[data-filter=method]", "eap")
        assert rows.count() == 2
        page.locator("#faithfulness circle").first.hover()
        assert "faithfulness" in found.text("#cf-tip")
        found.fine()


def test_pages_work_behind_the_server(browser: Any, outputs: Path, swept: Swept) -> None:
    from circuitfind.output.report.fresh import fresh_report

    store = Store(outputs)
    name = swept.runs[2]
    assert not (outputs / name / "report.html").is_file()

    def make(page: str) -> str | None:
        if page == INDEX:
            return index_page(store, served=True)
        fresh_report(store.find(page.rpartition("/")[0]))
        return None

    with Server(Shelf(outputs, runs=True, make=make), start=INDEX) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with opened(browser, server.url) as found:
                found.fine()
                page = found.page
                page.click(f"#runs a.ix-name:has-text('{name}')")
                page.wait_for_selector("html[data-ready=yes] #verdict")
                assert page.url.endswith(f"/{name}/report.html")
                page.go_back()
                page.click("#sweeps tbody a")
                page.wait_for_selector("html[data-ready=yes] #table")
                page.click("#table tbody a")
                page.wait_for_selector("html[data-ready=yes] #verdict")
                assert found.complaints == []
                origin = server.url.rpartition("/")[0]
                assert all(address.startswith(origin) for address in found.requests)
        finally:
            server.shutdown()
            thread.join()


def test_words_of_a_sweep_are_text(browser: Any, swept: Swept, tmp_path: Path) -> None:
    data = json.loads((swept.results / "sweep.json").read_text(encoding="utf-8"))
    data["name"] = data["command"] = data["cells"][0]["problem"] = data["cells"][0]["label"] = EVIL
    data["cells"][0]["told"]["task"] = data["same"]["backups"] = EVIL
    path = tmp_path / "sweep.html"
    path.write_text(sweep_page(data), encoding="utf-8")
    with opened(browser, path) as found:
        assert found.page.title() == f"{EVIL}: a sweep"
        assert found.text("#table").count(EVIL) >= 2
        found.fine()
