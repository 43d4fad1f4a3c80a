"""``saes`` from end to end, on a planted model whose directions are the features of its SAEs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.dictionaries.save import save_dictionary
from tests import families
from tests.cli.conftest import write_tl
from tests.cli.helpers import Cli, Toy
from tests.dictionaries.synthetic import random_dictionary
from tests.sparse.cases import random_sae
from tests.sparse.planted import directions, exact_sae


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SAEs of the stream behind both layers of the toy."""
    folder = tmp_path_factory.mktemp("saes")
    known, first, second = directions("planted/induction")
    for layer in (first, second):
        save_dictionary(exact_sae(known, layer), folder / f"layer_{layer}")
    return folder


def test_from_end_to_end(cli: Cli, toy: Toy, saes: Path) -> None:
    task = toy.task()
    words = ("saes", task, "--dictionaries", saes)
    found = cli.good(*words)
    for part in (
        "features of 2 SAEs",
        "faithfulness",
        "none of which can be dropped alone",
        "without any error",
        "s1.f",
    ):
        assert part in found.out, found.out
    assert cli.states(found) == {"prompts": "finished", "features": "finished", "pictures": "finished"}
    folder = cli.run_folder()
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "manifest.json",
        "prompts.jsonl",
        "graph.json",
        "scores.json",
        "graph.dot",
        "graph.svg",
        "report.html",
    }
    graph = FeatureGraph.load(folder / "graph.json")
    assert graph.conditions.task == "toy"
    assert graph.evaluations[0].faithfulness.value >= 0.9
    _, first, second = directions("planted/induction")
    assert {node.layer for node in graph.nodes} == {first, second}
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    assert {str(n): graph.score(n) for n in graph.nodes}.items() <= scores.items()
    again = cli.good(*words)
    assert set(cli.states(again).values()) == {"reused"}
    assert again.out == found.out
    data = cli.good(*words, "--json").json
    assert data["version"] == 1
    assert data["counts"] == graph.as_dict()["counts"]
    assert cli.folder / data["graph"] == folder / "graph.json"
    assert cli.good(*words, "-q").err == ""
    cli.tidy()
    assert cli.good("show", folder.name).out == found.out + "  status        finished\n"
    assert cli.good("show", "--json").json == data
    cli.fails(2, "show", "--backups", says=("`circuitfind saes` has nothing to show for --backups",))
    cli.fails(3, "backups", folder.name, says=("`circuitfind saes`: it has a feature graph, and no circuit",))
    (folder / "graph.json").write_text("{}")
    told = cli.fails(3, "show", says=("no finished stage 'features'", "the same `circuitfind saes` command"))
    assert "graph.json is missing or was changed" in told.err


def test_other_options_make_other_runs(cli: Cli, toy: Toy, saes: Path) -> None:
    _, first, _ = directions("planted/induction")
    words = ("saes", toy.task(), "--dictionaries", saes, "--out", cli.folder / "mine", "--format", "png")
    data = cli.good(*words, "--node-threshold", "0.1", "--steps", "1", "--layers", str(first), "--json").json
    assert [one["name"] for one in data["sources"]] == [f"s{first}"]
    assert data["conditions"]["rule"] == "node threshold 0.1, edge threshold 0.01"
    assert data["conditions"]["method"] == "gradient at the clean run"
    assert {p.name for p in (cli.folder / "mine").iterdir()} >= {"graph.json", "graph.png"}
    assert not cli.outputs.exists()
    graph = FeatureGraph.load(cli.folder / "mine" / "graph.json")
    assert all(abs(graph.score(node)) >= 0.1 for node in graph.nodes)
    cli.fails(2, *words, "--ablation", "mean", says=("another command", "--out"))
    (cli.folder / "mine" / "manifest.json").unlink()
    cli.fails(2, *words, says=("other files", "--out"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--steps", "0"), ("steps",)),
        (("--faithfulness", "0.9", "--node-threshold", "0.1"), ("both",)),
        (("--faithfulness", "2"), ("faithfulness",)),
        (("--node-threshold", "-1"), ("threshold",)),
        (("--edge-threshold", "nan"), ("threshold",)),
        (("--layers", "first"), ("names no layers", "--layers 0,1")),
        (("--layers", "7"), ("no dictionary for layer 7",)),
        (("--ablation", "optimal"), ("optimal ablation", "resample")),
        (("--ablation", "resampl"), ("no ablation", "resample")),
        (("--metric", "accuracy"), ("no gradient",)),
        (("--metric", "kl"), ("gradient",)),
        (("--dictionaries", "nowhere"), ("nowhere",)),
        (("--node-threshold", "1e6"), ("no node has a score",)),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, tuple) else None,
)
def test_wrong_input(cli: Cli, toy: Toy, saes: Path, more: tuple[str, ...], says: tuple[str, ...]) -> None:
    words = ("saes", toy.task(), "--dictionaries", saes)
    code = 3 if "1e6" in more else 2
    cli.fails(code, *words, *more, says=says)


def test_no_task_without_dictionaries(cli: Cli, toy: Toy) -> None:
    cli.fails(2, "saes", toy.task(), says=("--dictionaries",))


def test_dictionaries_that_do_not_fit(cli: Cli, toy: Toy, saes: Path) -> None:
    known, first, _ = directions("planted/induction")
    vocab = len(toy.vocab)
    config = families.native_config(d_vocab=vocab, d_vocab_out=vocab, n_ctx=64)
    other = write_tl(toy.folder / "random", config, families.native_state(config))
    task = toy.task()
    cli.fails(
        2, "saes", task, "--model", other, "--dictionaries", saes, "--min-accuracy", "0",
        says=("numbers at resid_post",),
    )  # fmt: skip
    model = families.load_model(str(other), device="cpu")
    save_dictionary(random_dictionary(model, 0), toy.folder / "transcoders")
    words = ("saes", task, "--model", other, "--min-accuracy", "0", "--dictionaries")
    cli.fails(2, *words, toy.folder / "transcoders", says=("it is a transcoder", "--nodes heads,features"))
    save_dictionary(
        random_sae(model, 0, "z", w_enc=random_sae(model, 0, "mlp_out").w_enc), toy.folder / "heads"
    )
    cli.fails(2, *words, toy.folder / "heads", says=("of z is not spliced in",))
    named = replace(exact_sae(known, first), facts={"model_name": "gpt2"})
    save_dictionary(named, toy.folder / "named")
    cli.good("saes", task, "--dictionaries", toy.folder / "named")  # a folder may be called anything


def test_saes_that_were_trained_here(cli: Cli, toy: Toy) -> None:
    out, task = cli.folder / "found", toy.task()
    more = (
        "--site",
        "resid_post",
        "--width",
        "40",
        "--k",
        "4",
        "--steps",
        "60",
        "--batch",
        "16",
        "--layers",
        "1",
    )
    found = cli.good("transcoders", "train", toy.model, "--task", task, *more, "--out", out)
    assert "1 SAE of resid_post" in found.out
    assert f"circuitfind saes TASK --model {toy.model} --dictionaries {out}" in found.out
    data = cli.good("saes", task, "--dictionaries", out, "--json").json
    (source,) = data["sources"]
    assert (source["name"], source["hook"], source["n_features"]) == ("s1", "blocks.1.hook_resid_post", 40)
    assert data["evaluations"][0]["faithfulness"]["value"] >= 0.9
    cli.fails(
        2,
        "transcoders",
        "train",
        toy.model,
        "--task",
        task,
        "--site",
        "z",
        "--width",
        "8",
        "--out",
        "x",
        says=("site",),
    )
