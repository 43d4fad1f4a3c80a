"""``circuitfind name`` and ``circuitfind label``: what they write, what they reuse, what they show, what they refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.dictionaries.identity import dictionaries_identity
from circuitfind.dictionaries.save import save_dictionary
from circuitfind.errors import ModelError
from circuitfind.model.load import load_model
from circuitfind.names import parse_edge, parse_node
from circuitfind.naming.banks import Banks
from circuitfind.naming.contexts import find_contexts
from circuitfind.naming.tokens import reader
from circuitfind.output.dot import to_dot
from circuitfind.output.store import Store
from circuitfind.output.words import words_of
from tests import families
from tests.cli.helpers import Cli, Toy
from tests.dictionaries.synthetic import random_dictionary
from tests.output.test_dot import needs_dot
from tests.sparse.planted import directions, exact_sae

DISCOVER = (
    "--method",
    "eap",
    "--edges",
    "14",
    "--no-backups",
    "--controls",
    "none",
    "--no-views",
    "--min-accuracy",
    "0",
)
PARTS = (("m0.n3", "m0.n1+7", "m0.rest"), (), ("t2.f4", "t2.err"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(families.folder("ln"), tmp_path / "model")


def write_task(folder: Path, model: Path, name: str = "toy", seed: int = 0) -> Path:
    """Random prompts; the answer is the token that gains most from the clean one, the wrong one that which loses most."""
    built, pairs = load_model(str(model), device="cpu"), []
    for pair in families.random_pairs(count=8, seed=seed):
        both = torch.tensor([pair.clean, pair.corrupted])
        with torch.no_grad():
            clean, corrupted = built.bridge_logits(both, torch.tensor([pair.answer_position] * 2))
        gain = clean - corrupted + 0.5 * clean
        pairs.append(
            {
                "clean": " ".join(f"w{t}" for t in pair.clean),
                "corrupted": " ".join(f"w{t}" for t in pair.corrupted),
                "answer": f"w{int(gain.argmax())}",
                "wrong": f"w{int(gain.argmin())}",
            }
        )
    vocab = [f"w{i}" for i in range(families.VOCAB)]
    path = folder / f"{name}.yaml"
    path.write_text(
        json.dumps({"name": name, "model": str(model), "vocab": vocab, "prompts": {"pairs": pairs}})
    )
    return path


@pytest.fixture
def found(cli: Cli, model: Path, tmp_path: Path) -> str:
    """The name of a finished run."""
    cli.good("discover", write_task(tmp_path, model), *DISCOVER)
    return cli.run_folder().name


def split(cli: Cli) -> Circuit:
    """Put a circuit with units into the run, as pruning would have left it."""
    run = Store(cli.outputs).find("latest")
    old = Circuit.load(run.path / "circuit.json")
    edges = [
        "input->a0.h0<v>",
        "a0.h0->m0.n3",
        "a0.h0->m0.n1+7",
        "m0.n3->m1",
        "m0.n1+7->logits",
        "input->m0.rest",
    ]
    edges += ["m0.rest->logits", "m1->t2.f4", "t2.f4->logits", "t2.err->logits"]
    made = replace(
        old,
        anatomy=replace(old.anatomy, parts=PARTS),
        edges=tuple(parse_edge(e) for e in edges),
        edge_scores={e: 0.1 * i for i, e in enumerate(edges, 1)},
        node_scores={"m0.n3": 0.25},
    )
    text = json.dumps(made.as_dict())
    with run:
        stage = run.manifest["stages"]["circuit"]
        run.finish_stage("circuit", stage["key"], {"pruned.json": text}, stage["facts"])
        run.write("circuit.json", text)
    return made


@pytest.fixture
def transcoders(tmp_path: Path, model: Path) -> Path:
    built = load_model(str(model), device="cpu")
    for layer in range(3):
        save_dictionary(random_dictionary(built, layer), tmp_path / "transcoders" / f"layer_{layer}")
    return tmp_path / "transcoders"


def svg(cli: Cli) -> str:
    return (cli.run_folder() / "circuit.svg").read_text(encoding="utf-8")


def names(cli: Cli) -> dict[str, Any]:
    return json.loads((cli.run_folder() / "names.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_a_circuit_without_units_has_none_to_name(cli: Cli, found: str) -> None:
    cli.fails(2, "name", found, says=["holds no neurons", "--node"])


def test_named_units_are_those_of_the_texts(cli: Cli, found: str, model: Path) -> None:
    result = cli.good("name", found, "--node", "m0.n3", "--node", "m2.n1+4", "--top", "2", "--json").json
    written = names(cli)
    assert {key: result[key] for key in written if key != "nodes"} == {
        key: value for key, value in written.items() if key != "nodes"
    }
    assert [n["name"] for n in written["nodes"]] == ["m0.n3", "m2.n1+4"]
    assert (written["format"], written["version"]) == ("circuitfind.names", 1)
    built = load_model(str(model), device="cpu")
    prompts = list(
        dict.fromkeys(p for pair in families.random_pairs(count=8) for p in (pair.clean, pair.corrupted))
    )
    assert written["source"] == {
        "from": "prompts of toy",
        "texts": len(prompts),
        "tokens": sum(map(len, prompts)),
    }
    node = parse_node("m0.n3")
    wanted = find_contexts(Banks(built), [node], prompts, top=2)[node]
    told = written["nodes"][0]
    assert [c["value"] for c in told["contexts"]] == pytest.approx([c.value for c in wanted.top])
    assert [c["tokens"] for c in told["contexts"]] == [[f"w{t}" for t in c.tokens] for c in wanted.top]
    assert told["activation"]["fires"] == wanted.fires
    assert len(told["heads"]["in"]) == 3
    assert told["hint"] in (f"'{told['promotes'][0]['token']}'", f"'{told['suppresses'][0]['token']}'")
    cli.tidy()


def test_what_has_not_changed_is_reused(cli: Cli, found: str) -> None:
    first = ("name", found, "--node", "m0.n3")
    assert cli.states(cli.good(*first))["names"] == "finished"
    assert cli.states(cli.good(*first))["names"] == "reused"
    assert cli.states(cli.good(*first, "--force"))["names"] == "finished"
    assert cli.states(cli.good(*first, "--top", "1"))["names"] == "finished"
    (cli.run_folder() / "names.json").write_text("{}")
    assert cli.states(cli.good(*first, "--top", "1"))["names"] == "finished"


def test_the_table_tells_all_of_it(cli: Cli, found: str, transcoders: Path) -> None:
    split(cli)
    cli.good("label", found, "m0.n3", "threes")
    shown = cli.good("name", found, "--dictionaries", transcoders).out
    for words in (
        "m0.n3",
        "threes",
        "score +0.25",
        "m0.n1+7",
        "together",
        "t2.f4",
        "promotes",
        "suppresses",
        "answer",
        "heads",
        "is read by",
    ):
        assert words in shown, words
    assert "t2.err" not in shown
    assert "m0.rest" not in shown
    data = names(cli)
    assert data["dictionaries_hash"] == dictionaries_identity(transcoders)
    pairs = {(one["sender"], one["receiver"]) for one in data["between"]}
    assert pairs == {("m0.n3", "t2.f4"), ("m0.n1+7", "t2.f4")}


@needs_dot
def test_pictures_show_hints_and_labels(cli: Cli, found: str, transcoders: Path) -> None:
    split(cli)
    cli.good("name", found, "--dictionaries", transcoders)
    hint = {n["name"]: n["hint"] for n in names(cli)["nodes"]}
    assert f"promotes {hint['m0.n3']}".replace("'", "&#39;") in svg(cli)
    assert "m0.n1 +1" in svg(cli)
    assert "(1 head, 1 MLP, 3 neurons (1 group), 1 feature, 1 error, 1 rest)" in cli.good("show", found).out
    cli.good("label", found, "m0.n3", "the third neuron")
    assert "the third neuron" in svg(cli)
    assert f"promotes {hint['m0.n3']}".replace("'", "&#39;") not in svg(cli)
    cli.good("label", found, "m0.n7", "inside the group")
    assert "inside the group" in svg(cli)
    cli.good("label", found, "m0.n3", "--remove")
    assert "the third neuron" not in svg(cli)
    cli.good("render", found, "--format", "dot")
    run = Store(cli.outputs).find(found)
    circuit = Circuit.load(run.path / "circuit.json")
    assert (run.path / "circuit.dot").read_text() == to_dot(circuit, words=words_of(run))


@needs_dot
def test_labels_outlive_a_run_and_its_pictures_are_reused(cli: Cli, found: str, tmp_path: Path) -> None:
    again = ("discover", tmp_path / "toy.yaml", *DISCOVER)
    head = str(Circuit.load(cli.run_folder() / "circuit.json").heads[0])
    cli.good("label", found, head, "the first head")
    assert "the first head" in svg(cli)
    assert set(cli.states(cli.good(*again)).values()) == {"reused"}
    assert set(cli.states(cli.good(*again, "--force")).values()) == {"finished"}
    assert "the first head" in svg(cli)
    cli.good("label", found, head, "another")
    assert "another" in svg(cli)
    assert set(cli.states(cli.good(*again)).values()) == {"reused"}
    shown = cli.good("show", found, "--nodes").out
    assert (
        next(line for line in shown.splitlines() if line.startswith(f"{head} ")).rstrip().endswith("another")
    )
    rows = cli.good("show", found, "--nodes", "--json").json["nodes"]
    assert {row["name"]: row.get("label") for row in rows}[head] == "another"


def test_labels_are_set_listed_and_removed(cli: Cli, found: str) -> None:
    assert "no labels" in cli.good("label", found).out
    cli.good("label", found, "0.1", "  one   word ")
    listed = cli.good("label", found, "--json").json
    assert [(one["node"], one["label"]) for one in listed["labels"]] == [("a0.h1", "one word")]
    assert listed["file"] == str(Path("outputs") / "labels.yaml")
    assert "one word" in cli.good("label", found).out
    cli.good("label", found, "a0.h1", "--remove")
    assert cli.good("label", found, "--json").json["labels"] == []
    cli.fails(2, "label", found, "a0.h1", "--remove", says=["'a0.h1' has no label"])


@pytest.mark.slow
def test_other_runs_of_the_model_show_a_label_and_other_models_do_not(
    cli: Cli, found: str, model: Path, tmp_path: Path
) -> None:
    cli.good("label", found, "a0.h1", "mine")
    cli.good("discover", write_task(tmp_path, model, "second", seed=1), *DISCOVER)
    assert [one["label"] for one in cli.good("label", "second", "--json").json["labels"]] == ["mine"]
    config = families.NATIVE_CONFIGS["ln"]
    other = families.write_native(tmp_path / "other", config, families.native_state(config, seed=1))
    cli.good("discover", write_task(tmp_path, other, "third"), *DISCOVER)
    assert cli.good("label", "third", "--json").json["labels"] == []


def test_labels_of_features_are_of_one_set(cli: Cli, found: str, transcoders: Path, tmp_path: Path) -> None:
    split(cli)
    cli.fails(2, "label", found, "t2.f4", "months", says=["says of none", "--dictionaries"])
    cli.good("label", found, "t2.f4", "months", "--dictionaries", transcoders)
    assert cli.good("label", found, "--json").json["labels"] == [], "the run says of no dictionaries yet"
    cli.good("name", found, "--dictionaries", transcoders)
    assert [one["node"] for one in cli.good("label", found, "--json").json["labels"]] == ["t2.f4"]
    copy = shutil.copytree(transcoders, tmp_path / "copy")
    (copy / "README.md").write_text("a page is no dictionary")
    assert dictionaries_identity(copy) == dictionaries_identity(transcoders)
    listed = cli.good("label", found, "--dictionaries", copy, "--json").json["labels"]
    assert [one["label"] for one in listed] == ["months"]
    built = load_model(str(tmp_path / "model"), device="cpu")
    save_dictionary(random_dictionary(built, 0, seed=9), tmp_path / "others")
    assert cli.good("label", found, "--dictionaries", tmp_path / "others", "--json").json["labels"] == []
    with pytest.raises(ModelError, match="no folder"):
        dictionaries_identity("/nowhere/at/all")


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ("a0.hh", ["not the name of a node", "the nearest is 'a0.h"]),
        ("a0.h9", ["the run has no 'a0.h9'", "the nearest is 'a0.h"]),
        ("m7", ["the run has no 'm7'", "the nearest is 'm"]),
        ("m0.n4", ["the run has no 'm0.n4'", "the nearest is", "--node m0.n4"]),
    ],
)
def test_wrong_names_are_told_with_the_nearest(cli: Cli, found: str, node: str, says: list[str]) -> None:
    split(cli)
    cli.fails(2, "label", found, node, "words", says=says)
    assert not (cli.outputs / "labels.yaml").exists()


def test_wrong_usage_is_told(cli: Cli, found: str, tmp_path: Path) -> None:
    cli.fails(2, "label", found, "a0.h1", says=["--remove"])
    cli.fails(2, "label", found, "--remove", says=["needs a node"])
    cli.fails(2, "label", found, "a0.h1", "words", "--remove", says=["either words"])
    cli.fails(2, "label", found, "a0.h1", " ", says=["empty"])
    cli.fails(2, "label", "nothing", "a0.h1", "x", says=["no run 'nothing'"])
    cli.fails(2, "name", found, "--node", "m0.n99", says=["there is no 'm0.n99'", "m0.n19"])
    cli.fails(2, "name", found, "--node", "m9.n1", says=["no layer 9"])
    cli.fails(2, "name", found, "--node", "a0.h1", says=["no neuron and no feature"])
    cli.fails(2, "name", found, "--node", "m0.q", says=["not the name of a node"])
    cli.fails(2, "name", found, "--node", "t0.f1", says=["is of a dictionary", "--dictionaries"])
    cli.fails(2, "name", found, "--node", "t0.f1", "--dictionaries", "/nowhere", says=["no folder"])
    cli.fails(2, "name", found, "--node", "m0.n1", "--top", "0", says=["at least 1"])
    cli.fails(2, "name", found, "--node", "m0.n1", "--tokens", "0", says=["at least 1"])
    cli.fails(2, "name", found, "--node", "m0.n1", "--text", "/nowhere", says=["cannot be read"])
    text = tmp_path / "text.txt"
    text.write_text("some words")
    cli.fails(2, "name", found, "--node", "m0.n1", "--text", text, says=["no tokenizer", "--task"])
    cli.fails(2, "name", found, "--node", "m0.n1", "--text", text, "--task", "ioi", says=["both"])


def test_another_task_s_prompts_can_be_read(cli: Cli, found: str, model: Path, tmp_path: Path) -> None:
    other = write_task(tmp_path, model, "second", seed=1)
    cli.good("name", found, "--node", "m0.n1", "--task", other)
    prompts = {p for pair in families.random_pairs(count=8, seed=1) for p in (pair.clean, pair.corrupted)}
    assert names(cli)["source"]["from"] == "prompts of second"
    assert names(cli)["source"]["texts"] == len(prompts)


def test_a_task_or_model_that_has_changed_is_refused(
    cli: Cli, found: str, model: Path, tmp_path: Path
) -> None:
    write_task(tmp_path, model, seed=5)
    cli.fails(2, "name", found, "--node", "m0.n1", says=["has changed since the run"])


def test_damaged_labels_are_told_and_stop_no_run(cli: Cli, found: str, tmp_path: Path) -> None:
    path = cli.outputs / "labels.yaml"
    path.write_text("model@aaaaaaaaaaaa:\n  a0.h1: [x\n")
    where = f"{Path('outputs') / 'labels.yaml'}:2"
    for words in (
        ("label", found),
        ("name", found, "--node", "m0.n1"),
        ("render", found),
        ("show", found, "--nodes"),
    ):
        cli.fails(2, *words, says=[where, "no YAML"])
    done = cli.good("discover", tmp_path / "toy.yaml", *DISCOVER, "--force")
    assert "labels are left out" in done.err
    assert path.read_text() == "model@aaaaaaaaaaaa:\n  a0.h1: [x\n"


def test_mini_is_read_on_its_corpus_with_its_transcoders(cli: Cli, tmp_path: Path) -> None:
    cli.good("discover", "ioi", "--model", "mini", *DISCOVER, "--count", "6", "--format", "svg")
    units = ("--node", "t1.f5", "--node", "m1.n203")
    cli.good("name", "latest", *units, "--tokens", "3000")
    data = names(cli)
    assert "corpus of mini" in data["source"]["from"]
    assert 2000 < data["source"]["tokens"] < 3500
    assert data["dictionaries"].endswith("transcoders")
    tokenizer = load_model("mini", device="cpu").tokenizer
    assert tokenizer is not None
    read = reader(tokenizer)
    (first, *_) = data["nodes"][0]["contexts"]
    assert any(piece.startswith(" ") for piece in first["tokens"])
    assert (
        "".join(read(token) for token, _, _ in tokenizer.encode("When Mary\nleft 7.")) == "When Mary\nleft 7."
    )
    text = tmp_path / "text.txt"
    text.write_text("Mary and John went to the shop.\n\nSay pearl soil and then say pearl soil.\n")
    cli.good("name", "latest", *units, "--text", text)
    assert names(cli)["source"]["texts"] == 2
    assert names(cli)["source"]["from"] == str(text)


@needs_dot
def test_features_of_saes_are_named_and_labelled(cli: Cli, toy: Toy, tmp_path: Path) -> None:
    """In a planted model whose directions are the features of its SAEs, and which has no MLP."""
    known, first, second = directions("planted/induction")
    for layer in (first, second):
        save_dictionary(exact_sae(known, layer), tmp_path / "saes" / f"layer_{layer}")
    words = ("saes", toy.task(), "--dictionaries", tmp_path / "saes")
    cli.good(*words)
    cli.good("name", "latest")
    graph = FeatureGraph.load(cli.run_folder() / "graph.json")
    data = names(cli)
    assert [n["name"] for n in data["nodes"]] == list(dict.fromkeys(str(n.bare) for n in graph.features))
    assert data["dictionaries"] == str(tmp_path / "saes")
    name = data["nodes"][0]["name"]
    for node in data["nodes"]:  # what fires on prompts of the task was chosen from those that do
        assert node["contexts"]
        assert node["activation"]["largest"] > 0
    cli.good("label", "latest", name, "what stands here")
    picture = cli.run_folder() / "graph.svg"
    assert "what stands here" in picture.read_text(encoding="utf-8")
    assert set(cli.states(cli.good(*words)).values()) == {"reused"}
    cli.good(*words, "--force")
    assert "what stands here" in picture.read_text(encoding="utf-8")
    cli.fails(2, "label", "latest", "s0.f9999", "x", says=["the run has no 's0.f9999'", "the nearest is 's"])
    cli.tidy()
