"""Where a folder of outputs may be written to: itself and what lies in it, and nothing that a link in it leads to.

A folder of runs may have come from somebody else, links and all. A file that is a link is replaced by what is written
(``write_atomic``), never written through; a folder that is a link would be, so it is refused.
"""

from __future__ import annotations

from pathlib import Path

from circuitfind.errors import UsageError


def below(root: Path, name: str, *, folder: bool = False) -> Path:
    """The path of a file or folder that is about to be written below a root.

    Args:
        root: Named by the user; it may be a link itself.
        name: Relative, with slashes.
        folder: It is to be a folder, so that it too is looked at, whatever is there; a link in the place of a file is
            replaced.

    Raises:
        UsageError: One of the folders on the way is a link that leads out of the root.
    """
    path, parts = root, Path(name).parts
    for number, part in enumerate(parts, 1):
        path = path / part
        through = folder or number < len(parts) or path.is_dir()
        if through and path.is_symlink() and not _stays(path, root):
            raise UsageError(
                f"'{path}' is a link that leads out of '{root}'; nothing is written through it",
                hint="take the link away, or write to where it leads by --outputs, -o or --out",
            )
    return path


def _stays(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a ring of links
        return False
