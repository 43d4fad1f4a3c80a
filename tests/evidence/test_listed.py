"""The circuit that a list stands for, edge by edge, and the truth of planted models."""

from __future__ import annotations

import numpy as np
import pytest

from circuitfind.circuit.graph import connected
from circuitfind.errors import ModelError, UsageError
from circuitfind.evidence.listed import heads_circuit, known_circuit, truth_of_planted
from circuitfind.model.anatomy import Anatomy
from circuitfind.model.load import planted
from circuitfind.names import parse_edge
from circuitfind.task.findings import Known
from circuitfind.task.spec import load_task

GPT2 = Anatomy(12, 12, 12)
SMALL = Anatomy(2, 2, 2)
GROUPED = Anatomy(2, 4, 2)
ATTENTION = Anatomy(2, 2, 2, has_mlp=False)


def edges_by_hand(anatomy: Anatomy, nodes: set[str]) -> set[str]:
    """Every edge of the model whose ends are among some nodes; a shared key stands for the heads that it serves."""
    found = set()
    for writer, reader in np.argwhere(anatomy.edge_mask):
        edge = anatomy.edge_at(int(writer), int(reader))
        ends = {str(node) for node in anatomy.served_by(edge.receiver)}
        if str(edge.sender) in nodes and (ends & nodes or str(edge.receiver) == "logits"):
            found.add(str(edge))
    return found


def names(anatomy: Anatomy, mask: np.ndarray) -> set[str]:
    return {str(anatomy.edge_at(int(w), int(r))) for w, r in np.argwhere(mask)}


@pytest.mark.parametrize("anatomy", [SMALL, GROUPED, ATTENTION])
def test_all_edges_among_some_heads(anatomy: Anatomy) -> None:
    heads = {"a0.h1", "a1.h0"}
    mlps = {"m0", "m1"} if anatomy.has_mlp else set()
    assert names(anatomy, heads_circuit(anatomy, heads)) == edges_by_hand(anatomy, {"input", *heads, *mlps})
    assert names(anatomy, heads_circuit(anatomy, heads, ())) == edges_by_hand(anatomy, {"input", *heads})
    if anatomy.has_mlp:
        some = heads_circuit(anatomy, heads, ("m1",))
        assert names(anatomy, some) == edges_by_hand(anatomy, {"input", "m1", *heads})


def test_all_heads_are_the_whole_model() -> None:
    every = [f"a{layer}.h{head}" for layer in range(12) for head in range(12)]
    assert (heads_circuit(GPT2, every) == GPT2.edge_mask).all()
    assert names(SMALL, heads_circuit(SMALL, (), ())) == {"input->logits"}


def test_parts_of_an_mlp() -> None:
    split = Anatomy(1, 1, 1, parts=(("m0.n3", "m0.rest"),))
    assert "m0.n3->logits" in names(split, heads_circuit(split, (), ("m0",)))
    assert "input->m0.rest" in names(split, heads_circuit(split, ()))


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"has no 'a9\.h9'"):
        heads_circuit(SMALL, ("a9.h9",))
    with pytest.raises(UsageError, match="has no 'm7'"):
        heads_circuit(SMALL, (), ("m7",))
    with pytest.raises(UsageError, match=r"'a0\.h1' is not an MLP"):
        heads_circuit(SMALL, (), ("a0.h1",))
    with pytest.raises(UsageError, match="'m0'"):
        heads_circuit(ATTENTION, (), ("m0",))


def test_a_list_of_heads_takes_mlps_as_given() -> None:
    known = Known(heads=("a0.h1", "a1.h0"))
    mask, note = known_circuit(SMALL, known)
    assert names(SMALL, mask) == edges_by_hand(SMALL, {"input", "a0.h1", "a1.h0", "m0", "m1"})
    assert note == (
        "every edge among the 2 heads of the list, the input and the logits and every MLP, since the list names none"
    )
    bare, note = known_circuit(ATTENTION, known)
    assert names(ATTENTION, bare) == edges_by_hand(ATTENTION, {"input", "a0.h1", "a1.h0"})
    assert "MLP" not in note


