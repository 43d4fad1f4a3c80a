"""Path patching against the two passes and the treeified recursion of tests/methods/slow/paths.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from circuitfind.circuit.scores import Scores
from circuitfind.config import Ablation, Direction
from circuitfind.errors import UnsupportedError, UsageError
from circuitfind.methods.path_patching import PathPatching
from circuitfind.methods.patterns import inputs_named, writers_named
from circuitfind.model.bridge import Model
from circuitfind.model.memory import make_plan
from circuitfind.model.node_pass import Patch
from circuitfind.model.runs import Runs
from circuitfind.task.metrics import get_metric
from circuitfind.task.pairs import PromptPairs
from tests import families
from tests.families import pairs_for
from tests.methods.slow import paths as slow
from tests.methods.slow.problem import Problem, problem

CLOSE = 2e-5
"""Single precision against double precision, in logits of size one."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with families.one_thread():
        yield


def runs_of(model: Model, pairs: PromptPairs, **plan: int) -> Runs:
    return Runs(model, pairs, get_metric("logit-diff"), plan=replace(make_plan(model, None), **plan))


def patching(
    runs: Runs, direction: Direction = "noising", ablation: Ablation = "resample", **options: str
) -> Scores:
    return PathPatching(**options).run(runs, ablation=ablation, direction=direction)


def case(family: str, direction: Direction = "noising") -> tuple[Model, Runs, Problem, int]:
    """The model, runs in several batches and passes, the slow problem that they are, and its sign."""
    model = families.model(family)
    pairs = pairs_for(model, count=4, last=False, lengths=(5, 6) if model.causal else (6,), same=1)
    given = problem(family, pairs)
    runs = runs_of(model, pairs, batch_tokens=12, edge_tokens=60)
    return (
        model,
        runs,
        given if direction == "noising" else given.swapped(),
        1 if direction == "noising" else -1,
    )


def receiver_names(model: Model, text: str) -> list[str]:
    """What a list of receivers stands for, said in another way than by the method."""
    layer = 1
    kv = f"a{layer}.kv0" if model.anatomy.grouped else f"a{layer}.h0"
    known = {
        "logits": ["logits"],
        "a1.h1<q>": ["a1.h1<q>"],
        "a1.*<v>": [
            name for name in model.anatomy.reader_names if name.startswith("a1.") and name.endswith("<v>")
        ],
        "a1.h*<q>,a1.h0<k>": [
            *(name for name in model.anatomy.reader_names if name.startswith("a1.") and name.endswith("<q>")),
            f"{kv}<k>",
        ],
        "a0.h1<v>,m1": [f"{'a0.kv0' if model.anatomy.grouped else 'a0.h1'}<v>", "m1"],
    }
    return known[text]


BOTH_WAYS = pytest.mark.parametrize(
    ("family", "direction"), families.thinned(families.FAMILIES, ["noising", "denoising"], 2)
)
CASES = (
    ("logits", ""),
    ("logits", "m*"),
    ("logits", "*"),
    ("a1.h1<q>", "m*"),
    ("a1.*<v>", "a*"),
    ("a1.h*<q>,a1.h0<k>", "*"),
    ("a0.h1<v>,m1", "a0.*, m*"),
)


@BOTH_WAYS
def test_senders_to_receivers(family: str, direction: Direction) -> None:
    model, runs, given, sign = case(family, direction)
    names = model.anatomy.writer_names
    for receivers, via in CASES:
        if not model.has_mlp and "m" in receivers + via:
            continue
        scores = patching(runs, direction, receivers=receivers, via=via)
        assert scores.per_prompt is not None
        through = [name for name, on in zip(names, writers_named(model.anatomy, via), strict=True) if on]
        ends = receiver_names(model, receivers)
        for w, name in enumerate(names):
            wanted = sign * slow.path_patching(given, [name], ends, through).numpy()
            if np.isnan(scores.values[w]):
                assert not wanted.any(), (name, receivers, via)
            else:
                np.testing.assert_allclose(scores.per_prompt[:, w], wanted, atol=CLOSE)


