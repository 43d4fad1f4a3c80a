"""What is no model, or no safe one, is refused with its name and a way out; the zoo by name and seed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from circuitfind.errors import ModelError, UnsupportedError
from circuitfind.model.identity import identity
from circuitfind.model.load import load_model, pick_device, planted
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from tests import families
from tests.families import pairs_for, random_pairs


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@pytest.fixture(params=["gpt2", "ln"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of either format, to be damaged."""
    shutil.copytree(families.folder(request.param), tmp_path / "model")
    return tmp_path / "model"


def native(tmp_path: Path) -> Path:
    shutil.copytree(families.folder("ln"), tmp_path / "native")
    return tmp_path / "native"


def change(folder: Path, how: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Write the weights again with a change."""
    path = folder / "model.safetensors"
    state = {k: v.clone() for k, v in load_file(path).items()}
    how(state)
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata={"format": "pt"})


def refused(name: object) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(str(name), device="cpu")
    assert caught.value.hint
    assert caught.value.exit_code == 2
    return caught.value


# --- names ----------------------------------------------------------------------------------------------------


def test_an_unknown_zoo_model_names_the_nearest() -> None:
    error = refused("planted/inducton")
    assert "planted/inducton" in error.what
    assert "planted/induction" in error.hint


def test_an_unknown_name_names_the_nearest_and_the_reason() -> None:
    for name, near in (
        ("gpt-2", "gpt2"),
        ("minni", "mini"),
        ("EleutherAI/pythia-70", "EleutherAI/pythia-70m"),
    ):
        error = refused(name)
        assert name in error.what
        assert f"did you mean '{near}'?" in error.hint
        assert "network" in error.hint


def test_a_hub_name_without_network_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline by the environment: no socket is opened, and nothing waits for one."""
    import socket

    def stop(*args: object, **options: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", stop)
    monkeypatch.setattr(socket, "getaddrinfo", stop)
    start = time.monotonic()
    error = refused("some-lab/some-model")
    assert "some-lab/some-model" in error.what
    assert time.monotonic() - start < 20


def test_a_hub_that_cannot_be_reached_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not told to be offline, but there is no way out: an error of ours, not a traceback of a library's."""
    import transformers

    def fail(*args: object, **options: Any) -> None:
        assert options["use_safetensors"] is True
        assert options["local_files_only"] is False
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files\nand more lines")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr("circuitfind.model.hub.reachable", lambda: True)
    error = refused("some-lab/some-model")
    assert "some-lab/some-model" in error.what
    assert "couldn't connect" in error.details[0]
    assert "more lines" not in str(error)


def test_a_hub_out_of_reach_is_told_before_its_client_tries_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    import transformers

    def no_way(*args: object, **options: object) -> None:
        raise OSError("no route")

    def never(*args: object, **options: object) -> None:
        raise AssertionError("the hub's client was asked")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", no_way)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    error = refused("some-lab/some-model")
    assert "some-lab/some-model" in error.what
    assert "cannot be reached" in error.details[0]


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "is a file" in refused(file).what
    assert "is no folder" in refused(tmp_path / "nowhere").what
    assert "is no folder" in refused("./nowhere").what


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "cpu:x", ""])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ModelError, match=f"no device '{device}'"):
        pick_device(device)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")


# --- damaged folders ------------------------------------------------------------------------------------------


def test_a_folder_without_config(damaged: Path) -> None:
    (damaged / "config.json").unlink()
    error = refused(damaged)
    assert "holds no config.json" in error.what
    assert str(damaged) in error.what


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"gpt2"', "\x00\x01"])
def test_a_config_that_is_no_mapping(damaged: Path, text: str) -> None:
    (damaged / "config.json").write_text(text, encoding="utf-8")
    assert refused(damaged).where == str(damaged / "config.json")


