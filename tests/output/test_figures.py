"""Figures for papers: they hold the numbers of the run, open in other programs, and are the same bytes every time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import colors, image

from circuitfind.cli import run as command
from circuitfind.errors import RunError, UsageError
from circuitfind.output.figures import FIGURES, WIDTHS, draw_figures, figure_of, file_of, wanted
from circuitfind.output.figures.heatmap import values_of
from circuitfind.output.figures.patterns import chosen, matrix
from circuitfind.output.figures.style import seen
from circuitfind.output.store import Run, Store
from tests.finished import QuickRun
from tests.output.report.chart_data import NASTY, report, sections, views

CHARTS = tuple(name for name in FIGURES if name != "circuit")


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return sections()


def drawn(name: str, data: dict[str, Any], width: str = "page", **more: str) -> Any:
    """The figure, of which matplotlib's stubs know too little."""
    return figure_of(name, data, width, **more)  # type: ignore[arg-type]


# What they hold.


def test_heatmap_cells_have_the_values(data: dict[str, Any]) -> None:
    figure = drawn("heatmap", data)
    first, second, bar = figure.axes
    for axes, panel in zip((first, second), data["heatmap"]["panels"], strict=True):
        heads, mlps = axes.collections
        expected = {cell["node"]: cell["value"] for cell in panel["cells"]}
        assert heads.get_array().tolist() == [
            [expected[f"a{layer}.h{head}"] for head in range(3)] for layer in range(2)
        ]
        assert mlps.get_array().ravel().tolist() == [expected["m0"], expected["m1"]]
        assert (heads.norm.vmin, heads.norm.vmax) == (-4.0, 4.0)  # centred at zero, one scale for all
        assert [patch.get_xy() for patch in axes.patches] == [(1.05, 0.05), (0.05, 1.05), (3.55, 1.05)]
        assert axes.get_ylim() == (2, 0)  # the first layer on top
        assert axes.get_title(loc="left") == panel["title"]
    assert bar.get_xlabel() == "effect on logit-diff"
    middle = heads.cmap(0.5)
    assert all(channel > 0.99 for channel in middle)
    assert colors.to_hex(heads.cmap(1.0)) == "#0072b2"


@pytest.mark.parametrize("width", ["column", "page"])
def test_heatmaps_of_another_unit_have_their_own_scale(width: str, data: dict[str, Any]) -> None:
    first, second = data["heatmap"]["panels"]
    mixed = {**data["heatmap"], "panels": [first, {**second, "metric": "prob-diff"}]}
    figure = drawn("heatmap", {"heatmap": mixed}, width)
    one, two, *bars = figure.axes
    assert one.collections[0].norm.vmax == 4.0
    assert two.collections[0].norm.vmax == 0.4
    assert [bar.get_xlabel() for bar in bars] == ["effect on logit-diff", "effect on prob-diff"]


def test_what_was_not_measured_stays_blank() -> None:
    panel = {"cells": [{"node": "a0.h0", "layer": 0, "column": 0, "value": 1.0}]}
    values = values_of(panel, 1, 2)
    assert values[0, 0] == 1.0
    assert np.isnan(values[0, 1:]).all()


def test_curve_has_the_points_the_bands_and_the_circuit(data: dict[str, Any]) -> None:
    (axes,) = drawn("curve", data).axes
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    edges = [1.0, 10.0, 100.0, 2000.0]
    assert lines["faithfulness"].tolist() == [list(p) for p in zip(edges, [0.0, 0.4, 1.1, 1.0], strict=True)]
    assert lines["completeness"].tolist() == [
        list(p) for p in zip(edges, [1.0, 0.5, -0.05, 0.0], strict=True)
    ]
    assert lines["20 random rankings"][:, 1].tolist() == [0.0, 0.0, 0.01, 1.0]
    assert axes.get_xscale() == "log"
    circuit = {c.get_label(): c for c in axes.containers}["this circuit"]
    (point,) = circuit.lines[0].get_xydata().tolist()
    (interval,) = circuit.lines[2][0].get_segments()
    assert point == [17.0, 0.9]
    assert np.allclose(interval, [[17, 0.85], [17, 0.95]])
    bands = [found.get_paths()[0].vertices[:, 1] for found in axes.collections[:3]]
    assert np.isclose(bands[0].max(), 1.0)  # chance
    assert np.isclose(bands[0].min(), -0.1)
    assert np.isclose(bands[2].max(), 1.15)  # faithfulness
    above = axes.child_axes[0]
    assert [t.get_text() for t in above.get_xticklabels()][:3] == ["0.1 %", "0.2 %", "0.5 %"]


def test_curve_without_chance_or_bounds() -> None:
    from circuitfind.output.report import charts

    found = views()
    found["curve"]["random"] = None
    found["curve"]["faithfulness"][0].update(low=None, high=None)
    (axes,) = drawn("curve", {"curve": charts.curve(found)}).axes
    assert len(axes.collections) == 4  # two bands, two intervals
    assert "random" not in " ".join(str(line.get_label()) for line in axes.get_lines())


