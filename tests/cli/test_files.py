"""Commands on task files and on the installation: ``validate``, ``init``, ``schema``, ``doctor``, ``completion``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml

from circuitfind.cli import COMMANDS
from tests.cli.helpers import Cli, Toy

TASKS = Path(__file__).resolve().parents[2] / "tasks"


@pytest.fixture
def tiny_gpt2(tmp_path: Path) -> Path:
    """A random GPT-2 in Hugging Face format, whose tokens are words with their leading blank."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = set(re.findall(r" ?[A-Za-z]+|[^A-Za-z ]", yaml.safe_dump(starter(tmp_path))))
    words |= {f" {word.strip()}" for word in words}
    vocab = {"<none>": 0, **{word: i for i, word in enumerate(sorted(words), 1)}}
    backend = Tokenizer(WordLevel(vocab, unk_token="<none>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|[^A-Za-z ]"), "isolated")
    folder = tmp_path / "tiny-gpt2"
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<none>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=len(vocab), n_inner=16)
    config.bos_token_id = config.eos_token_id = 0
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def starter(folder: Path) -> dict[str, Any]:
    """The data of the file that ``init`` writes."""
    from circuitfind.task.spec import template

    found: dict[str, Any] = yaml.safe_load(template())
    return found


# --- init ---------------------------------------------------------------------------------------------------


def test_init_writes_a_file_that_runs(cli: Cli, tiny_gpt2: Path) -> None:
    said = cli.good("init").out
    path = cli.folder / "my-task.yaml"
    assert said == "my-task.yaml: edit it, then run: circuitfind validate my-task.yaml\n"
    text = path.read_text(encoding="utf-8")
    assert text.count("#") > 20, "commented"
    assert "my-task.yaml: the file is a task" in cli.good("validate", "my-task.yaml", "--no-model").out
    # As the file says: `model:` names another one, here a folder.
    path.write_text(
        text.replace("model: mini", f"model: {tiny_gpt2}").replace("min-accuracy: 0.75", "min-accuracy: 0")
    )
    found = cli.good("validate", "my-task.yaml")
    assert "flip on" in found.out
    assert "other-names on" in found.out
    found = cli.good("discover", "my-task.yaml", "--edges", "8", "--controls", "none")
    assert re.search(r"my-task on .*tiny-gpt2: a circuit found by hybrid", found.out)
    assert cli.run_folder().name.startswith("my-task-tiny-gpt2-")


def test_init_spares_what_is_there(cli: Cli) -> None:
    path = cli.folder / "mine.yaml"
    path.write_text("mine", encoding="utf-8")
    cli.fails(2, "init", "mine.yaml", says=["is there already", "--force"])
    assert path.read_text(encoding="utf-8") == "mine"
    cli.good("init", "mine.yaml", "--force")
    assert path.read_text(encoding="utf-8") != "mine"
    cli.good("init", "new/folder/one.yml")
    cli.fails(2, "init", "task.json", says=["no name of a task file", "task.json.yaml"])
    assert sorted(p.name for p in cli.folder.iterdir()) == ["mine.yaml", "new"]


# --- validate -----------------------------------------------------------------------------------------------


def test_validate(cli: Cli, toy: Toy) -> None:
    assert (
        cli.good("validate", toy.task()).out.splitlines()[0] == f"{toy.folder}/toy.yaml: the file is a task"
    )
    found = cli.good("validate", toy.task(), "--json").json
    assert found["ok"] is True
    (row,) = found["checked"]
    assert (row["pairs"], row["dropped"], row["accuracy"]) == (12, 0, 1.0)
    assert row["clean"] > 0 > row["corrupted"]
    assert not cli.outputs.exists()


