"""The JSON of EAP-IG where heads share keys and values: there every head has its own, here a group is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from circuitfind.circuit.graph import from_mask
from circuitfind.circuit.mib import fit, from_eap_ig, to_eap_ig
from circuitfind.circuit.scores import Scores
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.model.anatomy import Anatomy
from tests.circuit.test_mib import CONDITIONS, SCHEMA, back, every_edge, made, text_of

SHARED = Anatomy(2, 4, 2)


def test_shared_keys_are_written_for_every_head() -> None:
    circuit, scores = made(SHARED)
    data = to_eap_ig(circuit, scores, 8)
    jsonschema.validate(data, SCHEMA)
    assert list(data["edges"]) == every_edge(2, 4)
    assert data["cfg"]["n_key_value_heads"] == 2
    for edge in ("input->a1.kv1<k>", "m0->a1.kv0<v>"):
        index = SHARED.index_of(edge)
        sender, reader = edge.split("->")
        layer, group, slot = reader[1], int(reader[5]), reader[7]
        own = [data["edges"][f"{sender}->a{layer}.h{head}<{slot}>"] for head in (2 * group, 2 * group + 1)]
        assert sum(one["score"] for one in own) == pytest.approx(scores.values[index], rel=1e-15)
        assert own[0] == own[1]
        assert own[0]["in_graph"] == bool(circuit.mask[index])
    again, read = back(json.dumps(data))
    assert again.anatomy == SHARED
    assert again.edges == circuit.edges
    assert read is not None
    np.testing.assert_array_equal(read.values, scores.values)


@pytest.mark.parametrize("kv", [1, 2])
def test_groups_of_seven_come_back_to_rounding(kv: int) -> None:
    """As of Qwen2.5-0.5B: 14 heads share 2 key/value heads."""
    anatomy = Anatomy(2, 14, 2 * kv if kv == 1 else 2)
    circuit, scores = made(anatomy, seed=kv, unscored=3)
    again, read = back(text_of(circuit, scores))
    assert again.edges == circuit.edges
    assert read is not None
    np.testing.assert_allclose(read.values, scores.values, rtol=4e-16)


def foreign(change: Callable[[dict[str, Any]], object] = lambda data: None) -> dict[str, Any]:
    """A file as the benchmark writes it for a model of SHARED's shape: it does not say that heads share keys."""
    flat = replace(SHARED, n_kv_heads=4)
    rng = np.random.default_rng(3)
    values = np.where(flat.edge_mask, rng.normal(size=flat.edge_mask.shape), np.nan)
    scores = Scores(flat, "edge", values, "x", "x", "x", "x")
    data = to_eap_ig(from_mask(flat, np.zeros_like(flat.edge_mask), CONDITIONS), scores, 8)
    del data["circuitfind"]
    change(data)
    return data


def marked(data: dict[str, Any], *names: str) -> None:
    for name in names:
        data["edges"][name]["in_graph"] = True


def test_a_foreign_file_is_fitted_to_the_model() -> None:
    path = ("input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->logits", "a0.h1->logits")
    circuit, scores = from_eap_ig(foreign(lambda data: marked(data, *path)))
    assert not circuit.anatomy.grouped
    fitted, summed = fit(circuit, scores, SHARED)
    assert [str(edge) for edge in fitted.edges] == ["input->a0.kv0<v>", "a0.h0->logits", "a0.h1->logits"]
    assert scores is not None
    assert summed is not None
    flat = circuit.anatomy
    for slot in "kv":
        mine = summed.values[SHARED.index_of(f"m0->a1.kv1<{slot}>")]
        theirs = [scores.values[flat.index_of(f"m0->a1.h{head}<{slot}>")] for head in (2, 3)]
        assert mine == pytest.approx(sum(theirs), rel=1e-15)
    for name in ("a0.h3->a1.h2<q>", "m0->m1", "input->logits"):
        assert summed.values[SHARED.index_of(name)] == scores.values[flat.index_of(name)]
    assert fit(fitted, summed, SHARED) == (fitted, summed)


def test_a_head_that_nothing_reads_may_lack_the_keys_of_its_group() -> None:
    """The benchmark's pruning leaves such heads out, and their keys make no difference."""
    path = ("input->a0.h0<v>", "a0.h0->logits")
    circuit, _ = from_eap_ig(foreign(lambda data: marked(data, *path)))
    fitted, _ = fit(circuit, None, SHARED)
    assert [str(edge) for edge in fitted.edges] == ["input->a0.kv0<v>", "a0.h0->logits"]


def test_half_a_group_is_refused() -> None:
    path = ("input->a0.h0<v>", "a0.h0->logits", "input->a0.h1<q>", "a0.h1->logits")
    circuit, scores = from_eap_ig(foreign(lambda data: marked(data, *path)))
    with pytest.raises(UnsupportedError, match=r"lacks 'input->a0.h1<v>'"):
        fit(circuit, scores, SHARED)


@pytest.mark.parametrize(
    "other",
    [Anatomy(3, 4, 2), Anatomy(2, 2, 2), Anatomy(2, 4, 2, has_mlp=False), Anatomy(2, 4, 2, parallel=True)],
)
def test_another_shape_is_refused(other: Anatomy) -> None:
    circuit, scores = from_eap_ig(foreign())
    with pytest.raises(UsageError, match="of another model") as caught:
        fit(circuit, scores, other)
    assert caught.value.details[0] == "the circuit's: 2 layers of 4 heads, MLPs"
