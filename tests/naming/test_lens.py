"""The logit lens: beside sums written out, and beside the pull-back of the final norm."""

from __future__ import annotations

import math

import pytest
import torch

from circuitfind.names import parse_node
from circuitfind.naming.banks import Banks, index_of
from circuitfind.naming.lens import CHUNK, promoted, token_values
from tests import families
from tests.dictionaries.synthetic import random_dictionary
from tests.naming.cases import NODES, WITH_MLPS, banks


def by_hand(model, vector: torch.Tensor) -> list[float]:  # type: ignore[no-untyped-def]
    """Sums in double precision, one product after the other."""
    v = [float(x) for x in vector.double()]
    norm = model.final_norm
    if norm.kind == "ln":
        middle = math.fsum(v) / len(v)
        v = [x - middle for x in v]
    if norm.weight is not None:
        v = [x * float(w) for x, w in zip(v, norm.weight.double(), strict=True)]
    table = model.w_u.double().T.tolist()
    return [math.fsum(x * w for x, w in zip(v, row, strict=True)) for row in table]


@pytest.mark.parametrize("family", [*WITH_MLPS, "attn-only"])
def test_values_are_the_sums_written_out(family: str) -> None:
    model = families.model(family)
    if family == "attn-only":
        vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    else:
        node = NODES[2]
        vector = banks(model)[node].writes(index_of(node, model.device))[0]
    wanted = by_hand(model, vector)
    assert token_values(model, vector).tolist() == pytest.approx(wanted, abs=1e-4)
    (found,) = promoted(model, vector[None], 3)
    ranked = sorted(range(len(wanted)), key=lambda t: -wanted[t])
    up = [t for t in ranked[:3] if wanted[t] > 0]
    down = [t for t in ranked[::-1][:3] if wanted[t] < 0]
    assert [t for t, _ in found.promotes] == up
    assert [t for t, _ in found.suppresses] == down
    assert [v for _, v in found.promotes] == pytest.approx([wanted[t] for t in up], abs=1e-4)
    turned = found.reversed
    assert [t for t, _ in turned.promotes] == down
    assert turned.reversed == found


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "no-norm", "neox"])
def test_values_are_what_the_frozen_norm_passes_on(family: str) -> None:
    """At any stream, the frozen pull-back of a token's unembedding times the write is 1/sigma times the value."""
    model = families.model(family)
    generator = torch.Generator().manual_seed(4)
    stream = torch.randn(3, model.d_model, generator=generator) * 2
    written = torch.randn(model.d_model, generator=generator)
    values = token_values(model, written)
    scale = model.final_norm.inverse_scale(stream) if model.final_norm.kind != "none" else torch.ones(3, 1)
    for token in range(0, model.n_vocab_out, 7):
        direction = model.final_norm.pullback(stream, model.w_u[:, token].expand(3, -1), frozen=True)
        assert torch.allclose(direction @ written, scale[:, 0] * values[token], atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_the_write_of_a_neuron_is_what_the_stream_gets(family: str) -> None:
    """A small push on one activation moves the MLP's output along the write, with the post-norm's scale frozen."""
    model = families.model(family)
    mlp = model.layers[1].mlp
    assert mlp is not None
    node = parse_node("m1.n4")
    write = Banks(model)[node].writes(index_of(node, model.device))[0]
    raw = torch.randn(model.d_model, generator=torch.Generator().manual_seed(2))
    moved = mlp.w_out[4]
    if mlp.post_norm is None:
        assert torch.equal(write, moved)
        return
    hat = mlp.post_norm.weight * (raw + moved) * mlp.post_norm.inverse_scale(raw)
    before = mlp.post_norm.weight * raw * mlp.post_norm.inverse_scale(raw)
    assert torch.allclose(hat - before, write * mlp.post_norm.inverse_scale(raw), atol=1e-5)


def test_a_cross_layer_feature_writes_the_sum_of_what_it_writes_to_each_layer() -> None:
    model = families.model("ln")
    one = random_dictionary(model, 0, cross=True, scale_out=2.0)
    node = parse_node("t0.f3")
    found = Banks(model, [one])[node].writes(index_of(node, model.device))[0]
    assert torch.allclose(found, (one.w_dec[3, 0] + one.w_dec[3, 1] + one.w_dec[3, 2]) / 2, atol=1e-6)


def test_many_vectors_are_done_in_chunks() -> None:
    model = families.model("gpt2")
    vectors = torch.randn(CHUNK + 3, model.d_model, generator=torch.Generator().manual_seed(0))
    together = promoted(model, vectors, 2)
    assert len(together) == CHUNK + 3
    for i in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        (alone,) = promoted(model, vectors[i : i + 1], 2)
        assert [t for t, _ in alone.promotes] == [t for t, _ in together[i].promotes]


def test_no_more_tokens_than_there_are() -> None:
    model = families.model("ln-pre")
    (found,) = promoted(model, torch.randn(1, model.d_model), 50)
    assert len(found.promotes) + len(found.suppresses) == model.n_vocab_out
