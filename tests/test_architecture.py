"""The house of docs/: which room may use which, read from the source and from running Python."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "circuitfind"
MAX_LINES = 400

STOREYS = (
    ("errors", "shown"),
    ("reading", "sizes"),
    ("names", "config", "allowed", "machine", "offload"),
    ("zoo",),
    ("task",),
    ("model",),
    ("circuit",),
    ("methods", "backups", "dictionaries"),
    ("attribution", "evidence", "naming", "sparse", "units", "views"),
    ("output", "engine", "settings"),
    ("known",),
    ("summary",),
    ("feature_store", "report"),
    ("figures",),
    ("session",),
    ("evidence_prompts",),
    ("evidence_controls",),
    ("backup_stage", "cross_stage", "evidence_stage", "prompt_stage", "unit_stage", "view_stage"),
    ("staging",),
    ("pipeline", "doctor", "labelling"),
    ("backup_runs", "transcoder_runs", "patch_targets"),
    ("evidence_subjects",),
    ("evidence_parts",),
    ("evidence_runs",),
    ("attribution_runs", "naming_runs", "patch_runs", "prompt_runs", "sae_runs", "suggestions"),
    ("suggest_runs",),
    ("feature_runs", "given"),
    ("check", "prune_runs"),
    ("plan", "api"),
    ("sweep",),
    ("cli",),
)
"""A room imports from the storeys below it and from itself; rooms of one storey leave each other alone."""

RANKS = {room: rank for rank, rooms in enumerate(STOREYS) for room in rooms}

INNER = {"circuitfind.output.report": "report", "circuitfind.output.figures": "figures"}
"""Packages inside a room that are a room of their own, higher up: a report tells what a summary does, and more."""

FLOORS = {
    "model": (
        (
            "anatomy",
            "hub",
            "declared",
            "identity",
            "norms",
            "own_code",
            "pieces",
            "precision",
            "published",
            "quiet",
            "rules",
            "stretch",
            "tokenizer",
            "transfer",
        ),
        ("attention", "mlp", "reach", "shapes", "shelves"),
        ("configurations", "memory", "parts"),
        ("device_map", "features", "layer"),
        ("placement",),
        ("bridge", "checkpoint"),
        ("shuffle", "split", "tl_format", "writes"),
        ("forward", "load"),
        ("batches", "contrast", "gradients", "next_token", "spill"),
        ("readout",),
        ("means",),
        ("masked", "part_pass", "path_pass"),
        ("edge_pass", "node_pass"),
        ("optimal", "single_edges"),
        ("batch_runs", "schedule"),
        ("runs",),
        ("cross", "dose", "effects", "looks"),
    ),
    "methods": (
        ("base", "contraction", "exact", "gates", "patterns", "positions"),
        ("gradient_edges",),
        ("node_gradients",),
    ),
}
"""Inside a room too imports go down. What is on no floor of ``methods`` is a method and lies above them all; methods may
build on each other, but not in a ring. Imports for type checkers alone do not count."""

ROOF = {"", "__main__"}
"""``circuitfind`` itself (the Python API) and ``python -m circuitfind`` stand over all rooms."""

TORCH_FREE = (
    "circuitfind",
    "circuitfind.allowed",
    "circuitfind.attribution.average",
    "circuitfind.attribution.export",
    "circuitfind.attribution.graph",
    "circuitfind.attribution.prune",
    "circuitfind.attribution.saved",
    "circuitfind.attribution_runs",
    "circuitfind.backup_runs",
    "circuitfind.backup_stage",
    "circuitfind.backups",
    "circuitfind.backups.report",
    "circuitfind.circuit.backup",
    "circuitfind.circuit.changes",
    "circuitfind.circuit.compare",
    "circuitfind.circuit.counts",
    "circuitfind.circuit.curve",
    "circuitfind.circuit.feature_graph",
    "circuitfind.circuit.graph",
    "circuitfind.circuit.graph_stats",
    "circuitfind.circuit.interpbench",
    "circuitfind.circuit.intervals",
    "circuitfind.circuit.mib",
    "circuitfind.circuit.prefix",
    "circuitfind.circuit.random",
    "circuitfind.circuit.rewire",
    "circuitfind.circuit.scores",
    "circuitfind.circuit.tracer_read",
    "circuitfind.check.cases",
    "circuitfind.check.pool",
    "circuitfind.cli",
    "circuitfind.config",
    "circuitfind.cross_stage",
    "circuitfind.dictionaries.identity",
    "circuitfind.engine.base",
    "circuitfind.engine.bench",
    "circuitfind.engine.chosen",
    "circuitfind.engine.cluster",
    "circuitfind.engine.hands",
    "circuitfind.engine.local",
    "circuitfind.engine.places",
    "circuitfind.engine.processes",
    "circuitfind.engine.ray",
    "circuitfind.engine.room",
    "circuitfind.engine.scheduler",
    "circuitfind.engine.work",
    "circuitfind.errors",
    "circuitfind.feature_store",
    "circuitfind.evidence.truth",
    "circuitfind.evidence.against",
    "circuitfind.evidence.certify",
    "circuitfind.evidence.listed",
    "circuitfind.evidence.match",
    "circuitfind.evidence.overlap",
    "circuitfind.evidence.report",
    "circuitfind.evidence_controls",
    "circuitfind.evidence_parts",
    "circuitfind.evidence_prompts",
    "circuitfind.evidence_runs",
    "circuitfind.evidence_stage",
    "circuitfind.evidence_subjects",
    "circuitfind.given",
    "circuitfind.known",
    "circuitfind.labelling",
    "circuitfind.model.anatomy",
    "circuitfind.offload",
    "circuitfind.model.own_code",
    "circuitfind.names",
    "circuitfind.naming_runs",
    "circuitfind.output",
    "circuitfind.patch_runs",
    "circuitfind.patch_targets",
    "circuitfind.pipeline",
    "circuitfind.plan",
    "circuitfind.prompt_runs",
    "circuitfind.prune_runs",
    "circuitfind.reading",
    "circuitfind.sae_runs",
    "circuitfind.session",
    "circuitfind.settings",
    "circuitfind.shown",
    "circuitfind.sparse.options",
    "circuitfind.staging",
    "circuitfind.suggest_runs",
    "circuitfind.suggestions",
    "circuitfind.summary",
    "circuitfind.sweep",
    "circuitfind.sweep.cells",
    "circuitfind.sweep.outcome",
    "circuitfind.sweep.run",
    "circuitfind.sweep.spec",
    "circuitfind.task.rows",
    "circuitfind.task.spec",
    "circuitfind.transcoder_runs",
    "circuitfind.view_stage",
    "circuitfind.views.report",
    "circuitfind.zoo",
)
"""What works on a finished run, or before one, without a model; of ``cli`` and ``output``, all modules."""

HEAVY = {"datasets", "matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "torch", "transformers"}
HEAVY |= {"transformer_lens", "sae_lens", "wandb", "ray"}
"""Never needed to print help."""

MODEL = {"torch", "transformer_lens", "circuitfind.model"}
SCREEN = {"rich", "click"}

SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if "weights" not in p.parts)


def module_of(path: Path) -> str:
    """``circuitfind/model/load.py`` is circuitfind.model.load, a package its folder."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The part of circuitfind that a module lies in; "" is circuitfind itself."""
    for package, room in INNER.items():
        if within(module, {package}):
            return room
    return module.partition("circuitfind.")[2].partition(".")[0]


