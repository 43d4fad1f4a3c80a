"""What the charts are given: as it was measured, in the order and with the reasons that they need."""

from __future__ import annotations

import base64
import math

import pytest

from circuitfind.circuit.curve import SHARES
from circuitfind.output.report import charts
from tests.output.report.chart_data import INSIDE, NODES, NOISING, names, report, views


def test_heatmap_cells_are_what_was_measured() -> None:
    data = charts.heatmap(views(), INSIDE)
    assert data is not None
    assert [panel["name"] for panel in data["panels"]] == ["noising", "direct"]
    noising, direct = data["panels"]
    cells = {cell["node"]: cell for cell in noising["cells"]}
    measured = dict(zip(NODES, NOISING, strict=True))
    assert {name: cell["value"] for name, cell in cells.items()} == {
        name: value for name, value in measured.items() if name not in ("input", "m1.n7")
    }
    assert all((c["low"], c["high"]) == (c["value"] - 0.25, c["value"] + 0.5) for c in cells.values())
    assert (cells["a1.h2"]["layer"], cells["a1.h2"]["column"]) == (1, 2)
    assert (cells["m1"]["layer"], cells["m1"]["column"]) == (1, None)
    assert noising["max"] == 4.0  # of the grid: the input stands beside it
    assert [row["node"] for row in noising["others"]] == ["input", "m1.n7"]
    assert (noising["rest"], direct["rest"]) == (None, 0.125)
    assert (data["layers"], data["heads"], data["mlps"]) == (2, 3, True)
    assert data["circuit"] == ["a0.h1", "a1.h0", "input", "logits", "m1"]
    assert data["missing"] == {"Denoising": "there are no corrupted prompts"}


def test_no_heatmap_without_effects() -> None:
    found = views()
    assert charts.heatmap({**found, "effects": None}) is None
    nothing = {**found["effects"], "noising": None, "direct": None}
    assert charts.heatmap({**found, "effects": nothing}) is None
    assert charts.heatmap({}) is None


def test_the_direct_effect_has_its_own_metric() -> None:
    found = views()
    found["effects"]["metric"] = "prob-diff"
    data = charts.heatmap(found)
    assert data is not None
    assert [panel["metric"] for panel in data["panels"]] == ["prob-diff", "logit-diff"]


def test_curve_points_are_in_order_and_complete() -> None:
    found = views()
    data = charts.curve(found, "logit-diff")
    assert data is not None
    assert [p["asked"] for p in data["points"]] == [1, 10, 100, 2000]
    assert [p["edges"] for p in data["points"]] == [0, 7, 100, 2000]
    assert [p["faithfulness"] for p in data["points"]] == found["curve"]["faithfulness"]
    assert [p["completeness"] for p in data["points"]] == found["curve"]["completeness"]
    assert [p["random"]["high"] for p in data["points"]] == [0.0, 0.1, 0.2, 1.0]
    assert data["circuit"] == found["curve"]["circuit"]
    assert [s["share"] for s in data["shares"]] == [share for share in SHARES if share * 2000 >= 1]
    assert all(s["edges"] == s["share"] * 2000 for s in data["shares"])


def test_a_curve_without_chance_says_why() -> None:
    found = views()
    found["curve"]["random"] = None
    found["missing"]["random"] = "too costly"
    data = charts.curve(found)
    assert data is not None
    assert (data["random"], data["missing"]) == (None, "too costly")
    assert all(p["random"] is None for p in data["points"])
    assert charts.curve({**found, "curve": None}) is None


def test_patterns_keep_their_bytes_and_their_order() -> None:
    found = views()
    data = charts.patterns(found, {"a0.h1": "duplicate token"})
    assert data is not None
    assert [(h["name"], h["role"]) for h in data["heads"]] == [("a1.h0", None), ("a0.h1", "duplicate token")]
    assert data["heads"][1]["data"] == found["patterns"]["heads"]["a0.h1"]
    assert len(base64.b64decode(data["heads"][0]["data"][2])) == 60 * 60
    assert charts.patterns({**found, "patterns": None}) is None
    assert charts.patterns({**found, "patterns": {"prompts": [], "heads": {}}}) is None


def test_backups_share_is_the_one_that_two_ablations_bear_out() -> None:
    row, worker = charts.backups(report())["rows"]
    assert row["share"] == 0.25  # of 0.5, 0.25 and 0.1 the second largest
    assert row["ablation"] == "mean"
    # The interval is that of the rise, over what was lost: 4.
    assert math.isclose(row["low"], 0.9 / 4)
    assert math.isclose(row["high"], 1.2 / 4)
    assert row["agree"] == ["resample", "mean"]
    assert len(row["evidence"]) == 3
    assert row["meaning"].startswith("writes the answer when the removed heads do not")
    assert (worker["share"], worker["low"], worker["agree"]) == (0.0, None, [])


def test_accounts_add_up_and_the_telling_set_comes_first() -> None:
    data = charts.backups(report())
    assert [(s["name"], s["telling"]) for s in data["sets"]] == [
        ("strongest 2", True),
        ("strongest 1 alone", False),
    ]
    for one in data["sets"]:
        for account in one["accounts"]:
            if account["lost_direct"] == 0:
                assert account["shares"] is None
                continue
            assert math.isclose(sum(account["shares"].values()), 1)
            for part, value in account["parts"].items():
                assert math.isclose(account["shares"][part] * account["lost_direct"], value)


def test_units_of_the_circuit_come_first() -> None:
    data = charts.units(
        names(),
        inside=["m1.n7@END", "m1.n9"],
        scores={"m1.n7": 0.5, "m1.n9": math.nan},
        labels={"m1.n7": "names"},
    )
    assert data is not None
    assert [(n["name"], n["inside"], n["score"], n["label"]) for n in data["nodes"]] == [
        ("m1.n7", True, 0.5, "names"),
        ("m0.n3", False, None, None),
    ]
    assert [(n["name"], n["score"]) for n in data["unnamed"]] == [("m1.n9", None)]
    assert data["nodes"][0]["contexts"] == names()["nodes"][1]["contexts"]


@pytest.mark.parametrize("found", [None, {"nodes": [], "source": None}])
def test_no_units_without_units(found: dict[str, object] | None) -> None:
    assert charts.units(found) is None


def test_units_that_nobody_looked_at() -> None:
    data = charts.units(None, inside=["m1.n7"], scores={"m1.n7": -2.0})
    assert data is not None
    assert (data["nodes"], data["source"]) == ([], None)
    assert data["unnamed"][0]["score"] == -2.0
