"""What is written is what is read back, by us and by sae-lens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.dictionaries.dictionary import Activation, Dictionary, Kind
from circuitfind.dictionaries.load import load_dictionaries
from circuitfind.dictionaries.save import save_dictionary
from circuitfind.errors import RunError, UnsupportedError, UsageError
from tests.dictionaries import files
from tests.dictionaries.files import D, F, gap, inputs, weights


def dictionary(
    kind: Kind = "transcoder", activation: Activation = "relu", *, skip: bool = False, **more: Any
) -> Dictionary:
    w = {name: torch.from_numpy(a) for name, a in weights(d_out=D).items()}
    made = Dictionary(
        kind=kind,
        layer=2,
        site_in="mlp_normed" if kind == "transcoder" else "mid",
        site_out="mlp_out" if kind == "transcoder" else "mid",
        activation=activation,
        w_enc=w["enc"],
        b_enc=w["b_enc"],
        w_dec=w["dec"],
        b_dec=w["b_dec"],
        threshold=w["threshold"] if activation == "jumprelu" else None,
        k=3 if activation == "topk" else None,
        w_skip=w["skip"] if skip else None,
        facts={"model_name": "mini"},
    )
    return replace(made, **more)


def same(a: Dictionary, b: Dictionary) -> bool:
    x = torch.from_numpy(inputs())
    places = [(d.kind, d.layer, d.site_in, d.site_out, d.activation, d.k) for d in (a, b)]
    return places[0] == places[1] and gap(a, inputs(), b(x).double().numpy()) < 1e-6


ALL = [
    *[("transcoder", a, s) for a in ("relu", "jumprelu", "topk") for s in (False, True)],
    *[("sae", a, False) for a in ("relu", "jumprelu", "topk")],
]


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.3, 1.9)], ids=["plain", "scaled"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("kind", "activation", "skip"), ALL)
def test_round_trip(
    tmp_path: Path, kind: Kind, activation: Activation, skip: bool, centred: bool, scales: tuple[float, float]
) -> None:
    made = dictionary(kind, activation, skip=skip, centred=centred, scale_in=scales[0], scale_out=scales[1])
    (found,) = load_dictionaries(save_dictionary(made, tmp_path / "d"))
    assert same(made, found)
    assert found.facts["model_name"] == "mini"
    if scales == (1.0, 1.0) and not (centred and kind == "transcoder"):
        assert torch.equal(found.w_enc, made.w_enc)
        assert torch.equal(found.b_enc, made.b_enc)


SITES = (
    "resid",
    "mid",
    "resid_post",
    "attn_in",
    "attn_out",
    "mlp_in",
    "mlp_hat",
    "mlp_normed",
    "mlp_out",
    "z",
)


@pytest.mark.parametrize("site", SITES)
def test_every_site_comes_back(tmp_path: Path, site: Any) -> None:
    (found,) = load_dictionaries(
        save_dictionary(dictionary("sae", site_in=site, site_out=site), tmp_path / "d")
    )
    assert (found.site_in, found.site_out) == (site, site)
    assert found.facts.get("fold_ln", True), "what was before the norm's weight is said to be so"


def test_a_saved_one_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    target = save_dictionary(dictionary(), tmp_path / "d")
    save_dictionary(dictionary(activation="jumprelu"), target)
    (found,) = load_dictionaries(target)
    assert found.activation == "jumprelu"
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        save_dictionary(dictionary(), target)
    with pytest.raises(UsageError, match="no folder"):
        save_dictionary(dictionary(), target / "notes.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]


def test_nothing_is_left_of_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = save_dictionary(dictionary(), tmp_path / "d")
    before = (target / "cfg.json").read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(RunError, match="No space left"):
            save_dictionary(dictionary(activation="topk"), target)
    assert (target / "cfg.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_what_the_format_does_not_know(tmp_path: Path) -> None:
    files.write_cross(tmp_path / "c")
    for made in (load_dictionaries(tmp_path / "c")[0], dictionary("sae", skip=True)):
        with pytest.raises(UnsupportedError, match="sae-lens knows no"):
            save_dictionary(made, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_centred_stream_is_not_centred_twice(tmp_path: Path) -> None:
    more = {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}}
    (read,) = load_dictionaries(files.write_sae_lens(tmp_path / "a", weights(d_out=D), "standard", **more))
    (again,) = load_dictionaries(save_dictionary(read, tmp_path / "b"))
    assert same(read, again)


# sae-lens itself, where it is installed (it holds its users at transformer-lens 3: `make test-compat`).


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.3, 1.9)], ids=["plain", "scaled"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("kind", "activation", "skip"), [x for x in ALL if x[:2] != ("transcoder", "topk")])
def test_sae_lens_reads_what_we_write(
    tmp_path: Path, kind: Kind, activation: Activation, skip: bool, centred: bool, scales: tuple[float, float]
) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    made = dictionary(kind, activation, skip=skip, centred=centred, scale_in=scales[0], scale_out=scales[1])
    theirs = sae_lens.SAE.load_from_disk(save_dictionary(made, tmp_path / "d"))
    x = torch.from_numpy(inputs())
    with torch.no_grad():
        assert gap(made, inputs(), theirs(x).double().numpy()) < 1e-6
        ours = made.encode(x)
        assert torch.allclose(ours, theirs.encode(x), atol=1e-5)
    assert theirs.cfg.metadata.hook_name == "blocks.2." + (
        "mlp.hook_in" if kind == "transcoder" else "hook_resid_mid"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    "architecture",
    [
        "standard",
        "jumprelu",
        "topk",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ],
)
def test_we_read_what_sae_lens_writes(tmp_path: Path, architecture: str, centred: bool) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.registry import get_sae_class

    elsewhere = "transcoder" in architecture
    made, configured = get_sae_class(architecture)
    settings: dict[str, Any] = {"d_in": D, "d_sae": F, "apply_b_dec_to_input": centred and not elsewhere}
    settings |= {"d_out": 4} if elsewhere else {}
    settings |= {"k": 3} if architecture == "topk" else {}
    config = configured(**settings)
    config.metadata.hook_name = "blocks.1.hook_mlp_in" if elsewhere else "blocks.1.hook_resid_post"
    config.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    theirs = made(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(
                torch.randn(parameter.shape).abs() if parameter.ndim == 1 else torch.randn(parameter.shape)
            )
        theirs.save_model(tmp_path / "d")
        wanted = theirs(torch.from_numpy(inputs())).double().numpy()
    (found,) = load_dictionaries(tmp_path / "d")
    assert isinstance(theirs, sae_lens.SAE)
    assert found.layer == 1
    assert gap(found, inputs(), np.asarray(wanted)) < 1e-6


def test_facts_of_our_own_come_back(tmp_path: Path) -> None:
    facts = {
        "model_name": "mini",
        "l0": 7.5,
        "seeds": [1, 2],
        "fold_ln": False,
        "odd": object(),
        "nan": float("nan"),
    }
    (found,) = load_dictionaries(save_dictionary(dictionary(site_in="mlp_hat", facts=facts), tmp_path / "d"))
    assert {key: found.facts.get(key) for key in facts} == facts | {"odd": None, "nan": None}
    kept = json.loads((tmp_path / "d" / "cfg.json").read_text())["metadata"]["circuitfind"]
    assert sorted(kept) == ["fold_ln", "l0", "seeds"]