def test_validate_without_a_model_loads_none(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*args: object, **keys: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("circuitfind.model.load.load_model", boom)
    for path in sorted(TASKS.glob("*.yaml")):
        assert cli.good("validate", path.stem, "--no-model", "--json").json["checked"] == []


def test_validate_checks_every_counterfactual(cli: Cli, toy: Toy) -> None:
    pairs = [{**pair, "corrupted": {"swap": pair["corrupted"], "short": "w1 w2"}} for pair in toy.pairs]
    path = toy.task(prompts={"pairs": pairs})
    assert "swap on" in cli.good("validate", path, "--counterfactual", "swap").out
    cli.fails(
        2, "validate", path, says=["none of 12 prompt pairs can be used", "8 tokens, the corrupted one 2"]
    )
    cli.fails(2, "validate", path, "--counterfactual", "swop", says=["did you mean 'swap'?"])


def test_validate_a_model_without_tokenizer(cli: Cli, toy: Toy) -> None:
    says = ["the prompts are text, but the model has no tokenizer", "vocab", "toy.yaml:", "(prompts)"]
    cli.fails(2, "validate", toy.task(vocab=None), says=says)


# --- schema -------------------------------------------------------------------------------------------------


def test_schema_accepts_the_tasks(cli: Cli) -> None:
    schema = json.loads(cli.good("schema").out)
    assert schema == cli.good("schema", "--json").json["schema"]
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    paths = sorted(TASKS.glob("*.yaml"))
    assert len(paths) > 5
    for path in paths:
        check.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    check.validate(starter(cli.folder))
    assert not check.is_valid({"name": "x", "promts": {}})


# --- doctor -------------------------------------------------------------------------------------------------


def test_doctor(cli: Cli) -> None:
    found = cli("doctor")
    rows = {row["what"]: row for row in cli("doctor", "--json").json["findings"]}
    names = [
        "circuitfind",
        "Python",
        "torch",
        "transformer-lens",
        "device",
        "dot",
        "tasks",
        "outputs",
        "mini",
        "hub",
    ]
    for name in names:
        assert rows[name]["state"] in ("ok", "note", "bad")
        assert re.search(rf"^{rows[name]['state']} +{name} +\S", found.out, re.MULTILINE)
        assert rows[name]["hint"] or rows[name]["state"] == "ok" or name == "hub"
    assert rows["torch"]["found"] == torch.__version__
    assert not cli.outputs.exists(), "it only looks"


def test_doctor_tells_bad_news(cli: Cli) -> None:
    cli.outputs.write_text("in the way")
    found = cli("doctor")
    assert found.code == 1
    assert re.search(r"^bad +outputs", found.out, re.MULTILINE)
    assert "checks failed: " in found.err
    assert "hint: " in found.err
    (cli.folder / "tasks").mkdir()
    assert cli("doctor", "--json").code == 1


# --- completion ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(cli: Cli, shell: str) -> None:
    script = cli.good("completion", shell).out
    assert "_CIRCUITFIND_COMPLETE" in script
    assert "circuitfind" in script
    assert cli.good("completion", shell, "--json").json["script"] == script.removesuffix("\n")
    program = shutil.which(shell)
    if program is not None:
        flag = "--no-execute" if shell == "fish" else "-n"
        subprocess.run([program, flag], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "incomplete", "wanted"),
    [
        ([], "", set(COMMANDS)),
        ([], "re", {"render", "report"}),
        (["discover"], "or", {"or-gate"}),
        (["discover", "or-gate", "--model"], "planted/o", {"planted/or-gate"}),
        (["discover", "or-gate"], "--faith", {"--faithfulness"}),
        (["discover", "or-gate", "--format"], "p", {"png", "pdf"}),
        (["list"], "", {"tasks", "models", "methods", "runs"}),
        (["show"], "", {"latest"}),
    ],
)
def test_completion(words: list[str], incomplete: str, wanted: set[str]) -> None:
    from click.shell_completion import ShellComplete

    from circuitfind.cli import group

    complete = ShellComplete(group, {}, "circuitfind", "_CIRCUITFIND_COMPLETE")
    assert {item.value for item in complete.get_completions(words, incomplete)} == wanted


def test_completion_of_runs(cli: Cli) -> None:
    from click.shell_completion import ShellComplete

    from circuitfind.cli import group

    cli.good("discover", "and-gate", "-q", "--count", "8")
    complete = ShellComplete(group, {}, "circuitfind", "_CIRCUITFIND_COMPLETE")
    found = [item.value for item in complete.get_completions(["show"], "and")]
    assert found == [cli.run_folder().name]
    found = [item.value for item in complete.get_completions(["show", "--outputs", "elsewhere"], "")]
    assert found == ["latest"]
    assert [path.name for path in cli.folder.iterdir()] == ["outputs"]
