"""Every kind of file that the program reads, a good one of each, and the function that reads it."""

from __future__ import annotations

import io
import json
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from circuitfind.circuit.mib import to_eap_ig
from tests import families
from tests.attribution.graphs import random_graph
from tests.dictionaries import files
from tests.finished import QUICK

REPOSITORY = Path(__file__).parents[2]
TASKS = REPOSITORY / "tasks"

Form = Literal["json", "jsonl", "yaml", "text", "npz", "tensors", "binary"]


NAMES = (
    *(
        "task",
        "task as JSON",
        "sweep",
        "prompts.jsonl",
        "prompts.csv",
        "rows",
        "word list",
        "text",
        "texts.jsonl",
    ),
    *(
        "labels",
        "circuitfind.toml",
        "baseline",
        "circuit.json",
        "EAP-IG",
        "scores.npz",
        "evidence.json",
        "views.json",
    ),
    *(
        "backups.json",
        "manifest.json",
        "attribution.npz",
        "circuit-tracer",
        "feature graph",
        "sae-lens cfg.json",
    ),
    *("sae-lens weights", "circuit-tracer config", "circuit-tracer weights", "gemma-scope", "gemma-scope-2"),
    *("dunefsky", "TransformerLens config.json", "TransformerLens weights", "width of a model", "edges.json"),
)
"""Of all targets: tests are named after them before the files are made."""


@dataclass(frozen=True)
class Target:
    """A file to be damaged, and what reads it.

    Attributes:
        name: What it is.
        form: How it is written, which says how it can be damaged.
        file: Its place below the folder that is copied for the cases.
        folder: That folder, with whatever else is read beside the file.
        read: Given the file's path.
        share: How many of a thousand cases are for it.
        named: What the error must say; the file's name, unless something else is more to the point.
        others: More good contents for the file.
    """

    name: str
    form: Form
    file: str
    folder: Path
    read: Callable[[Path], object]
    share: int = 30
    named: str | None = ""
    others: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def good(self) -> tuple[bytes, ...]:
        return ((self.folder / self.file).read_bytes(), *self.others)

    @property
    def says(self) -> str | None:
        return Path(self.file).name if self.named == "" else self.named


# Readers, and what is done with what they gave.


def task(path: Path) -> None:
    from circuitfind.task.spec import load_task

    load_task(path).model_dump_json()


def sweep(path: Path) -> None:
    from circuitfind.sweep.spec import load_sweep

    load_sweep(path)


def pairs(path: Path) -> None:
    from circuitfind.task.files import read_pairs

    read_pairs(path, None)


def rows(path: Path) -> None:
    from circuitfind.task.prompts import make_pairs
    from circuitfind.task.spec import load_task
    from tests.task.conftest import FakeTokenizer

    make_pairs(load_task(path.parent.parent / "own.yaml"), FakeTokenizer(), drop_bad_pairs=True)


def words(path: Path) -> None:
    from circuitfind.task.suggest import words_of_file

    list(words_of_file(path))


def texts(path: Path) -> None:
    from circuitfind.dictionaries.texts import read_text

    read_text(path)


def written(data: object) -> None:
    json.dumps(data, allow_nan=False, ensure_ascii=False).encode()


def circuit(path: Path) -> None:
    from circuitfind.circuit.mib import read_circuit

    found, _ = read_circuit(path)
    written(found.as_dict())
    found.graph.number_of_nodes()


def given(path: Path) -> None:
    from circuitfind.circuit.feature_graph import FeatureGraph
    from circuitfind.given import read_file

    found = read_file(path)
    if isinstance(found.what, FeatureGraph):
        written(found.what.as_dict())


def scores(path: Path) -> None:
    from circuitfind.circuit.scores import Scores

    found = Scores.load(path)
    list(found.top_nodes(3))
    if found.level == "edge":
        list(found.top_edges(3))


def attribution(path: Path) -> None:
    from circuitfind.attribution.prune import prune
    from circuitfind.attribution.saved import read_graph

    prune(read_graph(path), 0.8, 0.9)


