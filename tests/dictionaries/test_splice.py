"""Models that run on dictionaries: with errors they are the model, without they are what the dictionaries make of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from circuitfind.dictionaries.activations import Rows, batched, own_mlp, run_mlps
from circuitfind.dictionaries.splice import base_errors, check_fit, run_spliced
from circuitfind.errors import ModelError, UnsupportedError, UsageError
from circuitfind.model.bridge import Model
from tests import families
from tests.dictionaries.synthetic import random_dictionary, random_texts


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread only waits for tensors so small."""
    with families.one_thread():
        yield


WITH_MLPS = [name for name in families.FAMILIES if not name.startswith("attn-only")]


def rows_of(model: Model, seed: int = 0) -> Rows:
    (found,) = batched(random_texts(model, count=5, seed=seed).items, "cpu")
    return found


def logits(model: Model, rows: Rows, stream: torch.Tensor) -> torch.Tensor:
    return model.head(stream)[rows.real]


def bridge(model: Model, rows: Rows) -> torch.Tensor:
    """The logits at every token by the bridge's own pass, one position after the other."""
    out = torch.full((*rows.tokens.shape, model.n_vocab_out), torch.nan)
    for row, length in enumerate(rows.real.sum(1).tolist()):
        for at in range(length):
            with torch.no_grad():
                out[row, at] = model.bridge_logits(rows.tokens[row : row + 1, :length], torch.tensor([at]))[0]
    return out[rows.real]


def dictionaries(model: Model, **options: object):  # type: ignore[no-untyped-def]
    return {layer: random_dictionary(model, layer, **options) for layer in range(len(model.layers))}


@pytest.mark.parametrize("family", WITH_MLPS)
def test_with_frozen_errors_the_logits_are_the_model_s(family: str) -> None:
    model = families.model(family)
    rows, found = rows_of(model), dictionaries(model)
    wanted = bridge(model, rows)
    errors = base_errors(model, rows, found)
    assert max(float(e.abs().max()) for e in errors.values()) > 0.1
    frozen = run_spliced(model, rows, found, errors="frozen", frozen=errors)
    assert torch.allclose(logits(model, rows, frozen.stream), wanted, atol=1e-4)
    recomputed = run_spliced(model, rows, found, errors="recomputed")
    assert torch.allclose(logits(model, rows, recomputed.stream), wanted, atol=1e-4)
    bare = run_spliced(model, rows, found)
    assert not torch.allclose(logits(model, rows, bare.stream), wanted, atol=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"site_in": "mlp_in"},
        {"site_in": "mlp_hat"},
        {"kind": "sae", "site_in": "mlp_out", "centred": True},
        {"cross": True},
        {"activation": "topk", "k": 2},
        {"activation": "jumprelu", "threshold": torch.full((10,), 0.2)},
        {"w_skip": torch.eye(16)},
    ],
    ids=lambda o: next(iter(o)) + str(next(iter(o.values())))[:8],
)
def test_every_kind_of_dictionary_can_be_spliced(options: dict[str, object]) -> None:
    model = families.model("gpt2")
    rows, found = rows_of(model), dictionaries(model, **options)
    errors = base_errors(model, rows, found)
    frozen = run_spliced(model, rows, found, errors="frozen", frozen=errors)
    assert torch.allclose(logits(model, rows, frozen.stream), bridge(model, rows), atol=1e-4)


def test_without_errors_an_mlp_is_its_dictionary() -> None:
    model = families.model("gpt2")
    rows, found = rows_of(model), dictionaries(model)
    seen: dict[int, torch.Tensor] = {}

    def by_hand(index: int, read: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        seen[index] = found[index].encode(normed)
        return seen[index] @ found[index].w_dec + found[index].b_dec

    spliced = run_spliced(model, rows, found)
    assert torch.allclose(spliced.stream, run_mlps(model, rows, by_hand), atol=1e-5)
    for layer, features in seen.items():
        assert torch.allclose(spliced.features[layer], features, atol=1e-6)


def test_a_cross_layer_transcoder_writes_to_later_layers() -> None:
    model = families.model("ln")
    rows, found = rows_of(model), dictionaries(model, cross=True)
    kept: dict[int, torch.Tensor] = {}

    def by_hand(index: int, read: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        kept[index] = found[index].encode(normed)
        parts = [kept[i] @ found[i].w_dec[:, index - i] + found[i].b_dec[index - i] for i in range(index + 1)]
        return torch.stack(parts).sum(0)

    assert torch.allclose(run_spliced(model, rows, found).stream, run_mlps(model, rows, by_hand), atol=1e-4)


def test_layers_without_a_dictionary_keep_their_mlp() -> None:
    model = families.model("llama")
    rows = rows_of(model)
    one = {1: random_dictionary(model, 1)}
    plain = own_mlp(model)

    def by_hand(index: int, read: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        return plain(index, read, normed) if index == 0 else one[1](normed)

    assert torch.allclose(run_spliced(model, rows, one).stream, run_mlps(model, rows, by_hand), atol=1e-5)


def test_frozen_errors_stay_and_recomputed_ones_follow() -> None:
    """A feature of the first layer is silenced: the second layer's error hides part of the effect where it follows."""
    model = families.model("gpt2")
    rows, found = rows_of(model), dictionaries(model)
    errors = base_errors(model, rows, found)
    base = run_spliced(model, rows, found, errors="recomputed")

    def silence(layer: int, features: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(features) if layer == 0 else features

    frozen = run_spliced(model, rows, found, errors="frozen", frozen=errors, edit=silence)
    followed = run_spliced(model, rows, found, errors="recomputed", edit=silence)
    assert not torch.allclose(frozen.stream, base.stream, atol=1e-3)
    assert not torch.allclose(frozen.stream, followed.stream, atol=1e-3)
    # By hand: the change in the first layer is the features' own, and the MLP above is the model's.
    lost = base.features[0] @ found[0].w_dec
    plain = own_mlp(model)

    def by_hand(index: int, read: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        return plain(index, read, normed) - (lost if index == 0 else 0)

    assert torch.allclose(followed.stream, run_mlps(model, rows, by_hand), atol=1e-4)


def test_frozen_errors_need_a_base_run() -> None:
    model = families.model("gpt2")
    with pytest.raises(ValueError, match="base run"):
        run_spliced(model, rows_of(model), dictionaries(model), errors="frozen")
    with pytest.raises(ValueError, match="base run"):
        run_spliced(model, rows_of(model), dictionaries(model), frozen={})


def test_dictionaries_of_something_else_are_refused() -> None:
    model, other, bare = families.model("gpt2"), families.model("ln"), families.model("attn-only")
    with pytest.raises(ModelError, match="16"):
        check_fit(other, dictionaries(model))
    with pytest.raises(ModelError, match="layer 2"):
        check_fit(model, {2: random_dictionary(model, 2)})
    with pytest.raises(UnsupportedError, match="no MLPs"):
        check_fit(bare, {0: random_dictionary(bare, 0)})
    with pytest.raises(UnsupportedError, match="stands for no MLP"):
        check_fit(model, {0: random_dictionary(model, 0, kind="sae", site_in="resid", site_out="resid")})
    with pytest.raises(UsageError, match="no dictionaries"):
        check_fit(model, {})
