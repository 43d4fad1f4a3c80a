"""Runs across two models of one shape, against a slow reference that puts B's values into A by hand."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.errors import RunError, UnsupportedError
from circuitfind.methods import get_method
from circuitfind.model.bridge import Model
from circuitfind.model.cross import CrossRuns, widened
from circuitfind.model.load import load_model
from circuitfind.model.node_pass import Patch
from circuitfind.model.norms import Norm
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPairs, VocabTokenizer
from tests import families
from tests.families import HF_FAMILIES, PLAN, pairs_for, random_mask
from tests.model import oracle as oracles
from tests.model.oracle import Truth, bare, logit_diffs, oracle, tokens_of, written

every_family = pytest.mark.parametrize(
    "family",
    ["gpt2", "neox", "llama", "qwen3", "gemma2", "ln", "attn-only-no-norm", "bidirectional", "kv-groups"],
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


@cache
def other(family: str) -> tuple[Model, Truth]:
    """A model of the same shape with other weights, embeddings, norms and biases, and its oracle."""
    path, seed = families.root() / f"{family}-b", 1
    with pytest.MonkeyPatch.context() as patch:
        if family in HF_FAMILIES:
            built = bare(family)
            torch.manual_seed(seed)
            for parameter in built.parameters():
                parameter.data += 0.3 * parameter.data.std() * torch.randn_like(parameter)
            built.save_pretrained(path)
        else:
            patch.setattr(families, "native_state", partial(families.native_state, seed=seed))
            config = families.NATIVE_CONFIGS[family]
            families.write_native(path, config, families.native_state(config))
        patch.setattr(families, "folder", lambda name: path)
        truth = oracles.oracle.__wrapped__(family)
    return load_model(str(path), device="cpu"), truth


def cross(family: str, pairs: PromptPairs, *, swap: bool = False, own: bool = False) -> CrossRuns:
    models = families.model(family), other(family)[0]
    a, b = reversed(models) if swap else models
    return CrossRuns(a, b, pairs, get_metric("logit-diff"), plan=PLAN, own=own)


def values_of_b(family: str, pairs: PromptPairs) -> dict[str, Tensor]:
    """What each writer of B writes on the clean prompts; output biases of attention shared out among the heads."""
    a, (b, truth) = families.model(family), other(family)
    found = dict(written(truth, tokens_of(pairs, "clean")))
    for index, (mine, theirs) in enumerate(zip(a.layers, b.layers, strict=True)):
        if mine.b_o is not None and theirs.b_o is not None:
            for head in range(mine.n_heads):
                move = (theirs.b_o - mine.b_o).double() / mine.n_heads
                found[f"a{index}.h{head}"] = found[f"a{index}.h{head}"] + move
    return found


@every_family
def test_wider_heads_compute_what_the_model_computes(family: str) -> None:
    a = families.model(family)
    pairs = pairs_for(a, last=False)
    wide, plain = cross(family, pairs), families.runs_of(a, pairs)
    np.testing.assert_allclose(wide.clean, plain.clean, atol=2e-5)
    assert wide.model.layers[0].d_head == 2 * a.layers[0].d_head + 1
    assert wide.model.passes is a.passes


@every_family
def test_with_everything_replaced_the_stream_is_that_of_b(family: str) -> None:
    """Read by A's final norm and unembedding; with those of B it would be B's logits."""
    a, truth = families.model(family), other(family)[1]
    pairs = pairs_for(a, last=False, count=6)
    runs = cross(family, pairs)
    truth.run(tokens_of(pairs, "clean"))
    assert truth.stream is not None
    at = torch.tensor([p.answer_position for p in pairs])
    stream = truth.stream[torch.arange(len(pairs)), at].float()
    mask = a.anatomy.edge_mask
    every = runs.patched([Patch(edges=np.array(mask)), Patch(nodes=np.ones(len(mask), dtype=bool))])
    with torch.no_grad():
        logits = torch.zeros(len(pairs), int(at.max()) + 1, a.n_vocab_out)
        logits[torch.arange(len(pairs)), at] = a.head(stream)
    expected = logit_diffs(logits, pairs)
    for found in (every[0], every[1], runs.corrupted, Evaluator(runs, "resample").empty):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    truths = logit_diffs(truth.run(tokens_of(pairs, "clean")), pairs)
    np.testing.assert_allclose(runs.in_b().numpy(), truths, atol=1e-4)
    assert runs.heads_differ


@every_family
@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
def test_patched_passes_are_those_of_the_reference(family: str, density: float) -> None:
    a = families.model(family)
    pairs = pairs_for(
        a, last=False, same=2
    )  # shared beginnings are no reason to begin later: the models differ there
    runs, truth, values = cross(family, pairs), oracle(family), values_of_b(family, pairs)
    assert all(batch.start == 0 for batch in runs.batches)
    names, readers = a.anatomy.writer_names, a.anatomy.reader_names
    masks = [random_mask(a.anatomy.edge_mask, density, seed) for seed in range(3)]
    row = a.anatomy.writer_index["a1.h1"]
    node = np.zeros_like(masks[0])
    node[row] = a.anatomy.edge_mask[row]
    nodes = np.zeros(len(names), dtype=bool)
    nodes[row] = True
    w, r = (int(x) for x in np.argwhere(masks[0])[0])
    alone = np.zeros_like(masks[0])
    alone[w, r] = True
    patches = [*(Patch(edges=m) for m in masks), Patch(nodes=nodes), Patch(edge=(w, r))]
    found = runs.patched(patches)
    for mask, ours in zip([*masks, node, alone], found, strict=True):
        replaced = {(names[w], readers[r]): values[names[w]] for w, r in np.argwhere(mask)}
        theirs = logit_diffs(truth.run(tokens_of(pairs, "clean"), replaced=replaced), pairs)
        np.testing.assert_allclose(ours, theirs, atol=5e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "kv-groups"])
def test_eap_is_the_slope_of_the_reference(family: str) -> None:
    """Attribution of an edge: minus the derivative of the metric as the edge starts to move towards B's value."""
    a = families.model(family)
    pairs = pairs_for(a)
    runs, truth, values = cross(family, pairs), oracle(family), values_of_b(family, pairs)
    scores = get_method("eap", {}).run(runs, ablation="resample", direction="noising")
    names, readers = a.anatomy.writer_names, a.anatomy.reader_names
    tokens = tokens_of(pairs, "clean")
    mine = dict(written(truth, tokens))
    step = 1e-2 if family == "gemma2" else 1e-4  # its norms compute in single precision
    rng = np.random.default_rng(0)
    for w, r in rng.permutation(np.argwhere(a.anatomy.edge_mask))[:8]:
        move = step * (values[names[w]] - mine[names[w]])
        ends = [
            logit_diffs(
                truth.run(tokens, replaced={(names[w], readers[r]): mine[names[w]] + sign * move}), pairs
            )
            for sign in (1, -1)
        ]
        slope = float((ends[0] - ends[1]).mean()) / (2 * step)
        assert scores.values[w, r] == pytest.approx(-slope, abs=2e-4)
    assert scores.nodes is not None
    np.testing.assert_allclose(np.nansum(scores.values, 1), scores.nodes, atol=1e-4)


