"""The known circuits and what is expected of them: names that exist, sources, counts by tier, prompts that are true.

Cases of tier 2 and 3 are not run here. Their prompts are made with GPT-2's tokenizer (test_tasks.py), their names are
looked up in the shape of their model, and those of GPT-2 go through the same machinery on random weights
(test_gpt2_shape.py).
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from circuitfind.config import MODELS_VARIABLE
from circuitfind.errors import TaskError
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import Kind, Node, parse_edge, parse_node
from circuitfind.task.findings import Expect, Known, Top
from circuitfind.task.spec import TaskSpec, find_tasks, load_task
from circuitfind.zoo import is_planted

FOLDER = Path(__file__).parents[2] / "tasks"
SPECS = {name: load_task(path) for name, path in find_tasks([FOLDER]).items()}
LOCAL = f"${MODELS_VARIABLE}/"


def shape(
    layers: int, heads: int, kv_heads: int = 0, *, has_mlp: bool = True, parallel: bool = False
) -> Anatomy:
    return Anatomy(layers, heads, kv_heads or heads, has_mlp=has_mlp, parallel=parallel)


SHAPES = {
    "mini": shape(4, 8),
    "mini-redundant": shape(4, 8),
    "gpt2": shape(12, 12),
    "gpt2-medium": shape(24, 16),
    "EleutherAI/pythia-2.8b-deduped": shape(32, 32, parallel=True),
    "meta-llama/Meta-Llama-3-8B": shape(32, 32, 8),
    "meta-llama/Llama-3.1-8B": shape(32, 32, 8),
    "Qwen/Qwen2.5-0.5B": shape(24, 14, 2),
    "google/gemma-2-2b": shape(26, 8, 4),
    f"{LOCAL}attn-only-4l": shape(4, 8, has_mlp=False),
    f"{LOCAL}attn-only-2l": shape(2, 8, has_mlp=False),
    f"{LOCAL}arena-2l": shape(2, 12, has_mlp=False),
    f"{LOCAL}redwood-2l": shape(2, 8, has_mlp=False),
    f"{LOCAL}bracket-classifier": shape(3, 2),
    f"{LOCAL}interpbench-ioi": shape(6, 4),
    f"{LOCAL}modadd-113": shape(1, 4),
    f"{LOCAL}indhead-1h": shape(2, 1, has_mlp=False),
}


@cache
def anatomy(model: str) -> Anatomy:
    if is_planted(model):
        from circuitfind.model.load import planted

        config = planted(model).config
        return shape(config["n_layers"], config["n_heads"], has_mlp=not config["attn_only"])
    return SHAPES[model]


def cases() -> list[tuple[str, str, Expect]]:
    return [
        (name, model, expect)
        for name, spec in SPECS.items()
        for model in spec.expect
        for expect in spec.expect_of(model)
    ]


def lists() -> list[tuple[str, str, Known]]:
    return [
        (name, model, known)
        for name, spec in SPECS.items()
        for model in spec.known
        for known in spec.known_of(model)
    ]


def label(value: object) -> str | None:
    name = getattr(value, "name", None)
    return str(value) if isinstance(value, str) else name or type(value).__name__


every_case = pytest.mark.parametrize(("name", "model", "expect"), cases(), ids=label)
every_list = pytest.mark.parametrize(("name", "model", "known"), lists(), ids=label)


def of_tier(tier: int) -> set[tuple[str, str]]:
    return {(name, model) for name, model, expect in cases() if expect.tier == tier}


def known(task: str, model: str, name: str) -> Known:
    (found,) = SPECS[task].known_of(model, name)
    return found


def heads(text: str) -> set[str]:
    """``9.6 10.0`` as names."""
    return {str(parse_node(one)) for one in text.split()}


# --- counts and tiers ---------------------------------------------------------------------------------------


def test_there_are_enough_cases_in_every_tier() -> None:
    assert len({(name, model) for name, model, _ in cases()}) >= 28
    tasks = {tier: {name for name, _ in of_tier(tier)} for tier in (1, 2, 3)}
    assert len(of_tier(1)) >= 27
    assert tasks[2] >= {
        *("ioi", "greater-than", "docstring", "induction", "acronyms", "copy-suppression", "successor"),
        *("sentiment", "gendered-pronoun", "subject-verb-agreement", "bracket-classifier"),
        *("modular-addition", "interpbench-ioi"),
    }
    assert tasks[3] >= {
        *("ioi", "coloured-objects", "sports"),
        *("arithmetic-addition", "arithmetic-subtraction", "arithmetic-division"),
    }
    assert {("ioi", "gpt2-medium"), ("coloured-objects", "gpt2-medium")} <= of_tier(3)


def test_the_first_tier_needs_nothing_but_the_package() -> None:
    embedded = {"mini", "mini-redundant"}
    for name, model, expect in cases():
        at_hand = model in embedded or is_planted(model)
        assert (expect.tier == 1) == at_hand, (name, model)
    planted = {spec.model for spec in SPECS.values() if is_planted(spec.model)}
    assert {model for _, model in of_tier(1)} >= planted


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if is_planted(spec.model)])
def test_planted_cases_expect_the_truth(name: str) -> None:
    from circuitfind.model.load import planted

    spec = SPECS[name]
    truth = planted(spec.model)
    for expect in spec.expect_of(spec.model):
        ablation = expect.settings.ablation or spec.ablation
        if ablation in truth.edges and expect.settings.nodes is None:
            assert expect.precision is not None
            assert expect.recall is not None
            assert (expect.precision.min, expect.recall.min) == (1, 1)
        stand_in = {node for node, kind in truth.classes.items() if "backup" in kind}
        if stand_in:
            assert expect.backups is not None
            assert set(expect.backups.contains) == stand_in
        relief = {node for node, kind in truth.classes.items() if kind == "relief"}
        assert set(expect.negative) == relief
        if truth.classes:
            assert expect.backups is not None
            assert not set(expect.backups.excludes) & stand_in
            assert set(truth.classes) <= {*expect.backups.contains, *expect.backups.excludes}


# --- names --------------------------------------------------------------------------------------------------


def check_node(where: Anatomy, name: str) -> None:
    node = parse_node(name)
    assert node in where.writers, f"{name} is not in a model of {where.n_layers} x {where.n_heads} heads"


def check_edge(where: Anatomy, name: str) -> None:
    writer, reader = where.index_of(parse_edge(name))
    assert where.edge_mask[writer, reader], name


@every_list
def test_known_names_exist(name: str, model: str, known: Known) -> None:
    where = anatomy(model)
    for node in known.nodes:
        check_node(where, node)
    for edge in known.edges:
        check_edge(where, edge)
    listed = set(known.nodes)
    assert len(listed) == len(known.nodes)
    assert len(set(known.edges)) == len(known.edges)
    for nodes in (*known.roles.values(), *known.positions.values()):
        assert set(nodes) <= listed
    if known.edges and known.heads:
        ends = {end.split("<")[0] for edge in known.edges for end in edge.split("->")}
        assert {end for end in ends if parse_node(end).kind is Kind.HEAD} <= set(known.heads)


@every_list
def test_known_lists_say_whence_and_how(name: str, model: str, known: Known) -> None:
    assert known.name
    assert known.source
    assert known.ablation
    assert known.replicates or known.note


def test_names_of_lists_differ() -> None:
    for spec in SPECS.values():
        for model in spec.known:
            names = [one.name for one in spec.known_of(model)]
            assert len(set(names)) == len(names)


@every_case
def test_expected_names_exist(name: str, model: str, expect: Expect) -> None:
    where = anatomy(model)
    for part in (expect.contains, expect.excludes):
        for node in part.nodes if part else ():
            check_node(where, node)
        for edge in part.edges if part else ():
            check_edge(where, edge)
    if expect.strongest is not None:
        for node in filter(None, (expect.strongest.head, expect.strongest.mlp)):
            check_node(where, node)
        if expect.strongest.edge is not None:
            check_edge(where, expect.strongest.edge)
    for node in (*(expect.top.heads if expect.top else ()), *expect.negative):
        check_node(where, node)
    if expect.backups is not None:
        for node in (*expect.backups.contains, *expect.backups.excludes, *expect.backups.kinds):
            check_node(where, node)
        assert not set(expect.backups.contains) & set(expect.backups.excludes)


@every_case
def test_what_is_expected_can_be_judged(name: str, model: str, expect: Expect) -> None:
    spec = SPECS[name]
    for list_name in filter(None, (expect.against, *expect.refuses)):
        assert spec.known_of(model, list_name), f"{name} has no list {list_name} of {model}"
    assert all(not known.replicates for one in expect.refuses for known in spec.known_of(model, one))
    if any((expect.precision, expect.recall, expect.roc_auc)):
        assert expect.against or is_planted(model) or spec.known_of(model)
    settings = expect.settings
    assert settings.counterfactual is None or settings.counterfactual in spec.counterfactuals
    stated = expect.model_dump(exclude_defaults=True, exclude={"name", "tier", "settings"})
    assert stated, "expects nothing"


def test_every_list_that_does_not_replicate_is_refused_somewhere() -> None:
    bad = [(name, model, known.name) for name, model, known in lists() if not known.replicates]
    assert len(bad) >= 4
    for name, model, list_name in bad:
        assert any(list_name in expect.refuses for expect in SPECS[name].expect_of(model))


# --- what was published -------------------------------------------------------------------------------------


def test_the_26_heads_by_class() -> None:
    wang = known("ioi", "gpt2", "wang")
    assert Counter({role: len(nodes) for role, nodes in wang.roles.items()}) == {
        "name-mover": 3,
        "backup-name-mover": 8,
        "negative-name-mover": 2,
        "s-inhibition": 4,
        "induction": 4,
        "duplicate-token": 3,
        "previous-token": 2,
    }
    assert {node for nodes in wang.roles.values() for node in nodes} == set(wang.heads)
    assert len(wang.heads) == 26
    assert known("ioi", "gpt2", "wang-heads").heads == wang.heads
    assert not set(wang.heads) & set(known("ioi", "gpt2", "random").heads)


PUBLISHED = {
    ("acronyms", "gpt2", "acronyms"): "8.11 9.9 10.10 11.4 5.8 4.11 2.2 1.0",
    ("copy-suppression", "gpt2", "copy-suppression"): "10.7 11.10",
    ("sentiment", "gpt2", "tigges"): "7.1 9.2 10.1 10.4 9.10 11.9 6.4 8.5 5.7 8.4 3.11",
    ("greater-than", "gpt2", "hanna"): "5.1 5.5 6.9 7.10 8.8 8.11 9.1",
    ("greater-than", "gpt2", "acdc"): "0.1 0.3 0.5 5.5 6.1 6.9 7.10 8.11 9.1",
    ("successor", "gpt2", "successor-head"): "9.1",
    ("gendered-pronoun", "gpt2", "mathwin"): "0.10 3.0 5.8 6.6 8.6",
    ("subject-verb-agreement", "gpt2", "lazo"): "11.7 11.6 0.4 11.4 0.8 2.6 1.0 2.1 1.1 6.0 10.0 9.4",
    ("docstring", f"{LOCAL}attn-only-4l", "docstring"): "0.5 1.2 1.4 2.0 3.0 3.6",
    ("interpbench-ioi", f"{LOCAL}interpbench-ioi", "interpbench"): "1.1 2.1 4.1",
    ("bracket-classifier", f"{LOCAL}bracket-classifier", "arena"): "0.0 2.0 2.1",
    ("sports", "EleutherAI/pythia-2.8b-deduped", "fact-finding"): "16.20 21.9 22.17 22.15 17.30 19.24",
    ("arithmetic-addition", "meta-llama/Meta-Llama-3-8B", "heads"): "2.2 5.3 5.31 14.12 15.13 16.21",
    ("arithmetic-subtraction", "meta-llama/Meta-Llama-3-8B", "heads"): "2.2 13.21 13.22 14.12 15.13 16.21",
    ("arithmetic-division", "meta-llama/Meta-Llama-3-8B", "heads"): "2.2 5.31 15.13 15.14 16.21 18.16",
}


@pytest.mark.parametrize("key", PUBLISHED, ids="/".join)
def test_published_heads(key: tuple[str, str, str]) -> None:
    assert set(known(*key).heads) == heads(PUBLISHED[key])


def test_docstring_has_its_24_edges() -> None:
    assert len(known("docstring", f"{LOCAL}attn-only-4l", "docstring").edges) == 24


def test_greater_than_as_acdc_reads_it() -> None:
    """The groups of ACDC's code, joined by its rule: every earlier member of a group to every later one of the next."""
    early, late = [f"m{i}" for i in range(4)], [f"m{i}" for i in range(8, 12)]
    middle = ["a5.h5", "a6.h1", "a6.h9", "a7.h10", "a8.h11", "a9.h1"]
    first, both = ["a0.h1"], ["a0.h3", "a0.h5"]

    def slots(name: str) -> list[str]:
        return [f"{name}<{slot}>" for slot in "qkv"] if name.startswith("a") else [name]

    def earlier(one: str, other: str) -> bool:
        a, b = parse_node(one), parse_node(other)
        return a.layer < b.layer or (a.layer == b.layer and a.kind is Kind.HEAD and b.kind is Kind.MLP)

    pairs = [("input", name) for name in (*both, *first, *early)]
    pairs += [(name, "logits") for name in (*middle, *late)]
    for group in (early, late):
        pairs += [(one, other) for one, other in permutations(group, 2) if earlier(one, other)]
    for senders, receivers in (
        (first, early),
        (first, middle),
        (both, middle),
        (early, middle),
        (middle, late),
    ):
        pairs += [(one, other) for one in senders for other in receivers if earlier(one, other)]
    edges = {f"{one}->{slot}" for one, other in pairs for slot in slots(other)}
    edges |= {f"m{one}->m{other}" for other in range(9) for one in range(other)}
    edges |= {f"m{one}->{head}<q>" for head in middle for one in range(parse_node(head).layer)}
    assert set(known("greater-than", "gpt2", "acdc").edges) == edges


