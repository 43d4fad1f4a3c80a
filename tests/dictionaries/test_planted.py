"""Features of planted dictionaries do what the neurons do that they stand for, and the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from circuitfind.dictionaries.activations import batched
from circuitfind.dictionaries.fit import check_fits
from circuitfind.dictionaries.load import load_dictionaries
from circuitfind.dictionaries.planted import planted_dictionaries
from circuitfind.dictionaries.save import save_dictionary
from circuitfind.dictionaries.splice import base_errors, run_spliced
from circuitfind.errors import ModelError
from circuitfind.model.load import load_model
from circuitfind.names import parse_node
from circuitfind.zoo.planted import NEURONS, build
from tests import families
from tests.neurons import encode, lab, members

every_model = pytest.mark.parametrize("name", NEURONS)
every_seed = pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 20))]
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@every_model
@every_seed
def test_features_do_what_units_do(name: str, seed: int) -> None:
    found = lab(name, seed)
    units = found.units
    for unit, feature in units.features.items():
        assert found.lost_features(members(feature)) == pytest.approx(found.lost(members(unit)), abs=0.03)
    relevant = set(units.features.values())
    assert found.lost_features(members(*relevant)) == pytest.approx(1.0, abs=0.05)
    others = members(*(set(units.feature_roles) - relevant))
    assert found.lost_features(others) == pytest.approx(0.0, abs=0.05)


@every_model
@every_seed
def test_reconstruction(name: str, seed: int) -> None:
    """At the end, of the variance between prompts; elsewhere, beside a unit's writing of about 1."""
    found = lab(name, seed)
    layers = {parse_node(unit).layer for unit in found.units.names}
    for layer, dictionary in enumerate(found.units.dictionaries):
        out = torch.cat([run.out[layer] for run in (found.clean, found.corrupted)])
        read = torch.cat([run.normed[layer] for run in (found.clean, found.corrupted)])
        made = encode(dictionary, read) @ dictionary.w_dec.double() + dictionary.b_dec.double()
        error = out - made
        assert error[:, -1].norm(dim=-1).max() < 0.2
        assert error.norm(dim=-1).max() < 0.6
        assert error[:, -1].norm(dim=-1).min() > 0.001
        if layer in layers:
            spread = out[:, -1] - out[:, -1].mean(0)
            assert error[:, -1].square().sum() < 0.04 * spread.square().sum()


@every_model
@every_seed
def test_features_that_fire(name: str, seed: int) -> None:
    found = lab(name, seed)
    units = found.units
    runs = (found.clean, found.corrupted)
    fired = [
        torch.cat([encode(dictionary, run.normed[layer]) for run in runs]).flatten(0, 1) > 0
        for layer, dictionary in enumerate(units.dictionaries)
    ]
    shares = {
        f"t{layer}.f{index}": float(column.double().mean())
        for layer, table in enumerate(fired)
        for index, column in enumerate(table.T)
    }
    for feature, role in units.feature_roles.items():
        if role in ("dead", "silent"):
            assert shares[feature] == 0.0
        elif role == "always-on":
            assert shares[feature] == 1.0
        else:
            assert 0.0 < shares[feature] < 0.5, role
    assert {"dead", "always-on", "loud", "even", "opposed", "weak", "topic"} <= set(
        units.feature_roles.values()
    )
    # Some weak neurons have no feature: they are in the error.
    roles = list(units.feature_roles.values())
    assert roles.count("weak") < len(units.with_role("weak"))


@every_model
@pytest.mark.parametrize("seed", range(3))
def test_dictionaries_in_the_model(name: str, seed: int) -> None:
    planted = lab(name, seed).planted
    model = load_model(f"planted/{name}:{seed}", device="cpu")
    found = planted_dictionaries(planted)
    assert [one.layer for one in found] == list(range(planted.config["n_layers"]))
    pairs = planted.pairs(24)
    (rows,) = batched([pair.clean for pair in pairs], "cpu")
    by_layer = {one.layer: one for one in found}
    for one, truth in zip(found, lab(name, seed).units.dictionaries, strict=True):
        x = torch.randn(5, one.d_in, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(one.encode(x).double(), encode(truth, x.double()), atol=1e-4)
    errors = base_errors(model, rows, by_layer)
    assert all(float(error.abs().max()) > 1e-3 for error in errors.values())
    answer = torch.tensor([pairs[i].answer for i in rows.index])
    wrong = torch.tensor([pairs[i].wrong for i in rows.index])
    bridge = model.bridge_logits(rows.tokens, rows.real.sum(1) - 1)
    exact = run_spliced(model, rows, by_layer, errors="frozen", frozen=errors)
    assert torch.allclose(model.head(exact.stream[:, -1]), bridge, atol=1e-4)
    alone = model.head(run_spliced(model, rows, by_layer).stream[:, -1])
    assert torch.equal(alone.argmax(-1), answer)
    at = torch.arange(len(answer))
    kept = (alone[at, answer] - alone[at, wrong]).mean() / (bridge[at, answer] - bridge[at, wrong]).mean()
    assert float(kept) == pytest.approx(1.0, abs=0.05)


@every_model
@pytest.mark.parametrize("seed", range(3))
def test_dictionaries_can_be_saved(name: str, seed: int, tmp_path: Path) -> None:
    found = planted_dictionaries(lab(name, seed).planted)
    model = load_model(f"planted/{name}:{seed}", device="cpu")
    for one in found:
        save_dictionary(one, tmp_path / f"layer_{one.layer}")
    for one, again in zip(found, load_dictionaries(tmp_path), strict=True):
        check_fits(again, model)
        assert (again.layer, again.activation, again.site_in, again.site_out) == (
            one.layer,
            one.activation,
            "mlp_normed",
            "mlp_out",
        )
        assert torch.equal(again.w_enc, one.w_enc)
        assert torch.equal(again.w_dec, one.w_dec)


def test_no_dictionaries_where_none_were_written() -> None:
    with pytest.raises(ModelError, match="no transcoders come with planted/and-gate"):
        planted_dictionaries(build("and-gate"))