def test_own_effects_are_those_of_transplanted_weights() -> None:
    """A with the weights of one part taken from B, by hand, is what ``own`` patches."""
    family = "gpt2"
    a, (b, _) = families.model(family), other(family)
    pairs = pairs_for(a, last=False)
    runs = cross(family, pairs, own=True)
    state, theirs = bare(family).state_dict(), load_state(b)
    width, d_model = a.d_head, a.d_model
    for name in ("a0.h2", "a1.h1", "m0", "m1", "input"):
        layer, head = (int(name[1]), int(name[-1])) if name != "input" else (0, 0)
        block, built = f"transformer.h.{layer}", bare(family)
        mixed = {key: value.clone() for key, value in state.items()}
        if name == "input":
            keys = ["transformer.wte.weight", "transformer.wpe.weight"]
            built.lm_head.weight = torch.nn.Parameter(state["lm_head.weight"].clone())  # no longer tied
        elif name[0] == "m":
            keys = [key for key in state if key.startswith((f"{block}.mlp", f"{block}.ln_2"))]
        else:
            keys = []
            columns = [i * d_model + head * width + j for i in range(3) for j in range(width)]
            # Heads of a layer share the norm below them: its difference is folded into the head's own columns.
            shift, scale = theirs[f"{block}.ln_1.bias"], theirs[f"{block}.ln_1.weight"]
            old_shift, old_scale = state[f"{block}.ln_1.bias"], state[f"{block}.ln_1.weight"]
            weight = theirs[f"{block}.attn.c_attn.weight"][:, columns]
            folded = weight * (scale / old_scale)[:, None]
            mixed[f"{block}.attn.c_attn.weight"][:, columns] = folded
            bias = theirs[f"{block}.attn.c_attn.bias"][columns] + shift @ weight - old_shift @ folded
            mixed[f"{block}.attn.c_attn.bias"][columns] = bias
            rows = slice(head * width, (head + 1) * width)
            mixed[f"{block}.attn.c_proj.weight"][rows] = theirs[f"{block}.attn.c_proj.weight"][rows]
            bias = f"{block}.attn.c_proj.bias"
            mixed[bias] += (theirs[bias] - state[bias]) / a.layers[0].n_heads
        for key in keys:
            mixed[key] = theirs[key].clone()
        if name == "input":
            mixed["lm_head.weight"] = state["lm_head.weight"].clone()
        built.load_state_dict(mixed)
        with torch.no_grad():
            expected = logit_diffs(built(tokens_of(pairs, "clean")).logits, pairs)
        nodes = np.zeros(len(a.anatomy.writers), dtype=bool)
        nodes[a.anatomy.row_of(name)] = True
        np.testing.assert_allclose(runs.patched([Patch(nodes=nodes)])[0], expected, atol=5e-5, err_msg=name)


