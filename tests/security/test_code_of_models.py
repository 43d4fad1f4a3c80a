"""A model that brings Python code along: refused, unread, unless a flag on the command line asks for it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import click
import pytest

from circuitfind import allowing
from circuitfind.allowed import Allowed, allowed, restored
from circuitfind.cli.configuration import leaves
from circuitfind.errors import ModelError
from circuitfind.model.identity import identity
from circuitfind.model.load import load_model, load_tokenizer
from circuitfind.output.store import Store
from tests.cli.helpers import Cli

FLAG = "--trust-remote-code"

CODE = """\
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel as Base

Path({ran!r}).write_text("it ran")


class OwnConfig(GPT2Config):
    model_type = {kind!r}


class GPT2LMHeadModel(Base):
    config_class = OwnConfig
"""


def edited(path: Path, **keys: Any) -> None:
    """Set keys of a JSON file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | keys), encoding="utf-8")


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that the code writes."""
    return tmp_path / "it-ran"


@pytest.fixture(params=["gpt2", "own-kind"])
def brings_code(
    request: pytest.FixtureRequest,
    own_model: Path,
    ran: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A model whose code writes a file when it is imported; of a kind that transformers knows itself, and of one that it does
    not."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = CODE.format(ran=str(ran), kind=request.param)
    (own_model / "modeling_own.py").write_text(code, encoding="utf-8")
    classes = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.GPT2LMHeadModel"}
    edited(own_model / "config.json", auto_map=classes, model_type=request.param)
    return own_model


def test_it_is_refused_and_does_not_run(brings_code: Path, ran: Path, cli: Cli) -> None:
    says = ["brings its own Python code (modeling_own.OwnConfig)", "own-model", "auto_map", FLAG]
    for words in (("discover", "ioi"), ("prompts", "show", "ioi"), ("backups", "ioi"), ("validate", "ioi")):
        cli.fails_loosely(2, *words, "--model", brings_code, says=says)
    assert not ran.exists()


def test_where_it_is_allowed_it_runs(brings_code: Path, ran: Path) -> None:
    with allowing(trust_remote_code=True):
        model = load_model(str(brings_code), device="cpu")
    assert ran.read_text(encoding="utf-8") == "it ran"
    assert (model.anatomy.n_layers, model.anatomy.n_heads) == (4, 8)


def test_a_run_says_that_it_was_allowed(tmp_path: Path) -> None:
    with allowing(trust_remote_code=True), Store(tmp_path).open("ioi", "one", {}) as run:
        pass
    assert run.manifest["trust_remote_code"] is True
    with Store(tmp_path).open("ioi", "one", {}) as again:  # what it made is still there
        pass
    assert again.manifest["trust_remote_code"] is True
    with Store(tmp_path).open("ioi", "other", {}) as other:
        pass
    assert "trust_remote_code" not in other.manifest


@pytest.mark.slow
def test_with_the_flag_it_runs_and_the_run_says_so(brings_code: Path, ran: Path, cli: Cli) -> None:
    words = ("discover", "ioi", "--model", brings_code, "--method", "eap", "--edges", "20", "--count", "8")
    cli.good(*words, "--no-backups", "--controls", "none", "--no-views", FLAG, "-q")
    assert ran.read_text(encoding="utf-8") == "it ran"
    manifest = json.loads((cli.run_folder() / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["trust_remote_code"] is True


def test_code_of_a_tokenizer_is_code(own_model: Path, tmp_path: Path) -> None:
    (own_model / "own.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    edited(own_model / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Tokenizer"]})
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"brings its own Python code \(own\.Tokenizer\)"):
            load(str(own_model))


def test_a_model_of_the_hub_is_no_exception(
    brings_code: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its JSON is fetched and looked at, before transformers is told anything."""

    def fetched(name: str, file: str, **keys: object) -> str:
        assert name == "someone/own"
        return str(brings_code / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetched)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match="'someone/own' brings its own Python code") as told:
            load("someone/own")
        assert told.value.where == "config.json (auto_map)"
    assert not ran.exists()


