"""The page on scale: its pictures and tables are those of the points, and what was measured is never mixed with estimates."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ioi, scale_page
from benchmarks.scale import CURVES, Point, keep, read
from circuitfind.task.prompts import make_pairs

POINTS = [
    Point("prompts", "a CPU", "measured", 16, 2.0),
    Point("prompts", "a CPU", "measured", 64, 8.0),
    Point("prompts", "a CPU", "estimated", 64, 9.0),
    Point("prompts", "a CPU", "estimated", 4096, 580.0),
    Point("prompts", "a <GPU>", "measured", 64, 0.05),
]


def page_of(text: str = "") -> str:
    marks = (
        scale_page.MARK.format(c) + text + scale_page.MARK.format(f"end of {c}") for c in scale_page.AXES
    )
    return "by hand\n" + "\n".join(marks) + "\nby hand too\n"


def test_the_page_is_what_the_points_say() -> None:
    points = read()
    assert {p.curve for p in points} <= set(CURVES)
    assert {p.kind for p in points} == {"measured", "estimated"}
    text = scale_page.PAGE.read_text(encoding="utf-8")
    for path, wanted in scale_page.files(points, text).items():
        assert path.read_text(encoding="utf-8") == wanted, f"{path.name}: run python -m benchmarks.scale_page"


def test_measured_and_estimated_have_their_own_columns() -> None:
    rows = list(scale_page.table("prompts", POINTS))
    assert rows[0] == "| prompt pairs | machine | measured | estimated |"
    assert "| 64 | a CPU | 8 s | 9 s |" in rows
    assert "| 4,096 | a CPU |  | 580 s |" in rows
    assert "| 64 | a <GPU> | 0.05 s |  |" in rows
    assert len(rows) == 2 + 4


def test_a_picture_draws_every_point_once_and_says_what_each_line_is() -> None:
    root = ET.fromstring(scale_page.picture("prompts", POINTS))
    kinds = Counter(node.tag.rpartition("}")[2] for node in root.iter())
    assert kinds["polyline"] == 3
    assert kinds["circle"] == len(POINTS) + 3, "one for each point, one for each line of the legend"
    dashed = [
        node for node in root.iter() if node.tag.endswith("polyline") and "stroke-dasharray" in node.attrib
    ]
    assert len(dashed) == 1
    words = [node.text for node in root.iter() if node.tag.endswith("text")]
    assert {"measured: a CPU", "estimated: a CPU", "measured: a <GPU>", "seconds"} <= set(words)
    width, height = (float(root.attrib[key]) for key in ("width", "height"))
    for node in root.iter():
        if node.tag.endswith("circle"):
            assert 0 < float(node.attrib["cx"]) < width
            assert 0 < float(node.attrib["cy"]) < height


def test_what_is_written_by_hand_stays_and_nothing_measured_is_said() -> None:
    text = scale_page.page(page_of("old table\n"), [])
    assert text.startswith("by hand\n")
    assert text.endswith("\nby hand too\n")
    assert "old table" not in text
    assert text.count("not measured yet") == len(scale_page.AXES)
    assert scale_page.page(text, []) == text
    assert "images/scale-prompts.svg" in scale_page.page(text, POINTS)


def test_points_by_the_clock_on_a_busy_machine_are_not_taken_at_their_word() -> None:
    busy = [
        Point("workers", "a CPU", "measured", n, 9.0, label="ray", day="2026-01-02", load=20.0)
        for n in (1, 2)
    ]
    assert "at a load of 20.0 to 20.0" in scale_page.said(busy)
    assert "not what workers are worth" in scale_page.said(busy)
    assert "worth" not in scale_page.said([replace(point, load=1.0) for point in busy])
    assert "worth" not in scale_page.said([replace(point, curve="size") for point in busy]), "CPU time"


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(SystemExit, match="no place for prompts"):
        scale_page.page("nothing", POINTS)


def test_points_of_the_same_curve_and_machine_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    keep(POINTS, path)
    keep([replace(POINTS[0], seconds=1.0)], path)
    found = read(path)
    assert [p.seconds for p in found if p.machine == "a CPU"] == [1.0]
    assert [p.seconds for p in found if p.machine == "a <GPU>"] == [0.05], "another machine's stay"


def test_the_stand_in_has_a_word_for_every_prompt_of_the_task() -> None:
    """And its names come first, since they are the tokens that its heads read."""
    spec, real = ioi.task_in_words(), ioi.task()
    assert spec.vocab is not None
    names = ioi.slot_values(real, "A")
    assert tuple(spec.vocab[: len(names)]) == names
    assert len(set(spec.vocab)) == len(spec.vocab)
    pairs = make_pairs(spec, None, count=60, n_vocab=len(spec.vocab))
    assert len(pairs) == 60
    assert not pairs.dropped
    for pair in pairs:
        assert set(pair.answer) | set(pair.wrong) <= set(range(len(names)))
        assert pair.clean.count(pair.wrong[0]) == 2
        assert pair.clean.count(pair.answer[0]) == 1
