"""Every family against a slow second opinion: logits, writers, patched passes. See tests/model/oracle.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.circuit.evaluate import Evaluator
from circuitfind.model.bridge import Model
from circuitfind.model.forward import run_trace
from circuitfind.model.node_pass import Patch
from circuitfind.model.writes import Writes
from circuitfind.task.pairs import PromptPairs
from tests import families
from tests.families import FAMILIES, HF_FAMILIES, pairs_for, random_mask, runs_of
from tests.model.oracle import ablated_writes, bare, logit_diffs, oracle, tokens_of

every_family = pytest.mark.parametrize("family", [*FAMILIES, "solu-ln"])
every_ablation = pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
every_same = pytest.mark.parametrize("same", [0, 2])  # tokens that a pair has in common
MIXED = (6, 9, 4)
SMALLEST = {"batch_tokens": 1, "pass_tokens": 1, "edge_tokens": 1}
FEW = ("gpt2", "gemma2", "bidirectional")  # where all families would only take time


def tolerance(family: str, ablation: str, usual: float = 1e-5) -> float:
    """Looser where an RMSNorm divides what is left of a zeroed stream, which is rounding, by sqrt(eps)."""
    return 1e-3 if ablation == "zero" and family in (*HF_FAMILIES[3:], "rms-gated", "kv-groups") else usual


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def masks_of(model: Model, densities: tuple[float, ...] = (0.05, 0.5, 0.95)) -> list[np.ndarray]:
    return [random_mask(model.anatomy.edge_mask, d, seed) for seed, d in enumerate(densities)]


def replaced_by(model: Model, mask: np.ndarray, ablated: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """The edges of a mask, for the oracle."""
    names, readers = model.anatomy.writer_names, model.anatomy.reader_names
    return {(names[w], readers[r]): ablated[names[w]] for w, r in np.argwhere(mask)}


# --- the model itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HF_FAMILIES)
def test_logits_are_those_of_the_bare_model_in_a_padded_batch(family: str) -> None:
    model, plain = families.model(family), bare(family)
    pairs = pairs_for(model, lengths=MIXED, last=False)
    runs = runs_of(model, pairs)
    (batch,) = runs.batches
    lengths = torch.from_numpy(batch.lengths)
    assert lengths.min() < batch.clean.shape[1]
    mask = torch.arange(batch.clean.shape[1]) < lengths[:, None]
    ours = model.head(runs.trace(0, "clean").final)
    with torch.no_grad():
        bridged = model.bridge_logits(batch.clean, batch.answer_positions, mask)
        for row, index in enumerate(batch.index):
            pair = pairs[int(index)]
            theirs = plain(torch.tensor([pair.clean])).logits[0, pair.answer_position]
            torch.testing.assert_close(ours[row], theirs, atol=2e-5, rtol=0)
            torch.testing.assert_close(bridged[row], theirs, atol=2e-5, rtol=0)


@every_same
@every_family
def test_logits_are_those_of_the_oracle(family: str, same: int) -> None:
    model = families.model(family)
    pairs = pairs_for(model, last=False, same=same)
    found = runs_of(model, pairs)
    assert found.batches[0].start == (same if model.causal else 0)
    np.testing.assert_allclose(
        found.clean, logit_diffs(oracle(family).run(tokens_of(pairs, "clean")), pairs), atol=1e-5
    )
    theirs = logit_diffs(oracle(family).run(tokens_of(pairs, "corrupted")), pairs)
    np.testing.assert_allclose(found.corrupted, theirs, atol=1e-5)


@every_family
def test_writers_are_those_of_the_oracle_and_sum_to_the_stream(family: str) -> None:
    """At every position in a run that computes all of them; in an ordinary run the last block knows the answer's."""
    model = families.model(family)
    pairs = pairs_for(model)
    found = runs_of(model, pairs)
    (batch,) = found.batches
    stream: list[Tensor] = []
    with model.hooked([(model.final_site, lambda x: stream.append(x.clone()))]):
        model.bridge_logits(batch.clean, batch.answer_positions)
    place = replace(batch.place(0), everywhere=True)
    whole: Writes = run_trace(model, model.embed(batch.clean), place).writes
    writes: Writes = found.trace(0, "clean").writes
    oracle(family).run(tokens_of(pairs, "clean")[batch.index])
    total = torch.zeros_like(stream[0])
    first_of_last = model.anatomy.head_slice(model.anatomy.n_layers - 1).start
    for row, name in enumerate(model.anatomy.writer_names):
        ours, theirs = whole.of_writer(model, row), oracle(family).written[name].double()
        near = 1e-5 * max(2.0, float(theirs.abs().max()))  # single precision, sums over the whole vector
        torch.testing.assert_close(ours.double(), theirs, atol=near, rtol=1e-5)
        if row >= first_of_last:
            theirs = batch.place(0).spread(batch.place(0).at_answer(theirs))
        torch.testing.assert_close(writes.of_writer(model, row).double(), theirs, atol=near, rtol=1e-5)
        total += ours
    for block in model.bridge.blocks:
        bias = getattr(block.attn.o.original_component, "bias", None)
        total += 0 if bias is None else bias
    near = 1e-5 * max(2.0, float(stream[0].abs().max()))
    torch.testing.assert_close(total, stream[0], atol=near, rtol=1e-5)
    torch.testing.assert_close(whole.streams(model)[-1], stream[0], atol=near, rtol=1e-5)
    wanted = oracle(family).stream
    assert wanted is not None
    torch.testing.assert_close(total.double(), wanted.double(), atol=near, rtol=1e-5)


