"""Replaced and held nodes, direct effects and attention, against autograd through tests/methods/slow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from circuitfind.model.effects import DirectEffects
from circuitfind.model.looks import answer_attention
from circuitfind.model.node_pass import NodePass, Patch
from circuitfind.model.readout import Effects
from circuitfind.names import LOGITS, Kind
from circuitfind.task.pairs import PromptPairs
from tests import families
from tests.families import FAMILIES, pairs_for, runs_of
from tests.model.slow_effects import (
    NEAR,
    Reader,
    assert_near,
    assert_observed,
    assert_same,
    masks,
    of,
    readers_of,
    slow_case,
    slowly,
)

every_family = pytest.mark.parametrize("family", FAMILIES)
ABLATIONS = ("resample", "mean", "zero")
CASES = [(family, ABLATIONS[i % 3]) for i, family in enumerate(FAMILIES)]
CASES += [
    (family, ablation)
    for family in ("ln", "neox")
    for ablation in ABLATIONS
    if (family, ablation) not in CASES
]
MIXED = (6, 9, 4)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


# --- replaced and held nodes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ablation", "same"), [("resample", 2), ("mean", 0), ("zero", 2)])
@every_family
def test_replaced_and_held_nodes_are_those_of_the_reference(family: str, ablation: Any, same: int) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=4, last=False, same=same)
    case = slow_case(family, pairs, ablation)
    patches = masks(len(model.anatomy.writers), pairs, seed=same)
    wanted = torch.stack([case.run(patch)[0] for patch in patches])
    found = runs_of(model, pairs).patched(patches, ablation=ablation)
    clean = case.given.measure(case.given.clean)
    assert_near(found, wanted, wanted - clean)
    pairs_of = [(i, i - 1) for i, patch in enumerate(patches) if patch.held is not None]
    assert max(float((wanted[i] - wanted[j]).abs().max()) for i, j in pairs_of) > 1e-2, (
        "holding does something"
    )


@pytest.mark.parametrize("family", ["ln", "neox", "gemma2", "kv-groups", "bidirectional"])
def test_holding_what_nothing_reaches_changes_nothing(family: str) -> None:
    """Writers below the replaced one; and every later one held leaves the direct effect of the replaced one alone."""
    model = families.model(family)
    pairs, n = pairs_for(model, last=False), len(model.anatomy.writers)
    runs, order = runs_of(model, pairs), np.arange(n)
    row = model.anatomy.head_slice(1).start
    nodes = order == row
    values = runs.patched([Patch(nodes=nodes), Patch(nodes=nodes, held=order < row)])
    np.testing.assert_allclose(values[1], values[0], atol=1e-6)
    case = slow_case(family, pairs, "resample")
    wanted = case.run(Patch(nodes=nodes, held=order > row))[0]
    found = runs.patched([Patch(nodes=nodes, held=order > row)])[0]
    assert_near(found, wanted, wanted - case.given.measure(case.given.clean))


def test_writers_are_held_beside_nodes_alone() -> None:
    model = families.model("ln")
    held = np.ones(len(model.anatomy.writers), dtype=bool)
    with pytest.raises(ValueError, match="held"):
        Patch(held=held)
    with pytest.raises(ValueError, match="held"):
        Patch(nodes=~held, held=held, edges=model.anatomy.edge_mask)


# --- direct effects ---------------------------------------------------------------------------------------------


@every_family
def test_clean_direct_effects_are_those_of_autograd(family: str) -> None:
    """On every reader of the model at once."""
    model = families.model(family)
    pairs = pairs_for(model, count=4, last=False, same=1)
    case, runs = slow_case(family, pairs, "zero"), runs_of(model, pairs)
    before = model.passes["backward"]
    effects = DirectEffects(runs, model.anatomy.readers)
    assert model.passes["backward"] == before + 1
    assert effects.clean.shape == (len(model.anatomy.readers), len(case.writers), len(pairs))
    readers = readers_of(case)
    for number, name in enumerate(model.anatomy.reader_names):
        wanted, size = torch.zeros(len(case.writers), len(pairs), dtype=torch.float64), 0.0
        for w, writer in enumerate(case.writers):
            if writer in case.given.plain.sources(name):
                wrote = case.seen[f"write {writer}"]
                wanted[w], size = readers[name].frozen(wrote), max(size, readers[name].size(wrote))
        assert size > 1e-3
        assert_near(effects.clean[number], wanted, max(size, float(wanted.abs().max())), name)


@pytest.mark.parametrize(("family", "ablation"), [families.costly(*case) for case in CASES])
def test_changes_of_direct_effects_are_those_of_the_reference(family: str, ablation: Any) -> None:
    """Of every writer on every reader, under patches everywhere and at some tokens, with held writers too."""
    model = families.model(family)
    pairs = pairs_for(model, count=3, last=False, same=1)
    runs, patches = runs_of(model, pairs), masks(len(model.anatomy.writers), pairs, seed=3)
    case = slow_case(family, pairs, ablation)
    names, wanted = list(model.anatomy.reader_names), slowly(case, patches)
    found = DirectEffects(runs, model.anatomy.readers).observe(patches, ablation)
    assert_observed(found, wanted, names)
    parts = found.change.sum(2) + found.bent
    for number, name in enumerate(names):
        assert_near(parts[number], found.read[number], wanted[name].size, f"accounts of {name}")
    if family != "gemma2":  # whose soft cap is not linear
        change = found.values - runs.clean
        assert_near(found.read[-1], change, found.change[-1], "the logits' reading is the metric")


def test_no_backward_pass_for_the_logits_alone() -> None:
    model = families.model("ln")
    before = model.passes["backward"]
    DirectEffects(runs_of(model, pairs_for(model)), [(LOGITS, None)], shuffled=3)
    assert model.passes["backward"] == before


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "attn-only-no-norm"])
def test_shuffled_readings_have_the_direction_of_an_unlike_prompt(family: str) -> None:
    """Each prompt's effects are those of some other prompt's direction with a cosine below a half; never its own."""
    model = families.model(family)
    pairs = pairs_for(model, count=6, last=False)
    case = slow_case(family, pairs, "zero")
    end = readers_of(case)["logits"]
    rows, n = torch.arange(len(pairs)), len(pairs)
    directions = end.gradient[rows, case.given.position]
    unit = directions / directions.norm(dim=-1, keepdim=True)
    found = DirectEffects(runs_of(model, pairs), [(LOGITS, None)], shuffled=5, seed=1).clean[1:]
    chosen = set()
    for row in range(n):
        others = {}
        for other in (j for j in range(n) if unit[row] @ unit[j] < 0.5):
            gradient = torch.zeros_like(end.gradient)
            gradient[row, case.given.position[row]] = directions[other]
            reading = Reader("logits", end.norm, end.stream, gradient)
            others[other] = of(
                torch.stack([reading.frozen(case.seen[f"write {w}"])[row] for w in case.writers])
            )
        assert others
        for reading_ in found[:, :, row]:
            errors = {other: np.abs(reading_ - wanted).max() for other, wanted in others.items()}
            best = min(errors, key=errors.__getitem__)
            assert errors[best] < NEAR * np.abs(others[best]).max()
            chosen.add((row, best))
    assert len(chosen) > n, "not always the same other prompt"
    again = DirectEffects(runs_of(model, pairs), [(LOGITS, None)], shuffled=5, seed=1).clean[1:]
    np.testing.assert_array_equal(again, found)


def test_prompts_that_ask_for_the_same_have_no_shuffled_reading() -> None:
    model = families.model("ln")
    one = pairs_for(model, count=1)[0]
    effects = DirectEffects(runs_of(model, PromptPairs((one, one), "random")), [(LOGITS, None)], shuffled=2)
    assert not effects.clean[1:].any()
    assert effects.clean[0].any()


# --- batches, passes, padding, memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "ablation"),
    [
        ("ln", "resample"),
        ("gpt2", "resample"),
        ("gemma2", "zero"),
        ("kv-groups", "resample"),
        ("neox", "zero"),
        ("attn-only", "zero"),
    ],
)
def test_padded_prompts_are_those_of_the_reference(family: str, ablation: Any) -> None:
    """The reference pads too, but looks ahead nowhere; see the next test for prompts on their own."""
    model = families.model(family)
    pairs = pairs_for(model, lengths=MIXED, last=False, same=1)
    runs, patches = runs_of(model, pairs), masks(len(model.anatomy.writers), pairs, seed=5)
    assert len(runs.batches) == 1
    assert runs.batches[0].lengths.min() < runs.batches[0].clean.shape[1]
    found = DirectEffects(runs, model.anatomy.readers).observe(patches, ablation)
    wanted = slowly(slow_case(family, pairs, ablation), patches)
    assert_observed(found, wanted, list(model.anatomy.reader_names))


SIZES = {
    "prompts alone": {"batch_tokens": 1},
    "two batches": {"batch_tokens": 30},
    "patches alone": {"pass_tokens": 1},
    "split passes": {"pass_tokens": 150},
    "everything small": {"batch_tokens": 18, "pass_tokens": 40, "cache_bytes": 1},
}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("ln", name) for name in SIZES),
        *((f, "everything small") for f in ("gemma2", "neox", "bidirectional")),
    ],
)
def test_sizes_of_batches_and_passes_change_nothing(family: str, name: str) -> None:
    model, sizes = families.model(family), SIZES[name]
    pairs = pairs_for(model, count=6, lengths=MIXED, last=False, same=1)
    patches = masks(len(model.anatomy.writers), pairs, seed=7)
    seen = []
    for size in ({}, sizes):
        runs = runs_of(model, pairs, sizes=size)
        effects = DirectEffects(runs, model.anatomy.readers)
        seen.append(
            (effects.clean, effects.observe(patches, "mean"), len(runs.batches), answer_attention(runs))
        )
    if "batch_tokens" in sizes:
        assert seen[1][2] > seen[0][2]
    assert_near(seen[1][0], seen[0][0])
    assert_same(seen[1][1], seen[0][1])
    assert_near(seen[1][3], seen[0][3])


@pytest.mark.parametrize("place", ["in the middle", "at the end"])
@pytest.mark.parametrize("family", ["ln", "neox"])
def test_a_watched_pass_that_runs_out_of_memory_leaves_nothing(
    family: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of more than three patches fail after some of them was seen."""
    model = families.model(family)
    pairs = pairs_for(model, count=3, last=False, same=1)
    patches = masks(len(model.anatomy.writers), pairs, seed=11)
    wanted = DirectEffects(runs_of(model, pairs), model.anatomy.readers).observe(patches, "resample")
    notes: list[str] = []
    runs = runs_of(model, pairs, note=notes.append)
    effects = DirectEffects(runs, model.anatomy.readers)
    kind, name = (Effects, "heads") if place == "in the middle" else (NodePass, "run")
    plain, tried = getattr(kind, name), []

    def short(self: Any, *args: Any) -> Any:
        found = plain(self, *args)
        tried.append(len(found) if found is not None else args[1].shape[0] if args[0] else 0)
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("out of memory, as far as this test goes")
        return found

    monkeypatch.setattr(kind, name, short)
    found = effects.observe(patches, "resample")
    assert max(tried) > 3
    assert 0 < min(n for n in tried if n) <= 3
    assert len(notes) == 1
    assert_same(found, wanted)


# --- where heads look -----------------------------------------------------------------------------------------------


@every_family
def test_attention_from_the_answer_is_the_softmax_of_the_reference(family: str) -> None:
    model = families.model(family)
    mixed = MIXED if model.causal else (6,)  # the reference knows no padding that is seen
    pairs = pairs_for(model, lengths=mixed, last=False)
    case = slow_case(family, pairs, "zero")
    found = answer_attention(runs_of(model, pairs))
    assert found.shape[:2] == (len(case.writers), len(pairs))
    width = found.shape[2]  # what is beyond every answer may be left out
    for row, node in enumerate(model.anatomy.writers):
        if node.kind is not Kind.HEAD:
            assert not found[row].any()
            continue
        wanted = case.seen[f"pattern {node}"][torch.arange(len(pairs)), case.given.position]
        np.testing.assert_allclose(found[row], wanted[:, :width], atol=1e-5)
        np.testing.assert_allclose(found[row].sum(-1), 1, atol=1e-5)
        for i, pair in enumerate(pairs):
            assert not found[row, i, len(pair.clean) :].any()