def test_a_config_that_is_not_text(damaged: Path) -> None:
    (damaged / "config.json").write_bytes(b"\xff\xfe\x00\x81")
    assert refused(damaged).where == str(damaged / "config.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_a_pickle_is_refused_and_never_opened(damaged: Path, name: str) -> None:
    weights = damaged / "model.safetensors"
    torch.save(load_file(weights), damaged / name)
    weights.unlink()
    error = refused(damaged)
    assert "pickle" in error.what
    assert name in error.what
    assert "safetensors" in error.hint


def test_a_folder_without_weights(damaged: Path) -> None:
    (damaged / "model.safetensors").unlink()
    assert "no weights" in refused(damaged).what


@pytest.mark.parametrize("kept", [0, 4, 100, -1, 0.5])
def test_truncated_weights(damaged: Path, kept: float) -> None:
    path = damaged / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    error = refused(damaged)
    assert "damaged" in error.what
    assert error.where == str(path)


def test_weights_of_random_bytes(damaged: Path) -> None:
    (damaged / "model.safetensors").write_bytes(bytes(range(256)) * 10)
    assert "damaged" in refused(damaged).what


def test_missing_weights_are_not_made_up(damaged: Path) -> None:
    """A Hugging Face loader would fill them with random numbers and say so in a log that nobody sees."""
    path = damaged / "model.safetensors"
    victim = next(k for k in sorted(load_file(path)) if k.endswith(("attn.c_attn.weight", "attn.W_Q")))
    change(damaged, lambda state: state.pop(victim))
    error = refused(damaged)
    assert victim.rpartition("h.0.")[2] in str(error)


def test_weights_of_the_wrong_shape(damaged: Path) -> None:
    path = damaged / "model.safetensors"
    victim = next(k for k in sorted(load_file(path)) if k.endswith(("mlp.c_fc.weight", "mlp.W_in")))
    change(damaged, lambda state: state.update({victim: state[victim][:, :-1]}))
    error = refused(damaged)
    assert "mlp" in str(error) or "shape" in str(error) or "size" in str(error)


def test_a_config_of_another_size(damaged: Path) -> None:
    path = damaged / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    part = config.get("config", config)
    part["d_vocab" if "config" in config else "vocab_size"] = 41
    path.write_text(json.dumps(config), encoding="utf-8")
    refused(damaged)


def test_a_hugging_face_config_of_no_known_kind(tmp_path: Path) -> None:
    shutil.copytree(families.folder("gpt2"), tmp_path / "odd")
    for config in ({}, {"model_type": "no-such-model"}):
        (tmp_path / "odd" / "config.json").write_text(json.dumps(config), encoding="utf-8")
        assert refused(tmp_path / "odd").where == str(tmp_path / "odd")


# --- TransformerLens format -----------------------------------------------------------------------------------


def test_a_native_config_without_sizes(tmp_path: Path) -> None:
    folder = native(tmp_path)
    (folder / "config.json").write_text('{"format": "transformer-lens"}', encoding="utf-8")
    assert "the key 'config' is missing" in refused(folder).what


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_layers", "two"),
        ("n_heads", None),
        ("no_such_key", 1),
        ("act_fn", "no_such"),
        ("normalization_type", "XN"),
    ],
)
def test_a_native_config_that_makes_no_model(tmp_path: Path, key: str, value: object) -> None:
    folder = native(tmp_path)
    config = (
        families.native_config(n_layers=3, **{key: value})
        if key != "n_layers"
        else families.native_config(n_layers=value)
    )
    (folder / "config.json").write_text(
        json.dumps({"format": "transformer-lens", "config": config}), encoding="utf-8"
    )
    refused(folder)


@pytest.mark.parametrize("key", ["n_layers", "d_model", "d_vocab", "n_ctx", "d_head"])
def test_a_native_config_that_lacks_a_size(tmp_path: Path, key: str) -> None:
    folder = native(tmp_path)
    config = {k: v for k, v in families.native_config(n_layers=3).items() if k != key}
    (folder / "config.json").write_text(
        json.dumps({"format": "transformer-lens", "config": config}), encoding="utf-8"
    )
    refused(folder)


def test_native_weights_that_are_missing_or_do_not_fit(tmp_path: Path) -> None:
    folder = native(tmp_path)
    change(folder, lambda state: state.update({"blocks.1.attn.W_q": state.pop("blocks.1.attn.W_Q")}))
    error = refused(folder)
    assert "lack 'blocks.1.attn.W_Q'" in error.what
    assert "nearest" in error.what
    shutil.rmtree(folder)
    folder = native(tmp_path)
    change(folder, lambda state: state.update({"blocks.2.mlp.W_out": torch.zeros(3, 4)}))
    assert "'blocks.2.mlp.W_out' has the shape (3, 4)" in refused(folder).what


def test_missing_biases_are_zero_but_only_biases(tmp_path: Path) -> None:
    folder = native(tmp_path)

    def drop(state: dict[str, torch.Tensor]) -> None:
        for key in [k for k in state if k.endswith((".b_O", ".b_U"))]:
            state.pop(key)

    change(folder, drop)
    bare = load_model(str(folder), device="cpu")
    config = families.NATIVE_CONFIGS["ln"]
    state = {
        k: torch.zeros_like(v) if k.endswith((".b_O", ".b_U")) else v
        for k, v in families.native_state(config).items()
    }
    zeroed = load_model(str(families.write_native(tmp_path / "zeroed", config, state)), device="cpu")
    tokens, at = torch.tensor([[1, 2, 3]]), torch.tensor([2])
    assert torch.equal(bare.bridge_logits(tokens, at), zeroed.bridge_logits(tokens, at))
    change(folder, lambda state: state.pop("blocks.0.ln1.b"))
    assert "blocks.0.ln1.b" in refused(folder).what


