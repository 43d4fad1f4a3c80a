"""Made-up results for charts: small enough to check by hand, with tokens that would break a careless page."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from circuitfind.backups.report import Account, BackupReport, Estimate, Evidence, Finding, RemovedSet
from circuitfind.output.report import charts

NODES = ["input", "a0.h0", "a0.h1", "a0.h2", "m0", "a1.h0", "a1.h1", "a1.h2", "m1", "m1.n7"]
NOISING = [9.0, 0.5, -2.25, 0.0, 1.5, 4.0, 0.01, -0.4, 3.0, 0.7]
INSIDE = ["input", "a0.h1@END", "a1.h0", "m1", "logits"]
NASTY = ["<script>window.hacked=1</script>", "$x_1$", "\n", " Mary", "&amp;", "</script>"]


def column(values: list[float]) -> dict[str, Any]:
    return {"value": values, "low": [v - 0.25 for v in values], "high": [v + 0.5 for v in values]}


def bounds(value: float, width: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def pattern(size: int, seed: int) -> str:
    """Rows that add up to about 1, nothing above the diagonal."""
    rng = np.random.default_rng(seed)
    weights = np.tril(rng.random((size, size)) ** 4 + 1e-3)
    weights /= weights.sum(1, keepdims=True)
    return base64.b64encode((weights * 255).round().astype(np.uint8).tobytes()).decode("ascii")


def views() -> dict[str, Any]:
    """As ``views.json`` holds it: without denoising, with prompts of 6 and of 60 tokens."""
    long = [f" word{i}" for i in range(60)]
    return {
        "format": "circuitfind.views",
        "version": 1,
        "conditions": {"metric": "logit-diff", "ablation": "resample"},
        "missing": {"denoising": "there are no corrupted prompts"},
        "effects": {
            "nodes": NODES,
            "metric": "logit-diff",
            "ablation": "resample",
            "n_prompts": 16,
            "full": 8.5,
            "empty": -7.25,
            "noising": column(NOISING),
            "denoising": None,
            "direct": column([v / 10 for v in NOISING]),
            "direct_metric": "logit-diff",
            "direct_rest": 0.125,
        },
        "curve": {
            "ablation": "resample",
            "n_prompts": 16,
            "edges": [1, 10, 100, 2000],
            "connected": [0, 7, 100, 2000],
            "faithfulness": [bounds(0.0), bounds(0.4), bounds(1.1), bounds(1.0, 0.0)],
            "completeness": [bounds(1.0), bounds(0.5), bounds(-0.05), bounds(0.0, 0.0)],
            "random": {
                "of": "rankings",
                "count": 20,
                "n_prompts": 8,
                "mean": [0.0, 0.0, 0.01, 1.0],
                "low": [0.0, -0.1, 0.0, 1.0],
                "high": [0.0, 0.1, 0.2, 1.0],
            },
            "circuit": {
                "edges": 17,
                "n_prompts": 16,
                "faithfulness": bounds(0.9),
                "completeness": bounds(0.02),
            },
        },
        "patterns": {
            "prompts": [
                {"pair": 0, "side": "clean", "tokens": NASTY, "why": "typical"},
                {"pair": 0, "side": "corrupted", "tokens": NASTY, "why": "typical"},
                {"pair": 3, "side": "clean", "tokens": long, "why": "worst"},
            ],
            "heads": {
                name: [pattern(6, seed), pattern(6, seed + 1), pattern(60, seed + 2)]
                for name, seed in (("a1.h0", 0), ("a0.h1", 10))
            },
        },
        "prompts": None,
    }


def evidence(ablation: str, rise: float, lost: float, *, sure: bool) -> Evidence:
    return Evidence(
        ablation=ablation,
        direct_after=rise,
        compensation=Estimate(rise, rise - 0.1, rise + 0.2),
        p=0.001,
        share=rise / lost,
        floor=0.05,
        sure=sure,
        freeze=Estimate(rise, rise - 0.1, rise + 0.1),
        interaction=Estimate(0.5, 0.4, 0.6),
    )


def report() -> BackupReport:
    """One backup, one co-worker that takes over nothing, and a removed set that MLPs made worse."""
    backup = Finding(
        name="a1.h2",
        kind="backup",
        covers=("a1.h0", "a1.h1"),
        reader="logits",
        direct=Estimate(0.1, 0.05, 0.15),
        evidence=(
            evidence("resample", 2.0, 4.0, sure=True),
            evidence("mean", 1.0, 4.0, sure=True),
            evidence("zero", 0.4, 4.0, sure=False),
        ),
        dormant=True,
        reasons=("resample: <b>takes over</b> half",),
    )
    worker = Finding(
        name="a0.h0",
        kind="co-worker",
        covers=("a1.h0",),
        reader="logits",
        direct=Estimate(0.3, 0.2, 0.4),
        evidence=(evidence("resample", 0.0, 4.0, sure=False),),
    )
    accounts = (
        Account("resample", 4.0, 2.0, -1.0, 0.5, 0.0, 2.5, 0.0),
        Account("mean", 4.0, 1.0, 0.0, 1.0, 0.0, 2.0, 0.0),
        Account("zero", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    )
    sets = (
        RemovedSet("strongest 1 alone", ("a1.h0",), "logits", (Account("resample", 1.0, 0, 0, 0, 0, 1, 0),)),
        RemovedSet("strongest 2", ("a1.h0", "a1.h1"), "logits", accounts, ("a1.h2",)),
    )
    return BackupReport(
        readers=("logits",),
        seeds={"logits": ("a1.h0",)},
        sets=sets,
        findings=(backup, worker),
        groups=(),
        scores={},
        cost={},
        conditions={"metric": "logit-diff", "ablations": ["resample", "mean", "zero"], "n_prompts": 8},
        notes=("a note",),
    )


def names() -> dict[str, Any]:
    """As ``names.json`` holds it: one unit in the circuit, one that was asked for."""

    def node(name: str, token: str) -> dict[str, Any]:
        return {
            "name": name,
            "kind": "neuron",
            "layer": 1,
            "units": [{"unit": 7, "share": 1.0}],
            "activation": {"tokens": 500, "fires": 0.024, "mean": 0.1, "largest": 4.0, "smallest": -0.2},
            "contexts": [
                {"value": 4.0, "tokens": ["When", " Mary", token], "at": 1, "text": 0, "position": 1},
                {"value": 2.0, "tokens": ["and", " John"], "at": 0, "text": 1, "position": 0},
            ],
            "negative_contexts": [],
            "promotes": [{"token": token, "value": 1.5}, {"token": " the", "value": 0.5}],
            "suppresses": [{"token": " a", "value": -0.75}],
            "hint": repr(token),
            "answer": {
                "inner": 0.2,
                "cosine": 0.1,
                "percentile": 80.0,
                "spread": 0.3,
                "spread_percentile": 70.0,
            },
            "heads": {"in": [{"head": "a0.h1", "size": 1.0, "z": 2.5, "percentile": 99.0}]},
        }

    return {
        "source": {"from": "prompts of <toy>", "texts": 12, "tokens": 500},
        "joined_by": "",
        "nodes": [node("m0.n3", " plain"), node("m1.n7", NASTY[0])],
    }


def sections() -> dict[str, Any]:
    """What the charts of a report show."""
    found = views()
    return {
        "title": "charts",
        "heatmap": charts.heatmap(found, INSIDE),
        "curve": charts.curve(found, "logit-diff"),
        "patterns": charts.patterns(found, {"a1.h0": "<b>name mover</b>"}),
        "backups": charts.backups(report()),
        "units": charts.units(
            names(), inside=["m1.n7@END", "m1.n9"], scores={"m1.n7": 0.5}, labels={"m1.n7": "<i>names</i>"}
        ),
        "missing": {},
    }
