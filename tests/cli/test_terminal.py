"""What commands print on terminals of several widths, and where there is none."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from circuitfind.cli.common import table
from circuitfind.cli.console import WIDE, Paper, fit_columns, margin, terminal_width
from tests.cli.helpers import Cli

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTHS = (60, 80, 120, 200)

COMMANDS = [
    "discover small.yaml -q",
    "discover small.yaml -q -v",
    "discover small.yaml --dry-run",
    "show",
    "show --nodes --edges --top 12",
    "show --backups --all",
    "diff latest latest",
    "list tasks",
    "list models",
    "list methods",
    "list runs",
    "label latest",
    "certify latest",
    "show --stats",
    "prune latest --edges 3 -o smaller.json",
    "prompts show small.yaml --count 2",
    "doctor",
    "config show discover --origin",
]


@pytest.fixture
def there(one_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run, as working directory."""
    monkeypatch.chdir(one_run)
    return one_run


def characters(text: str) -> Counter[str]:
    """Those that are neither blank nor of a rule or a bar."""
    return Counter(one for one in text if not one.isspace() and one not in "─█▓▒░·^")


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("words", COMMANDS)
def test_lines_fit_and_nothing_is_lost(cli: Cli, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    whole = cli(*words.split()).out
    for width in WIDTHS if words != "list tasks" else WIDTHS[:1]:  # which reads every file
        monkeypatch.setattr("circuitfind.cli.console.terminal_width", lambda stream, width=width: width)
        found = cli(*words.split())
        assert found.code in (0, 1), found.err
        folded = found.out
        longest = max(folded.splitlines(), key=len)
        assert len(longest) <= width, f"{width}: {longest}"
        if "backups" not in words:  # bars are as long as there is room
            assert characters(folded) == characters(whole)


@pytest.mark.usefixtures("there")
def test_rows_stay_whole_in_a_pipe(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = cli.good("list", "tasks").out.splitlines()
    assert len(lines) == 2 + len(cli.good("list", "tasks", "--json").json["tasks"])
    for line in cli.good("show").out.splitlines():
        assert not line.startswith(" " * 18), f"a line was folded: {line}"


def test_the_end_of_discover_is_one_screen(cli: Cli, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitfind.cli.console.terminal_width", lambda stream: 80)
    lines = cli.good("discover", "small.yaml", "-q").out.splitlines()
    assert len(lines) <= 24
    assert lines[0] == "small on planted/and-gate: a circuit found by hybrid"
    assert lines[1].startswith("  verdict       "), "the verdict first"
    assert [line for line in lines if line.startswith("  next          circuitfind ")]
    assert there.name in str(there)


def test_a_command_on_a_real_terminal(there: Path) -> None:
    """Through a pseudo-terminal: the width of the window counts, and COLUMNS goes before it."""
    import fcntl
    import termios

    for columns, told in (("", 72), ("66", 66)):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 72, 0, 0))
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", "TERM": "xterm"}
        env = {**env, "COLUMNS": columns}
        command = [sys.executable, "-m", "circuitfind", "show"]
        with subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=there, env=env) as process:
            os.close(theirs)
            text = b""
            while chunk := _read(ours):
                text += chunk
        os.close(ours)
        assert process.returncode == 0
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text.decode())
        lengths = [len(line) for line in plain.replace("\r", "").splitlines()]
        assert told - 12 < max(lengths) <= told


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the other side has gone
        return b""


# --- the parts ----------------------------------------------------------------------------------------------


def test_width_of_what_is_no_terminal() -> None:
    assert terminal_width(StringIO()) is None
    assert Paper(None, file=StringIO()).width == WIDE


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("  verdict       not certified", 16),
        ("                it holds", 16),
        ("                - a reason", 18),
        ("memory   8 GB planned for", 9),
        ("ioi on mini: a circuit", 2),
        ("    a paragraph", 4),
        ("             █ really lost 3 %  ▓ heads 4 %", 13),
    ],
)
def test_where_a_line_goes_on(line: str, column: int) -> None:
    assert margin(line) == column


def test_lines_go_on_below_their_text() -> None:
    out = StringIO()
    paper = Paper(40, file=out)
    paper.print("  title         one two three four five six seven", markup=False)
    assert out.getvalue().splitlines() == [
        "  title         one two three four five",
        "                six seven",
    ]
    out.truncate(0)
    paper.hanging(Text("x" * 100), 2)
    assert characters(out.getvalue())["x"] == 100, "a word longer than a line is cut, not lost"


def test_columns_are_folded_between_words() -> None:
    rows = Table("name", "what it does")
    rows.add_row("a-long-name-of-a-task", "several words that say what it does and why it does it")
    fit_columns(rows, 50)
    widths = [column.width for column in rows.columns]
    assert widths[0] == 21, "the name stays whole"
    assert sum(width or 0 for width in widths) + 3 <= 50
    rows = Table("name", "what")
    rows.add_row("a", "b")
    fit_columns(rows, 50)
    assert [column.width for column in rows.columns] == [None, None], "where there is room nothing is set"


@pytest.mark.parametrize("width", [None, 60])
def test_control_characters_are_spelt_out(width: int | None) -> None:
    """In lines and cells they are text like any other; what the program itself styles stays styled."""
    for system in (None, "standard"):
        target = StringIO()
        paper = Paper(width, file=target, force_terminal=system is not None, color_system=system)
        paper.print("[red]so[/] \x1b[31mwide\x9b2J\tand\non")
        rows = table("word", "next")
        rows.add_row("a\x1bb", "c")
        paper.print(rows)
        text = re.sub("\x1b\\[[0-9;]*m", "", target.getvalue())
        assert "so \\x1b[31mwide\\x9b2J" in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text.replace("\t", ""))
        assert re.search(r"^a\\x1bb {3}c *$", text, re.M), "measured as it is shown"
        assert ("\x1b[31mso" in target.getvalue()) is (system is not None)
