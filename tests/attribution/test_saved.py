"""Graphs on the disk, and dictionaries read one by one from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitfind.attribution.graph import AttributionGraph
from circuitfind.attribution.prune import prune
from circuitfind.attribution.saved import read_graph, to_bytes
from circuitfind.attribution.sets import stream_dictionaries
from circuitfind.dictionaries.load import load_dictionaries
from circuitfind.errors import ModelError, UsageError
from tests.attribution import network
from tests.attribution.graphs import random_graph
from tests.dictionaries import files


@pytest.mark.parametrize("rows", [None, 15])
def test_what_is_read_is_what_was_written(tmp_path: Path, rows: int | None) -> None:
    graph = random_graph(4, rows=rows)
    path = tmp_path / "graph.npz"
    path.write_bytes(to_bytes(graph))
    found = read_graph(path)
    for name in (
        "model",
        "dictionaries",
        "prompt",
        "tokens",
        "pieces",
        "n_layers",
        "logit_pieces",
        "settings",
    ):
        assert getattr(found, name) == getattr(graph, name), name
    for name in ("probability", "row_nodes", "edges", "bias", "inputs"):
        assert np.array_equal(getattr(found, name), getattr(graph, name)), name
    for name in ("kind", "layer", "position", "index", "value"):
        assert np.array_equal(getattr(found.nodes, name), getattr(graph.nodes, name)), name
    assert found.edges.dtype == np.float32
    one, other = prune(graph, 0.6, 0.9), prune(found, 0.6, 0.9)
    assert np.array_equal(one.kept, other.kept)
    assert np.array_equal(one.weights, other.weights)
    assert found.gap == pytest.approx(0, abs=1e-6)


def test_only_layers_below_are_written() -> None:
    graph = random_graph(0, n_layers=8, n_pos=6)
    whole = graph.edges.nbytes
    assert len(to_bytes(graph)) < 0.7 * whole


def damaged(graph: AttributionGraph, path: Path, how: str) -> None:
    data = to_bytes(graph)
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "text":
        path.write_text("no graph")
    elif how == "pickle":
        np.savez(path, facts=np.array([{"a": 1}], dtype=object))
    elif how == "other":
        np.savez(path, facts=np.frombuffer(json.dumps({"format": "else"}).encode(), dtype=np.uint8))
    elif how == "edges":
        path.write_bytes(data)
        with np.load(path) as read:
            arrays = dict(read)
        np.savez(path, **{**arrays, "edges": arrays["edges"][:-3]})


@pytest.mark.parametrize("how", ["cut", "text", "pickle", "other", "edges", "missing"])
def test_damaged_files(tmp_path: Path, how: str) -> None:
    path = tmp_path / "graph.npz"
    damaged(random_graph(), path, how)
    with pytest.raises(UsageError, match="no attribution graph") as error:
        read_graph(path)
    assert str(path) in str(error.value)


def same(one: object, other: object) -> None:
    for name in ("layer", "kind", "site_in", "activation", "k"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("w_enc", "w_dec", "b_enc", "b_dec"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("write", [network.write_layers, network.write_cross, network.write_topk])
def test_dictionaries_one_by_one(tmp_path: Path, write: object, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "set", 6, 3)  # type: ignore[operator]
    whole = load_dictionaries(tmp_path / "set")
    counts: list[int] = []

    def counted(*args: object, **options: object) -> object:
        found = load_dictionaries(*args, **options)  # type: ignore[arg-type]
        counts.append(len(found))
        return found

    monkeypatch.setattr("circuitfind.attribution.sets.load_dictionaries", counted)
    stream = stream_dictionaries(tmp_path / "set")
    first = next(stream)
    assert counts == [1], "no other is read before it is asked for"
    for one, other in zip([first, *stream], whole, strict=True):
        same(one, other)
    assert counts == [1, 1, 1]


def test_a_set_that_names_its_files(tmp_path: Path) -> None:
    sets = [files.weights(i, d_in=6, d_out=6) for i in range(2)]
    named = [f"layer_{i}.safetensors" for i in range(2)]
    files.write_set(tmp_path / "set", sets, transcoders=named)
    assert [one.layer for one in stream_dictionaries(tmp_path / "set")] == [0, 1]
    (tmp_path / "set" / "layer_1.safetensors").rename(tmp_path / "set" / "layer_7.safetensors")
    files.write_yaml(tmp_path / "set")
    assert [one.layer for one in stream_dictionaries(str(tmp_path / "set"))] == [0, 7]


def test_other_formats_and_mistakes(tmp_path: Path) -> None:
    folder = files.write_sae_lens(tmp_path / "one", files.weights(d_in=6, d_out=6), "transcoder", layer=2)
    assert [one.layer for one in stream_dictionaries(folder)] == [2]
    assert [one.layer for one in stream_dictionaries(folder / "cfg.json")] == [2]
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ModelError):
            list(stream_dictionaries(where))
