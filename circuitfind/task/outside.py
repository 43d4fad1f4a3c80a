"""Where the files lie that a file names: beside it or below it, and nowhere else unless the user says so.

Task files and sweep files are passed on, and what they read is told in runs and reports, which are passed on too. So they
name their own files, not those of whoever runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from circuitfind.allowed import allowed
from circuitfind.errors import TaskError
from circuitfind.reading import expanded

FLAG = "--read-outside"


def named_file(owner: Path | None, name: str, where: str) -> Path:
    """The path of a file or folder that a task file names.

    Args:
        owner: The file that names it; None for a task that was made in Python, which may name any.
        name: As it is written there.
        where: The key, for messages.

    Raises:
        TaskError: It lies outside of the owner's folder, itself or behind a link, or is neither a file nor a folder.
    """
    path = (Path() if owner is None else owner.parent) / expanded(name)
    if owner is not None:
        check_inside(path, [owner.parent, owner.resolve().parent], name, where)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise TaskError(
            f"'{name}' is a device or a pipe, not a file", where=where, hint="name a file or a folder"
        )
    return path


def check_inside(path: Path, folders: Sequence[Path], name: str, where: str | None) -> None:
    """Refuse a path that is in none of some folders, itself or behind a link.

    Raises:
        TaskError: It is not, and the user has not allowed it. What lies there is not looked at.
    """
    if allowed().read_outside or lies_inside(path, folders):
        return
    written = expanded(name)
    linked = not written.is_absolute() and ".." not in written.parts
    raise TaskError(
        f"'{name}' {'is a link out of' if linked else 'lies outside of'} the folder of the file that names it",
        where=where,
        hint=f"copy it there, or give {FLAG} if you know what it is",
    )


def lies_inside(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a path is in one of some folders, with every link followed."""
    try:
        real = path.resolve()
        return any(real.is_relative_to(folder.resolve()) for folder in folders)
    except (OSError, RuntimeError, ValueError):  # a ring of links, a name that is too long, a zero byte
        return False
