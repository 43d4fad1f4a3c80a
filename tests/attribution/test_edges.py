"""Edges are the derivatives of the frozen network, whatever the model and wherever its dictionaries come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitfind.attribution import build
from circuitfind.attribution.build import Options, attribute
from circuitfind.attribution.features import replace_mlps
from circuitfind.attribution.frozen import freeze
from circuitfind.attribution.graph import AttributionGraph, NodeKind
from circuitfind.attribution.rows import Linear
from circuitfind.dictionaries.load import load_dictionaries
from circuitfind.errors import ModelError, PromptError, RunError, UnsupportedError, UsageError
from tests import families
from tests.attribution import network
from tests.attribution.network import Coded, Frozen
from tests.dictionaries.synthetic import random_dictionary

TOKENS = [3, 17, 8, 30, 8, 21, 5]

Writer = Callable[[Path, int, int], list[Coded]]

FORMATS: dict[str, Writer] = {
    "jumprelu with skip": network.write_layers,
    "relu": partial(network.write_layers, jump=False, skip=False),
    "cross-layer": network.write_cross,
    "cross-layer relu": partial(network.write_cross, jump=False),
    "topk": network.write_topk,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A second thread only waits for tensors so small."""
    with families.one_thread():
        yield


def graph_of(family: str, folder: Path, options: Options | None = None) -> AttributionGraph:
    """The graph from dictionaries read back from the disk."""
    (found,) = attribute(families.model(family), [TOKENS], load_dictionaries(folder), options=options)
    return found


def compare(found: AttributionGraph, truth: Frozen) -> None:
    """Every edge, every input, and the names of all nodes."""
    names = [found.nodes.name(i) for i in range(len(found.nodes))]
    logits = [int(i) for i in found.nodes.index[found.nodes.of(NodeKind.LOGIT)]]
    targets = truth.targets(logits)
    assert sorted(names[i] for i in found.row_nodes) == sorted(targets)
    assert sorted(names[: found.n_sources]) == sorted(name for name, _ in truth.sources())
    assert len(targets) > 20
    wanted = np.zeros_like(found.edges, dtype=float)
    inputs = np.zeros(len(found.row_nodes))
    for row, node in enumerate(found.row_nodes):
        target = targets[names[node]]
        edges = truth.edges(target)
        wanted[row] = [edges[name] for name in names[: found.n_sources]]
        inputs[row] = float(target.detach())
    largest = np.abs(wanted).max()
    assert np.abs(found.edges - wanted).max() <= 1e-4 * largest
    assert np.abs(found.inputs - inputs).max() <= 1e-4 * np.abs(inputs).max()
    # Rows in which all is small are right too.
    sizes = np.abs(wanted).sum(1)
    assert (np.abs(found.edges - wanted).sum(1) <= 1e-4 * sizes).all()
    assert (np.abs(wanted) > 1e-3 * largest).mean() > 0.02
    # Nothing flows back in time, or down.
    positions, layers = found.nodes.position, found.nodes.layer
    later = positions[None, : found.n_sources] > positions[found.row_nodes][:, None]
    above = layers[None, : found.n_sources] >= layers[found.row_nodes][:, None]
    assert not found.edges[later | above].any()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", families.HF_FAMILIES)