# --- the schema ---------------------------------------------------------------------------------------------


def minimal(**expect: Any) -> TaskSpec:
    return TaskSpec.model_validate(
        {
            "name": "x",
            "prompts": {"pairs": [{"clean": [1, 2], "corrupted": [3, 2], "answer": 4, "wrong": 5}]},
            "expect": {"mini": expect},
        }
    )


def test_top_is_read() -> None:
    (expect,) = minimal(top={"count": 3, "heads": ["9.1"]}, negative=["L10H7"]).expect_of("mini")
    assert expect.top == Top(count=3, heads=("a9.h1",))
    assert expect.negative == ("a10.h7",)


@pytest.mark.parametrize(
    "top",
    [
        {"count": 1, "heads": ["a0.h0", "a0.h1"]},
        {"count": 5, "heads": ["a0.h0"], "at-least": 2},
        {"count": 5, "heads": []},
        {"count": 5, "heads": ["m0"]},
    ],
)
def test_top_that_nothing_can_hold(top: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TaskError)):
        minimal(top=top)


def test_backups_have_kinds() -> None:
    (expect,) = minimal(backups={"kinds": {"a1.h1": "relief"}}).expect_of("mini")
    assert expect.backups is not None
    assert expect.backups.kinds == {"a1.h1": "relief"}
    with pytest.raises(ValueError, match="relief"):
        minimal(backups={"kinds": {"a1.h1": "co-worker"}})


def test_head_names_in_the_shape_table_reach_as_far_as_the_model() -> None:
    for where in SHAPES.values():
        assert Node(Kind.HEAD, where.n_layers - 1, where.n_heads - 1) in where.writers
        assert Node(Kind.HEAD, where.n_layers, 0) not in where.writers


def test_the_page_of_known_circuits_is_up_to_date() -> None:
    root = FOLDER.parent
    found = subprocess.run(
        [sys.executable, str(root / "scripts" / "known_cases.py"), "--check"],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert found.returncode == 0, found.stdout + found.stderr
