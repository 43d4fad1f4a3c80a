"""What no configuration file may set: it may have come with the folder that a command runs in, and whoever wrote it is not who
runs the command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from circuitfind.errors import UsageError
from circuitfind.reading import expanded

NEVER_BY_FILE = ("address", "read-outside", "trust-remote-code")
"""Options that are given on the command line, for the one command."""

INSIDE = ("baselines", "junit", "out", "output", "text", "to", "words")
"""Options that name a file or folder to write over, or one whose text is told: they stay inside the file's own folder."""

ANYWHERE = ("dictionaries", "offload-folder", "outputs")
"""Those that do not: of dictionaries weights are read, and the others get new folders of their own."""


def check_key(key: str, where: str) -> None:
    """Refuse an option that no file sets.

    Raises:
        UsageError: It is one.
    """
    option = key.removeprefix("no-")
    if option in NEVER_BY_FILE:
        raise UsageError(
            f"no file sets '{key}'",
            where=where,
            hint=f"give the flag --{option} where you mean it, and take the line out",
        )


def check_inside(key: str, value: Any, file: Path, where: str) -> None:
    """Refuse a path that lies outside of the file's own folder, links followed.

    Raises:
        UsageError: It does.
    """
    folder = file.resolve().parent
    for one in (value if isinstance(value, list) else [value]) if key in INSIDE else ():
        if not (Path.cwd() / expanded(str(one))).resolve().is_relative_to(folder):
            raise UsageError(
                f"'{key}' lies outside of the folder of the file that sets it",
                where=where,
                hint=f"give --{key} itself, or name the file by --config if it is yours",
            )
