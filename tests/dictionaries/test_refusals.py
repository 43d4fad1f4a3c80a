"""A bad file is an error that says what, where and what to do; never a traceback, and never code that runs."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from circuitfind.dictionaries import hub
from circuitfind.dictionaries.dunefsky import read_dunefsky
from circuitfind.dictionaries.load import load_dictionaries
from circuitfind.errors import CircuitfindError, ModelError, UnsupportedError, UsageError
from tests.dictionaries import files
from tests.dictionaries.files import D, F, weights
from tests.dictionaries.test_formats import write_pt


def refused(where: Path | str, *told: str, kind: type[CircuitfindError] = ModelError) -> CircuitfindError:
    """The error of loading, which says all of ``told``."""
    with pytest.raises(CircuitfindError) as caught:
        load_dictionaries(where)
    assert isinstance(caught.value, kind), caught.value
    for words in told:
        assert words in str(caught.value), str(caught.value)
    assert caught.value.hint
    return caught.value


def lens(folder: Path, architecture: str = "jumprelu_transcoder", /, **more: Any) -> Path:
    return files.write_sae_lens(folder / "t", weights(d_out=D), architecture, **more)


# sae-lens.


@pytest.mark.parametrize(
    ("architecture", "more", "told"),
    [
        ("standard", {"architecture": "gated"}, ("'gated'", "known: standard")),
        ("standard", {"architecture": "batchtopk"}, ("'batchtopk'", "for inference")),
        ("transcoder", {"architecture": "trnscoder"}, ("did you mean 'transcoder'",)),
        ("standard", {"normalize_activations": "layer_norm"}, ("'layer_norm'", "normalize_activations")),
        ("standard", {"normalize_activations": "constant_norm_rescale"}, ("constant_norm_rescale",)),
        ("standard", {"normalize_activations": "expected_average_only_in"}, ("activation_scaler.json",)),
        ("standard", {"activation_fn": "tanh-relu"}, ("'tanh-relu'", "relu, jumprelu and topk")),
        ("transcoder", {"apply_b_dec_to_input": True}, ("apply_b_dec_to_input",)),
        ("standard", {"hook_head_index": 3}, ("one head",)),
        ("topk", {"k": F + 1}, (f"k = {F + 1}", f"1 to {F}")),
    ],
)
def test_what_would_give_wrong_numbers(tmp_path: Path, architecture: str, more: Any, told: Any) -> None:
    refused(lens(tmp_path, architecture, **more), *told, kind=UnsupportedError)


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ("blocks.3.hook_resid_pro", "did you mean 'hook_resid_pre'"),
        ("blocks.3.attn.hook_pattern", "is no hook"),
        ("hook_embed", "is no hook"),
        ("model.layers.3.post_attention_layernorm.output", "is no hook"),
        (7, "a hook name is text"),
    ],
)
def test_hooks_that_are_none(tmp_path: Path, hook: object, told: str) -> None:
    refused(lens(tmp_path, metadata={"hook_name": hook}), told, "hook_name", kind=UnsupportedError)


def test_the_module_that_it_was_trained_on_counts(tmp_path: Path) -> None:
    """sae-lens calls what gemma-scope-2 reads hook_mlp_in; it stands behind the norm, which the other name says."""
    names = {
        "hook_name": "blocks.3.hook_mlp_in",
        "hf_hook_name": "model.layers.3.pre_feedforward_layernorm.output",
        "hf_hook_name_out": "model.layers.3.post_feedforward_layernorm.output",
    }
    (found,) = load_dictionaries(lens(tmp_path, metadata=names))
    assert (found.site_in, found.site_out) == ("mlp_normed", "mlp_out")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"d_in": D + 1}, ("d_in is 6", "[5, 11]")),
        ({"d_sae": F - 1}, ("d_sae is 10",)),
        ({"d_out": 77}, ("d_out is 77",)),
        ({"d_in": "five"}, ("'five'", "(d_in)")),
        ({"hook_layer": 2}, ("hook_layer is 2", "layer 3")),
        ({"metadata": {"hook_name_out": None}}, ("'hook_name_out' is missing",)),
        ({"metadata": {"hook_name": "hook_mlp_in"}}, ("no layer",)),
        ({"apply_b_dec_to_input": "no"}, ("'no'", "apply_b_dec_to_input")),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, more: Any, told: Any) -> None:
    refused(lens(tmp_path, **more), *told)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: None, "there is no"),
        (lambda a: np.full_like(a, np.nan), "is nan"),
        (lambda a: np.where(a == a.max(), np.inf, a).astype(a.dtype), "is inf"),
        (lambda a: a[:-1], ""),
        (lambda a: a.astype(np.int8), "int8"),
        (lambda a: a[None], ""),
    ],
    ids=["missing", "nan", "inf", "short", "int8", "deep"],
)
def test_weights_that_are_wrong(tmp_path: Path, name: str, change: Callable[[Any], Any], told: str) -> None:
    folder, w = lens(tmp_path), weights(d_out=D)
    tensors = files.gemma_arrays(w)
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = np.ascontiguousarray(changed)
    save_file(tensors, folder / "sae_weights.safetensors")
    refused(folder, told)


@pytest.mark.parametrize("name", ["enc", "dec", "skip"])
def test_a_matrix_the_wrong_way_round(tmp_path: Path, name: str) -> None:
    w = weights()
    w[name] = np.ascontiguousarray(w[name].T)
    folder = files.write_sae_lens(tmp_path / "t", w, "skip_transcoder", d_in=D, d_sae=F, d_out=files.OUT)
    refused(folder, *(["transposed"] if name == "enc" else []))
    files.write_set(tmp_path / "s", [w], kind="skip")
    refused(tmp_path / "s", *([] if name == "skip" else ["transposed"]))


def test_a_skip_that_the_architecture_does_not_know(tmp_path: Path) -> None:
    refused(lens(tmp_path, "skip_transcoder", architecture="transcoder"), "W_skip", "skip transcoder")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\xff" * 64,
        (2**62).to_bytes(8, "little") + b"{}",
        b"\x10" + bytes(7) + b'{"a":{"dtype"',
    ],
)
def test_damaged_safetensors(tmp_path: Path, content: bytes) -> None:
    folder = lens(tmp_path)
    (folder / "sae_weights.safetensors").write_bytes(content)
    refused(folder, "damaged", "sae_weights.safetensors")


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = lens(tmp_path) / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    refused(path.parent, "damaged")


def test_safetensors_that_declare_more_than_they_hold(tmp_path: Path) -> None:
    head = json.dumps(
        {"W_enc": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}
    ).encode()
    folder = lens(tmp_path)
    (folder / "sae_weights.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    refused(folder, "damaged")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\x00", "[" * 100_000, '{"metadata": []}'])
def test_broken_json(tmp_path: Path, text: str) -> None:
    folder = lens(tmp_path)
    (folder / "cfg.json").write_text(text)
    refused(folder, "cfg.json")


def test_half_a_folder(tmp_path: Path) -> None:
    (lens(tmp_path) / "cfg.json").unlink()
    refused(tmp_path, "sae_weights.safetensors, but no cfg.json")


def test_a_folder_of_sparsify(tmp_path: Path) -> None:
    folder = lens(tmp_path)
    (folder / "sae_weights.safetensors").rename(folder / "sae.safetensors")
    refused(tmp_path, "sparsify", kind=UnsupportedError)


# circuit-tracer.


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{n}: &{n} [{','.join(['*' + b] * 9)}]\n" for b, n in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text", ["", "a: [", "- 1", BOMB, "x: !!python/object/apply:os.system ['touch x']", "[" * 5000]
)
def test_broken_yaml(tmp_path: Path, text: str) -> None:
    files.write_set(tmp_path, [weights()])
    (tmp_path / "config.yaml").write_text(text)
    refused(tmp_path, "config.yaml")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"model_kind": "transcoder_sets"}, ("did you mean 'transcoder_set'",)),
        ({"model_kind": None}, ("model_kind",)),
        ({"feature_input_hook": "mlp.hook_inn"}, ("did you mean 'mlp.hook_in'",)),
        ({"feature_output_hook": None}, ("'feature_output_hook' is missing",)),
        ({"feature_input_hook": "blocks.2.mlp.hook_in"}, ("one layer",)),
        ({"activation": "topk"}, ("'topk' is not read",)),
        ({"transcoders": "layer_0.safetensors"}, ("no list",)),
        ({"transcoders": ["nowhere.safetensors"]}, ("no file 'nowhere.safetensors'",)),
        ({"transcoders": ["hf://../x"]}, ("no path on the hub",)),
    ],
)
def test_sets_that_are_wrong(tmp_path: Path, more: Any, told: Any) -> None:
    files.write_set(tmp_path, [weights()], **more)
    refused(tmp_path, *told, kind=UsageError)


def test_a_path_out_of_the_folder(tmp_path: Path) -> None:
    outside = files.write_set(tmp_path / "outside", [weights()]) / "layer_0.safetensors"
    folder = tmp_path / "set"
    for name in ("../outside/layer_0.safetensors", str(outside), "a/../../outside/layer_0.safetensors"):
        files.write_yaml(folder, transcoders=[name])
        refused(folder, "leads out of the folder")


@pytest.mark.parametrize("name", ["layer_0.safetensors", "config.yaml"])
def test_a_link_out_of_the_folder(tmp_path: Path, name: str) -> None:
    outside = files.write_set(tmp_path / "outside", [weights()])
    folder = files.write_set(tmp_path / "set", [weights()])
    (folder / name).unlink()
    (folder / name).symlink_to(outside / name)
    refused(folder, "leads out of the folder")


def test_links_out_of_a_folder_of_sae_lens(tmp_path: Path) -> None:
    outside, folder = lens(tmp_path / "a"), lens(tmp_path / "b")
    (folder / "sae_weights.safetensors").unlink()
    (folder / "sae_weights.safetensors").symlink_to(outside / "sae_weights.safetensors")
    refused(folder, "leads out of the folder")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "link").symlink_to(outside)
    refused(tmp_path / "c", "holds no dictionary")


def test_links_of_the_hubs_cache_are_let_be(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    files.write_set(folder, [weights()])
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(os.path.relpath(blobs / str(i), folder))
    assert len(load_dictionaries(folder)) == 1


def test_cross_layer_sets_that_are_wrong(tmp_path: Path) -> None:
    files.write_cross(tmp_path)
    (tmp_path / "W_dec_1.safetensors").unlink()
    refused(tmp_path, "W_dec_1.safetensors is missing")
    save_file({"W_dec_1": np.zeros((F, 3, 4), np.float32)}, tmp_path / "W_dec_1.safetensors")
    refused(tmp_path, "[11, 3, 4]", "writes to 2")


def test_a_negative_threshold(tmp_path: Path) -> None:
    w = weights()
    w["threshold"][2] = -0.5
    refused(files.write_set(tmp_path, [w]), "negative", kind=UnsupportedError)


# gemma-scope.


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "gemma-scope-2b-pt-res" / "layer_3" / "params.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **(files.gemma_arrays(weights(d_out=D)) | arrays))
    return path


def test_an_npz_that_does_not_say_what_it_reads(tmp_path: Path) -> None:
    path = npz(tmp_path)
    refused(path.rename(tmp_path / "params.npz"), "does not say what it reads", "cfg.json")


def test_a_truncated_npz(tmp_path: Path) -> None:
    path = npz(tmp_path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        refused(path, "damaged", "params.npz")
    path.write_bytes(whole[:200] + b"\x00" * 40 + whole[240:])
    refused(path)


def test_an_npz_with_a_pickle_in_it(tmp_path: Path) -> None:
    refused(
        npz(tmp_path, b_enc=np.array([Bomb(tmp_path / "ran")], dtype=object)), "pickled objects are refused"
    )
    assert not (tmp_path / "ran").exists()


def test_an_npz_that_is_a_bomb(tmp_path: Path) -> None:
    path = npz(tmp_path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", bytes(50_000_000))
    refused(path, "unpacks from", "refused")


def test_an_npz_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    path = npz(tmp_path)
    head = (
        b"\x93NUMPY\x01\x00v\x00"
        + "{'descr': '<f4', 'fortran_order': False, 'shape': (10**9,), }".ljust(117).encode()
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W_enc.npy", head.replace(b"10**9", b"1000000000") + b"\n" + bytes(64))
    refused(path)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"architecture": "relu"}, "'relu'"),
        ({"affine_connection": True}, "affine_connection is true"),
        ({"hf_hook_point_in": "model.layers.5.mlp.act_fn"}, "is no hook"),
        ({"hf_hook_point_in": None}, "a hook name is text"),
    ],
)
def test_gemma_scope_2_that_is_wrong(tmp_path: Path, more: Any, told: str) -> None:
    refused(files.write_gemma_2(tmp_path / "t", weights(), affine=False, **more), told, kind=UsageError)


# Pickles.


class Bomb:
    """What runs when a pickle is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class System:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("bomb", [Bomb, System])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_does_not_run(tmp_path: Path, bomb: Any, zipped: bool) -> None:
    payload = bomb(tmp_path / "ran")
    pickle.loads(pickle.dumps(payload))
    assert (tmp_path / "ran").exists(), "the payload works where nothing guards"
    (tmp_path / "ran").unlink()
    torch.save({"cfg": payload, "state_dict": {}}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "a.pt", "refused")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.pkl", "a.pkl.gz", "a.bin"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    refused(tmp_path / name, "pickle", "refused")
    refused(tmp_path, "pickle", "refused")
    assert not (tmp_path / "ran").exists()


