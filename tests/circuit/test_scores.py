"""Scores: order, ends, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuitfind.circuit.scores import Scores
from circuitfind.errors import RunError
from circuitfind.model.anatomy import Anatomy

ANATOMY = Anatomy(2, 2, 2)


def scores(level: Any = "edge", values: np.ndarray | None = None, **more: Any) -> Scores:
    if values is None:
        rng = np.random.default_rng(0)
        values = np.where(ANATOMY.edge_mask, rng.normal(size=ANATOMY.edge_mask.shape), np.nan)
        values = values if level == "edge" else rng.normal(size=len(ANATOMY.writers))
    return Scores(ANATOMY, level, values, "eap", "noising", "logit-diff", "resample", **more)


def test_edges_are_ranked_by_size_and_only_those_that_were_scored() -> None:
    found = scores()
    ranked = found.ranked_edges()
    assert len(ranked) == len(set(ranked)) == ANATOMY.n_edges
    assert all(ANATOMY.edge_mask[e] for e in ranked)
    sizes = [abs(found.values[e]) for e in ranked]
    assert sizes == sorted(sizes, reverse=True)
    top = list(found.top_edges(3))
    assert [ANATOMY.index_of(e) for e, _ in top] == ranked[:3]
    assert [v for _, v in top] == [found.values[e] for e in ranked[:3]]


def test_ties_go_by_position() -> None:
    values = np.where(ANATOMY.edge_mask, 1.0, np.nan)
    values[0, 3], values[0, 0] = -1.0, np.nan
    ranked = scores(values=values).ranked_edges()
    assert ranked == [(int(w), int(r)) for w, r in np.argwhere(~np.isnan(values))]


def test_node_values() -> None:
    nodes = np.arange(7.0)
    assert scores("node", nodes).node_values is not None
    np.testing.assert_array_equal(scores(nodes=nodes).node_values, nodes)
    bare = scores()
    np.testing.assert_allclose(bare.node_values, [sum(v for v in row if v == v) for row in bare.values])
    values = np.array([0.5, -3, np.nan, 0, 2, 1, -1])
    top = [(str(n), v) for n, v in scores("node", values).top_nodes(9)]
    assert top == [("a0.h0", -3), ("a1.h0", 2), ("a1.h1", 1), ("m1", -1), ("input", 0.5), ("m0", 0)]
    with pytest.raises(ValueError, match="rank no edges"):
        scores("node", values).ranked_edges()


def test_shapes_are_checked_and_arrays_are_frozen() -> None:
    with pytest.raises(ValueError, match="expected"):
        scores("node", np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        scores().values[0, 0] = 1


@pytest.mark.parametrize("level", ["node", "edge"])
def test_files(tmp_path: Path, level: str) -> None:
    more: dict[str, Any] = {"facts": {"identity_gap": 1e-7}}
    more |= {"nodes": np.arange(7.0)} if level == "edge" else {"per_prompt": np.ones((3, 7))}
    first = scores(level, **more)
    path = tmp_path / "scores.npz"
    np.savez(path, **first.arrays())
    second = Scores.load(path)
    for name in ("values", "nodes", "per_prompt"):
        one, two = getattr(first, name), getattr(second, name)
        assert (one is None) == (two is None)
        if one is not None:
            np.testing.assert_array_equal(one, two)
    for name in ("anatomy", "level", "method", "direction", "metric", "ablation", "facts"):
        assert getattr(first, name) == getattr(second, name)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    np.savez(path, **scores().arrays())
    data = path.read_bytes()
    cases = (b"", b"nonsense", data[: len(data) // 2], data[:-30])
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(RunError) as caught:
            Scores.load(path)
        assert caught.value.where == str(path)
    np.savez(path, values=np.zeros(3))
    with pytest.raises(RunError):
        Scores.load(path)
    np.savez(
        path, **{**scores().arrays(), "header": np.array('{"format": "circuitfind.scores", "version": 99}')}
    )
    with pytest.raises(RunError, match="version 99"):
        Scores.load(path)
    np.savez(path, **{**scores().arrays(), "values": np.array([{}], dtype=object)}, allow_pickle=True)
    with pytest.raises(RunError):  # a pickle inside
        Scores.load(path)
    with pytest.raises(RunError):
        Scores.load(tmp_path / "nowhere.npz")