def test_patterns_are_the_weights(data: dict[str, Any]) -> None:
    axes = drawn("patterns", data).axes
    for head in range(2):
        shown = axes[head].images[0].get_array()
        expected = matrix(data["patterns"], head, 0)
        assert np.array_equal(shown.filled(-1), np.where(np.tri(6, dtype=bool), expected, -1))
    labels = [t.get_text() for t in axes[0].get_yticklabels()]
    assert labels == [seen(token, 12) for token in NASTY]
    assert "$x_1$" in labels
    assert axes[0].get_title(loc="left") == "a1.h0 (<b>name mover</b>)"


def test_of_many_tokens_some_are_named(data: dict[str, Any]) -> None:
    long = {
        "prompts": [data["patterns"]["prompts"][2]],
        "heads": [{**h, "data": [h["data"][2]]} for h in data["patterns"]["heads"]] * 4,
    }
    for width, most in (("column", 4), ("page", 6)):
        figure = drawn("patterns", {"patterns": long}, width)
        shown = [axes for axes in figure.axes if axes.images]
        assert len(shown) == most
        ticks = shown[0].get_yticks().tolist()
        assert ticks[-1] == 59  # the answer's position is always named
        assert len(ticks) < 60
        assert shown[0].get_yticklabels()[0].get_fontsize() >= 3.5


def test_heads_and_prompts_can_be_chosen(data: dict[str, Any]) -> None:
    found = chosen(data["patterns"], ("L0H1",), 2)
    assert [head["name"] for head in found["heads"]] == ["a0.h1"]
    assert np.array_equal(matrix(found, 0, 0), matrix(data["patterns"], 1, 1))
    assert found["prompts"] == [data["patterns"]["prompts"][1]]
    assert len(chosen(data["patterns"])["heads"]) == 2
    with pytest.raises(UsageError, match=r"no attention of a0\.h2 is kept") as error:
        chosen(data["patterns"], ("0.2",))
    assert "a0.h1" in error.value.hint
    with pytest.raises(UsageError, match="there is no prompt 4") as error:
        chosen(data["patterns"], (), 4)
    assert error.value.details[2] == "3: pair 3, clean (worst)"


def test_repair_bars_are_the_accounts(data: dict[str, Any]) -> None:
    (axes,) = drawn("repair", data).axes
    bars = [
        (round(p.get_x(), 6), round(p.get_width(), 6), round(p.get_y() + p.get_height() / 2))
        for p in axes.patches
    ]
    # Resample: of 4 lost directly 2.5 really, 2 made up for by heads, 0.5 by the norm, and -1 by MLPs.
    assert bars == [
        (0.0, 0.625, 0), (0.625, 0.5, 0), (0.0, -0.25, 0), (1.125, 0.125, 0),
        (0.0, 0.5, 1), (0.5, 0.25, 1), (0.75, 0.25, 1),
    ]  # fmt: skip
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "resample",
        "mean",
    ]  # nothing was lost under zero


def test_backups_have_share_and_interval(data: dict[str, Any]) -> None:
    (axes,) = drawn("backups", data).axes
    (line,) = [found for found in axes.get_lines() if found.get_label() == "backup"]
    assert line.get_xydata().tolist() == [[0.25, 0.0]]
    (interval,) = axes.collections[0].get_segments()
    assert np.allclose(interval[:, 0], [0.9 / 4, 1.2 / 4])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a1.h2 for a1.h0 + a1.h1"]


def test_units_have_their_tokens(data: dict[str, Any]) -> None:
    first, _ = drawn("units", data).axes
    assert [patch.get_width() for patch in first.patches] == [1.5, 0.5, -0.75]
    assert [t.get_text() for t in first.get_yticklabels()] == ["<script>windo…", "·the", "·a"]
    assert first.get_title(loc="left") == "m1.n7 <i>names</i>"


def test_titles_are_off_unless_asked_for(data: dict[str, Any]) -> None:
    plain = drawn("curve", data, "column")
    assert plain.get_suptitle() == ""
    assert plain.get_figwidth() == WIDTHS["column"]
    titled = drawn("curve", data, "column", title="Faithfulness of a circuit that has a long name indeed")
    assert titled.get_suptitle().count("\n") == 1
    assert titled.get_figheight() > plain.get_figheight()


# Files.