def test_damaged_pt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pt(tmp_path / "a.pt", weights(), monkeypatch)
    whole = path.read_bytes()
    for size in (0, 30, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        refused(path, "a.pt")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("a/version", b"3\n")
    refused(path)


def test_pt_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    refused(
        write_pt(path, weights(), monkeypatch, hook_point_head_index=3), "one head", kind=UnsupportedError
    )
    refused(
        write_pt(path, weights(), monkeypatch, out_hook_point="blocks.9.hook_mlp_out"),
        "same layer",
        kind=UnsupportedError,
    )
    w = weights()
    w["b_in"] = w["b_in"][:-1]
    refused(write_pt(path, w, monkeypatch), "b_dec [4]")
    torch.save({"W_enc": torch.zeros(2)}, path)
    refused(path, "'cfg' and 'state_dict'")
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"cfg": {"hook_point": "blocks.0.hook_resid_pre"}, "state_dict": {"W_enc": huge}}, path)
    refused(path, "more than the file holds")


def test_a_packed_pt(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10_000_000))
    with pytest.raises(ModelError, match="compressed"):
        read_dunefsky(tmp_path / "a.pt")


# Names.


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "no", "no folder, no file")
    refused("./owner/repo", "no folder, no file")
    refused("owner/repo:../../etc", "no folder, no file")
    refused(tmp_path, "holds no dictionary", "sae-lens")
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", "'a.txt' alone is no dictionary")