@BOTH_WAYS
def test_paths_of_several_hops(family: str, direction: Direction) -> None:
    """Against the model as a tree, in which every path has copies of its own."""
    model, runs, given, sign = case(family, direction)
    kv = "a1.kv0" if model.anatomy.grouped else "a1.h1"
    for slot, reader in (("q", "a1.h1<q>"), ("k", f"{kv}<k>"), ("v", f"{kv}<v>")):
        if family == "gemma2" and slot != "q":
            continue  # its norm behind attention sees both heads of a group in the tree, and one on a path
        path = f"input, a0.* -> a1.h1<{slot}> -> logits"
        scores = patching(runs, direction, path=path)
        senders = [name for name in model.anatomy.writer_names if name == "input" or name.startswith("a0.")]
        for name in model.anatomy.writer_names:
            row = model.anatomy.row_of(name)
            if name not in senders:
                assert np.isnan(scores.values[row])
                continue
            wanted = sign * slow.treeified(given, [(name, reader, "a1.h1", "logits")])
            assert scores.values[row] == pytest.approx(float(wanted.mean()), abs=CLOSE), (name, path)
    if model.has_mlp:
        path = f"input -> a0.h1<v> -> {'a1.h0<q>' if model.anatomy.parallel else 'm0 -> a1.h0<q>'} -> logits"
        if family == "gemma2":
            return
        value = "a0.kv0<v>" if model.anatomy.grouped else "a0.h1<v>"
        middle = () if model.anatomy.parallel else ("m0", "m0")
        wanted = sign * slow.treeified(
            given, [("input", value, "a0.h1", *middle, "a1.h0<q>", "a1.h0", "logits")]
        )
        found = patching(runs, direction, path=path)
        assert found.values[0] == pytest.approx(float(wanted.mean()), abs=CLOSE)


@pytest.mark.parametrize("family", ["ln", "neox", "qwen3", "bidirectional"])
def test_hops_with_carriers_and_several_nodes(family: str) -> None:
    """All paths from the sender to one of two heads by way of an MLP or straight, and on from there likewise."""
    model, runs, given, _ = case(family)
    scores = patching(runs, path="a0.h0 -> a1.h0<q>, a1.h1<q> -> logits", via="m*")
    plain = given.plain
    mlps = [f"m{layer}" for layer in range(model.anatomy.n_layers)]
    chosen = []
    for head in ("a1.h0", "a1.h1"):
        for start in slow.every_path(plain, ["a0.h0"], f"{head}<q>", mlps):
            chosen += [(*start, *end) for end in slow.every_path(plain, [head], "logits", mlps)]
    wanted = slow.treeified(given, chosen).numpy()
    assert scores.per_prompt is not None
    np.testing.assert_allclose(scores.per_prompt[:, model.anatomy.row_of("a0.h0")], wanted, atol=CLOSE)


@pytest.mark.parametrize("family", ["ln", "neox", "gemma2", "kv-groups"])
def test_known_ends(family: str) -> None:
    """All ways at once are plain patching of the node, and none but the straight one an edge to the logits."""
    model, runs, _, _ = case(family)
    anatomy = model.anatomy
    every = patching(runs, via="*")
    nodes = runs.clean - runs.patched([Patch(nodes=row) for row in np.eye(len(anatomy.writers), dtype=bool)])
    np.testing.assert_allclose(every.values, nodes.mean(1), atol=CLOSE)
    straight = patching(runs)
    edges = [Patch(edge=(w, len(anatomy.readers) - 1)) for w in range(len(anatomy.writers))]
    np.testing.assert_allclose(straight.values, (runs.clean - runs.patched(edges)).mean(1), atol=CLOSE)
    # One receiver and nothing between: the effect of one edge.
    column = anatomy.reader_index["a1.h1<q>"]
    one = patching(runs, senders="a0.h1", receivers="a1.h1<q>")
    edge = runs.patched([Patch(edge=(anatomy.row_of("a0.h1"), column))])
    assert one.values[anatomy.row_of("a0.h1")] == pytest.approx((runs.clean - edge[0]).mean(), abs=CLOSE)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_other_ablations(ablation: Ablation) -> None:
    """What senders carry is all that an ablation changes: straight paths to a reader are edges."""
    model = families.model("gpt2")
    runs = runs_of(model, pairs_for(model, count=4))
    anatomy, column = model.anatomy, model.anatomy.reader_index["a1.h0<v>"]
    scores = patching(runs, ablation=ablation, receivers="a1.h0<v>")
    rows = np.flatnonzero(anatomy.edge_mask[:, column])
    found = runs.clean - runs.patched([Patch(edge=(int(w), column)) for w in rows], ablation=ablation)
    np.testing.assert_allclose(scores.values[rows], found.mean(1), atol=CLOSE)
    assert np.isnan(np.delete(scores.values, rows)).all()


