"""``attribute`` from end to end: prompts, tasks, finished graphs, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from circuitfind.attribution.saved import read_graph
from circuitfind.output.draw import dot_binary
from tests import families
from tests.attribution import network
from tests.attribution.test_export import check_export
from tests.cli.conftest import write_tl
from tests.cli.helpers import Cli, Toy

PICTURES = ["graph.svg"] if dot_binary() else []


@pytest.fixture
def small(toy: Toy) -> Toy:
    """A random model with MLPs in the words of the toy, and transcoders beside it."""
    vocab = len(toy.vocab)
    config = families.native_config(d_vocab=vocab, d_vocab_out=vocab, n_ctx=64)
    model = write_tl(toy.folder / "random", config, families.native_state(config))
    network.write_layers(toy.folder / "coded", 14, 2)
    network.write_cross(toy.folder / "cross", 14, 2)
    return Toy(toy.folder, model, toy.vocab, toy.pairs)


def words(small: Toy, *more: str | Path) -> tuple[str | Path, ...]:
    """A prompt of ids."""
    own = ("--tokens", "3,1,4,1,5", "--model", small.model, "--dictionaries", small.folder / "coded")
    return ("attribute", *own, *more)


def test_mini_and_its_own_transcoders(cli: Cli) -> None:
    text = "When Mary and John went to the store, John gave a drink to"
    found = cli.good("attribute", "--text", text, "--draw", "10")
    (folder,) = cli.outputs.iterdir()
    assert folder.name.startswith("attribution-mini-")
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["graph-metadata.json", "graph.dot", "graph.json", "graph.npz", "summary.json", *PICTURES]
    )
    assert "' Mary' 100 %" in found.out
    assert "replacement" in found.out
    assert "t1.f" in found.out
    assert str(folder.relative_to(cli.folder)) in found.out
    data = check_export(json.loads((folder / "graph.json").read_text()))
    assert (data.metadata.scan, data.metadata.prompt) == ("mini", text)
    assert data.metadata.prompt_tokens[:3] == ["When", " Mary", " and"]
    graph = read_graph(folder / "graph.npz")
    assert graph.dictionaries == "mini/transcoders"
    assert graph.gap < 1e-5
    assert set(graph.nodes.layer) == {-1, 0, 1, 2, 3, 4}
    cli.tidy()


def test_a_prompt_of_ids_as_json(cli: Cli, small: Toy) -> None:
    data = cli.good(*words(small), "--json").json
    assert data["version"] == 1
    (prompt,) = data["prompts"]
    assert prompt["tokens"] == [3, 1, 4, 1, 5]
    assert 0 < prompt["kept_features"] < prompt["active_features"]
    assert prompt["features_without_row"] == 0
    assert prompt["sum_gap"] < 1e-5
    for name in ("replacement", "completeness"):
        assert 0 <= prompt[name]["pruned"] < prompt[name]["whole"] <= 1
    folder = Path(data["folder"])
    check_export(json.loads((folder / "graph.json").read_text()))
    assert json.loads((folder / "summary.json").read_text()).items() <= data.items()
    again = cli.good(*words(small), "--json", "-q")
    assert again.err == ""
    assert again.json == data
    other = cli.good(*words(small), "--json", "--max-logits", "2").json
    assert other["folder"] != data["folder"]
    assert len(other["prompts"][0]["logits"]) == 2


def test_cross_layer_transcoders(cli: Cli, small: Toy) -> None:
    found = cli.good(*words(small)[:-1], small.folder / "cross", "--json").json
    assert found["prompts"][0]["sum_gap"] < 1e-5
    assert found["dictionaries"] == str(small.folder / "cross")


def test_fewer_rows_than_features(cli: Cli, small: Toy) -> None:
    found = cli.good(*words(small), "--max-features", "10")
    assert "beyond --max-features: sources only" in found.out
    (folder,) = cli.outputs.iterdir()
    graph = read_graph(folder / "graph.npz")
    assert int(graph.without_row.sum()) == graph.n_features - 10 > 0


def test_pruning_again_needs_no_model(cli: Cli, small: Toy) -> None:
    out = cli.folder / "deep" / "found"
    first = cli.good(*words(small), "--out", out, "--json").json
    for path in small.model.iterdir():
        path.unlink()
    saved = (out / "graph.npz").read_bytes()
    second = cli.good(
        "attribute", out, "--node-threshold", "0.4", "--slug", "less", "--scan", "toy", "--json"
    ).json
    one, other = first["prompts"][0], second["prompts"][0]
    assert other["kept_features"] < one["kept_features"]
    assert other["replacement"]["whole"] == one["replacement"]["whole"]
    assert (out / "graph.npz").read_bytes() == saved
    assert not (out / "graph.json").exists(), "an export of other thresholds would be taken for this one"
    data = check_export(json.loads((out / "less.json").read_text()))
    (listed,) = json.loads((out / "graph-metadata.json").read_text())["graphs"]
    assert listed == json.loads((out / "less.json").read_text())["metadata"]
    assert (data.metadata.slug, data.metadata.scan, data.metadata.node_threshold) == ("less", "toy", 0.4)
    copy = cli.folder / "copy"
    third = cli.good("attribute", out / "graph.npz", "--out", copy, "--json").json
    assert third["prompts"][0] == one
    wanted = {p.name.replace("less", "graph") for p in out.iterdir()}
    assert {p.name for p in copy.iterdir()} == wanted


def test_a_task(cli: Cli, small: Toy) -> None:
    task = small.task(positions={"FIRST": 0})
    own = ("attribute", task, "--dictionaries", small.folder / "coded", "--count", "6")
    found = cli.good(*own)
    assert "averages over" in found.out
    assert "left out: the model answers them wrongly" in found.err
    (folder,) = cli.outputs.iterdir()
    graphs = sorted(folder.glob("graph-*.npz"))
    exported = sorted(folder.glob("graph-0*.json"))
    assert len(graphs) == len(exported) > 1
    for path in exported:
        assert check_export(json.loads(path.read_text())).metadata.slug == path.stem
    listed = json.loads((folder / "graph-metadata.json").read_text())["graphs"]
    assert [one["slug"] for one in listed] == [path.stem for path in exported]
    data = cli.good(*own, "--json").json
    assert data["average"]["prompts"] == len(data["prompts"]) == len(graphs)
    assert all("@" not in node["name"] for node in data["average"]["nodes"])
    share = {node["name"]: node["kept"] for node in data["average"]["nodes"]}
    assert share["logits"] == share["input"] == 1
    apart = cli.good(*own, "--positions", "--json").json
    assert any(node["name"] == "input@FIRST" for node in apart["average"]["nodes"])
    total = sum(n["influence"] for n in apart["average"]["nodes"] if n["name"].startswith("input"))
    assert total == pytest.approx(
        next(n["influence"] for n in data["average"]["nodes"] if n["name"] == "input")
    )
    cli.fails(2, "attribute", graphs[0], says=["is one graph of several", "--out FOLDER"])
    alone = cli.good("attribute", graphs[0], "--out", cli.folder / "alone", "--json").json
    assert alone["prompts"][0]["tokens"] == data["prompts"][0]["tokens"]
    again = cli.good("attribute", folder, "--edge-threshold", "0.5", "--json").json
    assert again["task"] == "toy"
    assert len(again["average"]["edges"]) < len(data["average"]["edges"])
    fewer = cli.good(*own[:-1], "2", "--out", folder, "--json").json
    assert len(list(folder.glob("graph-*.npz"))) == len(fewer["prompts"]) < len(graphs)
    assert len(list(folder.glob("graph-0*.json"))) == len(fewer["prompts"])


def test_pictures(cli: Cli, small: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = cli.good(*words(small))
    assert "no picture: Graphviz is not installed" in found.err
    (folder,) = cli.outputs.iterdir()
    assert (folder / "graph.dot").read_text().startswith("digraph")
    assert not list(folder.glob("*.svg"))


def test_wrong_words(cli: Cli, small: Toy) -> None:
    prompt = words(small)
    cli.fails(2, "attribute", says=["needs one thing to trace, and was given nothing"])
    cli.fails(2, "attribute", "ioi", "--text", "a", says=["was given SOURCE, --text"])
    cli.fails(2, "attribute", "iio", says=["iio"])
    cli.fails(2, *prompt, "--count", "3", says=["--count is of a task's prompts"])
    cli.fails(2, *prompt, "--positions", says=["--positions is of a task's prompts"])
    cli.fails(2, *prompt, "--node-threshold", "1.2", says=["--node-threshold from 0 to 1"])
    cli.fails(2, *prompt, "--max-features", "0", says=["0 is no number of features"])
    cli.fails(2, *prompt, "--draw", "0", says=["leaves nothing to draw"])
    cli.fails(2, *prompt, "--slug", "My Graph", says=["no name for a URL", "such as my-graph"])
    cli.fails(2, *prompt, "--bos", says=["without a tokenizer"])
    cli.fails(2, *prompt[:1], "--tokens", "3,x", *prompt[3:], says=["'3,x' is no list of token ids"])
    cli.fails(2, *prompt[:1], "--tokens", "3,999", *prompt[3:], says=["there is no token 999"])
    cli.fails(2, *prompt[:1], "--tokens", "", *prompt[3:], says=["the prompt is empty"])
    cli.fails(2, *prompt[:1], "--text", "a", *prompt[3:], says=["no tokenizer"])
    cli.fails(2, *prompt[:-2], says=["come with circuitfind", "--dictionaries FOLDER"])
    cli.fails(2, *prompt[:-1], cli.folder / "nowhere", says=["no folder"])
    cli.fails(2, "attribute", "ioi", "--model", "mimi", says=["transcoders of mimi", "did you mean 'mini'?"])
    cli.fails(2, "attribute", "ioi", "--bos", says=["--bos is of a prompt"])
    cli.fails(2, "attribute", "ioi", "--count", "0", says=["0 prompts are none"])


def test_wrong_folders(cli: Cli, small: Toy) -> None:
    out = cli.folder / "found"
    cli.good(*words(small), "--out", out)
    cli.fails(2, "attribute", small.folder / "coded", says=["holds no attribution graph"])
    cli.fails(2, "attribute", out, "--model", "mini", says=["--model cannot change a finished graph"])
    cli.fails(2, *words(small), "--out", small.folder / "coded", says=["the folder holds other files"])
    cli.fails(2, *words(small), "--out", small.task(), says=["a file, not a folder"])
    (out / "summary.json").write_text("{")
    cli.fails_loosely(2, "attribute", out, says=["the summary cannot be read"])
    cli.good("attribute", out / "graph.npz")
    (out / "graph.npz").write_bytes(b"PK")
    cli.fails_loosely(2, "attribute", out / "graph.npz", says=["no attribution graph"])
    np.savez(out / "graph.npz", a=1)
    cli.fails_loosely(2, "attribute", out / "graph.npz", says=["no attribution graph"])


def test_transcoders_of_another_model(cli: Cli, small: Toy) -> None:
    network.write_layers(small.folder / "other", 10, 2)
    cli.fails(
        2, *words(small)[:-1], small.folder / "other", says=["reads 10 numbers", "dictionary of this model"]
    )
    network.write_layers(small.folder / "deep", 14, 3)
    cli.fails(2, *words(small)[:-1], small.folder / "deep", says=["has 2 layers"])