def manifest(path: Path) -> None:
    from circuitfind.output.report.index import index_page
    from circuitfind.output.store import Store

    store = Store(path.parent.parent)
    index_page(store)
    store.find(path.parent.name)


def evidence(path: Path) -> None:
    from circuitfind.evidence.report import Evidence

    written(Evidence.load(path).as_dict())


def backups(path: Path) -> None:
    from circuitfind.backups.report import BackupReport
    from circuitfind.circuit.json_form import read_object

    data = read_object(path, "backup report", file="backups.json")
    written(BackupReport.from_dict(data, where=str(path)).as_dict())


def views(path: Path) -> None:
    from circuitfind.views.report import Views

    written(Views.load(path).as_dict())


def baseline(path: Path) -> None:
    from circuitfind.check.baseline import Baseline

    Baseline.load(path).text()


def labels(path: Path) -> None:
    from circuitfind.names import parse_node
    from circuitfind.output.labels import Labels, Owner

    found = Labels(path)
    owner = Owner("mini", "a" * 64, "transcoders", "c" * 64)
    found.of(owner)
    found.set(owner, parse_node("m1.n9"), "a label")


def settings(path: Path) -> None:
    from circuitfind.cli.configuration import read

    read(path)


def dictionary(path: Path) -> None:
    from circuitfind.dictionaries.load import load_dictionaries

    load_dictionaries(path if path.suffix in (".npz", ".pt") else path.parent)


def model(path: Path) -> None:
    from circuitfind.model.load import load_model

    load_model(str(path.parent), device="cpu")


def truth(path: Path) -> None:
    from circuitfind.evidence.truth import truth_of_folder

    truth_of_folder(path.parent, "resample")


def width(path: Path) -> None:
    from circuitfind.output.exports.eap_ig import width_of

    width_of(str(path.parent))


# Good files.


def targets(folder: Path, run: Path) -> Iterator[Target]:
    """All of them.

    Args:
        folder: Where good files are written.
        run: A finished run, with all of its files.
    """
    yield from _tasks(folder)
    yield from _runs(folder, run)
    yield from _dictionaries(folder)
    yield from _models(folder)


