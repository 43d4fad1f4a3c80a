"""Dictionaries in the place of MLPs: what is held is what fires, and a layer's features are the dictionary itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from circuitfind.dictionaries.activations import batched, own_mlp, run_mlps
from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.errors import ModelError, UnsupportedError, UsageError
from circuitfind.model.bridge import Model
from circuitfind.model.runs import Runs
from circuitfind.units.dictionaries import as_features, check_transcoders, hold
from tests import families
from tests.dictionaries.synthetic import random_dictionary
from tests.families import pairs_for, runs_of

FAMILIES = ("gpt2", "neox", "llama", "gemma2", "ln", "no-norm")
"""A norm with bias, parallel blocks, gates, post-norms, three layers, none at all."""
WIDTH = 30
VARIANTS: dict[str, dict[str, object]] = {
    "relu": {},
    "mlp_hat": {"site_in": "mlp_hat"},
    "mlp_in": {"site_in": "mlp_in"},
    "scales": {"scale_in": 0.4, "scale_out": 2.5},
    "centred": {"centred": True, "scale_in": 0.4, "scale_out": 2.5},
    "skip": {"skip": True, "scale_in": 0.4, "scale_out": 2.5},
    "jumprelu": {"activation": "jumprelu", "threshold": torch.linspace(-0.3, 0.9, WIDTH)},
    "topk": {"activation": "topk", "k": 3},
    "topk of all": {"activation": "topk", "k": WIDTH},
    "everything": {
        "activation": "topk",
        "k": 4,
        "site_in": "mlp_hat",
        "centred": True,
        "skip": True,
        "scale_in": 0.4,
        "scale_out": 2.5,
    },
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def dictionary(model: Model, layer: int, variant: str) -> Dictionary:
    """Most features fire rarely, so that some are not held."""
    given = dict(VARIANTS[variant])
    skip = given.pop("skip", False)
    one = random_dictionary(model, layer, width=WIDTH, seed=3, **given)
    one = replace(one, b_enc=one.b_enc - 3.0 * torch.linspace(0, 1, WIDTH))
    if skip:
        generator = torch.Generator().manual_seed(layer)
        one = replace(one, w_skip=0.3 * torch.randn(model.d_model, model.d_model, generator=generator))
    return one


def runs_in(model: Model) -> Runs:
    """Two lengths, so two batches; the answer is read before the end in some."""
    return runs_of(model, pairs_for(model, count=4, lengths=(6, 8), last=False, same=1))


def site(model: Model, layer: int, name: str, stream: Tensor) -> Tensor:
    """What stands at a site, from the stream that the MLP reads."""
    norm = model.layers[layer].mlp_norm
    if name == "mlp_in":
        return stream
    return (norm if name == "mlp_normed" else replace(norm, weight=None, bias=None))(stream)


def read_by(runs: Runs) -> Iterator[tuple[int, Tensor]]:
    """By layer, the stream that its MLP reads, prompt by prompt; in the last layer only at the answer is anything read."""
    model, plain = runs.model, own_mlp(runs.model)
    for pair in runs.pairs:
        for tokens in (pair.clean, pair.corrupted):
            found: list[Tensor] = []

            def spy(index: int, read: Tensor, normed: Tensor, found: list[Tensor] = found) -> Tensor:
                found.append(read[0])
                return plain(index, read, normed)

            (rows,) = batched([tokens], "cpu")
            run_mlps(model, rows, spy)
            last = len(found) - 1
            for index, read in enumerate(found):
                yield index, read if index < last else read[[pair.answer_position]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["relu", "jumprelu", "topk", "mlp_in", "everything"])
def test_what_fires_somewhere_is_held_and_nothing_else(family: str, variant: str) -> None:
    model = families.model(family)
    runs = runs_in(model)
    given = [dictionary(model, layer, variant) for layer in range(len(model.layers))]
    fires = [torch.zeros(WIDTH, dtype=torch.bool) for _ in given]
    for layer, stream in read_by(runs):
        fires[layer] |= (given[layer].encode(site(model, layer, given[layer].site_in, stream)) > 0).any(0)
    found = hold(runs, given)
    assert list(found) == list(range(len(given)))
    for layer, one in found.items():
        assert one.ids.tolist() == fires[layer].nonzero()[:, 0].tolist()
    assert 0 < sum(len(one.ids) for one in found.values()) < WIDTH * len(given)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@every_variant
def test_features_are_the_dictionary(family: str, variant: str) -> None:
    model = families.model(family)
    stream = torch.randn(50, model.d_model, generator=torch.Generator().manual_seed(1))
    for layer in range(len(model.layers)):
        given = dictionary(model, layer, variant)
        one = as_features(given, model.layers[layer])
        at = site(model, layer, given.site_in, stream)
        x = one.norm(stream)
        values = one.act(one.pre(x), one.level(x))
        torch.testing.assert_close(values, given.encode(at), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(one.decode(values, x), given(at), atol=2e-5, rtol=1e-4)
        assert 0 < (values > 0).float().mean() < 1


@every_variant
def test_held_features_and_nothing_missed_are_the_dictionary_on_the_prompts(variant: str) -> None:
    """What was left out never fires, so the dictionary without it makes the same of every prompt."""
    model = families.model("gpt2")
    runs = runs_in(model)
    given = [dictionary(model, layer, variant) for layer in range(len(model.layers))]
    found = hold(runs, given)
    for layer, stream in read_by(runs):
        one = found[layer]
        x = one.norm(stream)
        made = one.decode(one.act(one.pre(x), one.level(x)), x)
        wanted = given[layer](site(model, layer, given[layer].site_in, stream))
        torch.testing.assert_close(made, wanted, atol=2e-5, rtol=1e-4)


def test_dictionaries_that_cannot_stand_for_mlps_are_refused() -> None:
    model = families.model("gpt2")
    one, other = (random_dictionary(model, layer) for layer in range(2))
    check_transcoders(model, [one, other])
    check_transcoders(model, [other])
    with pytest.raises(UsageError, match="no dictionaries"):
        check_transcoders(model, [])
    with pytest.raises(UsageError, match="layer 0 has two dictionaries"):
        check_transcoders(model, [replace(one, source="first"), other, replace(one, source="second")])
    with pytest.raises(UnsupportedError, match="cross-layer"):
        check_transcoders(model, [random_dictionary(model, 0, cross=True)])
    for given in (
        {"kind": "sae", "site_in": "mlp_out"},
        {"kind": "sae", "site_in": "resid", "site_out": "resid"},
        {"site_out": "resid_post"},
        {"site_in": "mid"},
    ):
        with pytest.raises(UnsupportedError, match="stands for no MLP"):
            check_transcoders(model, [random_dictionary(model, 0, **given)])


def test_dictionaries_of_another_model_are_refused() -> None:
    model, wide = families.model("ln"), families.model("gpt2")
    assert model.d_model != wide.d_model
    with pytest.raises(ModelError, match=f"{wide.d_model} numbers at mlp_normed"):
        check_transcoders(model, [random_dictionary(wide, 0)])
    with pytest.raises(ModelError, match="layer"):
        check_transcoders(wide, [random_dictionary(wide, len(wide.layers))])


def test_a_model_without_mlps_is_refused() -> None:
    model = families.model("attn-only")
    with pytest.raises(UnsupportedError, match="no MLPs"):
        check_transcoders(model, [random_dictionary(model, 0)])
