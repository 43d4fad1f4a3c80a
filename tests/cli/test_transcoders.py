"""``transcoders train`` and ``transcoders eval`` from end to end, on a model of a few thousand parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from circuitfind.cli import run
from circuitfind.dictionaries.load import load_dictionaries
from tests import families
from tests.cli.conftest import write_tl
from tests.cli.helpers import Cli, Toy

QUICK = ("--width", "12", "--k", "3", "--steps", "30", "--batch", "16")


@pytest.fixture
def small(toy: Toy) -> Toy:
    """A task for a random model with MLPs, in the words of the toy."""
    vocab = len(toy.vocab)
    config = families.native_config(d_vocab=vocab, d_vocab_out=vocab, n_ctx=64)
    model = write_tl(toy.folder / "random", config, families.native_state(config))
    return Toy(toy.folder, model, toy.vocab, toy.pairs)


def trained(cli: Cli, toy: Toy, *more: str) -> Path:
    out = cli.folder / "found"
    cli.good("transcoders", "train", toy.model, "--task", toy.task(), *QUICK, "--out", out, *more)
    return out


def test_from_end_to_end(cli: Cli, small: Toy) -> None:
    out = cli.folder / "sub" / "found"
    task = small.task()
    words = ("transcoders", "train", small.model, "--task", task, *QUICK, "--out", out)
    found = cli.good(*words)
    assert f"2 transcoders of {small.model}: topk, 12 features each" in found.out
    assert f"circuitfind transcoders eval {out} --model {small.model}" in found.out
    assert "train" in found.err
    assert sorted(p.name for p in out.parent.iterdir()) == ["found"], "nothing half-written is left"
    assert sorted(p.name for p in out.iterdir()) == ["layer_0", "layer_1", "training.json"]
    assert [d.layer for d in load_dictionaries(out)] == [0, 1]
    measured = cli.good("transcoders", "eval", out, "--model", small.model, "--task", task)
    for part in ("FVU", "L0", "dead", "logit-diff", "recovered", "accuracy"):
        assert part in measured.out
    data = cli.good("transcoders", "eval", out, "--model", small.model, "--task", task, "--json").json
    assert data["version"] == 1
    assert [one["layer"] for one in data["layers"]] == [0, 1]
    assert all(0 <= one["l0"] <= 3 for one in data["layers"])
    quiet = cli.good("transcoders", "eval", out, "--model", small.model, "--task", task, "-q")
    assert quiet.err == ""


def test_some_layers_as_json(cli: Cli, small: Toy) -> None:
    out = cli.folder / "found"
    words = ("transcoders", "train", small.model, "--layers", "1", "--skip", "--task", small.task())
    more = ("--width", "8", "--activation", "jumprelu", "--l0", "2", "--steps", "5", "--batch", "16")
    data = cli.good(*words, *more, "--out", out, "--json").json
    assert data["layers"] == [1]
    assert data["settings"]["skip"] is True
    assert Path(data["folder"]) == out
    (one,) = load_dictionaries(out)
    assert (one.layer, one.activation, one.w_skip is not None) == (1, "jumprelu", True)


def test_the_same_seed_gives_the_same_files(cli: Cli, small: Toy) -> None:
    first = trained(cli, small)
    bytes_ = (first / "layer_1" / "sae_weights.safetensors").read_bytes()
    cli.fails(2, *_train(small, first), says=("there already", "--force"))
    trained(cli, small, "--force")
    assert (first / "layer_1" / "sae_weights.safetensors").read_bytes() == bytes_
    trained(cli, small, "--force", "--seed", "1")
    assert (first / "layer_1" / "sae_weights.safetensors").read_bytes() != bytes_
    assert not [p for p in cli.folder.iterdir() if p.name.startswith(".")]


def _train(toy: Toy, out: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("transcoders", "train", toy.model, "--task", toy.task(), *QUICK, "--out", out, *more)


def test_a_stopped_training_goes_on(
    cli: Cli, small: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(cli, small)
    wanted = (whole / "layer_0" / "sae_weights.safetensors").read_bytes()
    whole.rename(cli.folder / "whole")
    from circuitfind import transcoder_runs
    from circuitfind.dictionaries.activations import Buffer

    original, count = Buffer.next, 0

    def interrupted(self: Buffer):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count == 20:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(transcoder_runs, "EVERY", 8)
    with monkeypatch.context() as patch:
        patch.setattr(Buffer, "next", interrupted)
        assert run([str(word) for word in _train(small, whole)]) == 130
    assert not whole.exists()
    assert (cli.folder / ".found.partial" / "checkpoint.pt").is_file()
    other = cli(*_train(small, whole, "--seed", "5"))
    assert other.code == 2
    assert "other settings" in other.err
    trained(cli, small)
    assert (whole / "layer_0" / "sae_weights.safetensors").read_bytes() == wanted
    assert not (cli.folder / ".found.partial").exists()


def test_a_failure_while_writing_leaves_nothing(
    cli: Cli, small: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from circuitfind.dictionaries import save

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    out = cli.folder / "found"
    with monkeypatch.context() as patch:
        patch.setattr(save, "save_dictionary", full)
        found = cli(*_train(small, out))
        assert found.code == 3
        assert "no space left" in found.err
    assert not out.exists()
    assert not (cli.folder / ".found.new").exists()
    trained(cli, small)  # from the checkpoint of the last step


def test_text_for_a_model_with_a_tokenizer(cli: Cli) -> None:
    text = cli.folder / "text.txt"
    text.write_text("\n\n".join(["Mary went to the store.", "Anna has a red pen."] * 20), encoding="utf-8")
    out = cli.folder / "found"
    quick = ("--width", "16", "--k", "4", "--steps", "3", "--batch", "64", "--layers", "0")
    cli.good("transcoders", "train", "mini", "--text", text, *quick, "--out", out, "-q")
    found = cli.good("transcoders", "eval", out, "--model", "mini", "--text", text, "--tokens", "100")
    assert "cross-entropy" in found.out
    without = cli.good("transcoders", "eval", out, "--model", "mini", "--tokens", "200")
    assert "mini's corpus" in without.out
    cli.fails(2, "transcoders", "eval", out, "--model", "mini-redundant", says=("trained on mini",))


def test_wrong_words(cli: Cli, small: Toy) -> None:
    out = cli.folder / "x" / "out"
    task = small.task()

    def words(*more: str | Path) -> tuple[str | Path, ...]:
        return ("transcoders", "train", small.model, "--out", out, *more)

    short = cli.folder / "short.txt"
    short.write_text("a few words", encoding="utf-8")
    empty = cli.folder / "empty.txt"
    empty.write_text("", encoding="utf-8")
    good = ("--task", task, *QUICK)
    cli.fails(2, *words(*good, "--layers", "0,7"), says=("no layer 7", "0 to 1"))
    cli.fails(2, *words(*good, "--layers", "first"), says=("names no layers",))
    cli.fails(2, *words("--task", task, "--width", "0"), says=("width is 0",))
    cli.fails(2, *words("--task", task, "--width", "8", "--k", "9"), says=("k is 9",))
    cli.fails(2, *words("--task", task, "--width", "8", "--activation", "gelu"), says=("activation",))
    cli.fails(2, *words("--width", "20"), says=("no text", "--text FILE or --task TASK"))
    cli.fails(2, *words(*good, "--text", short), says=("both",))
    cli.fails(2, *words(*QUICK, "--text", short), says=("no tokenizer",))
    cli.fails(2, *words(*QUICK, "--count", "3"), says=("--task",))
    cli.fails(2, *words(*QUICK, "--task", "no-such-task"), says=("no-such-task",))
    cli.fails(2, *words(*good, "--batch", "100000"), says=("too short", "--batch"))
    mini = ("transcoders", "train", "mini", *QUICK, "--out", out)
    cli.fails(2, *mini, "--text", empty, says=("holds no text",))
    cli.fails(2, *mini, "--text", cli.folder / "none.txt", says=("cannot be read",))
    cli.fails(
        2, "transcoders", "train", "mini", "--text", short, "--width", "32", "--out", out, says=("too short",)
    )
    cli.fails(2, "transcoders", "train", small.model, says=("Missing option",))
    cli.fails(2, "transcoders", "train", "no-such-model", *good, "--out", out, says=("no-such-model",))
    assert not out.exists()
    assert not list(out.parent.glob(".*")) if out.parent.exists() else True


def test_a_model_without_mlps_is_refused_by_name(cli: Cli, toy: Toy) -> None:
    size = len(toy.vocab)
    config = families.native_config(d_vocab=size, d_vocab_out=size, n_ctx=64, attn_only=True)
    model = write_tl(cli.folder / "bare", config, families.native_state(config))
    bare = Toy(toy.folder, model, toy.vocab, toy.pairs)
    cli.fails(2, *_train(bare, cli.folder / "out"), says=(f"{model} has no MLPs",))
    assert not [p for p in cli.folder.iterdir() if p.name.startswith(".")]


def test_folders_that_do_not_fit(cli: Cli, small: Toy) -> None:
    out, task = trained(cli, small), small.task()
    evaluate = ("transcoders", "eval")
    cli.fails(2, *evaluate, cli.folder / "none", "--model", small.model, "--task", task, says=("none",))
    (cli.folder / "bare").mkdir()
    cli.fails(
        2, *evaluate, cli.folder / "bare", "--model", small.model, "--task", task, says=("no dictionary",)
    )
    config = families.native_config(d_vocab=len(small.vocab), d_vocab_out=len(small.vocab), n_ctx=64)
    state = families.native_state(config, seed=1)
    other = write_tl(cli.folder / "other", config, {k: v.contiguous() for k, v in state.items()})
    cli.fails(2, *evaluate, out, "--model", other, "--task", task, says=("trained on", str(small.model)))
    (out / "training.json").write_text("{}", encoding="utf-8")
    cli.fails(2, *evaluate, out, "--model", small.model, "--task", task, says=("does not say",))
    (out / "training.json").unlink()
    cli.good(*evaluate, out, "--model", other, "--task", task)
    narrow = families.native_config(
        d_vocab=len(small.vocab), d_vocab_out=len(small.vocab), n_ctx=64, d_model=18
    )
    third = write_tl(cli.folder / "third", narrow, families.native_state(narrow))
    cli.fails(2, *evaluate, out, "--model", third, "--task", task, says=("14",))
    cli.fails(2, *evaluate, out, "--model", small.model, "--task", task, "--tokens", "1", says=("too few",))
    cli.fails(2, *evaluate, out, "--task", task, says=("Missing option",))


def test_help_of_both(cli: Cli) -> None:
    bare = cli.good("transcoders")
    assert "train" in bare.out
    assert "eval" in bare.out
    for name in ("train", "eval"):
        assert cli.good("transcoders", name, "--help").out.startswith(
            f"Usage: circuitfind transcoders {name}"
        )
    cli.fails(2, "transcoders", "measure", says=("measure",))


def test_what_ships_with_mini_is_whole() -> None:
    from circuitfind.zoo.mini import transcoders_folder

    folder = transcoders_folder()
    found = load_dictionaries(folder)
    assert [d.layer for d in found] == [0, 1, 2, 3]
    assert {d.site_in for d in found} == {"mlp_normed"}
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 4.2e6
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert facts["model_name"] == "mini"
    assert all(torch.isfinite(d.w_dec).all() for d in found)
