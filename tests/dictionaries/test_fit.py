"""A dictionary is put only into a model that it belongs to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.fit import check_fits
from circuitfind.errors import CircuitfindError, ModelError, UnsupportedError
from circuitfind.model.load import load_model
from tests import families


def made(d_in: int = 16, d_out: int = 16, **more: Any) -> Dictionary:
    given: dict[str, Any] = {
        "kind": "transcoder",
        "layer": 1,
        "site_in": "mlp_normed",
        "site_out": "mlp_out",
        "activation": "relu",
        "w_enc": torch.zeros(d_in, 3),
        "b_enc": torch.zeros(3),
        "w_dec": torch.zeros(3, d_out),
        "b_dec": torch.zeros(d_out),
    }
    return Dictionary(**{**given, **more})


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "qwen3", "gemma2", "ln", "ln-pre", "rms-gated"])
def test_what_fits(family: str) -> None:
    model = families.model(family)
    for site in ("resid", "resid_post", "mlp_in", "attn_in", "attn_out", "mlp_out"):
        check_fits(made(model.d_model, model.d_model, site_in=site), model)
    heads = model.layers[1].n_heads * model.d_head
    check_fits(made(heads, heads, kind="sae", site_in="z", site_out="z"), model)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"d_in": 17}, ("reads 17 numbers at mlp_normed", "has 16")),
        ({"d_out": 15}, ("writes 15 numbers at mlp_out", "has 16")),
        ({"layer": 2}, ("layer 2", "2 layers (0 to 1)")),
        (
            {"kind": "cross-layer", "w_dec": torch.zeros(3, 4, 16), "b_dec": torch.zeros(4, 16)},
            ("layers 1 to 4", "ends with layer 1"),
        ),
    ],
)
def test_other_sizes(given: dict[str, Any], told: tuple[str, ...]) -> None:
    refused(made(**given), "gpt2", *told)


def refused(
    dictionary: Dictionary, family: str, *told: str, kind: type[CircuitfindError] = ModelError
) -> None:
    with pytest.raises(kind) as caught:
        check_fits(dictionary, families.model(family))
    for words in told:
        assert words in str(caught.value)


def test_sites_that_a_model_does_not_have() -> None:
    refused(made(site_in="mid"), "neox", "no stream between", kind=UnsupportedError)
    width = families.model("attn-only").d_model
    refused(made(width, width), "attn-only", "no MLPs", kind=UnsupportedError)


def test_another_model() -> None:
    model = load_model("mini", device="cpu")
    width = model.d_model
    check_fits(made(width, width, facts={"model_name": "mini"}), model)
    with pytest.raises(ModelError, match="'openai/gpt2-medium', not to 'mini'"):
        check_fits(made(width, width, facts={"model_name": "openai/gpt2-medium"}), model)
    # A local folder may be called anything.
    check_fits(made(facts={"model_name": "gpt2"}), families.model("gpt2"))


@pytest.mark.parametrize(
    ("family", "plain"), [("gpt2", False), ("llama", True), ("gemma2", True), ("ln-pre", True)]
)
def test_what_hook_normalized_meant(family: str, plain: bool) -> None:
    """Before the weight of an RMSNorm always; of a LayerNorm only where it was folded away."""
    width = families.model(family).d_model
    for facts in ({}, {"fold_ln": True}):
        check_fits(made(width, width, site_in="mlp_hat", facts=facts), families.model(family))
    told = made(width, width, site_in="mlp_hat", facts={"fold_ln": False})
    if plain:
        check_fits(told, families.model(family))
    else:
        refused(
            told, family, "behind the weight of a LayerNorm", "mlp.hook_in", "fold_ln", kind=UnsupportedError
        )


def test_a_centred_stream() -> None:
    told = made(site_in="resid", facts={"center_writing_weights": True})
    check_fits(told, families.model("gpt2"))
    refused(told, "llama", "RMSNorm", kind=UnsupportedError)


@pytest.mark.parametrize("hook", ["mlp.hook_out", "blocks.1.attn.hook_out"])
def test_hooks_before_a_post_norm(hook: str) -> None:
    told = made(facts={"hook_out": hook})
    check_fits(told, families.model("llama"))
    refused(told, "gemma2", "before the post-norm", kind=UnsupportedError)
