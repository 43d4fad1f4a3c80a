"""Every gradient method of edges against its slow reference: scores, positions, batches, options, costs, refusals.

Tolerance: 2e-5 of the largest score of its table. Ours are computed in single precision, the references in double.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction, Positions
from circuitfind.errors import RunError, UnsupportedError, UsageError
from circuitfind.methods import METHODS, contraction, get_method, options_of
from circuitfind.methods.eap import EAP
from circuitfind.model.norms import Norm
from circuitfind.model.runs import Runs
from circuitfind.task.pairs import PromptPair, PromptPairs
from tests import families
from tests.families import COSTLY, pairs_for, runs_of
from tests.methods.slow import edges
from tests.methods.slow.plain import EXACT, GIM, RELP, RELP_AH
from tests.methods.slow.problem import Problem, ablated, problem

NEAR = 2e-5
FEW = ("ln", "gemma2", "neox", "kv-groups", "attn-only", "bidirectional")
RULES = {
    "eap": ({}, EXACT),
    "relp": ({}, RELP),
    "relp-ah": ({"freeze_attention": True}, RELP_AH),
    "gim": ({}, GIM),
}
SHARES = {"midpoint": edges.middle, "left": edges.left, "right": edges.right}
METHOD_CASES = (*RULES, *(f"eap-ig {rule}" for rule in SHARES), "clean-corrupted")
MIXED = (6, 9, 5)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def scores_of(
    case: str,
    runs: Runs,
    ablation: Ablation = "resample",
    direction: Direction = "noising",
    positions: Positions = "none",
) -> Scores:
    """By the code under test; ``case`` is one of METHOD_CASES."""
    name, _, rule = case.partition(" ")
    options = {"steps": 3, "points": rule} if rule else RULES.get(name, ({}, None))[0]
    method = get_method(name.removesuffix("-ah"), options)
    return method.run(runs, ablation=ablation, direction=direction, positions=positions)


def cells_of(case: str, given: Problem, gone: dict[str, Tensor], direction: Direction) -> Tensor:
    """By the references: [prompt, position, writer, reader]."""
    name, _, rule = case.partition(" ")
    change = edges.difference(given, gone)
    if name in RULES:
        x = given.clean if direction == "noising" else given.corrupted
        return edges.dotted(given, change, edges.reader_gradients(given, x, rules=RULES[name][1]))
    clean = given.plain.embedded(given.clean)
    shares = SHARES[rule](3) if rule else [0, 1]
    total = torch.zeros(())
    for share in shares:
        x = gone["input"] + float(share) * (clean - gone["input"])
        total = total + edges.dotted(given, change, edges.reader_gradients(given, x))
    return total / len(shares)


def compare(ours: np.ndarray, theirs: Tensor, mask: np.ndarray) -> None:
    """``[..., writer, reader]``; edges that do not exist are NaN in ours."""
    np.testing.assert_array_equal(np.isnan(ours), np.broadcast_to(~mask, ours.shape))
    wanted = theirs.numpy()
    scale = np.abs(wanted).max()
    assert scale > 1e-4, "nothing is attributed, so nothing is tested"
    np.testing.assert_allclose(np.where(mask, ours, 0), wanted, atol=NEAR * scale, rtol=0)


def nodes_agree(scores: Scores) -> None:
    """Edges out of a node sum to what the gradient on the stream gives the node."""
    assert scores.nodes is not None
    gap = float(np.abs(np.nansum(scores.values, axis=1) - scores.nodes).max() / np.abs(scores.nodes).max())
    assert gap < 1e-4
    assert scores.facts["identity_gap"] == pytest.approx(gap)


@pytest.mark.parametrize(("case", "same"), [("eap", 0), *((case, 2) for case in METHOD_CASES)])
@pytest.mark.parametrize("family", COSTLY)
def test_every_edge_is_that_of_the_reference(family: str, case: str, same: int) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=3, last=False, same=same)
    given = problem(family, pairs)
    found = scores_of(case, runs_of(model, pairs))
    compare(
        found.values,
        edges.overall(cells_of(case, given, ablated(given, "resample"), "noising")),
        model.anatomy.edge_mask,
    )
    nodes_agree(found)


@pytest.mark.parametrize("case", ["eap", "relp", "gim"])
@pytest.mark.parametrize("family", COSTLY)
def test_denoising_takes_the_gradient_at_the_corrupted_run(family: str, case: str) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=3, last=False, same=1)
    given = problem(family, pairs)
    found = scores_of(case, runs_of(model, pairs), direction="denoising")
    compare(
        found.values,
        edges.overall(cells_of(case, given, ablated(given, "resample"), "denoising")),
        model.anatomy.edge_mask,
    )
    nodes_agree(found)
    other = scores_of(case, runs_of(model, pairs))
    assert np.nanmax(np.abs(found.values - other.values)) > 1e-3


@pytest.mark.parametrize("case", ["eap-ig midpoint", "clean-corrupted"])
def test_methods_that_take_both_ends_know_no_direction(case: str) -> None:
    model = families.model("ln")
    runs = runs_of(model, pairs_for(model, same=1))
    both = [scores_of(case, runs, direction=d) for d in ("noising", "denoising")]
    np.testing.assert_array_equal(both[0].values, both[1].values)


@pytest.mark.parametrize("kind", ["mean", "zero"])
@pytest.mark.parametrize(("family", "case"), families.thinned(FEW, METHOD_CASES))
def test_other_ablations(family: str, case: str, kind: Ablation) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=3, last=False, same=2)
    given = problem(family, pairs)
    gone = ablated(given, kind)
    if case == "clean-corrupted" or case.startswith("eap-ig"):
        gone["input"] = gone["input"] + torch.zeros_like(given.plain.embedded(given.clean))
    found = scores_of(case, runs_of(model, pairs), kind)
    # From embeddings of nothing but zeros a norm magnifies rounding: left out (eps is what is left of the stream).
    if kind == "zero" and case in ("eap-ig left", "clean-corrupted"):
        nodes_agree(found)
        return
    compare(found.values, edges.overall(cells_of(case, given, gone, "noising")), model.anatomy.edge_mask)
    nodes_agree(found)


# --- lengths, batches, chunks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "case"), families.thinned(["gpt2", "gemma2", "neox", "kv-groups"], METHOD_CASES)
)
def test_mixed_lengths_are_those_of_the_reference(family: str, case: str) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=5, lengths=MIXED, last=False, same=1)
    given = problem(family, pairs)
    wanted = edges.overall(cells_of(case, given, ablated(given, "resample"), "noising"))
    for limit in (4096, 20, 1):
        runs = runs_of(model, pairs, sizes={"batch_tokens": limit})
        assert (len(runs.batches) == 1) == (limit == 4096)
        compare(scores_of(case, runs).values, wanted, model.anatomy.edge_mask)


@pytest.mark.parametrize(
    ("family", "ablation"),
    families.thinned(["gpt2", "gemma2", "bidirectional", "attn-only"], ["resample", "mean", "zero"]),
)
def test_scores_do_not_depend_on_batches_or_chunks(
    family: str, ablation: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.model(family)
    pairs = pairs_for(model, count=8, lengths=(6, 9), last=False)
    for case in ("eap", "eap-ig midpoint"):
        wanted = scores_of(case, runs_of(model, pairs), ablation)
        near = {"atol": NEAR * float(np.nanmax(np.abs(wanted.values))), "rtol": 0}
        alone = scores_of(case, runs_of(model, pairs, sizes={"batch_tokens": 1}), ablation)
        np.testing.assert_allclose(alone.values, wanted.values, **near)
        with monkeypatch.context() as patch:
            patch.setattr(contraction, "CHUNK_BYTES", len(model.anatomy.writers) * model.d_model * 4 * 5)
            chunked = scores_of(case, runs_of(model, pairs), ablation, positions="all")
            wanted = scores_of(case, runs_of(model, pairs), ablation, positions="all")
            np.testing.assert_allclose(chunked.values, wanted.values, **near)
            chunked = scores_of(case, runs_of(model, pairs), ablation)
        np.testing.assert_allclose(np.nansum(chunked.values), np.nansum(alone.values), atol=1e-3)
        np.testing.assert_allclose(chunked.values, alone.values, **near)


# --- positions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "case"), families.thinned(FEW, METHOD_CASES))
def test_positions_are_those_of_the_reference(family: str, case: str) -> None:
    model = families.model(family)
    pairs = pairs_for(
        model, count=3, lengths=(6,) if family == "bidirectional" else MIXED, last=False, same=1
    )
    given = problem(family, pairs)
    wanted = edges.by_position(cells_of(case, given, ablated(given, "resample"), "noising"))
    for limit in (4096, 1):
        runs = runs_of(model, pairs, sizes={"batch_tokens": limit})
        found, plain = scores_of(case, runs, positions="all"), scores_of(case, runs)
        assert found.by_position is not None
        assert found.position_names == tuple(str(i) for i in range(max(len(p.clean) for p in pairs)))
        compare(found.by_position, wanted, model.anatomy.edge_mask)
        merges(found, plain)


def merges(found: Scores, plain: Scores) -> None:
    """Signed sums are the plain scores; merged values are sums of absolute values, for edges and for nodes."""
    assert found.by_position is not None
    scale = float(np.nanmax(np.abs(plain.values)))
    np.testing.assert_allclose(found.by_position.sum(0), plain.values, atol=NEAR * scale, rtol=0)
    np.testing.assert_allclose(found.values, np.abs(found.by_position).sum(0), atol=1e-12, rtol=1e-9)
    assert found.nodes is not None
    by_node = np.abs(np.nansum(found.by_position, axis=2)).sum(0)
    np.testing.assert_allclose(found.nodes, by_node, atol=1e-4 * float(np.abs(by_node).max()), rtol=0)
    assert (found.nodes >= 0).all()
    assert plain.by_position is None
    assert plain.position_names is None


def named(pairs: Sequence[PromptPair]) -> PromptPairs:
    """Some positions have names, not the same in every prompt."""
    spots = [{"S": 1, "END": 4}, {"END": 3, "S": 2}, {"S": 0}]
    return PromptPairs(tuple(replace(p, positions=spots[i % 3]) for i, p in enumerate(pairs)), "random")


@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bidirectional"])
def test_named_positions_are_sums_of_their_positions(family: str, ablation: Ablation) -> None:
    model = families.model(family)
    pairs = named(list(pairs_for(model, count=4)))
    given = problem(family, pairs)
    cells = cells_of("eap", given, ablated(given, ablation), "noising")
    wanted = torch.zeros(3, *cells.shape[2:], dtype=cells.dtype)
    for row, pair in enumerate(pairs):
        for position in range(cells.shape[1]):
            name = next((n for n, at in pair.positions.items() if at == position), "other")
            wanted[["S", "END", "other"].index(name)] += cells[row, position] / len(pairs)
    for limit in (4096, 1):
        runs = runs_of(model, pairs, sizes={"batch_tokens": limit})
        found = scores_of("eap", runs, ablation, positions="named")
        assert found.position_names == ("S", "END", "other")
        assert found.by_position is not None
        compare(found.by_position, wanted, model.anatomy.edge_mask)
        merges(found, scores_of("eap", runs, ablation))


def test_positions_need_names_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    from circuitfind.methods import positions

    model = families.model("ln")
    runs = runs_of(model, pairs_for(model))
    with pytest.raises(UnsupportedError, match="name no positions") as caught:
        scores_of("eap", runs, positions="named")
    assert "--positions all" in caught.value.hint
    monkeypatch.setattr(positions, "MOST_BYTES", 1000)
    with pytest.raises(UnsupportedError, match=r"6 positions of \d+ scores each") as caught:
        scores_of("eap", runs, positions="all")
    assert "--positions named" in caught.value.hint


# --- what it costs, and what it refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "forward", "backward"),
    [("eap", 2, 1), ("relp", 2, 1), ("gim", 2, 1), ("clean-corrupted", 2, 2), ("eap-ig midpoint", 5, 3)],
)
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_passes(case: str, forward: int, backward: int, direction: Direction) -> None:
    model = families.model("gpt2")
    runs = runs_of(model, pairs_for(model, same=1))
    before = dict(model.passes)
    scores_of(case, runs, direction=direction)
    spent = {k: model.passes[k] - before[k] for k in ("forward", "backward")}
    assert spent == {"forward": forward, "backward": backward}
    name, _, rule = case.partition(" ")
    cost = get_method(name, {"steps": 3} if rule else {}).cost(model.anatomy)
    assert (cost.forward, cost.backward) == (forward, backward)


def test_zero_ablation_needs_no_corrupted_run() -> None:
    model = families.model("gpt2")
    runs = runs_of(model, pairs_for(model))
    before = dict(model.passes)
    scores_of("eap", runs, "zero")
    assert {k: model.passes[k] - before[k] for k in ("forward", "backward")} == {"forward": 1, "backward": 1}


def test_refusals() -> None:
    model = families.model("gpt2")
    pairs = pairs_for(model)
    for case in ("eap", "relp", "gim"):
        for ablation in ("mean", "zero"):
            with pytest.raises(UnsupportedError, match="denoising"):
                scores_of(case, runs_of(model, pairs), ablation, "denoising")  # type: ignore[arg-type]
    for case in ("eap", "relp", "gim", "clean-corrupted", "eap-ig right"):
        with pytest.raises(UnsupportedError, match="zero, so it says nothing"):
            scores_of(case, runs_of(model, pairs, "kl"))
    for case in ("eap-ig midpoint", "eap-ig left"):
        assert np.nanmax(np.abs(scores_of(case, runs_of(model, pairs, "kl")).values)) > 0
    for case in METHOD_CASES:
        with pytest.raises(UnsupportedError, match="no gradient"):
            scores_of(case, runs_of(model, pairs, "accuracy"))


def test_relp_needs_neurons_that_stand_apart() -> None:
    model = families.model("solu-ln")
    with pytest.raises(UnsupportedError, match="mixes neurons"):
        scores_of("relp", runs_of(model, pairs_for(model)))


def test_a_broken_gradient_is_caught_by_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.model("gpt2")
    monkeypatch.setattr(Norm, "pullback", lambda self, x, v, frozen=False: v)
    with pytest.raises(RunError, match="do not sum to the node"):
        scores_of("eap", runs_of(model, pairs_for(model)))


# --- options --------------------------------------------------------------------------------------------------


def test_the_registry_gives_it() -> None:
    assert isinstance(get_method("eap"), EAP)
    for name in METHODS:
        method = get_method(name)
        assert (method.name, method.level) == (name, METHODS[name].level)
        assert isinstance(options_of(name), dict)
    assert options_of("eap") == {}
    assert options_of("eap-ig") == {"steps": 5, "points": "midpoint"}
    assert options_of("relp") == {"freeze_attention": False}
    assert options_of("gim") == {"temperature": 2.0}


def test_options_are_read_as_what_they_are() -> None:
    assert get_method("eap-ig", {"steps": "12", "points": "left"}) == get_method(
        "eap-ig", {"steps": 12, "points": "left"}
    )
    for text, value in (
        ("yes", True),
        ("On", True),
        ("true", True),
        ("no", False),
        ("off", False),
        ("False", False),
    ):
        assert get_method("relp", {"freeze-attention": text}) == get_method(
            "relp", {"freeze_attention": value}
        )
    assert get_method("gim", {"temperature": "1.5"}) == get_method("gim", {"temperature": 1.5})


@pytest.mark.parametrize(
    ("name", "options", "problem", "hint"),
    [
        ("eap-ig", {"step": "5"}, "no option 'step'", "steps"),
        ("eap-ig", {"point": "left"}, "no option 'point'", "points"),
        ("relp", {"freeze-atention": "yes"}, "no option 'freeze_atention'", "freeze_attention"),
        ("eap", {"steps": "5"}, "no option 'steps'", "none"),
        ("eap-ig", {"steps": "many"}, "steps=many is not a whole number", "5"),
        ("eap-ig", {"steps": "2.5"}, "steps=2.5 is not a whole number", "5"),
        ("gim", {"temperature": "warm"}, "temperature=warm is not a number", "2.0"),
        ("relp", {"freeze_attention": "perhaps"}, "freeze_attention=perhaps is not yes or no", "False"),
        ("eap-igg", {}, "no method is named 'eap-igg'", "eap-ig"),
    ],
)
def test_wrong_options_are_refused_by_name(
    name: str, options: dict[str, str], problem: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        get_method(name, options)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"steps": 0}, "0 steps"), ({"steps": -3}, "-3 steps"), ({"points": "midle"}, "named 'midle'")],
)
def test_an_integral_needs_points(options: dict[str, object], problem: str) -> None:
    model = families.model("ln")
    with pytest.raises(UsageError, match=problem):
        get_method("eap-ig", options).run(
            runs_of(model, pairs_for(model)), ablation="resample", direction="noising"
        )