def is_module(name: str) -> bool:
    """Whether a dotted name is a file or folder of the package, rather than something inside one."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of each import, inside functions and for type checkers too.

    ``import circuitfind`` counts for what is taken from it; ``circuitfind.__version__`` belongs to every room.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name != "circuitfind")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner != "circuitfind.__version__":
                    yield node.lineno, inner if is_module(inner) else str(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            inner = f"{node.value.id}.{node.attr}"
            if node.value.id == "circuitfind" and not node.attr.startswith("__"):
                yield node.lineno, inner if is_module(inner) else "circuitfind"


def within(module: str, names: set[str]) -> bool:
    """Whether a module is one of the names or lies in one of them."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def is_upward(importer: str, imported: str) -> bool:
    """Whether an import breaks the order of the rooms."""
    if not within(imported, {"circuitfind"}):
        return False
    source, target = room_of(importer), room_of(imported)
    if source in ROOF or source == target:
        return False
    return target in ROOF or RANKS[target] >= RANKS[source]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_only_go_down(path: Path) -> None:
    importer = module_of(path)
    assert room_of(importer) in ROOF | RANKS.keys(), f"{importer} is in no room: give it a rank, or move it"
    wrong = [
        f"{path}:{line} imports {found}" for line, found in imports_of(path) if is_upward(importer, found)
    ]
    assert not wrong


def floor_of(module: str) -> int:
    """How high a module lies in its room."""
    _, room, name = module.split(".")
    floors = FLOORS[room]
    found = [height for height, names in enumerate(floors) if name in names]
    assert found or room == "methods", f"{module} is on no floor: give it one"
    return found[0] if found else len(floors)