def _put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _tasks(folder: Path) -> Iterator[Target]:
    import yaml

    several = [
        (TASKS / f"{name}.yaml").read_bytes() for name in ("ioi", "mib-ioi", "docstring", "greater-than")
    ]
    _put(folder / "task" / "small.yaml", QUICK)
    yield Target("task", "yaml", "small.yaml", folder / "task", task, 160, others=tuple(several))
    plain = [json.dumps(yaml.safe_load(text)).encode() for text in several]
    _put(folder / "task-json" / "small.yaml", plain[0])
    yield Target(
        "task as JSON", "json", "small.yaml", folder / "task-json", task, 80, others=tuple(plain[1:])
    )
    from circuitfind.sweep.template import TEMPLATE

    text = (
        "name: s\ntasks: [ioi, or-gate]\nmodels: mini\nmethods: [eap, {name: eap-ig, options: {steps: 3}}]\n"
    )
    _put(folder / "sweep" / "sweep.yaml", text)
    yield Target("sweep", "yaml", "sweep.yaml", folder / "sweep", sweep, 40, others=(TEMPLATE.encode(),))
    pair = {
        "clean": "a b é",
        "corrupted": {"x": "a c é", "y": [1, 2]},
        "answer": [" m", 3],
        "wrong": " n",
        "group": "g",
    }
    lines = "".join(json.dumps({**pair, "group": str(i)}, ensure_ascii=False) + "\n" for i in range(4))
    _put(folder / "jsonl" / "p.jsonl", lines)
    yield Target("prompts.jsonl", "jsonl", "p.jsonl", folder / "jsonl", pairs, 80)
    ids = 'clean,corrupted,"corrupted:y",answer,wrong,group\n"[1, 2]","[1, 3]","[2, 2]",4,5|6,g\n'
    text = 'clean,corrupted,answer,wrong\n"a, ""b""",a c, m|o, n\na d,a e, m, n\n'
    _put(folder / "csv" / "p.csv", text)
    yield Target("prompts.csv", "text", "p.csv", folder / "csv", pairs, 50, others=(ids.encode(),))
    row = {
        "a": {"prompt": "go up and", "answer": "up"},
        "b": {"prompt": "go left and", "answer": "left"},
        "n": 1,
    }
    _put(folder / "rows" / "rows" / "train.jsonl", (json.dumps(row) + "\n") * 3)
    dataset = {
        "name": "own/rows",
        "folder": "rows",
        "clean": "{a.prompt}",
        "corrupted": {"flip": "{b.prompt}"},
        "answer": " {a.answer}",
        "wrong": " {b.answer}",
    }
    _put(folder / "rows" / "own.yaml", json.dumps({"name": "own", "prompts": {"dataset": dataset}}))
    yield Target("rows", "jsonl", "rows/train.jsonl", folder / "rows", rows, 50, named="rows")
    _put(folder / "words" / "w.txt", "# names\nMary\nJohn\n\nÅsa\n")
    yield Target("word list", "text", "w.txt", folder / "words", words, 10)
    _put(folder / "texts" / "t.txt", "one\ntwo\n\nthree\n")
    yield Target("text", "text", "t.txt", folder / "texts", texts, 10)
    _put(folder / "texts" / "t.jsonl", '{"text": "one"}\n{"text": "two", "id": 3}\n')
    yield Target("texts.jsonl", "jsonl", "t.jsonl", folder / "texts", texts, 20)
    known = "# labels\nmini@aaaaaaaaaaaa:\n  9.6: name mover\n  m1.n203: 'the second name'\nx@bbbbbbbbbbbb y@cccccccccccc: {}\n"
    _put(folder / "labels" / "labels.yaml", known)
    yield Target("labels", "yaml", "labels.yaml", folder / "labels", labels, 40)
    toml = '[defaults]\ndevice = "cpu"\n[discover]\nfaithfulness = 0.85\nedges = 3\nbackups = false\n'
    toml += "[transcoders.train]\nwidth = 512\n"
    _put(folder / "toml" / "circuitfind.toml", toml)
    yield Target("circuitfind.toml", "text", "circuitfind.toml", folder / "toml", settings, 50)
    base = sorted((TASKS / "baselines").glob("*.json"))
    shutil.copytree(TASKS / "baselines", folder / "baselines")
    yield Target("baseline", "json", base[0].name, folder / "baselines", baseline, 40)


def _runs(folder: Path, run: Path) -> Iterator[Target]:
    from circuitfind.circuit.graph import Circuit
    from circuitfind.circuit.scores import Scores

    yield Target("circuit.json", "json", "circuit.json", run, circuit, 100)
    own = Circuit.load(run / "circuit.json")
    _put(folder / "eap-ig" / "graph.json", json.dumps(to_eap_ig(own, Scores.load(run / "scores.npz"), 8)))
    yield Target("EAP-IG", "json", "graph.json", folder / "eap-ig", circuit, 60)
    yield Target("scores.npz", "npz", "scores.npz", run, scores, 50)
    yield Target("evidence.json", "json", "evidence.json", run, evidence, 60)
    yield Target("views.json", "json", "views.json", run, views, 50)
    yield Target("backups.json", "json", "backups.json", run, backups, 50)
    yield Target("manifest.json", "json", f"{run.name}/manifest.json", run.parent, manifest, 70)
    from circuitfind.attribution.export import to_circuit_tracer
    from circuitfind.attribution.prune import prune
    from circuitfind.attribution.saved import to_bytes
    from circuitfind.circuit.tracer_read import from_circuit_tracer

    graph = random_graph(2)
    _put(folder / "attribution" / "graph.npz", to_bytes(graph))
    yield Target("attribution.npz", "npz", "graph.npz", folder / "attribution", attribution, 50)
    tracer = to_circuit_tracer(prune(graph, 0.8, 0.9), labels={"t1.f82": "months"})
    _put(folder / "tracer" / "t.json", json.dumps(tracer))
    yield Target("circuit-tracer", "json", "t.json", folder / "tracer", given, 50)
    _put(folder / "features" / "graph.json", from_circuit_tracer(tracer).text())
    yield Target("feature graph", "json", "graph.json", folder / "features", given, 50)