def test_edges_are_derivatives_of_the_frozen_network(family: str, kind: str, tmp_path: Path) -> None:
    model = families.model(family)
    coded = FORMATS[kind](tmp_path / "set", model.d_model, len(model.layers))
    truth = Frozen(family, coded, TOKENS)
    found = graph_of(family, tmp_path / "set")
    compare(found, truth)
    chosen = found.nodes.index[found.nodes.of(NodeKind.LOGIT)]
    order = truth.model_logits.softmax(-1).argsort(descending=True)[: len(chosen)]
    assert chosen.tolist() == order.tolist()
    assert np.allclose(found.probability, truth.model_logits.softmax(-1)[order], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_stream_itself_can_be_read(family: str, tmp_path: Path) -> None:
    """Cross-layer sets often read the stream before the norm, whose scale then plays no part."""
    model = families.model(family)
    hook = "hook_resid_mid"
    coded = network.write_cross(tmp_path / "set", model.d_model, len(model.layers), hook=hook)
    compare(graph_of(family, tmp_path / "set"), Frozen(family, coded, TOKENS, hook))


@pytest.mark.parametrize("family", [f for f in families.FAMILIES if not f.startswith("attn-only")])
@pytest.mark.parametrize("site", ["mlp_normed", "mlp_hat", "mlp_in"])
def test_rows_add_up_in_every_family(family: str, site: str) -> None:
    """Sum of edges and biases is the pre-activation, which is computed in another way."""
    model = families.model(family)
    made = [random_dictionary(model, i, site_in=site) for i in range(len(model.layers))]
    prompt = [t % model.n_vocab for t in TOKENS]
    (found,) = attribute(model, [prompt], made)
    assert found.n_features > 20
    assert found.gap < 1e-5
    assert np.abs(found.bias).max() > 1e-3 or family == "no-norm"


SPELLINGS: list[dict[str, object]] = [
    {"scale_in": 0.7, "scale_out": 2.0},
    {"centred": True, "scale_in": 1.3},
    {"cross": True, "scale_in": 0.7, "scale_out": 3.0},
    {"w_skip": True, "scale_in": 0.5, "scale_out": 0.8},
    {"w_skip": True, "cross": True},
]


@pytest.mark.parametrize("family", ["ln", "gemma2", "neox"])
@pytest.mark.parametrize("options", SPELLINGS, ids=lambda o: " ".join(o))
def test_errors_are_what_dictionaries_miss(family: str, options: dict[str, object]) -> None:
    """Scales, centring and skip connections: the errors are the MLP's output less what ``Dictionary`` makes of its input."""
    model = families.model(family)
    options = dict(options)
    if options.get("w_skip"):
        options["w_skip"] = torch.randn(model.d_model, model.d_model) / 4
    made = [random_dictionary(model, i, **options) for i in range(len(model.layers))]
    (one,) = replace_mlps([freeze(model, [TOKENS])], made)
    wanted = [block.written[0].clone() for block in one.run.blocks]
    for dictionary in made:
        block = one.run.blocks[dictionary.layer]
        written = dictionary(block.layer.mlp_norm(block.read)[0])
        parts = written.unbind(-2) if written.ndim == 3 else (written,)
        for step, part in enumerate(parts):
            wanted[dictionary.layer + step] -= part
    for ours, theirs in zip(one.errors, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))
    (found,) = attribute(model, [TOKENS], made)
    assert found.gap < 1e-5


@pytest.mark.parametrize("rows", [1, 3])
def test_chunks_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model("ln")
    made = [random_dictionary(model, i) for i in range(len(model.layers))]
    (whole,) = attribute(model, [TOKENS], made)
    monkeypatch.setattr("circuitfind.attribution.rows.MOST_ROWS", rows)
    (parts,) = attribute(model, [TOKENS], made)
    assert np.abs(whole.edges - parts.edges).max() < 1e-6 * np.abs(whole.edges).max()
    assert (whole.row_nodes == parts.row_nodes).all()
    large = Linear(replace_mlps([freeze(model, [TOKENS])], made)[0])
    assert large.chunk == rows
    monkeypatch.setattr("circuitfind.attribution.rows.ROW_BYTES", 1)
    assert large.chunk == 1


def test_a_layer_without_a_dictionary_is_all_error() -> None:
    model = families.model("ln")
    (found,) = attribute(model, [TOKENS], [random_dictionary(model, 1)])
    nodes = found.nodes
    assert set(nodes.layer[nodes.of(NodeKind.FEATURE)]) == {1}
    written = freeze(model, [TOKENS]).blocks[0].written[0].norm(dim=1)
    sizes = nodes.value[nodes.of(NodeKind.ERROR) & (nodes.layer == 0)]
    assert np.allclose(sizes, written, rtol=1e-5)
    assert found.gap < 1e-5


def test_prompts_are_apart_and_read_where_asked() -> None:
    model = families.model("llama")
    made = [random_dictionary(model, i) for i in range(len(model.layers))]
    both = list(attribute(model, [TOKENS, TOKENS[::-1]], made, answers=[4, 6]))
    (first,) = attribute(model, [TOKENS[:5]], made)
    (second,) = attribute(model, [TOKENS[::-1]], made)
    for one, wanted in zip(both, (first, second), strict=True):
        assert one.tokens == wanted.tokens
        assert np.array_equal(one.edges, wanted.edges)


def test_a_prompt_that_is_read_before_its_end_where_the_model_looks_ahead() -> None:
    model = families.model("bidirectional")
    made = [random_dictionary(model, i) for i in range(len(model.layers))]
    (found,) = attribute(model, [TOKENS], made, answers=[2])
    assert len(found.tokens) == len(TOKENS)
    assert set(found.nodes.position[found.nodes.of(NodeKind.LOGIT)]) == {2}
    late = found.nodes.position[: found.n_sources] > 2
    assert np.abs(found.edges[-1, late]).max() > 1e-3
    assert found.gap < 1e-5


