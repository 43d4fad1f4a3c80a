"""The true edges in a model's folder: what is read, what is refused, and a run that is held against them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import circuitfind
from circuitfind.circuit.graph import Circuit, Conditions, from_mask
from circuitfind.circuit.interpbench import interpbench_auroc
from circuitfind.circuit.mib import to_eap_ig
from circuitfind.errors import ModelError
from circuitfind.evidence.truth import truth_of_folder
from circuitfind.known import compare_with_known
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.identity import identity
from circuitfind.names import parse_edge
from circuitfind.settings import resolve
from circuitfind.summary import Discovery
from circuitfind.task.spec import load_task
from circuitfind.zoo.planted import Planted, build
from tests import families

EDGES = ["input->a0.h0<v>", "a0.h0->a1.h1<k>", "a1.h1->m1", "m1->logits"]
CONFIG = {"format": "transformer-lens", "config": {"n_layers": 2, "n_heads": 2}}


def folder(tmp_path: Path, truth: Any, config: Any = CONFIG) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if truth is not None:
        text = truth if isinstance(truth, str) else json.dumps(truth)
        (tmp_path / "edges.json").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("truth", "under"),
    [
        (EDGES, None),
        ({"edges": EDGES}, None),
        ({"ablation": "resample", "edges": EDGES}, "resample"),
        ({"resample": EDGES, "zero": EDGES[:1]}, "resample"),
    ],
)
def test_forms(tmp_path: Path, truth: Any, under: str | None) -> None:
    known = truth_of_folder(folder(tmp_path, truth), "resample")
    assert known is not None
    assert list(known.edges) == EDGES
    assert known.heads == ("a0.h0", "a1.h1")
    assert known.mlps == ("m1",)
    assert known.ablation == under
    assert known.source == str(tmp_path / "edges.json")


def test_a_graph_of_eap_ig(tmp_path: Path) -> None:
    """As the benchmark ships the truth of its InterpBench model."""
    anatomy = Anatomy(2, 2, 2)
    mask = np.zeros_like(anatomy.edge_mask)
    for name in EDGES:
        mask[anatomy.index_of(name)] = True
    circuit = from_mask(anatomy, mask, Conditions("", "", "", "", "", "", "", ""))
    known = truth_of_folder(folder(tmp_path, to_eap_ig(circuit, None, 8)), "zero")
    assert known is not None
    assert set(known.edges) == set(EDGES)


def test_no_truth_and_none_under_this_ablation(tmp_path: Path) -> None:
    assert truth_of_folder(folder(tmp_path, None), "resample") is None
    assert truth_of_folder(folder(tmp_path, {"zero": EDGES}), "resample") is None
    assert truth_of_folder(folder(tmp_path, {"ablation": "zero", "edges": EDGES}), "mean") is None
    assert truth_of_folder(tmp_path / "nowhere", "resample") is None


def test_names_are_read_as_everywhere(tmp_path: Path) -> None:
    grouped = {"format": "transformer-lens", "config": {"n_layers": 2, "n_heads": 4, "n_key_value_heads": 2}}
    known = truth_of_folder(folder(tmp_path, ["0.0->L1H3<k>", "a0.h0->a1.h2<k>"], grouped), "zero")
    assert known is not None
    assert known.edges == ("a0.h0->a1.kv1<k>",)


@pytest.mark.parametrize(
    ("truth", "says", "where"),
    [
        ("{", "cannot be read", "edges.json"),
        (3, "the true edges are 3", "edges.json"),
        ([], "the list of true edges is empty", "edges.json"),
        ([*EDGES, 4], "4 is no name of an edge", "(edge 5)"),
        (["a0.h0"], "'a0.h0' is not the name of an edge", "(edge 1)"),
        (["a0.h0->a1.h0"], "'a0.h0->a1.h0' is not the name of an edge", "(edge 1)"),
        ([EDGES[0], "a0.h7->logits"], "has no 'a0.h7'", "(edge 2)"),
        (["m1->m0"], "no edge runs from m1 to m0", "(edge 1)"),
        ({"resampel": EDGES}, 'no ablation "resampel"', "edges.json"),
        ({"ablation": "resampel", "edges": EDGES}, 'no ablation "resampel"', "edges.json"),
        ({"edges": EDGES, "model": "x"}, "has the key 'model' beside 'edges'", "edges.json"),
        ({"edges": "a->b"}, "has no list under 'edges'", "edges.json"),
        ({"zero": "a->b"}, "'zero' holds no list of edges", "edges.json"),
    ],
)
def test_what_cannot_be_believed(tmp_path: Path, truth: Any, says: str, where: str) -> None:
    with pytest.raises(ModelError) as caught:
        truth_of_folder(folder(tmp_path, truth), "resample")
    assert says in caught.value.what
    assert caught.value.where is not None
    assert where in caught.value.where
    assert caught.value.hint


def test_a_pickle_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "edges.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="a pickle") as caught:
        truth_of_folder(folder(tmp_path, None), "resample")
    assert "JSON list" in caught.value.hint
    assert truth_of_folder(folder(tmp_path, EDGES), "resample") is not None


# A run on a planted model in a folder.


@pytest.fixture(scope="module")
def planted() -> Planted:
    return build("induction")


def task_of(made: Planted, model: Path) -> Path:
    pairs = [
        {
            "clean": list(pair.clean),
            "corrupted": list(pair.corrupted),
            "answer": pair.answer,
            "wrong": pair.wrong,
        }
        for pair in made.pairs(12)
    ]
    path = model.parent / "own.yaml"
    path.write_text(json.dumps({"name": "own", "model": str(model), "prompts": {"pairs": pairs}}))
    return path


def discovered(made: Planted, model: Path) -> Discovery:
    return circuitfind.discover(
        str(task_of(made, model)),
        method="eap",
        outputs=model.parent / "out",
        backups=False,
        controls="none",
        formats=(),
    )


def write(made: Planted, at: Path) -> Path:
    model = families.write_native(at, made.config, made.state)
    truth = {ablation: sorted(edges) for ablation, edges in made.edges.items()}
    (model / "edges.json").write_text(json.dumps(truth), encoding="utf-8")
    return model


def test_discover_is_held_against_the_truth_of_the_folder(tmp_path: Path, planted: Planted) -> None:
    model = write(planted, tmp_path / "model")
    found = discovered(planted, model)
    assert found.summary["known"] == {
        "level": "edges",
        "precision": 1.0,
        "recall": 1.0,
        "missing": [],
        "extra": [],
    }
    truth = planted.edges["resample"]
    assert {str(edge) for edge in found.circuit.edges} == truth
    area = interpbench_auroc(found.scores, truth)
    assert area > 0.99
    missing = [name for name in sorted(truth) if "a1" in name]
    assert interpbench_auroc(found.scores, missing) > 0.9


def test_a_false_truth_is_found_out(tmp_path: Path, planted: Planted) -> None:
    model = write(planted, tmp_path / "model")
    before = identity(str(model))
    (model / "edges.json").write_text('["input->a0.h2<q>", "a1.h1->logits"]')
    assert identity(str(model)) != before
    spec = load_task(task_of(planted, model))
    edges = tuple(parse_edge(name) for name in planted.edges["resample"])
    circuit = Circuit(Anatomy(2, 3, 3), edges, Conditions("", "", "", "", "", "", "", ""))
    found = compare_with_known(spec, resolve(spec), circuit)
    assert found is not None
    assert found["recall"] == 0.5
    assert found["missing"] == ["input->a0.h2<q>"]


def test_a_truth_that_cannot_be_read_is_told_before_the_work(tmp_path: Path, planted: Planted) -> None:
    model = write(planted, tmp_path / "model")
    (model / "edges.json").write_text('["a9.h9->logits"]')
    with pytest.raises(ModelError, match=r"has no 'a9\.h9'"):
        circuitfind.discover(str(task_of(planted, model)), outputs=tmp_path / "out")
    assert not (tmp_path / "out").exists()


INTERPBENCH = {
    "n_layers": 2, "d_model": 12, "n_ctx": 10, "d_head": 3, "model_name": "custom", "n_heads": 4, "d_mlp": 48,
    "act_fn": "gelu", "d_vocab": 10, "eps": 1e-05, "use_attn_result": True, "use_attn_scale": True,
    "use_split_qkv_input": True, "use_hook_mlp_in": True, "use_attn_in": False, "use_local_attn": False,
    "original_architecture": None, "from_checkpoint": False, "checkpoint_index": None, "tokenizer_name": None,
    "window_size": None, "attn_types": None, "init_mode": "gpt2", "normalization_type": None, "device": "cpu",
    "n_devices": 1, "attention_dir": "causal", "attn_only": False, "seed": 0, "init_weights": True,
    "positional_embedding_type": "standard", "final_rms": False, "d_vocab_out": 5, "parallel_attn_mlp": False,
}  # fmt: skip
"""A configuration with the keys that InterpBench gives its models."""


def test_a_model_configured_as_interpbench_does(tmp_path: Path) -> None:
    from circuitfind.model.load import load_model

    state = families.native_state({**INTERPBENCH, "gated_mlp": False})
    model = families.write_native(tmp_path / "case", INTERPBENCH, state)
    (model / "edges.json").write_text('["input->m0", "m0->a1.h3<v>", "a1.h3->logits"]')
    known = truth_of_folder(model, "resample")
    assert known is not None
    anatomy = load_model(str(model), device="cpu").anatomy
    assert [str(anatomy.edge_at(*anatomy.index_of(name))) for name in known.edges] == list(known.edges)
