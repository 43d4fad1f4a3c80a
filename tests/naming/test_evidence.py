"""Evidence from weights, beside loops over matrices that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from circuitfind.model.bridge import Model
from circuitfind.model.norms import Norm
from circuitfind.names import Kind, Node, parse_node
from circuitfind.naming import evidence
from circuitfind.naming.banks import Banks, index_of
from circuitfind.naming.evidence import (
    answer_direction,
    answer_write,
    head_writes,
    percentile,
    unit_writes,
    z_score,
)
from tests import families
from tests.dictionaries.synthetic import random_dictionary
from tests.naming.cases import NODES, WITH_MLPS, banks, dictionaries

ONE = torch.ones(1)


def matrix(norm: Norm | None, size: int) -> np.ndarray:
    """What a norm with its scale at 1 does to a row vector, as a matrix."""
    found = np.eye(size)
    if norm is None:
        return found
    if norm.kind == "ln":
        found = found - 1 / size
    return found if norm.weight is None else found @ np.diag(norm.weight.double().numpy())


def reading(model: Model, node: Node, unit: int, entry: str) -> np.ndarray:
    """The column that a unit reads the stream through, by products of whole matrices."""
    layer, d = model.layers[node.layer], model.d_model
    if node.kind is Kind.NEURON:
        mlp = layer.mlp
        assert mlp is not None
        weight = mlp.w_gate if entry == "gate" else mlp.w_in
        assert weight is not None
        return matrix(layer.mlp_norm, d) @ weight.double().numpy()[:, unit]
    (one,) = (o for o in dictionaries(model) if (o.layer, o.kind) == (node.layer, "transcoder"))
    norm = layer.mlp_norm if one.site_in == "mlp_normed" else Norm(layer.mlp_norm.kind)
    return matrix(norm, d) @ one.w_enc.double().numpy()[:, unit]


def carried(model: Model, layer: int, head: int, column: np.ndarray) -> float:
    """|norm W_V W_O r| / |r|."""
    own = model.layers[layer]
    kv = head // (own.n_heads // own.n_kv_heads)
    w_v = matrix(own.norm, model.d_model) @ own.w_v[kv].double().numpy()
    w_o = own.w_o[head].double().numpy()
    return float(np.linalg.norm(w_v @ w_o @ column) / np.linalg.norm(column))


@pytest.mark.parametrize("family", WITH_MLPS)
def test_heads_that_write_into_units(family: str) -> None:
    model = families.model(family)
    held = banks(model)
    nodes = [n for n in NODES if n.family in ("m", "t")]
    found = head_writes(held, nodes)
    parallel = model.anatomy.parallel
    for node in nodes:
        gated = node.kind is Kind.NEURON and model.layers[0].mlp.w_gate is not None  # type: ignore[union-attr]
        assert set(found[node]) == (
            set() if parallel and not node.layer else {"gate", "up"} if gated else {"in"}
        )
        for entry, listed in found[node].items():
            wanted = {
                (i, h) for i in range(node.layer + (not parallel)) for h in range(model.layers[i].n_heads)
            }
            assert {(w.head.layer, w.head.index) for w in listed} == wanted
            assert [w.z for w in listed] == sorted((w.z for w in listed), reverse=True)
            for w in listed[:2]:
                at = (w.head.layer, w.head.index)
                everyone = np.array(
                    [carried(model, *at, reading(model, node, u, entry)) for u in range(held[node].n_units)]
                )
                mine = everyone[list(node.units)]
                assert w.size == pytest.approx(float(np.sqrt((mine**2).mean())), rel=1e-4)
                z = (mine - everyone.mean()) / everyone.std()
                assert w.z == pytest.approx(float(z.mean()), abs=1e-3)
                ranks = [100 * ((everyone < x).sum() + 0.5) / len(everyone) for x in mine]
                assert w.percentile == pytest.approx(float(np.mean(ranks)), abs=1e-6)


def test_the_stream_behind_a_layer_has_all_of_its_heads_and_what_an_mlp_wrote_has_none() -> None:
    model = families.model("gpt2")
    wanted = {"s1.f2": 8, "s0.f1": 4, "sh0.f8": 4, "si0.f5": None, "sm1.f6": None, "sa1.f3+4": None}
    nodes = {name: parse_node(name) for name in wanted}
    found = head_writes(banks(model), list(nodes.values()))
    for name, count in wanted.items():
        listed = found[nodes[name]]
        assert (len(listed["in"]) if listed else None) == count, name


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "llama", "no-norm"])
def test_what_units_write_to_the_answer(family: str) -> None:
    model = families.model(family)
    held, pairs = banks(model), families.pairs_for(model, count=6)
    direction = answer_direction(model, pairs)
    final = matrix(model.final_norm, model.d_model)
    w_u = model.w_u.double().numpy()
    each = np.stack([final @ (w_u[:, p.answer[0]] - w_u[:, p.wrong[0]]) for p in pairs])
    mean = each.mean(0)
    assert np.allclose(direction.mean.numpy(), mean, atol=1e-5)
    assert direction.agreement == pytest.approx((mean**2).sum() / (each**2).sum(1).mean(), rel=1e-4)
    for node in NODES:
        share = torch.linspace(1, 0.4, len(node.units))
        writes = held[node].writes().double().numpy()
        own = share.double().numpy() @ writes[list(node.units)]
        found = answer_write(held, node, direction, share)
        assert found.inner == pytest.approx(float(own @ mean), abs=1e-4)
        assert found.cosine == pytest.approx(
            float(own @ mean / np.linalg.norm(own) / np.linalg.norm(mean)), abs=1e-4
        )
        rank = 100 * ((writes @ mean < own @ mean - 1e-6).sum() + (len(node.units) == 1) / 2) / len(writes)
        assert found.percentile == pytest.approx(rank, abs=1e-6)
        spreads = np.sqrt(((writes @ each.T) ** 2).mean(1))
        mine = float(np.sqrt(((each @ own) ** 2).mean()))
        assert found.spread == pytest.approx(mine, rel=1e-4)
        rank = 100 * ((spreads < mine - 1e-6).sum() + (len(node.units) == 1) / 2) / len(spreads)
        assert found.spread_percentile == pytest.approx(rank, abs=1e-6)


def test_the_answer_direction_is_the_change_of_the_logit_difference() -> None:
    """With the final norm frozen, a write changes the mean logit difference by 1/sigma times its inner product."""
    model = families.model("gpt2")
    pairs = families.pairs_for(model, count=5)
    direction = answer_direction(model, pairs)
    generator = torch.Generator().manual_seed(3)
    stream, write = (
        torch.randn(model.d_model, generator=generator),
        torch.randn(model.d_model, generator=generator),
    )
    norm = model.final_norm
    centred = write - write.mean()
    moved = norm(stream) + norm.weight * centred * norm.inverse_scale(stream)  # type: ignore[operator]
    change = (model.unembed(moved) - model.unembed(norm(stream))).double()
    mean = sum(float(change[p.answer[0]] - change[p.wrong[0]]) for p in pairs) / len(pairs)
    assert mean == pytest.approx(float(direction.mean @ write) * float(norm.inverse_scale(stream)), abs=1e-4)


def test_pairs_that_ask_for_one_token_agree_and_others_do_not() -> None:
    model = families.model("gpt2")
    pairs = families.pairs_for(model, count=8)
    assert answer_direction(model, pairs.subset([0] * 8)).agreement == pytest.approx(1.0)
    assert answer_direction(model, pairs).agreement < 0.5


@pytest.mark.parametrize("family", ["gpt2", "rms-gated", "gemma2"])
def test_units_that_write_into_units(family: str) -> None:
    model = families.model(family)
    held = banks(model)
    nodes = [n for n in NODES if n.family in ("m", "t")]
    weights = {n: torch.linspace(1, 0.5, len(n.units)) for n in nodes}
    found = unit_writes(held, nodes, weights)
    lower, upper = ([n for n in nodes if n.layer == layer] for layer in (0, 1))
    entries = {n: 2 if n.kind is Kind.NEURON and family != "gpt2" else 1 for n in upper}
    assert len(found) == len(lower) * sum(entries.values())
    assert [abs(w.z) for w in found] == sorted((abs(w.z) for w in found), reverse=True)
    for w in found:
        out = (
            weights[w.sender].double().numpy()
            @ held[w.sender].writes().double().numpy()[list(w.sender.units)]
        )
        towards = [reading(model, w.receiver, u, w.entry) for u in range(held[w.receiver].n_units)]
        own = weights[w.receiver].double().numpy() @ np.stack(towards)[list(w.receiver.units)]
        cos = [float(out @ r / np.linalg.norm(out) / np.linalg.norm(r)) for r in (own, *towards)]
        assert w.cosine == pytest.approx(cos[0], abs=1e-5)
        assert w.z == pytest.approx((cos[0] - np.mean(cos[1:])) / np.std(cos[1:]), abs=1e-3)


def test_wide_layers_are_compared_with_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model("gpt2")
    one = random_dictionary(model, 1, width=500)
    node = parse_node("t1.f7")
    held = Banks(model, [one])
    whole = head_writes(held, [node])[node]["in"]
    monkeypatch.setattr(evidence, "SAMPLE", 200)
    drawn = {w.head: w for w in head_writes(held, [node])[node]["in"]}
    for w in whole:
        assert drawn[w.head].size == pytest.approx(w.size, rel=1e-5)
        assert drawn[w.head].z == pytest.approx(w.z, abs=0.4)
        assert drawn[w.head].percentile == pytest.approx(w.percentile, abs=12)


def test_ranks() -> None:
    among = torch.tensor([1.0, 2.0, 2.0, 3.0])
    assert percentile(2.0, among) == 50.0
    assert percentile(0.0, among) == 0.0
    assert percentile(9.0, among) == 100.0
    assert z_score(2.0, among) == 0.0
    assert z_score(2.0 + 2**-0.5, among) == pytest.approx(1.0)
    assert z_score(5.0, torch.ones(3)) == 0.0


def test_reads_of_a_node_are_rows_of_all() -> None:
    model = families.model("rms-gated")
    held = banks(model)
    for node in NODES:
        index = index_of(node, model.device)
        for entry, own in held[node].reads(index).items():
            assert torch.equal(own, held[node].reads()[entry][index])
        assert torch.equal(held[node].writes(index), held[node].writes()[index])
