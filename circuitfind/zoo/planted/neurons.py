"""An exact lookup in MLP neurons: a key stands somewhere, the answer at the end is a function of its class.

A head carries the class of the key to the end. There each of three classes has one unit that turns it into its
answer: two classes have a neuron each; the third has a group of neurons that share its answer evenly, while each of
them also serves other features, *topics* (a token that stands elsewhere is echoed), of which there are more than
neurons. Around them are neurons that fire more but say nothing about the answer, that raise all answers alike, that
write the answer but never fire, that undo each other, and that do a little of everything.

In ``saturated-lookup`` the group leaves a note instead of the answer, and two later neurons together round the note
to none or all of the answer: any one member of the group can go, or come, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from circuitfind.names import parse_node
from circuitfind.zoo.planted import DESCRIPTIONS, NEURONS, Planted, PlantedUnits
from circuitfind.zoo.planted.crowd import Crowd
from circuitfind.zoo.planted.lookup import CLASSES, Stage, draw_pair
from circuitfind.zoo.planted.parts import edge_set, fill, name_of
from circuitfind.zoo.planted.units import Signal, node, superpose

# Between these shares of the note the readers of a saturated group go from none to all of the answer. One member
# of five writes 0.2.
NONE, ALL = 0.35, 0.65
# The pre-activation of a reader at a whole note, so large that 0.1 below zero is silence.
READER_SHARP = {"relu": 1.0, "gelu": 36.0, "gelu_new": 36.0, "silu": 90.0}
# How strongly topics are written; short beside answers, so that a norm hardly sees one that comes out wrong.
ECHO = 0.4
NOTE = (
    "Each class has a unit of its own, which is off for the others: removing one loses what it adds for its class "
    "and what it would add for another one."
)
SATURATED_NOTE = NOTE + " Of the group any one member can go, or come: two later neurons round its sum."


def build(name: str, seed: int) -> Planted:
    """Draw a model: sizes, norm, activation, places, strengths, the group's code, and all that surrounds it."""
    stage = Stage(name, seed)
    units, crowd = _Units(stage), Crowd(stage)
    weights, cast, shape = stage.weights, stage.cast, stage.weights.shape
    for layer in range(shape.n_layers):
        units.write(layer)
        crowd.write(layer)
    rows = torch.cat([stage.out, stage.echo / ECHO])
    tokens = [*stage.layout.answers, *stage.echoes]
    weights.unembed(rows, tokens, stage.gain / stage.inverse(shape.n_layers))
    chains = [units.chains[number] for number in range(CLASSES)]
    layers = [[unit.partition(".")[0] for unit in chain] for chain in chains]
    roles = stage.roles() | {mlp: "lookup" for mlps in layers for mlp in mlps}
    exact = shape.normalization is None and not shape.gated
    return Planted(
        name=name,
        seed=seed,
        description=DESCRIPTIONS[name],
        config=shape.config(),
        roles=fill(weights, roles, stage.rng),
        state=weights.finish(),
        edges=_edges(name_of(cast.mover), layers, exact),
        direction="noising",
        note=NOTE if cast.rounding is None else SATURATED_NOTE,
        draw=partial(draw_pair, layout=stage.layout),
        units=_truth(stage, chains, exact),
    )


class _Units:
    """What does the work. ``chains[c]`` are the units of class c, from the one that reads the key on."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.chains: dict[int, list[str]] = {}

    def write(self, layer: int) -> None:
        """The units of a layer."""
        stage, bench = self.stage, self.stage.bench
        if layer == stage.cast.rounding:
            self._round(layer)
        for number, role in enumerate(("unit-a", "unit-b")):
            if stage.cast.layers[number] == layer:
                drive = (stage.reported(number, layer), 1.0)
                write = stage.strengths[number] * stage.out[number]
                unit = node(layer, [bench.neuron(layer, role, [drive], write, stage.inverse(layer))])
                bench.feature(layer, role, [drive], write, unit)
                self.chains[number] = [unit]
                stage.wrote(layer, write, 1 / CLASSES)
        if stage.cast.layers[-1] == layer:
            self._spread(layer)

    def _spread(self, layer: int) -> None:
        """The group; its one feature, and a feature for each topic that it carries beside."""
        stage, bench = self.stage, self.stage.bench
        main = stage.strengths[-1] * stage.out[-1] if stage.cast.rounding is None else stage.note
        key = stage.reported(CLASSES - 1, layer)
        topics = [Signal(row, stage.inverse(-1)) for row in stage.token[stage.topics]]
        levels, shares = superpose(stage.n_group, len(topics), stage.generator, stage.rng)
        writes = shares @ torch.cat([main[None], ECHO * stage.echo])
        unit = node(layer, bench.group(layer, "group", [key, *topics], levels, writes, stage.inverse(layer)))
        bench.feature(layer, "group", [(key, 1.0)], levels[:, 0] @ writes, unit)
        for topic, column in zip(topics, levels.T[1:], strict=True):
            bench.feature(layer, "topic", [(topic, 1.0)], column @ writes)
        self.chains[CLASSES - 1] = [unit]
        stage.wrote(layer, main, 1 / CLASSES)

    def _round(self, layer: int) -> None:
        """Two neurons whose difference is a ramp from ``NONE`` to ``ALL`` of the note."""
        stage, bench, inverse = self.stage, self.stage.bench, self.stage.inverse(layer)
        note, write = Signal(stage.note, inverse), stage.strengths[-1] * stage.out[-1]
        sharp = READER_SHARP[stage.weights.shape.act_fn]
        places = [
            bench.neuron(
                layer,
                "rounding",
                [(note, 1 - start)],
                sign * write / (ALL - NONE),
                inverse,
                rest=start,
                sharp=sharp,
                step=True,
            )
            for start, sign in ((NONE, 1), (ALL, -1))
        ]
        unit = node(layer, places)
        bench.feature(layer, "rounding", [(note, 1.0)], write, unit)
        self.chains[CLASSES - 1].append(unit)
        stage.wrote(layer, write, 1 / CLASSES)


def _truth(stage: Stage, chains: list[list[str]], exact: bool) -> PlantedUnits:
    total, group = sum(stage.strengths), chains[-1][0]
    inverses = [stage.inverse(layer) for layer in range(stage.weights.shape.n_layers)]
    dictionaries, roles, features = stage.bench.dictionaries(
        stage.unread, inverses, jump=stage.rng.random() < 0.5
    )
    shares = {
        unit: strength / total
        for chain, strength in zip(chains, stage.strengths, strict=True)
        for unit in chain
    }
    saturated = stage.cast.rounding is not None
    return PlantedUnits(
        names=tuple(sorted(shares, key=lambda unit: parse_node(unit).order)),
        roles=stage.bench.roles,
        shares=shares,
        group=group,
        member_share=0.0 if saturated else shares[group] / stage.n_group,
        edges=_edges(name_of(stage.cast.mover), chains, exact),
        features=features,
        feature_roles=roles,
        dictionaries=dictionaries,
    )


def _edges(mover: str, chains: list[list[str]], exact: bool) -> dict[str, frozenset[str]]:
    """Chains of units from the mover to the logits. Under zero a norm, or a gate held open, needs all that it reads."""
    onward = [f"{one} -> {two}" for c in chains for one, two in zip([mover, *c], [*c, "logits"], strict=True)]
    found = {"resample": edge_set(f"input -> {mover}<v>", *onward)}
    if exact:
        found["zero"] = edge_set(f"input -> {mover}<q><k><v>", *onward)
    return found


BUILDERS: dict[str, Callable[[int], Planted]] = {name: partial(build, name) for name in NEURONS}