@pytest.mark.parametrize(("probability", "most", "count"), [(1e-9, 10, 1), (1.0, 4, 4), (0.5, 40, None)])
def test_the_logits_that_are_taken(probability: float, most: int, count: int | None) -> None:
    model = families.model("gpt2")
    made = [random_dictionary(model, i) for i in range(len(model.layers))]
    options = Options(max_logits=most, logit_probability=probability)
    (found,) = attribute(model, [TOKENS], made, options=options)
    p = found.probability
    assert (np.diff(p) <= 0).all()
    if count is None:
        assert p.sum() >= probability > p[:-1].sum()
    else:
        assert len(p) == count


def test_a_graph_that_does_not_add_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model("gpt2")
    made = [random_dictionary(model, i) for i in range(len(model.layers))]
    whole = Linear.rows

    def wrong(self: Linear, targets: object) -> object:
        edges, bias = whole(self, targets)  # type: ignore[arg-type]
        return edges * 1.01, bias

    monkeypatch.setattr(build.Linear, "rows", wrong)
    with pytest.raises(RunError, match="do not sum to its pre-activation"):
        list(attribute(model, [TOKENS], made))


@pytest.mark.parametrize(
    ("prompt", "error", "says"),
    [([], PromptError, "empty"), ([99], PromptError, "no token 99"), ([1] * 99, PromptError, "99 tokens")],
)
def test_bad_prompts(prompt: list[int], error: type[Exception], says: str) -> None:
    model = families.model("gpt2")
    with pytest.raises(error, match=says):
        list(attribute(model, [prompt], [random_dictionary(model, 0)]))


def test_dictionaries_that_do_not_fit() -> None:
    model = families.model("gpt2")
    good = random_dictionary(model, 0)
    with pytest.raises(UsageError, match="no dictionaries"):
        list(attribute(model, [TOKENS], []))
    with pytest.raises(UsageError, match="two dictionaries of layer 0"):
        list(attribute(model, [TOKENS], [good, good]))
    with pytest.raises(UnsupportedError, match="reads mlp_out"):
        list(attribute(model, [TOKENS], [random_dictionary(model, 0, site_in="mlp_out", kind="sae")]))
    with pytest.raises(ModelError, match="has 2 layers"):
        list(attribute(model, [TOKENS], [random_dictionary(families.model("ln"), 2)]))
    attention = families.model("attn-only")
    with pytest.raises(UnsupportedError, match="no MLPs"):
        list(attribute(attention, [TOKENS], [good]))


@pytest.mark.parametrize("options", [{"max_features": 0}, {"max_logits": 0}, {"logit_probability": 0.0}])
def test_bad_options(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Options(**options)  # type: ignore[arg-type]


def test_running_out_of_rows_keeps_the_most_influential(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, with an estimate after each batch: the same rows as the obvious loop takes."""
    from circuitfind.attribution.influence import influence

    monkeypatch.setattr(build, "UPDATE", 7)
    model = families.model("ln")
    made = [random_dictionary(model, i) for i in range(len(model.layers))]
    (whole,) = attribute(model, [TOKENS], made)
    few = 30
    (found,) = attribute(model, [TOKENS], made, options=Options(max_features=few))
    assert len(found.row_nodes) == few + len(found.probability)
    assert found.n_features == whole.n_features > 2 * few
    assert int(found.without_row.sum()) == found.n_features - few
    rows = {int(node): row for row, node in enumerate(whole.row_nodes)}
    taken = [n for n in rows if whole.nodes.kind[n] == NodeKind.LOGIT]
    while len(taken) < len(found.row_nodes):
        at = [rows[n] for n in taken]
        known = influence(whole.edges[at], whole.row_nodes[at], whole.nodes.layer[taken], whole.weights)
        left = [n for n in rows if n not in taken]
        taken += sorted(left, key=lambda n: -known[n])[: min(7, len(found.row_nodes) - len(taken))]
    assert sorted(taken) == found.row_nodes.tolist()
    same = [rows[n] for n in found.row_nodes]
    assert np.abs(whole.edges[same] - found.edges).max() < 1e-5 * np.abs(whole.edges).max()
    assert torch.equal(torch.tensor(whole.probability), torch.tensor(found.probability))