def neighbours_of(path: Path) -> dict[str, int]:
    """Modules of its own room that a module needs to run, with the lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    idle: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            idle |= {
                inner.lineno for part in node.body for inner in ast.walk(part) if isinstance(inner, ast.stmt)
            }
    room = f"circuitfind.{room_of(module_of(path))}."
    found = ((name, line) for line, name in imports_of(path) if line not in idle)
    return {name: line for name, line in found if name.startswith(room)}


ROOMED = [p for p in SOURCES if p.parent.name in FLOORS and p.name != "__init__.py"]


@pytest.mark.parametrize("path", ROOMED, ids=module_of)
def test_imports_go_down_inside_a_room(path: Path) -> None:
    mine, methods = floor_of(module_of(path)), len(FLOORS["methods"])
    for name, line in neighbours_of(path).items():
        both = path.parent.name == "methods" and mine == floor_of(name) == methods
        assert both or floor_of(name) < mine, f"{path}:{line} imports {name}"


def test_no_ring_of_methods() -> None:
    below = {module_of(p): set(neighbours_of(p)) for p in ROOMED}
    while free := [name for name, needs in below.items() if not needs & below.keys()]:
        below = {name: needs for name, needs in below.items() if name not in free}
    assert not below, f"these import each other in a ring: {sorted(below)}"


def test_every_floor_is_lived_on() -> None:
    names = {module_of(p) for p in ROOMED}
    told = {f"circuitfind.{room}.{name}" for room, floors in FLOORS.items() for f in floors for name in f}
    assert told <= names, "a file went; take it off its floor"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_file_is_one_idea(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines: it holds two ideas"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_the_model_knows_transformer_lens(path: Path) -> None:
    if room_of(module_of(path)) != "model":
        assert not [line for line, found in imports_of(path) if within(found, {"transformer_lens"})]


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_file_knows_both_the_model_and_the_screen(path: Path) -> None:
    found = {name for _, name in imports_of(path)} - {"circuitfind.model.anatomy"}
    knows_model = {name for name in found if within(name, MODEL)}
    knows_screen = {name for name in found if within(name, SCREEN)}
    is_program = module_of(path) == "circuitfind.zoo.mini.train"  # a command of its own, run by us
    assert is_program or not (knows_model and knows_screen)


@pytest.mark.parametrize(
    ("importer", "imported", "wrong"),
    [
        ("circuitfind.names", "circuitfind.errors", False),
        ("circuitfind.errors", "circuitfind.names", True),
        ("circuitfind.names", "circuitfind.config", True),
        ("circuitfind.model.load", "circuitfind.zoo.planted", False),
        ("circuitfind.zoo.planted", "circuitfind.model.load", True),
        ("circuitfind.methods.eap", "circuitfind.circuit.scores", False),
        ("circuitfind.circuit.prune", "circuitfind.methods.eap", True),
        ("circuitfind.output.dot", "circuitfind.output.store", False),
        ("circuitfind.output.dot", "circuitfind.engine.local", True),
        ("circuitfind.pipeline", "circuitfind", True),
        ("circuitfind", "circuitfind.pipeline", False),
        ("circuitfind.cli.find", "circuitfind.pipeline", False),
        ("circuitfind.errors", "json", False),
    ],
)
def test_the_order_of_the_rooms(importer: str, imported: str, wrong: bool) -> None:
    assert is_upward(importer, imported) is wrong


def loaded_after(code: str) -> set[str]:
    """Names of the top-level modules that a fresh Python holds after running the code."""
    report = (
        "import json, sys; sys.stderr.write('\\n' + json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    )
    command = [sys.executable, "-c", f"{code}\n{report}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def torch_free_modules() -> list[str]:
    """Those of TORCH_FREE that are written, with the modules inside its packages of one kind."""
    whole = {"circuitfind.output", "circuitfind.cli"}
    return [name for name in map(module_of, SOURCES) if name in TORCH_FREE or within(name, whole)]


def test_finished_runs_need_no_torch() -> None:
    code = "\n".join(f"import {name}" for name in torch_free_modules())
    assert not loaded_after(code) & {"torch", "transformer_lens", "transformers"}


HELP = """
import sys
import circuitfind.cli
sys.argv[:] = ["circuitfind", "--help"]
try:
    circuitfind.cli.main()
except SystemExit as exit:
    assert not exit.code, exit.code
"""


@pytest.mark.parametrize(
    "code", ["import circuitfind", "import circuitfind.cli", HELP], ids=["api", "cli", "help"]
)
def test_nothing_heavy_is_imported_for_help(code: str) -> None:
    assert not loaded_after(code) & HEAVY