def pages_of(data: bytes) -> int:
    """Pages of a PDF, after the whole of it was walked: its cross references and its streams."""
    assert data.startswith(b"%PDF-1.")
    assert data.rstrip().endswith(b"%%EOF")
    (start,) = re.findall(rb"startxref\s+(\d+)", data)
    assert data[int(start) :].startswith(b"xref")
    for found in re.finditer(rb"/FlateDecode[^>]*>>\s*stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL):
        zlib.decompress(found[1])
    return len(re.findall(rb"/Type\s*/Page\b", data))


@pytest.mark.parametrize("name", CHARTS)
def test_files_open(name: str, data: dict[str, Any], tmp_path: Path) -> None:
    forms = ("pdf", "svg", "png") if name == "repair" else ("pdf", "svg")
    figure = drawn(name, data, "column")
    made = {form: file_of(figure, form) for form in forms}
    assert pages_of(made["pdf"]) == 1
    assert b"/Type0" in made["pdf"]  # TrueType fonts are in it, not outlines of type 3
    assert b"/Type3" not in made["pdf"]
    assert b"CreationDate" not in made["pdf"]
    root = ElementTree.fromstring(made["svg"])
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert b"<dc:date>" not in made["svg"]
    if "png" in made:
        path = tmp_path / "figure.png"
        path.write_bytes(made["png"])
        pixels = image.imread(path)
        assert abs(pixels.shape[1] - 300 * WIDTHS["column"]) <= 1
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


@pytest.mark.parametrize("form", ["pdf", "svg", "png"])
def test_files_are_the_same_every_time(form: str, data: dict[str, Any]) -> None:
    first, second = (file_of(drawn("backups", data, "column"), form) for _ in range(2))
    assert first == second


def test_figures_do_not_depend_on_settings_nor_change_them(data: dict[str, Any]) -> None:
    import matplotlib as mpl

    expected = file_of(drawn("curve", data), "svg")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "another"}):
        found = file_of(drawn("curve", data), "svg")
        assert mpl.rcParams["font.size"] == 30
    assert found == expected


# Names.


def test_names_of_figures() -> None:
    assert wanted(None) == tuple(FIGURES)
    assert wanted(" curve,heatmap ") == ("heatmap", "curve")
    with pytest.raises(UsageError, match="there is no figure 'heatmp'") as error:
        wanted("curve,heatmp")
    assert error.value.hint == "did you mean 'heatmap'?"
    with pytest.raises(UsageError, match="no figure is named"):
        wanted(" , ")
    with pytest.raises(UsageError, match="there is no chart 'circuit'"):
        drawn("circuit", {})


def test_what_cannot_be_drawn_says_why() -> None:
    data: dict[str, Any] = {"heatmap": None, "missing": {"heatmap": "no views"}}
    with pytest.raises(RunError, match="nothing to draw for 'heatmap': no views"):
        drawn("heatmap", data)
    with pytest.raises(RunError, match="the run holds nothing of the kind"):
        drawn("curve", data)
    with pytest.raises(RunError, match="circuitfind name"):
        drawn("units", {"units": {"nodes": [], "unnamed": [{"name": "m1.n7"}]}})
    from dataclasses import replace

    from circuitfind.output.report import charts

    nothing = charts.backups(replace(report(), findings=report().findings[1:], sets=()))
    with pytest.raises(RunError, match="nothing took over anything"):
        drawn("backups", {"backups": nothing})
    with pytest.raises(RunError, match="no set that was removed"):
        drawn("repair", {"backups": nothing})


# Of a run.


@pytest.fixture(scope="module")
def found(quick_run: QuickRun, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with views and without a search for backups."""
    folder = quick_run(tmp_path_factory.mktemp("figures"))
    return Store(folder.parent).find(str(folder))


def test_every_figure_of_a_run_or_the_reason(found: Run, tmp_path: Path) -> None:
    made, left_out = draw_figures(found, tmp_path, formats=("svg",), width="column")
    assert [one.name for one in made] == ["circuit", "heatmap", "curve", "patterns"]
    why = {one.name: one.why for one in left_out}
    assert list(why) == ["backups", "repair", "units"]
    assert "not been searched for backups" in why["backups"]
    assert "no neurons or features" in why["units"]
    for one in made:
        assert one.files == (tmp_path / f"{one.name}.svg",)
        assert ElementTree.fromstring(one.files[0].read_bytes()).tag.endswith("svg")


def test_the_circuit_is_the_same_every_time(found: Run, tmp_path: Path) -> None:
    made = []
    for place in ("one", "two"):
        (one,), _ = draw_figures(found, tmp_path / place, names=("circuit",))
        made.append(one.files[0].read_bytes())
        time.sleep(1.1 if place == "one" else 0)  # a date in it would be another
    assert made[0] == made[1]
    assert pages_of(made[0]) == 1


def test_the_command(found: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["figures", str(found.path), "--only", "curve,units", "--format", "png", "--out", str(tmp_path)]
    assert command([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["figures"]] == ["curve"]
    assert [one["name"] for one in told["not_drawn"]] == ["units"]
    assert Path(told["figures"][0]["files"][0]) == tmp_path / "curve.png"
    assert command(words) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "curve.png")
    assert "no figure 'units'" in captured.err
    assert command(["figures", str(found.path), "--only", "units"]) == 3
    assert "units: " in capsys.readouterr().err
    assert command(["figures", str(found.path), "--only", "heatmpa"]) == 2
    assert "did you mean 'heatmap'?" in capsys.readouterr().err
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert command(["figures", str(found.path), "--only", "curve", "--out", str(blocked)]) in (2, 3)
    assert "error: " in capsys.readouterr().err


def test_figures_need_no_torch(found: Run, tmp_path: Path) -> None:
    code = (
        "import sys; from circuitfind.cli import run; "
        f"code = run(['figures', {str(found.path)!r}, '--only', 'curve', '--out', {str(tmp_path)!r}]); "
        "assert code == 0 and 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