def test_a_weight_that_has_no_place_is_refused(tmp_path: Path) -> None:
    """The native bridge's gated MLP has no biases: dropping them in silence would be another model."""
    config = families.NATIVE_CONFIGS["rms-gated"]
    state = families.native_state(config)
    state["blocks.0.mlp.b_in"] = torch.zeros(config["d_mlp"])
    state["blocks.0.attn.mask"] = torch.ones(4, 4)
    load_model(str(families.write_native(tmp_path / "fine", config, state)), device="cpu")
    state["blocks.1.mlp.b_in"] = torch.ones(config["d_mlp"])
    folder = families.write_native(tmp_path / "lost", config, state)
    with pytest.raises(UnsupportedError, match=r"no place for the weight 'blocks.1.mlp.b_in'"):
        load_model(str(folder), device="cpu")


def test_grouped_weights_under_the_names_that_hooked_transformer_saves(tmp_path: Path) -> None:
    """It keeps the weights of key/value groups as _W_K, _W_V, _b_K, _b_V."""
    config = families.NATIVE_CONFIGS["kv-groups"]
    state = families.native_state(config)
    saved = {}
    for key, tensor in state.items():
        head, _, last = key.rpartition(".")
        saved[f"{head}._{last}" if last in ("W_K", "W_V", "b_K", "b_V") else key] = tensor
    assert set(saved) != set(state)
    model = load_model(str(families.write_native(tmp_path / "grouped", config, saved)), device="cpu")
    tokens, at = torch.tensor([[1, 2, 3]]), torch.tensor([2])
    assert torch.equal(model.bridge_logits(tokens, at), families.model("kv-groups").bridge_logits(tokens, at))


# --- the zoo, and what a model is known by ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["planted/induction", "planted/ioi-planted", "planted/and-gate", "planted/or-gate"]
)
def test_planted_models_by_name_and_seed(name: str) -> None:
    model, other = load_model(name, device="cpu"), load_model(f"{name}:3", device="cpu")
    assert model.fingerprint == load_model(f"{name}:0", device="cpu").fingerprint == identity(name)
    assert other.fingerprint == identity(f"{name}:3") != model.fingerprint
    truth = planted(f"{name}:3")
    assert (truth.seed, other.anatomy.n_layers) == (3, truth.config["n_layers"])
    assert other.tokenizer is None
    assert other.source == f"zoo: {name}:3"


@pytest.mark.parametrize("seed", ["x", "-1", "1.5", ""])
def test_a_seed_that_is_none(seed: str) -> None:
    assert "no seed" in refused(f"planted/induction:{seed}").what


def test_folders_are_known_by_their_content(damaged: Path) -> None:
    model = load_model(str(damaged), device="cpu")
    assert model.fingerprint == identity(str(damaged))
    assert model.source == f"folder: {damaged.resolve()}"
    before = model.fingerprint
    (damaged / "notes.txt").write_text("nothing that computes", encoding="utf-8")
    assert identity(str(damaged)) == before
    change(damaged, lambda state: next(iter(state.values())).add_(1))
    assert identity(str(damaged)) != before
    assert identity("gpt2") is None


@pytest.mark.parametrize("family", families.FAMILIES)
def test_loading_twice_gives_the_same_model(family: str) -> None:
    model = families.model(family)
    twin = load_model(str(families.folder(family)), device="cpu")
    pairs = pairs_for(model, count=2)
    metric = get_metric("logit-diff")
    np.testing.assert_array_equal(Runs(model, pairs, metric).clean, Runs(twin, pairs, metric).clean)
    assert model.fingerprint == twin.fingerprint
    assert model.tokenizer is None
    assert len(random_pairs()) == 5


def test_variables_in_the_name_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = families.folder("ln")
    monkeypatch.setenv("CIRCUITFIND_MODELS", str(folder.parent))
    found = load_model("$CIRCUITFIND_MODELS/ln", device="cpu")
    assert found.name == "$CIRCUITFIND_MODELS/ln"
    assert identity(found.name) == identity(str(folder)) == found.fingerprint
    with pytest.raises(ModelError, match=r"no folder '\$CIRCUITFIND_MODELS/nowhere'"):
        load_model("$CIRCUITFIND_MODELS/nowhere", device="cpu")


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIRCUITFIND_MODELS", raising=False)
    with pytest.raises(ModelError, match="no folder") as told:
        load_model("${CIRCUITFIND_MODELS}/ln", device="cpu")
    assert "set CIRCUITFIND_MODELS" in told.value.hint
