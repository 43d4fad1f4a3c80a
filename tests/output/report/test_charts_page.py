"""The charts in a real browser: values on hover and focus, keys, clicks, and tokens that are only text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.output.figures.patterns import matrix
from circuitfind.output.report.page import page
from tests.browser import Opened, opened
from tests.output.report.chart_data import NASTY, NOISING, sections

SCRIPTS = ("heatmap.js", "curves.js", "patterns.js", "backups.js", "units.js")


@pytest.fixture(scope="module")
def shown(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """All charts on one page; at the end nothing may have been complained of or loaded."""
    path = tmp_path_factory.mktemp("charts") / "page.html"
    path.write_text(page("charts", sections(), SCRIPTS), encoding="utf-8")
    with opened(browser, path) as found:
        yield found
        found.fine()
        assert found.page.evaluate("window.hacked") is None


def tip(found: Opened) -> str:
    return found.text("#cf-tip")


def focus(found: Opened, selector: str) -> None:
    """As the keyboard does."""
    found.page.keyboard.press("Shift")
    found.page.locator(selector).first.evaluate("(e) => e.focus({ focusVisible: true })")


def noising(node: str) -> str:
    return f'#heatmap [data-panel=noising] td[data-node="{node}"]'


def test_nothing_complains(shown: Opened) -> None:
    shown.fine()
    assert shown.page.locator("section.card:not(.empty)").count() == 5
    assert "could not be drawn" not in shown.text("main")


def test_heatmap_shows_the_value_on_hover_and_on_focus(shown: Opened) -> None:
    shown.page.hover(noising("a0.h1"))
    hovered = tip(shown)
    assert "a0.h1: −2.250 logit-diff" in hovered
    assert "[−2.500, −1.750]" in hovered
    assert "in the circuit" in hovered
    focus(shown, noising("a0.h0"))
    assert "a0.h0: +0.500 logit-diff" in tip(shown)
    assert "in the circuit" not in tip(shown)
    assert "holds zero" not in tip(shown)
    focus(shown, noising("a1.h1"))
    assert "which holds zero" in tip(shown)


def test_heatmap_keys_move_and_enter_selects(shown: Opened) -> None:
    focus(shown, noising("a0.h0"))
    keys, where = shown.page.keyboard, "document.activeElement.dataset.node"
    seen = []
    for key in ("ArrowRight", "ArrowDown", "End", "ArrowUp", "Home", "ArrowUp"):
        keys.press(key)
        seen.append(shown.page.evaluate(where))
    assert seen == ["a0.h1", "a1.h1", "m1", "m0", "a0.h0", "a0.h0"]
    keys.press("Enter")
    assert shown.page.evaluate("CF.selected") == "a0.h0"
    keys.press("Enter")
    assert shown.page.evaluate("CF.selected") is None
    assert shown.page.locator('#heatmap [data-panel=noising] td[tabindex="0"]').count() == 1


def test_a_click_selects_in_every_panel(shown: Opened) -> None:
    shown.page.click(noising("m1"))
    assert shown.page.evaluate("CF.selected") == "m1"
    marked = shown.page.locator("#heatmap td.selected")
    assert marked.count() == 2
    assert {marked.nth(i).get_attribute("data-node") for i in range(2)} == {"m1"}
    shown.page.click(noising("m1"))
    assert shown.page.locator("#heatmap td.selected").count() == 0


def test_marks_of_the_circuit_and_one_scale_for_all(shown: Opened) -> None:
    inside = shown.page.locator("#heatmap [data-panel=noising] td.inside")
    assert {inside.nth(i).get_attribute("data-node") for i in range(inside.count())} == {
        "a0.h1",
        "a1.h0",
        "m1",
    }
    colour = f"getComputedStyle(document.querySelector('{noising('a1.h0')}')).backgroundColor"
    direct = colour.replace("noising", "direct")
    assert shown.page.evaluate(colour) != shown.page.evaluate(direct)
    box = shown.page.locator("#heatmap input[type=checkbox]")
    box.uncheck()  # now 4 of 4 and 0.4 of 0.4 are the same
    assert shown.page.evaluate(colour) == shown.page.evaluate(direct)
    box.check()
    assert "Denoising: there are no corrupted prompts" in shown.text("#heatmap")
    others = shown.page.locator("#heatmap [data-panel=noising] .hm-others tr")
    assert [row.split() for row in others.all_inner_texts()] == [
        ["input", "+9.00", "[8.75,", "9.50]"],
        ["m1.n7", "+0.70", "[0.45,", "1.20]"],
    ]
    assert max(NOISING[1:]) == 4.0
    assert "+4.00" in shown.text("#heatmap .hm-scale >> nth=0")


def test_units_of_their_own_have_scales_of_their_own(browser: Any, tmp_path: Path) -> None:
    data = sections()
    data["heatmap"]["panels"][1]["metric"] = "prob-diff"
    path = tmp_path / "page.html"
    path.write_text(page("charts", data, SCRIPTS), encoding="utf-8")
    with opened(browser, path) as found:
        scales = found.page.locator("#heatmap .hm-scale").all_inner_texts()
        assert [" ".join(text.split()) for text in scales] == [
            "−4.00 +4.00 logit-diff",
            "−0.40 +0.40 prob-diff",
        ]
        assert "one scale for each unit" in found.text("#heatmap")


def test_curve_values_by_pointer_and_keys(shown: Opened) -> None:
    focus(shown, '#curve [data-asked="1"]')
    assert "the 1 strongest edge (0.05 % of all), 0 connected" in tip(shown)
    assert "faithfulness 0.000 [−0.050, 0.050]" in tip(shown)
    shown.page.keyboard.press("ArrowRight")
    assert "the 10 strongest edges (0.50 % of all), 7 connected" in tip(shown)
    assert "completeness 0.500 [0.450, 0.550]" in tip(shown)
    assert "random: mean 0.000, 95 % −0.100 to 0.100" in tip(shown)
    shown.page.keyboard.press("ArrowRight")
    assert "the circuit of this run\n17 edges (0.85 % of all)" in tip(shown)
    shown.page.keyboard.press("End")
    assert "2,000 strongest edges" in tip(shown)
    shown.page.locator('#curve [data-circuit="faithfulness"]').hover()
    assert "faithfulness 0.900 [0.850, 0.950]" in tip(shown)


def test_curve_lies_where_the_values_are(shown: Opened) -> None:
    """Heights of dots against the lines at 0 and 1, widths against the logarithm."""
    dots = shown.page.eval_on_selector_all(
        "#curve .dot-f", "(all) => all.map((d) => [d.cx.baseVal.value, d.cy.baseVal.value])"
    )
    zero, one = shown.page.eval_on_selector_all(
        "#curve .level", "(all) => all.map((d) => d.y1.baseVal.value)"
    )
    heights = [(zero - y) / (zero - one) for _, y in dots]
    assert np.allclose(heights, [0.0, 0.4, 1.1, 1.0], atol=1e-3)
    xs = np.array([x for x, _ in dots])
    assert np.allclose((xs - xs[0]) / (xs[-1] - xs[0]), np.log([1, 10, 100, 2000]) / np.log(2000), atol=1e-3)
    assert shown.page.locator("#curve svg .share").count() == 10


def test_curve_as_a_table(shown: Opened) -> None:
    shown.page.click("#curve summary")
    rows = shown.page.locator("#curve tbody tr")
    assert rows.count() == 5
    assert "0.400 [0.350, 0.450]" in rows.nth(1).inner_text()
    assert "this circuit" in rows.nth(4).inner_text()


def test_patterns_tell_the_weight_under_the_pointer(shown: Opened) -> None:
    weights = matrix(sections()["patterns"], 0, 0)
    box = shown.page.locator("#patterns .at .cell").nth(
        4
    )  # row by row: (0, 0), (1, 0), (1, 1), (2, 0), (2, 1)
    box.hover()
    assert shown.text("#patterns .at-weight") == f"{weights[2, 1]:.3f}"
    assert "$x_1$" in shown.text("#patterns .at-told")
    focus(shown, "#patterns svg.at")
    shown.page.keyboard.press("ArrowDown")
    assert shown.text("#patterns .at-weight") == f"{weights[3, 1]:.3f}"
    for _ in range(4):  # nothing is seen above the diagonal
        shown.page.keyboard.press("ArrowRight")
    assert shown.text("#patterns .at-weight") == f"{weights[3, 3]:.3f}"


def test_patterns_strip_is_the_row_of_the_answer(shown: Opened) -> None:
    data = sections()["patterns"]
    for head, name in enumerate(("a1.h0", "a0.h1")):
        cells = shown.page.locator(f'#patterns tr[data-head="{name}"] td')
        assert cells.count() == 6
        cells.nth(3).hover()
        assert tip(shown).endswith(f"at ·Mary (3): {matrix(data, head, 0)[-1, 3]:.3f}")
    assert "(<b>name mover</b>)" in shown.text('#patterns select[aria-label="head"]')


def test_tokens_are_only_text(shown: Opened) -> None:
    assert shown.page.locator("#patterns script, #units script, #patterns b").count() == 0
    labels = shown.page.locator("#patterns .at text").all_text_contents()
    assert NASTY[0][:13] + "…" in labels
    assert "</script>" in labels
    assert shown.page.locator("#patterns th.token").first.get_attribute("title") == f"{NASTY[0]} (0)"
    assert shown.page.locator("#patterns th.token").nth(2).text_content() == "⏎"
    assert shown.page.evaluate("window.hacked") is None


def test_a_head_of_the_chooser_is_selected_and_follows_the_selection(shown: Opened) -> None:
    weights = matrix(sections()["patterns"], 1, 0)
    shown.page.select_option('#patterns select[aria-label="head"]', label="a0.h1")
    assert shown.page.evaluate("CF.selected") == "a0.h1"
    shown.page.locator("#patterns .at .cell").nth(1).hover()
    assert shown.text("#patterns .at-weight") == f"{weights[1, 0]:.3f}"
    shown.page.evaluate("CF.select('a1.h0')")
    assert shown.text("#patterns tr.chosen th") == "a1.h0"


def test_a_long_prompt_stays_readable(shown: Opened) -> None:
    shown.page.select_option('#patterns select[aria-label="prompt"]', "2")
    cells = shown.page.locator("#patterns .at .cell")
    assert cells.count() == 60 * 61 // 2
    assert cells.first.bounding_box()["width"] >= 10
    assert float(shown.page.locator("#patterns .at text").nth(5).get_attribute("font-size")) >= 9
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shown.page.select_option('#patterns select[aria-label="prompt"]', "0")


def test_the_repair_bar_has_the_parts_at_scale(shown: Opened) -> None:
    widths = {}
    for part in ("lost", "heads", "mlps", "norm"):
        box = shown.page.locator(f"#backups [data-ablation=resample] [data-part={part}]").bounding_box()
        widths[part] = box["width"]
    # Of 4 that were lost directly: 2.5 really, 2 made up for by heads, 0.5 by the norm; MLPs made it worse by 1.
    for part, value in (("heads", 2.0), ("mlps", 1.0), ("norm", 0.5)):
        assert np.isclose(widths[part] / widths["lost"], value / 2.5, atol=0.02)
    focus(shown, "#backups [data-ablation=resample] [data-part=mlps]")
    assert "made it worse by 25.0 % of the lost direct effect (−1.000 logit-diff)" in tip(shown)
    assert "Under zero ablation nothing of the direct effect was lost" in shown.text("#backups")
    shown.page.select_option("#backups select", "1")
    assert shown.page.locator("#backups .rb").count() == 1
    shown.page.select_option("#backups select", "0")


def test_backups_table(shown: Opened) -> None:
    row = shown.page.locator('#backups tr[data-name="a1.h2"]')
    text = row.inner_text()
    assert all(part in text for part in ("25 % [23, 30]", "backup", "2 of 3: resample, mean"))
    row.locator("button", has_text="evidence").click()
    more = shown.text("#backup-0")
    assert "<b>takes over</b> half" in more
    assert "2.00 [1.90, 2.20]" in more
    row.locator("button", has_text="a1.h2").click()
    assert shown.page.evaluate("CF.selected") == "a1.h2"


def test_units_show_contexts_and_tokens(shown: Opened) -> None:
    first = shown.page.locator("#units details").first
    assert first.get_attribute("data-name") == "m1.n7"
    assert first.evaluate("(e) => e.open")
    text = first.inner_text()
    assert "<i>names</i>" in text
    assert NASTY[0] in text
    assert "+4.00" in text
    assert "Fires on 2.4 % of 500 tokens" in text
    assert first.locator("mark").all_text_contents() == [" Mary", "and"]
    second = shown.page.locator('#units details[data-name="m0.n3"]')
    second.locator("summary").click()
    second.get_by_text("+1.50").wait_for()  # it is filled when it has opened
    assert "m1.n9" in shown.text("#units > .body > p:last-child")


def test_narrow_and_dark(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page("charts", sections(), SCRIPTS), encoding="utf-8")
    with opened(browser, path, width=700, color_scheme="dark") as found:
        found.page.select_option('#patterns select[aria-label="prompt"]', "2")
        assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        found.fine()


def test_what_there_is_not_is_said(browser: Any, tmp_path: Path) -> None:
    names = ("heatmap", "curve", "patterns", "backups", "units")
    data = dict.fromkeys(names) | {"missing": {name: f"no {name} here" for name in names}}
    path = tmp_path / "page.html"
    path.write_text(page("nothing", data, SCRIPTS), encoding="utf-8")
    with opened(browser, path) as found:
        found.fine()
        assert all(f"no {name} here" in found.text(f"#{name}") for name in names)