def test_grouped_heads_are_named_either_way() -> None:
    _, runs, given, _ = case("kv-groups")
    one, other = (patching(runs, receivers=name).values for name in ("a1.h1<k>", "a1.kv0<k>"))
    np.testing.assert_array_equal(one, other)
    # On the way, a head goes on alone and a key/value head through all that it serves.
    alone = patching(runs, path="input -> a1.h1<k> -> logits").values[0]
    shared = patching(runs, path="input -> a1.kv0<k> -> logits").values[0]
    for heads, found in ((("a1.h1",), alone), (("a1.h0", "a1.h1"), shared)):
        wanted = slow.treeified(given, [("input", "a1.kv0<k>", head, "logits") for head in heads])
        assert found == pytest.approx(float(wanted.mean()), abs=CLOSE)


def test_passes_and_work() -> None:
    """A pass for each hop and one more behind receivers; layers in front of the senders are not computed."""
    model = families.model("gpt2")
    runs = runs_of(model, pairs_for(model, count=2, lengths=(6,), same=2))
    _ = runs.clean, runs.corrupted
    rows = 2 * 4
    for options, senders, passes, work in (
        ({}, 11, 1, 0),
        ({"senders": "a0.h0", "via": "a1.h0"}, 1, 1, rows),
        ({"senders": "a0.h0", "receivers": "a1.h1<q>"}, 1, 2, rows),
        ({"path": "a0.h0 -> a1.h1<q> -> logits"}, 1, 2, rows),
    ):
        method = PathPatching(**options)
        before = dict(model.passes)
        method.run(runs, ablation="resample", direction="noising")
        assert model.passes["forward"] - before["forward"] == passes
        assert model.passes["work"] - before["work"] == work
        assert method.cost(model.anatomy).forward == 2 + senders * passes


# Names.


def test_patterns() -> None:
    anatomy = families.model("kv-groups").anatomy
    names = np.array(anatomy.writer_names)
    assert list(names[writers_named(anatomy, "m*, a0.h?, 1.1")]) == [
        *(f"a0.h{h}" for h in range(anatomy.n_heads)),
        "m0",
        "a1.h1",
        "m1",
    ]
    assert not writers_named(anatomy, "").any()
    assert inputs_named(anatomy, "a1.h2").slots[1, :, 2].all()
    assert inputs_named(anatomy, "a1.h2").slots.sum() == 3
    assert inputs_named(anatomy, "a1.kv1").slots.sum() == 2 * anatomy.n_heads // anatomy.n_kv_heads
    assert inputs_named(anatomy, "a*<q>").slots[:, 0].all()
    assert inputs_named(anatomy, "logits").logits


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"senders": "a9.h0"}, "no 'a9.h0'", "nearest name"),
        ({"senders": "head"}, "not the name of a node", "a9.h6"),
        ({"senders": "b*"}, "no writer .* fits 'b", "a0"),
        ({"via": "x?"}, "no writer .* fits", "a0"),
        ({"receivers": "a1.h9<q>"}, "no 'a1.h9<q>'", "nearest name"),
        ({"receivers": "a7.*<q>"}, "no input .* fits", "logits"),
        ({"receivers": "input"}, "reads nothing", "sender"),
        ({"receivers": "logits, m1"}, "beside", "alone"),
        ({"receivers": ""}, "empty", "->"),
        ({"senders": "a0.h0@END"}, "position", "a0.h0"),
        ({"senders": "a1.h0", "receivers": "a0.h0<q>"}, "no path leads from a1.h0 to a0.h0<q>", "above"),
        ({"senders": "a1.*", "receivers": "a0.h0<q>"}, "no path leads", "above"),
        ({"path": "a0.h0"}, "no path", "->"),
        ({"path": "a0.h0 -> -> logits"}, "empty", "->"),
        ({"path": "a0.h0 -> logits -> m1"}, "goes on", "end"),
        ({"path": "a0.h0 -> a1.h0<q> -> a0.h1<v>"}, "no path leads from a1.h0<q> to a0.h1<v>", "above"),
        ({"path": "a0.h0 -> logits", "senders": "m*"}, "itself", "path"),
    ],
)
def test_refused_names(options: dict[str, str], message: str, hint: str) -> None:
    anatomy = families.model("gpt2").anatomy
    with pytest.raises(UsageError, match=message) as caught:
        PathPatching(**options).paths(anatomy)
    assert hint in (caught.value.hint or "")


def test_refusals() -> None:
    model = families.model("gpt2")
    runs = runs_of(model, pairs_for(model))
    with pytest.raises(UnsupportedError, match="positions"):
        PathPatching().run(runs, ablation="resample", direction="noising", positions="named")
    with pytest.raises(UnsupportedError, match="denoising"):
        patching(runs, "denoising", "zero")
