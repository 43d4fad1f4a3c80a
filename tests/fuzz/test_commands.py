"""Commands with values, names and files that make no sense: exit code 2 and a plain error, never a traceback."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from circuitfind.cli.configuration import leaves, options_of
from circuitfind.errors import FAILURE, OK, USAGE
from tests.cli.helpers import Cli, Result
from tests.finished import QuickRun
from tests.fuzz import damage
from tests.fuzz.oracle import LONGEST, check_text, limits

SEED = int(os.environ.get("FUZZ_SEED", "0"))
NO_FLOAT = ("1e400", "-1e400", "nan", "inf", "-Infinity", "", "1,5", "0x1p3", "1/2", "9" * 400, "\u0661e")
NO_WHOLE = (
    "1e3",
    "1.5",
    "9" * 30,
    "-" + "9" * 30,
    "9" * 5000,
    "0x10",
    "nan",
    "inf",
    "",
    "--",
    "\u00b2",
    "1 2",
)
HARMLESS = ("schema", "doctor", "completion", "config show", "config path")
"""They take no names, or look at the machine."""


def run(cli: Cli, words: Sequence[str | Path], codes: Sequence[int]) -> Result:
    """A command within its limits, whose error is as errors are."""
    with limits():
        found = cli(*words)
    told = f"{[str(word)[:80] for word in words]}: {found.code}\n{found.err[-3000:]}"
    assert found.code in codes, told
    assert "Traceback" not in found.err + found.out, told
    assert "should not happen" not in found.err, told
    if found.code != OK and "--json" in words:
        data = found.json
        assert data["exit_code"] == found.code, told
        assert data["what"], told
        assert data["hint"], told
        check_text(found.out)
    elif found.code != OK:
        text = found.err[found.err.index("error: ") :]
        assert "\nhint: " in text, told
        check_text(text)
        assert len(text) <= LONGEST + 10, told
    return found


def arguments(command: click.Command, one: str) -> list[str]:
    """A word for each argument that must be given."""
    needed = [p for p in command.params if isinstance(p, click.Argument) and p.required]
    return [one] * len(needed)


def numbers() -> Iterator[tuple[str, str, bool]]:
    """(command, option, whole) of every option that takes a number."""
    for command in leaves():
        for option in options_of(command):
            kind = option.type
            if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
                yield " ".join(command.path), option.opts[0], isinstance(kind, click.types.IntParamType)


@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["few", "all"])
def test_numbers_that_are_none(cli: Cli, more: bool) -> None:
    by_path = {" ".join(command.path): command for command in leaves()}
    tried = 0
    for path, option, whole in numbers():
        values = NO_WHOLE if whole else NO_FLOAT
        for value in values if more else values[:3:2]:
            run(cli, [*path.split(), *arguments(by_path[path], "x"), f"{option}={value}"], [USAGE])
            tried += 1
    assert tried > (900 if more else 150)


@pytest.mark.parametrize(("key", "value"), [("threshold", "inf"), ("edges", "9" * 25), ("threshold", "nan")])
def test_numbers_of_a_file_that_are_none(cli: Cli, key: str, value: str) -> None:
    (cli.folder / "circuitfind.toml").write_text(f"[discover]\n{key} = {value}\n")
    run(cli, ["discover", "or-gate"], [USAGE])


names = st.one_of(
    st.sampled_from([text for text in damage.TEXTS if not text.startswith(damage.RAW)]),
    st.text(max_size=40),
    st.sampled_from(
        [
            "\udcff\udcfe",
            "\ud800",
            "x" * 300,
            "a" * 5000,
            "/" * 5000,
            "\udc80/small",
            "latest\0",
            "..",
            "/",
            "~",
            "$X",
        ]
    ),
)


def named() -> list[str]:
    """Commands that take a name."""
    found = []
    for command in leaves():
        path = " ".join(command.path)
        if path not in HARMLESS and any(isinstance(p, click.Argument) for p in command.params):
            found.append(path)
    return found


def _refused(path: str, name: str) -> bool:
    """Whether a word is no option to click, nor a name that a command rightly does something with."""
    if name.startswith("-") or (
        not name.strip() and path in ("view", "report", "check", "sweep", "transcoders train")
    ):
        return False
    # A folder or a file may be written under any name.
    return not (path in ("init", "config init") and "/" in name)


def each_name(cli: Cli, cases: int) -> Counter[int]:
    ended: Counter[int] = Counter()

    @seed(SEED)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(named()), names)
    def case(path: str, name: str) -> None:
        if not _refused(path, name):
            return
        codes = [OK, USAGE]
        by_path = {" ".join(command.path): command for command in leaves()}
        words = [name] * max(1, len(arguments(by_path[path], name)))
        ended[run(cli, [*path.split(), *words], codes).code] += 1

    case()
    return ended


def test_names_of_nothing(cli: Cli) -> None:
    assert each_name(cli, 25)[USAGE] > 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_names_of_nothing(cli: Cli) -> None:
    assert each_name(cli, 3000)[USAGE] > 2000


COMMANDS = (
    *("show {}", "show {} --json", "diff {} {}", "export {} --to csv -o out", "export {} --to dot -o out"),
    *("export {} --to eap-ig -o out", "export {} --to graphml -o out", "diff {} {} --json"),
)


def each_circuit(cli: Cli, good: bytes, cases: int) -> Counter[int]:
    ended: Counter[int] = Counter()
    path = cli.folder / "it.json"

    @seed(SEED)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(COMMANDS), damage.operations.map(lambda steps: steps[:1]), st.booleans(), damage.cuts
    )
    def case(command: str, steps: list[object], values: bool, cuts: list[object]) -> None:
        import json

        data = damage.as_json(damage.changed(json.loads(good), steps)) if values else damage.torn(good, cuts)  # type: ignore[arg-type]
        path.write_bytes(data)
        shutil.rmtree(cli.folder / "out", ignore_errors=True)
        (cli.folder / "out").unlink(missing_ok=True)
        ended[run(cli, command.format(*["it.json"] * 2).split(), [OK, USAGE]).code] += 1

    case()
    return ended


def test_circuits_that_are_damaged(cli: Cli, quick_run: QuickRun) -> None:
    good = (quick_run(cli.folder) / "circuit.json").read_bytes()
    assert each_circuit(cli, good, 15)[USAGE] > 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_circuits_that_are_damaged(cli: Cli, quick_run: QuickRun) -> None:
    good = (quick_run(cli.folder) / "circuit.json").read_bytes()
    ended = each_circuit(cli, good, 1500)
    assert ended[USAGE] > 500
    assert ended[OK] > 100


RUNS = (
    "show latest",
    "show latest --json",
    "list runs",
    "prune latest --edges 3",
    "diff latest latest",
    "export latest --to csv -o out",
)


def each_manifest(cli: Cli, run_folder: Path, cases: int) -> Counter[int]:
    ended: Counter[int] = Counter()
    path = run_folder / "manifest.json"
    good = path.read_bytes()

    @seed(SEED)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(RUNS), damage.operations.map(lambda steps: steps[:1]), st.booleans(), damage.cuts)
    def case(command: str, steps: list[object], values: bool, cuts: list[object]) -> None:
        import json

        data = damage.as_json(damage.changed(json.loads(good), steps)) if values else damage.torn(good, cuts)  # type: ignore[arg-type]
        path.write_bytes(data)
        for out in (cli.folder / "out", run_folder / "pruned.json"):
            shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink(missing_ok=True)
        # A damaged run cannot be used, which is a failure of the run and no misuse of the command.
        ended[run(cli, command.split(), [OK, USAGE, FAILURE]).code] += 1

    case()
    return ended


def test_manifests_that_are_damaged(cli: Cli, quick_run: QuickRun) -> None:
    assert each_manifest(cli, quick_run(cli.folder), 15)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_manifests_that_are_damaged(cli: Cli, quick_run: QuickRun) -> None:
    ended = each_manifest(cli, quick_run(cli.folder), 1500)
    assert ended[FAILURE] > 200
    assert ended[OK] > 200