def test_anatomies_are_those_of_the_configurations() -> None:
    assert {f: families.model(f).anatomy.parallel for f in ("neox", "neox-serial", "gpt2")} == {
        "neox": True,
        "neox-serial": False,
        "gpt2": False,
    }
    for family in ("llama", "qwen2", "qwen3", "gemma2", "kv-groups"):
        assert (families.model(family).anatomy.n_heads, families.model(family).anatomy.n_kv_heads) == (4, 2)
    assert not families.model("attn-only").anatomy.has_mlp
    assert not families.model("bidirectional").causal
    assert families.model("gpt2").causal
    assert families.model("ln-pre").n_vocab_out == 5


# --- patched passes -------------------------------------------------------------------------------------------


@every_same
@every_ablation
@every_family
def test_edge_masks_give_what_explicit_replacement_gives(family: str, ablation: str, same: int) -> None:
    model, truth = families.model(family), oracle(family)
    pairs = pairs_for(model, last=False, same=same)
    masks = masks_of(model)
    ours = runs_of(model, pairs).patched([Patch(edges=m) for m in masks], ablation=ablation)
    ablated = ablated_writes(truth, pairs, ablation)
    tokens = tokens_of(pairs, "clean")
    for mask, row in zip(masks, ours, strict=True):
        theirs = logit_diffs(truth.run(tokens, replaced=replaced_by(model, mask, ablated)), pairs)
        np.testing.assert_allclose(row, theirs, atol=tolerance(family, ablation, 5e-5))


@every_same
@every_family
def test_denoised_edge_masks_give_what_explicit_replacement_gives(family: str, same: int) -> None:
    model, truth = families.model(family), oracle(family)
    pairs = pairs_for(model, same=same)
    masks = masks_of(model, (0.2, 0.6))
    ours = runs_of(model, pairs).patched([Patch(edges=m) for m in masks], base="corrupted", ablation="clean")
    ablated = ablated_writes(truth, pairs, "clean")
    for mask, row in zip(masks, ours, strict=True):
        replaced = replaced_by(model, mask, ablated)
        theirs = logit_diffs(truth.run(tokens_of(pairs, "corrupted"), replaced=replaced), pairs)
        np.testing.assert_allclose(row, theirs, atol=5e-5)


@every_family
def test_nodes_and_edges_replaced_together(family: str) -> None:
    model, truth = families.model(family), oracle(family)
    pairs = pairs_for(model, same=1)
    every = model.anatomy.edge_mask
    nodes = np.arange(len(every)) % 3 == 2  # heads, some of whose edges are replaced too; not the input
    edges = random_mask(every, 0.5, 4)
    both = edges | (every & nodes[:, None])
    found = runs_of(model, pairs)
    ours = found.patched([Patch(nodes=nodes, edges=edges), Patch(edges=both), Patch()], ablation="resample")
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-5)
    np.testing.assert_allclose(ours[2], found.clean, atol=1e-5)
    replaced = replaced_by(model, both, ablated_writes(truth, pairs, "resample"))
    theirs = logit_diffs(truth.run(tokens_of(pairs, "clean"), replaced=replaced), pairs)
    np.testing.assert_allclose(ours[0], theirs, atol=5e-5)


