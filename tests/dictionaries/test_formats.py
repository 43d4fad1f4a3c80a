"""Every format gives what its own publication computes."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.dictionaries.dictionary import Dictionary
from circuitfind.dictionaries.load import load_dictionaries
from tests.dictionaries import files
from tests.dictionaries.files import OUT, D, F, forward, gap, inputs, jumprelu, relu, topk, weights

CLOSE = 1e-6


def one(where: Path) -> Dictionary:
    (found,) = load_dictionaries(str(where))
    return found


def act_of(architecture: str, w: files.Weights) -> Any:
    if "jumprelu" in architecture:
        return jumprelu(w["threshold"])
    return topk(3) if "topk" in architecture else relu


TRANSCODERS = (
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
    "topk_transcoder",
    "topk_skip_transcoder",
)


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_transcoders_of_sae_lens(tmp_path: Path, architecture: str) -> None:
    w, x = weights(), inputs()
    found = one(files.write_sae_lens(tmp_path / "t", w, architecture))
    assert (found.kind, found.layer, found.site_in, found.site_out) == ("transcoder", 3, "mlp_in", "mlp_out")
    assert (found.d_in, found.n_features, found.d_out) == (D, F, OUT)
    assert gap(found, x, forward(w, x, act_of(architecture, w), skip="skip" in architecture)) < CLOSE
    assert found.facts["model_name"] == "gpt2"


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
@pytest.mark.parametrize("centred", [True, False])
def test_saes_of_sae_lens(tmp_path: Path, architecture: str, centred: bool) -> None:
    w, x = weights(d_out=D), inputs()
    found = one(files.write_sae_lens(tmp_path / "t", w, architecture, apply_b_dec_to_input=centred))
    assert (found.kind, found.site_in, found.site_out, found.centred) == ("sae", "resid", "resid", centred)
    assert (
        gap(found, x, forward(w, x, act_of(architecture, w), centre=w["b_dec"] if centred else 0.0)) < CLOSE
    )


def test_the_spelling_before_version_6(tmp_path: Path) -> None:
    w, x = weights(d_out=D), inputs()
    old: dict[str, Any] = {
        "hook_point": "blocks.7.hook_mlp_out",
        "hook_point_layer": 7,
        "activation_fn_str": "relu",
    }
    folder = files.write_sae_lens(
        tmp_path / "t",
        w,
        "standard",
        architecture=None,
        apply_b_dec_to_input=None,
        normalize_activations=False,
        **old,
    )
    config = (folder / "cfg.json").read_text().replace('"hook_name": "blocks.3.hook_resid_pre"', '"x": 1')
    (folder / "cfg.json").write_text(config)
    found = one(folder)
    assert (found.layer, found.site_in, found.centred) == (7, "mlp_out", True)
    assert gap(found, x, forward(w, x, centre=w["b_dec"])) < CLOSE


def test_an_old_topk_says_so_in_its_activation(tmp_path: Path) -> None:
    w, x = weights(d_out=D), inputs()
    more = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "architecture": "standard"}
    found = one(files.write_sae_lens(tmp_path / "t", w, "standard", **more))
    assert found.k == 4
    assert gap(found, x, forward(w, x, topk(4), centre=w["b_dec"])) < CLOSE


def test_topk_that_counts_by_decoder_norm(tmp_path: Path) -> None:
    w, x = weights(d_out=D), inputs()
    norm = np.linalg.norm(w["dec"], axis=1)

    def act(pre: np.ndarray) -> np.ndarray:
        return topk(3)(pre * norm) / norm

    found = one(files.write_sae_lens(tmp_path / "t", w, "topk", rescale_acts_by_decoder_norm=True))
    assert gap(found, x, forward(w, x, act, centre=w["b_dec"])) < CLOSE


def test_inputs_scaled_by_a_number_in_the_folder(tmp_path: Path) -> None:
    w, x = weights(d_out=D), inputs()
    folder = files.write_sae_lens(
        tmp_path / "t", w, "standard", normalize_activations="expected_average_only_in"
    )
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 1.7}')
    assert gap(one(folder), x, forward(w, 1.7 * x, centre=w["b_dec"]) / 1.7) < CLOSE


@pytest.mark.parametrize("centred", [True, False])
def test_a_stream_whose_mean_was_taken_off(tmp_path: Path, centred: bool) -> None:
    w, x = weights(d_out=D), inputs() + 3
    more = {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}}
    found = one(files.write_sae_lens(tmp_path / "t", w, "standard", apply_b_dec_to_input=centred, **more))
    lower = x - x.mean(-1, keepdims=True)
    assert gap(found, x, forward(w, lower, centre=w["b_dec"] if centred else 0.0)) < CLOSE


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    w, x = weights(), inputs()
    half = {name: value.astype(np.float16) for name, value in w.items()}
    found = one(files.write_sae_lens(tmp_path / "t", half, "transcoder"))
    assert found.w_enc.dtype == torch.float32
    assert gap(found, x, forward(half, x)) < CLOSE


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for layer in (2, 0, 1):
        files.write_sae_lens(
            tmp_path / f"blocks.{layer}.hook_mlp_out", weights(layer), "transcoder", layer=layer
        )
    assert [d.layer for d in load_dictionaries(tmp_path)] == [0, 1, 2]
    assert [d.layer for d in load_dictionaries(tmp_path, layers=[2, 1])] == [1, 2]


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "relu_skip", "jumprelu_skip"])
def test_sets_of_circuit_tracer(tmp_path: Path, kind: str) -> None:
    sets, x = [weights(0), weights(1)], inputs()
    found = load_dictionaries(files.write_set(tmp_path, sets, kind=kind))
    assert [(d.layer, d.site_in, d.site_out) for d in found] == [(i, "mlp_normed", "mlp_out") for i in (0, 1)]
    for dictionary, w in zip(found, sets, strict=True):
        act = jumprelu(w["threshold"]) if "jumprelu" in kind else relu
        assert gap(dictionary, x, forward(w, x, act, skip="skip" in kind)) < CLOSE


def test_a_set_that_names_its_files(tmp_path: Path) -> None:
    sets, x = [weights(0), weights(1)], inputs()
    files.write_set(tmp_path, sets, transcoders=["layer_1.safetensors", "layer_0.safetensors"])
    found = load_dictionaries(tmp_path)
    for dictionary, w in zip(found, sets[::-1], strict=True):
        assert gap(dictionary, x, forward(w, x, jumprelu(w["threshold"]), skip=True)) < CLOSE


@pytest.mark.parametrize("threshold", [True, False])
def test_cross_layer_transcoders(tmp_path: Path, threshold: bool) -> None:
    sets = files.write_cross(tmp_path, threshold=threshold)
    xs = [inputs() * (i + 1) for i in range(3)]
    found = load_dictionaries(tmp_path)
    assert [d.n_layers_out for d in found] == [3, 2, 1]
    total = [np.zeros((len(xs[0]), OUT)) for _ in range(3)]
    for i, dictionary in enumerate(found):
        out = dictionary(torch.from_numpy(xs[i])).numpy()
        for j in range(i, 3):
            total[j] += out[:, j - i]
    for j in range(3):  # the published sum: every layer at and below j, and the bias of layer j once
        wanted = sets[j]["b_dec"].astype(np.float64)
        for i in range(j + 1):
            pre = xs[i].astype(np.float64) @ sets[i]["enc"] + sets[i]["b_enc"]
            features = jumprelu(sets[i]["threshold"])(pre) if threshold else relu(pre)
            wanted = wanted + features @ sets[i]["dec"][:, j - i]
        assert np.abs(total[j] - wanted).max() < CLOSE * np.abs(wanted).max()
    assert [d.layer for d in load_dictionaries(tmp_path, layers=[1])] == [1]


@pytest.mark.parametrize(
    ("name", "sites"),
    [
        ("gemma-scope-2b-pt-res", ("sae", "resid_post", "resid_post")),
        ("gemma-scope-2b-pt-mlp", ("sae", "mlp_out", "mlp_out")),
        ("gemma-scope-9b-pt-att", ("sae", "z", "z")),
        ("gemma-scope-2b-pt-transcoders", ("transcoder", "mlp_hat", "mlp_out")),
    ],
)
def test_gemma_scope(tmp_path: Path, name: str, sites: tuple[str, str, str]) -> None:
    w, x = weights(d_out=D), inputs()
    folder = tmp_path / name / "layer_12" / "width_16k" / "average_l0_6"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **files.gemma_arrays(w))
    found = one(tmp_path / name)
    assert (found.kind, found.site_in, found.site_out) == sites
    assert found.layer == 12
    assert found.facts["model_name"] == f"google/gemma-2-{'9b' if '9b' in name else '2b'}"
    assert gap(found, x, forward(w, x, jumprelu(w["threshold"]))) < CLOSE


def test_gemma_scope_by_a_file_beside_it(tmp_path: Path) -> None:
    w, x = weights(), inputs()
    np.savez_compressed(tmp_path / "params.npz", **files.gemma_arrays(w))
    hooks = '{"hook_name": "blocks.4.ln2.hook_normalized", "hook_name_out": "blocks.4.hook_mlp_out"}'
    (tmp_path / "cfg.json").write_text(hooks)
    for where in (tmp_path, tmp_path / "params.npz"):
        found = one(where)
        assert (found.kind, found.layer, found.site_in) == ("transcoder", 4, "mlp_hat")
        assert gap(found, x, forward(w, x, jumprelu(w["threshold"]))) < CLOSE


def test_gemma_scope_in_a_set_of_circuit_tracer(tmp_path: Path) -> None:
    w, x = weights(), inputs()
    np.savez(tmp_path / "a.npz", **files.gemma_arrays(w))
    files.write_yaml(tmp_path, transcoders=["a.npz"], feature_input_hook="ln2.hook_normalized")
    found = one(tmp_path)
    assert (found.site_in, found.facts["fold_ln"]) == ("mlp_hat", False)
    assert gap(found, x, forward(w, x, jumprelu(w["threshold"]))) < CLOSE


@pytest.mark.parametrize("affine", [True, False])
def test_gemma_scope_2(tmp_path: Path, affine: bool) -> None:
    w, x = weights(), inputs()
    found = one(files.write_gemma_2(tmp_path / "t", w, affine=affine))
    assert (found.kind, found.layer, found.site_in, found.site_out) == (
        "transcoder",
        5,
        "mlp_normed",
        "mlp_out",
    )
    assert gap(found, x, forward(w, x, jumprelu(w["threshold"]), skip=affine)) < CLOSE


def test_cross_layer_gemma_scope_2(tmp_path: Path) -> None:
    w, x = weights(), inputs()
    w["dec"] = np.random.default_rng(7).normal(size=(F, 3, OUT)).astype(np.float32)
    files.write_gemma_2(tmp_path, w, affine=True)
    (tmp_path / "params.safetensors").rename(tmp_path / "params_layer_1.safetensors")
    found = one(tmp_path)
    features = jumprelu(w["threshold"])(x.astype(np.float64) @ w["enc"] + w["b_enc"])
    wanted = np.stack([features @ w["dec"][:, j] for j in (1, 2)], 1)
    wanted[:, 0] += w["b_dec"] + x.astype(np.float64) @ w["skip"]
    assert (found.kind, found.layer) == ("cross-layer", 1)
    assert gap(found, x, wanted) < CLOSE


# The pickles of transcoder_circuits.


def write_pt(
    path: Path, w: files.Weights, monkeypatch: pytest.MonkeyPatch, *, transcoder: bool = True, **more: Any
) -> Path:
    """As their trainer writes it, the class of the configuration included, which the reader then does not find."""
    package, module = types.ModuleType("sae_training"), types.ModuleType("sae_training.config")
    made = type("LanguageModelSAERunnerConfig", (), {"__module__": "sae_training.config"})
    module.LanguageModelSAERunnerConfig = made  # type: ignore[attr-defined]
    config = made()
    config.__dict__ |= {
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.ln2.hook_normalized",
        "out_hook_point": "blocks.8.hook_mlp_out",
        "is_transcoder": transcoder,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "hook_point_head_index": None,
    } | more
    state = {"W_enc": w["enc"], "b_enc": w["b_enc"], "W_dec": w["dec"], "b_dec": w["b_in"]}
    if transcoder:
        state["b_dec_out"] = w["b_dec"]
    tensors = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sae_training", package)
        patch.setitem(sys.modules, "sae_training.config", module)
        torch.save({"cfg": config, "state_dict": tensors}, path)
    return path


def test_transcoder_circuits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = weights(), inputs()
    found = one(write_pt(tmp_path / "final.pt", w, monkeypatch))
    assert (found.kind, found.layer, found.site_in, found.site_out) == ("transcoder", 8, "mlp_hat", "mlp_out")
    assert found.facts["fold_ln"] is True
    assert gap(found, x, forward(w, x, centre=w["b_in"])) < CLOSE


def test_a_folder_of_transcoder_circuits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the hub: logs beside the weights, and a folder of other versions."""
    for layer in (1, 0):
        hooks = {
            "hook_point": f"blocks.{layer}.ln2.hook_normalized",
            "out_hook_point": f"blocks.{layer}.hook_mlp_out",
        }
        write_pt(tmp_path / f"final_{layer}.pt", weights(layer), monkeypatch, **hooks)
        torch.save(torch.zeros(F), tmp_path / f"final_{layer}_log_feature_sparsity.pt")
    (tmp_path / "lower_l0").mkdir()
    write_pt(tmp_path / "lower_l0" / "final.pt", weights(9), monkeypatch, **hooks)
    assert [d.layer for d in load_dictionaries(tmp_path)] == [0, 1]
    assert [d.layer for d in load_dictionaries(tmp_path / "lower_l0")] == [0]


def test_an_sae_of_transcoder_circuits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = weights(d_out=D), inputs() + 1
    w["b_dec"] = w["b_in"]
    found = one(
        write_pt(tmp_path / "a.pt", w, monkeypatch, transcoder=False, hook_point="blocks.2.hook_resid_pre")
    )
    assert (found.kind, found.layer, found.site_in) == ("sae", 2, "resid")
    lower = x - x.mean(-1, keepdims=True)  # their model's stream has no mean
    assert gap(found, x, forward(w, lower, centre=w["b_in"])) < CLOSE