def test_a_list_of_heads_and_mlps() -> None:
    known = load_task("greater-than").known_of("gpt2")[0]
    mask, note = known_circuit(GPT2, known)
    assert names(GPT2, mask) == edges_by_hand(GPT2, {"input", *known.heads, *known.mlps})
    assert note.startswith(
        f"every edge among the {len(known.heads)} heads and {len(known.mlps)} MLPs of the list"
    )


def test_a_list_of_edges_that_reach_mlps_or_of_a_model_without() -> None:
    known = Known(edges=("input->a0.h1<v>", "a0.h1->m1", "m1->logits"))
    mask, note = known_circuit(SMALL, known)
    assert names(SMALL, mask) == set(known.edges)
    assert note == "the 3 edges of the list"
    bare = Known(edges=("input->a0.h1<v>", "a0.h1->logits"))
    assert names(ATTENTION, known_circuit(ATTENTION, bare).mask) == set(bare.edges)
    assert names(SMALL, known_circuit(SMALL, bare, complete=True).mask) == set(bare.edges)


def test_edges_that_carry_nothing_are_told() -> None:
    known = Known(edges=("input->a0.h1<v>", "a0.h1->logits", "a0.h0->a1.h0<q>"))
    mask, note = known_circuit(ATTENTION, known)
    assert int(mask.sum()) == 3
    assert "1 of them lie on no way" in note


def test_the_edges_of_ioi_with_every_mlp() -> None:
    """Between heads the listed edges alone; at MLPs every edge."""
    known = load_task("ioi").known_of("gpt2")[0]
    mask, note = known_circuit(GPT2, known)
    found = names(GPT2, mask)
    between = {edge for edge in found if "m" not in edge}
    assert between == {str(parse_edge(edge)) for edge in known.edges}
    every = edges_by_hand(GPT2, {"input", *known.heads, *(f"m{layer}" for layer in range(12))})
    assert {edge for edge in every if "m" in edge} == found - between
    assert "takes MLPs as given" in note
    assert (connected(GPT2, mask) == mask).all()


def test_a_list_of_nothing() -> None:
    with pytest.raises(UsageError, match="lists no heads, MLPs or edges"):
        known_circuit(SMALL, Known(name="empty"))
    with pytest.raises(UsageError, match="does not fit"):
        known_circuit(SMALL, Known(heads=("a0.h1", "a9.h9")))


# --- planted models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["induction", "ioi-planted", "and-gate", "or-gate"])
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_the_truth_of_planted_models(kind: str, ablation: str) -> None:
    name = f"planted/{kind}:3"
    truth, known = planted(name), truth_of_planted(name, ablation)  # type: ignore[arg-type]
    assert set(known.edges) == truth.edges[ablation]
    touched = {end.split("<")[0] for edge in known.edges for end in edge.split("->")}
    assert set(known.nodes) == touched - {"input", "logits"}
    assert {node: role for role, members in known.roles.items() for node in members} == {
        node: role for node, role in truth.roles.items() if node in touched
    }
    assert known.ablation == ablation
    assert known.replicates


def test_truth_that_lists_no_edges() -> None:
    mean = truth_of_planted("planted/induction:3", "mean")
    assert mean.edges == ()
    assert mean.note is not None
    assert "known under resample and zero ablation alone" in mean.note
    assert mean.heads == truth_of_planted("planted/induction:3", "resample").heads
    redundant = truth_of_planted("planted/second-order", "resample")
    assert redundant.edges == ()
    assert set(redundant.roles) == {"primary", "backup", "second-order-backup"}
    assert len(redundant.heads) == 3


def test_truth_of_units() -> None:
    truth = planted("planted/neuron-lookup")
    assert truth.units is not None
    neurons = truth_of_planted("planted/neuron-lookup", "resample", "heads,neurons")
    features = truth_of_planted("planted/neuron-lookup", "resample", "heads,features")
    assert set(neurons.edges) == truth.units.edges["resample"]
    assert set(features.edges) == truth.units.feature_edges["resample"]
    assert set(neurons.mlps) == set(features.mlps) == {name.split(".")[0] for name in truth.units.names}


def test_no_such_planted_model() -> None:
    with pytest.raises((ModelError, ValueError)):
        truth_of_planted("planted/nothing", "resample")