@every_ablation
@every_family
def test_a_replaced_node_is_all_its_edges_replaced(family: str, ablation: str) -> None:
    model = families.model(family)
    every = model.anatomy.edge_mask
    rows = np.eye(len(every), dtype=bool)
    found = runs_of(model, pairs_for(model, lengths=MIXED, count=6))
    by_node = found.patched([Patch(nodes=row) for row in rows], ablation=ablation)
    by_edge = found.patched([Patch(edges=every & row[:, None]) for row in rows], ablation=ablation)
    np.testing.assert_allclose(by_node, by_edge, atol=2 * tolerance(family, ablation))
    assert np.abs(by_node - found.clean).max() > 0.01, "nothing was replaced, so nothing was tested"


@every_ablation
@every_family
def test_full_circuit_is_1_and_empty_circuit_is_0(family: str, ablation: str) -> None:
    model = families.model(family)
    every = model.anatomy.edge_mask
    pairs = pairs_for(model, count=6, lengths=MIXED)
    evaluator = Evaluator(runs_of(model, pairs), ablation)
    if (
        evaluator.full.mean() < evaluator.empty.mean()
    ):  # random weights know no right answer: take the other one
        turned = tuple(replace(p, answer=p.wrong, wrong=p.answer) for p in pairs)
        evaluator = Evaluator(runs_of(model, PromptPairs(turned, "random")), ablation)
    near = max(1.0, 2 / evaluator.gap) * 1e-5  # 2e-5 of the metric, in single precision
    full, empty = evaluator.faithfulness([every, np.zeros_like(every)])
    assert full == pytest.approx(1, abs=near)
    assert empty == pytest.approx(0, abs=near)
    assert evaluator.evaluate(every.copy()).faithfulness.value == pytest.approx(1, abs=near)


@every_family
def test_empty_circuits_are_the_other_run(family: str) -> None:
    model = families.model(family)
    found = runs_of(model, pairs_for(model, lengths=MIXED, last=False))
    every = model.anatomy.edge_mask
    patches = [Patch(edges=every.copy()), Patch(nodes=np.ones(len(every), dtype=bool))]
    noised = found.patched(patches, ablation="resample")
    denoised = found.patched(patches, base="corrupted", ablation="clean")
    np.testing.assert_allclose(noised, np.stack([found.corrupted] * 2), atol=1e-5)
    np.testing.assert_allclose(denoised, np.stack([found.clean] * 2), atol=1e-5)
    assert np.abs(found.clean - found.corrupted).max() > 0.05


# --- batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "ablation", "same"),
    [
        *(families.costly(f, "resample", s) for f in FAMILIES for s in (0, 1)),
        *((f, a, 1) for f in FEW for a in ("mean", "zero")),
    ],
)
def test_batches_of_mixed_lengths_are_prompts_one_by_one(family: str, ablation: str, same: int) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=6, lengths=MIXED, last=False, same=same)
    patches = [Patch(edges=m) for m in masks_of(model)]
    patches.append(Patch(nodes=np.arange(len(model.anatomy.writers)) % 3 == 1))
    together, alone = runs_of(model, pairs), runs_of(model, pairs, sizes=SMALLEST)
    some = runs_of(model, pairs, sizes={"batch_tokens": 31, "pass_tokens": 31, "edge_tokens": 62})
    # Where nothing looks ahead, a batch may hold prompts of several lengths.
    assert (len(together.batches), len(alone.batches)) == (1, 6)
    assert 1 < len(some.batches) < 6
    wanted = alone.patched(patches, ablation=ablation)
    for found in (together, some):
        np.testing.assert_allclose(found.clean, alone.clean, atol=1e-5)
        np.testing.assert_allclose(found.corrupted, alone.corrupted, atol=1e-5)
        np.testing.assert_allclose(
            found.patched(patches, ablation=ablation), wanted, atol=2 * tolerance(family, ablation)
        )


@pytest.mark.parametrize("family", FEW)
def test_a_prompt_is_not_changed_by_its_neighbours(family: str) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=4, lengths=MIXED, last=False)
    other = pairs_for(model, count=3, lengths=(20,), seed=9)
    joined = PromptPairs((*pairs, *other), "random")
    np.testing.assert_allclose(runs_of(model, joined).clean[:4], runs_of(model, pairs).clean, atol=1e-5)