def test_nobody_is_asked(brings_code: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word from us transformers would ask on the terminal, for a quarter of a minute."""

    def asked(*words: object) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(ModelError):
        load_model(str(brings_code), device="cpu")
    assert not ran.exists()


def test_every_loader_of_transformers_is_told_no(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to transformers and to the bridge, of a model that brings no code, whatever is allowed."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told: list[object] = []

    def spied(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def spy(*words: Any, **keys: Any) -> Any:
            told.append(keys.get("trust_remote_code", "not told"))
            return real(*words, **keys)

        monkeypatch.setattr(owner, name, spy)

    spied(AutoModelForCausalLM, "from_pretrained")
    spied(AutoTokenizer, "from_pretrained")
    spied(TransformerBridge, "boot_transformers")
    load_model(str(own_model), device="cpu")
    load_tokenizer(str(own_model))
    assert told == [False] * 4


def test_its_code_is_part_of_what_a_model_is(brings_code: Path) -> None:
    before = identity(str(brings_code))
    with (brings_code / "modeling_own.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert identity(str(brings_code)) != before


def test_code_beside_a_model_that_does_not_name_it_changes_nothing(own_model: Path) -> None:
    before = identity(str(own_model))
    (own_model / "notes.py").write_text("print('never run')", encoding="utf-8")
    assert identity(str(own_model)) == before


# --- who may allow it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["discover", "defaults"])
@pytest.mark.parametrize("name", ["trust-remote-code", "trust_remote_code", "read-outside"])
def test_a_configuration_file_cannot_allow_it(cli: Cli, section: str, name: str) -> None:
    """It may have come with the folder that the command runs in."""
    (cli.folder / "circuitfind.toml").write_text(f"[{section}]\n{name} = true\n", encoding="utf-8")
    cli.fails(2, "discover", "ioi", says=["circuitfind.toml:2", name.replace("_", "-")])


def test_a_variable_cannot_allow_code(brings_code: Path, ran: Path, cli: Cli, monkeypatch: Any) -> None:
    for name in ("CIRCUITFIND_DISCOVER_TRUST_REMOTE_CODE", "CIRCUITFIND_TRUST_REMOTE_CODE"):
        monkeypatch.setenv(name, "1")
    cli.fails_loosely(2, "discover", "ioi", "--model", brings_code, says=[FLAG])
    assert not ran.exists()


def test_no_task_and_no_sweep_can_allow_it(cli: Cli) -> None:
    task = "name: small\nmodel: planted/and-gate\ntrust-remote-code: true\nprompts: {zoo: {count: 8}}\n"
    (cli.folder / "small.yaml").write_text(task, encoding="utf-8")
    cli.fails(2, "discover", "small.yaml", says=["unknown key 'trust-remote-code'"])
    sweep = "tasks: [ioi]\nsettings: {trust-remote-code: true}\n"
    (cli.folder / "sweep.yaml").write_text(sweep, encoding="utf-8")
    cli.fails(2, "sweep", "sweep.yaml", says=["unknown key 'trust-remote-code'"])


def test_every_command_that_loads_a_model_has_the_flag() -> None:
    """Those with --model or --device, but for those that only look at what is there."""
    found, without = 0, []
    for command in leaves():
        names = {name for one in command.params if isinstance(one, click.Option) for name in one.opts}
        if {"--model", "--device"} & names:
            found += 1
            without += [] if FLAG in names else [" ".join(command.path)]
    assert found > 10
    assert without == []


def test_it_ends_with_the_block_and_is_handed_on_whole() -> None:
    assert allowed() == Allowed()
    with allowing(trust_remote_code=True):
        assert allowed() == Allowed(trust_remote_code=True)
        with allowing(read_outside=True):
            assert allowed() == Allowed(trust_remote_code=True, read_outside=True)
        with restored(Allowed()):
            assert allowed() == Allowed()
    assert allowed() == Allowed()


def test_workers_are_allowed_what_their_parent_was() -> None:
    from circuitfind.engine.work import Surroundings

    with allowing(trust_remote_code=True):
        here = pickle.loads(pickle.dumps(Surroundings.here()))
    assert allowed() == Allowed()
    with here.entered():
        assert allowed() == Allowed(trust_remote_code=True)
    with Surroundings.here().entered():
        assert allowed() == Allowed()


# --- files of a model that lead out of it -------------------------------------------------------------------


def test_an_adapter_does_not_call_for_another_model(own_model: Path) -> None:
    (own_model / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "someone/else"}', encoding="utf-8"
    )
    with pytest.raises(ModelError, match="is an adapter"):
        load_model(str(own_model), device="cpu")


@pytest.mark.parametrize("named", ["../elsewhere.safetensors", "/etc/passwd", "..\\elsewhere.safetensors"])
def test_weights_are_of_their_folder(own_model: Path, named: str) -> None:
    shutil.copy(own_model / "model.safetensors", own_model.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": named}}
    (own_model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ModelError, match="which is no file of this folder"):
        load_model(str(own_model), device="cpu")


def test_a_variable_in_a_name_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task file may name ``$ANYTHING``, and messages go into logs that others read."""
    monkeypatch.setenv("A_SECRET", "hunter2")
    with pytest.raises(ModelError) as told:
        load_model("$A_SECRET/model", device="cpu")
    assert "hunter2" not in str(told.value)