def load_state(model: Model) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found = load_file(Path(model.source.removeprefix("folder: ")) / "model.safetensors")
    found.setdefault("lm_head.weight", found["transformer.wte.weight"])
    return found


def test_one_model_twice_is_refused() -> None:
    a = families.model("gpt2")
    with pytest.raises(UnsupportedError, match="are one model"):
        CrossRuns(a, a, pairs_for(a), get_metric("logit-diff"), plan=PLAN)


@pytest.mark.parametrize(
    ("one", "two", "what"),
    [
        ("gpt2", "neox", "parallel blocks"),
        ("gpt2", "llama", "2 key/value heads"),
        ("ln", "attn-only", "no MLPs"),
    ],
)
def test_other_shapes_are_refused_by_name(one: str, two: str, what: str) -> None:
    a, b = families.model(one), families.model(two)
    with pytest.raises(UnsupportedError) as caught:
        CrossRuns(a, b, pairs_for(a), get_metric("logit-diff"), plan=PLAN)
    assert what in caught.value.what
    assert a.name in caught.value.what
    assert b.name in caught.value.what


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("kinds of norms", {"final_norm": Norm("rms", eps=1e-5)}),
        ("direction of attention", {"causal": False}),
        ("width of the stream", {"d_model": 32}),
        ("size of a head", {"d_head": 8}),
        ("number of tokens in the vocabulary", {"n_vocab": 41}),
        ("reads at most 4", {"n_ctx": 4}),
    ],
)
def test_every_difference_of_shape_has_a_name(what: str, change: dict[str, Any]) -> None:
    a, b = families.model("gpt2"), copy(other("gpt2")[0])
    for name, value in change.items():
        setattr(b, name, value)
    with pytest.raises(UnsupportedError) as caught:
        CrossRuns(a, b, pairs_for(a), get_metric("logit-diff"), plan=PLAN)
    assert what in caught.value.what


def test_another_tokenizer_is_refused() -> None:
    """Both have every id, and mean other words by some."""
    a, b = copy(families.model("gpt2")), copy(other("gpt2")[0])
    words = [f"w{i}" for i in range(40)]
    a.tokenizer, b.tokenizer = VocabTokenizer(words), VocabTokenizer(words[::-1])
    pair = replace(pairs_for(a)[0], clean_text="w1 w2", where="pairs:1")
    with pytest.raises(UnsupportedError, match="into different tokens") as caught:
        CrossRuns(a, b, PromptPairs((pair,), "random"), get_metric("logit-diff"), plan=PLAN)
    assert caught.value.where == "pairs:1"
    b.tokenizer = VocabTokenizer(words)
    CrossRuns(a, b, PromptPairs((pair,), "random"), get_metric("logit-diff"), plan=PLAN)


def test_what_says_nothing_across_models_is_refused() -> None:
    a = families.model("gpt2")
    runs = cross("gpt2", pairs_for(a))
    nothing = [Patch(nodes=np.zeros(len(a.anatomy.writers), dtype=bool))]
    for ablation in ("mean", "zero", "optimal"):
        with pytest.raises(UnsupportedError, match=f"{ablation} ablation"):
            runs.patched(nothing, ablation=ablation)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="is not patched"):
        runs.patched(nothing, base="corrupted", ablation="clean")
    with pytest.raises(UnsupportedError, match="gradients are taken"):
        get_method("clean-corrupted", {}).run(runs, ablation="resample", direction="noising")


def test_b_must_do_worse() -> None:
    a = families.model("gpt2")
    pairs = pairs_for(a, count=8)
    exchanged = PromptPairs(tuple(replace(p, answer=p.wrong, wrong=p.answer) for p in pairs), "random")
    both = [cross("gpt2", pairs), cross("gpt2", exchanged)]
    worse, better = sorted(both, key=lambda runs: -float((runs.clean - runs.corrupted).mean()))
    worse.check_gap()
    with pytest.raises(RunError, match="does the task better") as caught:
        better.check_gap()
    assert "exchange --model and --model-b" in caught.value.hint


def test_models_that_do_not_differ_on_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights under another hash, as of a model trained on something else."""
    a = families.model("gpt2")
    twin = load_model(str(families.folder("gpt2")), device="cpu")
    twin.fingerprint = "another"
    runs = CrossRuns(a, twin, pairs_for(a), get_metric("logit-diff"), plan=PLAN)
    np.testing.assert_allclose(runs.clean, runs.corrupted, atol=1e-5)
    assert not runs.heads_differ
    with pytest.raises(RunError, match="do not differ on this task"):
        runs.check_gap()


def test_widening_leaves_the_model_alone() -> None:
    a, b = families.model("gpt2"), other("gpt2")[0]
    before = a.layers[0].w_o
    widened(a, b)
    assert a.layers[0].w_o is before