def _dictionaries(folder: Path) -> Iterator[Target]:
    lens = files.write_sae_lens(folder / "lens", files.weights(d_out=files.D), "jumprelu_transcoder")
    yield Target("sae-lens cfg.json", "json", "cfg.json", lens, dictionary, 50, named="lens")
    yield Target("sae-lens weights", "tensors", "sae_weights.safetensors", lens, dictionary, 50, named="lens")
    made = files.write_set(folder / "set", [files.weights(i, d_out=files.D) for i in range(2)])
    yield Target("circuit-tracer config", "yaml", "config.yaml", made, dictionary, 40, named="set")
    yield Target(
        "circuit-tracer weights", "tensors", "layer_1.safetensors", made, dictionary, 20, named="set"
    )
    gemma = folder / "gemma"
    gemma.mkdir()
    np.savez(gemma / "params.npz", **files.gemma_arrays(files.weights(d_out=files.D)))
    _put(gemma / "cfg.json", json.dumps({"hook_name": "blocks.3.hook_resid_post"}))
    yield Target("gemma-scope", "npz", "params.npz", gemma, dictionary, 40, named="gemma")
    second = files.write_gemma_2(folder / "gemma2", files.weights(d_out=files.D), affine=False)
    yield Target("gemma-scope-2", "json", "config.json", second, dictionary, 20, named="gemma2")
    _put(folder / "dunefsky" / "sae.pt", _pickled(files.weights(d_out=files.D)))
    yield Target("dunefsky", "binary", "sae.pt", folder / "dunefsky", dictionary, 20)


def _pickled(w: files.Weights) -> bytes:
    """As transcoder_circuits saves it, settings and tensors."""
    module = types.ModuleType("sae_training.config")
    made = type("LanguageModelSAERunnerConfig", (), {"__module__": "sae_training.config"})
    module.LanguageModelSAERunnerConfig = made  # type: ignore[attr-defined]
    config = made()
    config.__dict__ |= {
        "hook_point": "blocks.8.ln2.hook_normalized",
        "out_hook_point": "blocks.8.hook_mlp_out",
        "is_transcoder": True,
        "hook_point_head_index": None,
    }
    state = {
        "W_enc": w["enc"],
        "b_enc": w["b_enc"],
        "W_dec": w["dec"],
        "b_dec": w["b_in"],
        "b_dec_out": w["b_dec"],
    }
    out = io.BytesIO()
    sys.modules |= {"sae_training": types.ModuleType("sae_training"), "sae_training.config": module}
    try:
        torch.save(
            {"cfg": config, "state_dict": {k: torch.from_numpy(v.copy()) for k, v in state.items()}}, out
        )
    finally:
        del sys.modules["sae_training"], sys.modules["sae_training.config"]
    return out.getvalue()


def _models(folder: Path) -> Iterator[Target]:
    config = families.native_config()
    path = families.write_native(folder / "native", config, families.native_state(config))
    yield Target("TransformerLens config.json", "json", "config.json", path, model, 20, named="native")
    yield Target("TransformerLens weights", "tensors", "model.safetensors", path, model, 10, named="native")
    yield Target("width of a model", "json", "config.json", path, width, 20, named="native")
    _put(
        path / "edges.json",
        json.dumps({"ablation": "resample", "edges": ["input->a0.h0<q>", "a0.h0->m0", "m1->logits"]}),
    )
    plain = json.dumps(["a0.h0->a1.h1<k>", "m0->logits"]).encode()
    every = json.dumps({"mean": ["m0->logits"], "resample": ["input->m0"]}).encode()
    yield Target("edges.json", "json", "edges.json", path, truth, 30, others=(plain, every))
