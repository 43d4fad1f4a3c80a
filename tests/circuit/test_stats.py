"""Graph statistics against closed forms, brute force and networkx; random graphs against a list of all of them."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, permutations

import networkx as nx
import numpy as np
import pytest

from circuitfind.circuit.feature_graph import FeatureGraph
from circuitfind.circuit.graph import Circuit
from circuitfind.circuit.graph_stats import (
    DAMPING,
    Order,
    as_rows,
    communities,
    motifs,
    order_of,
    pagerank,
    paths,
    standings,
)
from circuitfind.circuit.rewire import compare, rewired
from circuitfind.errors import UsageError
from circuitfind.model.anatomy import Anatomy
from circuitfind.names import parse_edge
from tests.circuit.test_feature_graph import graph as feature_graph
from tests.output.circuits import GROUPED, SMALL, make, random_circuit


def order(n: int, edges: list[tuple[int, int]], possible: np.ndarray | None = None) -> Order:
    found = np.zeros((n, n), dtype=bool)
    found[tuple(np.array(edges).T)] = True
    every = np.triu(np.ones((n, n), dtype=bool), 1) if possible is None else possible
    return Order(tuple(f"m{i}" for i in range(n)), found, found.astype(float), every)


def random_order(n: int, density: float, seed: int) -> Order:
    rng = np.random.default_rng(seed)
    found = np.triu(rng.random((n, n)) < density, 1)
    found[np.arange(n - 1), np.arange(1, n)] = True  # in one piece
    sizes = np.where(found, rng.random((n, n)), 0)
    return Order(tuple(f"m{i}" for i in range(n)), found, sizes, np.triu(np.ones((n, n), dtype=bool), 1))


CHAIN = order(4, [(0, 1), (1, 2), (2, 3)])
FULL = order(5, list(combinations(range(5), 2)))


# From circuits to simple graphs.


def test_slots_are_one_edge() -> None:
    circuit = make({"input->a0.h0<q>": 1.0, "input->a0.h0<k>": -2.0, "a0.h0->logits": math.nan})
    found = order_of(circuit)
    assert found.names == ("input", "a0.h0", "logits")
    assert found.edges.tolist() == [[False, True, False], [False, False, True], [False, False, False]]
    assert found.sizes[0, 1] == 3.0
    assert found.sizes[1, 2] == 0.0


def test_shared_keys_stand_for_their_heads() -> None:
    circuit = make(
        {"input->a0.kv0<k>": 1.0, "input->a0.h0<q>": 0.5, "a0.h0->logits": 1.0, "a0.h1->logits": 2.0}, GROUPED
    )
    found = order_of(circuit)
    assert "a0.kv0" not in found.names
    at = {name: i for i, name in enumerate(found.names)}
    assert found.sizes[at["input"], at["a0.h0"]] == 1.0  # its own 0.5, and half of the shared edge
    assert found.sizes[at["input"], at["a0.h1"]] == 0.5


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kv", [4, 2])
def test_possible_edges_are_those_of_the_model(parallel: bool, kv: int) -> None:
    anatomy = Anatomy(3, 4, kv, parallel=parallel)
    circuit = random_circuit(anatomy, 60, 3)
    found = order_of(circuit)
    for u, a in enumerate(found.names):
        for v, b in enumerate(found.names):
            readers = ("logits",) if b == "logits" else () if b == "input" else anatomy.readers_of(_node(b))
            real = a != "logits" and any(
                anatomy.edge_mask[anatomy.writer_index[a], anatomy.reader_index[r]] for r in readers
            )
            assert found.possible[u, v] == real, (a, b)
    assert (found.edges <= found.possible).all()


def _node(name: str):  # type: ignore[no-untyped-def]
    from circuitfind.names import parse_node

    return parse_node(name)


def test_features_feed_what_comes_later() -> None:
    graph = FeatureGraph(
        nodes=(),
        edges=tuple(
            map(
                parse_edge,
                ("input@0->t0.f1@0", "t0.f1@0->t1.f2@1", "t1.f2@1->logits@1-7", "t0.err@1->t1.f2@1"),
            )
        ),
        conditions=feature_graph().conditions,
    )
    found = order_of(graph)
    at = {name: i for i, name in enumerate(found.names)}
    assert found.possible[at["t0.f1@0"], at["t1.f2@1"]]
    assert not found.possible[at["t0.err@1"], at["t0.f1@0"]]
    back = order_of(
        FeatureGraph((), tuple(map(parse_edge, ("input@1->t0.f1@1", "input@0->t0.f3@0"))), graph.conditions)
    )
    place = {name: i for i, name in enumerate(back.names)}
    assert back.possible[place["input@0"], place["t0.f1@1"]]
    assert not back.possible[place["input@1"], place["t0.f3@0"]], "nothing is read from later positions"


def test_nothing_to_count() -> None:
    with pytest.raises(UsageError, match="without edges"):
        order_of(Circuit(SMALL, (), make(["input->logits"]).conditions))


# Closed forms and brute force.


def test_density_of_a_chain_and_of_all_edges() -> None:
    assert as_rows(CHAIN)["density"] == 3 / 12
    assert as_rows(CHAIN)["share_of_possible"] == 3 / 6
    assert as_rows(FULL)["share_of_possible"] == 1


def test_paths_in_closed_form() -> None:
    assert vars(paths(CHAIN)) == {"shortest": 3, "longest": 3, "mean": 3, "count": 1}
    found = paths(FULL)  # every subset of the three between is a path
    assert (found.count, found.shortest, found.longest, found.mean) == (8, 1, 4, 2.5)
    wide = order(202, [(i, i + 1) for i in range(201)] + [(i, i + 2) for i in range(200)])
    fibonacci = [1, 1]
    while len(fibonacci) < 202:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert paths(wide).count == fibonacci[201], "more than fits into 64 bits"


@pytest.mark.parametrize("seed", range(5))
def test_paths_by_listing_them(seed: int) -> None:
    found = random_order(9, 0.3, seed)
    graph = found.network()
    lengths = [
        len(path) - 1
        for a in found.sources
        for b in found.sinks
        for path in nx.all_simple_paths(graph, found.names[a], found.names[b])
    ]
    got = paths(found)
    assert (got.count, got.shortest, got.longest) == (len(lengths), min(lengths), max(lengths))
    assert got.mean == pytest.approx(np.mean(lengths))


@pytest.mark.parametrize("seed", range(5))
def test_motifs_by_looking_at_every_triad(seed: int) -> None:
    found = random_order(10, 0.35, seed)
    e = found.edges
    count: Counter[str] = Counter()
    for a, b, c in combinations(range(10), 3):
        among = {(x, y) for x, y in permutations((a, b, c), 2) if e[x, y]}
        if len(among) == 3:
            count["feed_forward"] += 1
        elif len(among) == 2:
            (p, q), (r, s) = sorted(among)
            count["fan_out" if p == r else "fan_in" if q == s else "chain"] += 1
    assert vars(motifs(e)) == {name: count[name] for name in ("feed_forward", "chain", "fan_in", "fan_out")}
    census = nx.triadic_census(found.network())
    assert [census[kind] for kind in ("030T", "021C", "021U", "021D")] == list(vars(motifs(e)).values())


@pytest.mark.parametrize("seed", range(4))
def test_pagerank_by_its_definition(seed: int) -> None:
    found = random_order(8, 0.3, seed)
    n = 8
    step = np.full((n, n), 1 / n)
    for i in range(n):
        if found.sizes[i].sum():
            step[i] = found.sizes[i] / found.sizes[i].sum()
    google = DAMPING * step + (1 - DAMPING) / n
    values, vectors = np.linalg.eig(google.T)
    wanted = np.real(vectors[:, np.argmax(np.real(values))])
    np.testing.assert_allclose(pagerank(found), wanted / wanted.sum(), atol=1e-10)


def test_pagerank_without_sizes_counts_edges_alike() -> None:
    bare = Order(CHAIN.names, CHAIN.edges, np.zeros((4, 4)), CHAIN.possible)
    np.testing.assert_allclose(pagerank(bare), pagerank(CHAIN))
    assert pagerank(CHAIN).sum() == pytest.approx(1)


def test_betweenness_of_a_chain() -> None:
    found = {one.name: one for one in standings(CHAIN)}
    # Of the 3 * 2 ordered pairs of others, the inner ones lie between 2 each.
    assert [found[f"m{i}"].betweenness for i in range(4)] == pytest.approx([0, 2 / 6, 2 / 6, 0])
    assert (found["m0"].ins, found["m0"].outs) == (0, 1)


def test_communities_of_two_clusters() -> None:
    left = list(combinations(range(4), 2))
    right = [(a + 4, b + 4) for a, b in left]
    found = communities(order(8, [*left, *right, (3, 4)]))
    assert found.groups == (("m0", "m1", "m2", "m3"), ("m4", "m5", "m6", "m7"))
    # 13 edges; each group has 6 inside and degrees of 13.
    assert found.modularity == pytest.approx(2 * (6 / 13 - (13 / 26) ** 2))
    assert communities(order(8, [*left, *right, (3, 4)])) == found


# Random graphs.


def all_graphs(found: Order) -> set[bytes]:
    """Every graph with the same degrees whose edges are possible, by going through the rows."""
    n, outs = len(found.names), found.edges.sum(1)
    seen: set[bytes] = set()

    def fill(row: int, left: np.ndarray, edges: np.ndarray) -> None:
        if row == n:
            if not left.any():
                seen.add(edges.tobytes())
            return
        free = [j for j in range(n) if found.possible[row, j] and left[j]]
        for chosen in combinations(free, int(outs[row])):
            rest, more = left.copy(), edges.copy()
            rest[list(chosen)] -= 1
            more[row, list(chosen)] = True
            fill(row + 1, rest, more)

    fill(0, found.edges.sum(0), np.zeros_like(found.edges))
    return seen


def test_every_graph_of_the_degrees_is_about_as_likely() -> None:
    found = order(7, [(0, 2), (0, 3), (1, 2), (1, 4), (2, 5), (3, 5), (4, 6), (3, 6), (1, 6)])
    every = all_graphs(found)
    assert len(every) > 20
    draws = 4000
    seen = Counter(edges.tobytes() for edges in rewired(found, draws, switches=20))
    assert set(seen) == every
    expected = draws / len(every)
    chi = sum((seen[one] - expected) ** 2 / expected for one in every)
    # Far in the tail of chi-squared: five standard deviations above its mean.
    assert chi < len(every) - 1 + 5 * math.sqrt(2 * (len(every) - 1))


@pytest.mark.parametrize("seed", range(3))
def test_rewired_graphs_keep_degrees_and_layers(seed: int) -> None:
    circuit = random_circuit(Anatomy(3, 3, 3), 60, seed)
    found = order_of(circuit)
    different = set()
    for edges in rewired(found, 10, seed=seed):
        assert (edges.sum(0) == found.edges.sum(0)).all()
        assert (edges.sum(1) == found.edges.sum(1)).all()
        assert (edges <= found.possible).all()
        different.add(edges.tobytes())
    assert len(different) > 5
    assert len(list(rewired(found, 0))) == 0


def test_other_motifs_follow_from_the_loops() -> None:
    found = random_order(12, 0.3, 0)
    here = motifs(found.edges)
    for edges in rewired(found, 5):
        other = motifs(edges)
        more = other.feed_forward - here.feed_forward
        assert (other.chain, other.fan_in, other.fan_out) == (
            here.chain - more,
            here.fan_in - more,
            here.fan_out - more,
        )


def test_more_loops_than_chance() -> None:
    """Four loops beside each other: rewiring opens them."""
    found = order(12, [edge for i in range(4) for edge in ((i, i + 4), (i + 4, i + 8), (i, i + 8))])
    got = compare(found, 50)
    loops = got.found["feed_forward"]
    assert loops.value == 4
    assert loops.z is not None
    assert loops.z > 2
    assert loops.p < 0.1
    values = [motifs(edges).feed_forward for edges in rewired(found, 50)]
    assert loops.mean == pytest.approx(np.mean(values))
    assert loops.sd == pytest.approx(np.std(values, ddof=1))
    assert loops.z == pytest.approx((4 - np.mean(values)) / np.std(values, ddof=1))
    far = sum(abs(v - np.mean(values)) >= abs(4 - np.mean(values)) for v in values)
    assert loops.p == (1 + far) / 51
    assert compare(found, 50).as_dict() == got.as_dict()


def test_degrees_that_leave_no_choice() -> None:
    got = compare(CHAIN, 5)
    assert len(all_graphs(CHAIN)) == 1
    assert (got.different, got.found["feed_forward"].z, got.found["feed_forward"].p) == (1, None, 1.0)