def test_two_for_one_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        files.write_sae_lens(tmp_path / name, weights(), "transcoder")
    error = refused(tmp_path, "two dictionaries for layer 3", kind=UsageError)
    assert len(error.details) == 2


def test_layers_that_are_not_there(tmp_path: Path) -> None:
    files.write_set(tmp_path, [weights()])
    with pytest.raises(ModelError, match="layer 7"):
        load_dictionaries(tmp_path, layers=[0, 7])


# The hub.


def test_hub_names_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("nobody/nothing-of-the-kind:layer_3", "cannot fetch", "local folder")


def test_hub_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is asked of the hub's client, and how the names of gemma-scope reach their reader."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    root = tmp_path / "snapshots" / "abc"
    listing = [f"layer_{i}/width_16k/average_l0_{i}/params.npz" for i in range(3)] + [
        "README.md",
        "layer_1/plot.png",
    ]
    for name in listing[:3]:
        (root / name).parent.mkdir(parents=True)
        np.savez(root / name, **files.gemma_arrays(weights()))
    asked: list[list[str]] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        assert name == "google/gemma-scope-2b-pt-transcoders"
        asked.append(allow_patterns)
        return str(root)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, name: listing)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    (found,) = load_dictionaries("google/gemma-scope-2b-pt-transcoders:layer_1", layers=[1])
    assert asked == [[listing[1]]]
    assert (found.layer, found.kind, found.facts["model_name"]) == (1, "transcoder", "google/gemma-2-2b")
    monkeypatch.setattr(hub, "MOST", 2)
    refused("google/gemma-scope-2b-pt-transcoders", "3 files of weights", kind=UsageError)
    refused("google/gemma-scope-2b-pt-transcoders:layer_9", "holds no dictionary")
