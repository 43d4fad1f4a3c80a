"""Where a result comes from: versions, git state, machine. Nothing heavy is imported and nothing here can
fail a run.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("circuitfind", "torch", "transformer-lens", "transformers", "numpy", "networkx")


def versions() -> dict[str, str | None]:
    """Python and the packages that results depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    found.update((name, _version(name)) for name in PACKAGES)
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        # Run from a checkout that is not installed.
        return getattr(sys.modules.get(name), "__version__", None)


def machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """Commit, uncommitted changes and origin of the repository that ``folder`` is in; None outside one or
    without git.
    """
    where = folder or Path.cwd()
    commit = _git(where, "rev-parse", "HEAD")
    if commit is None:
        return None
    off = _off(where)
    status = None if off is None else _git(where, *off, "status", "--porcelain", "--ignore-submodules=all")
    origin = _git(where, "config", "--get", "remote.origin.url")
    return {
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "origin": without_credentials(origin) if origin else None,
    }


def _off(folder: Path) -> tuple[str, ...] | None:
    """Switches for ``git status`` that keep a repository from running programs which its own configuration names; None where
    that cannot be done.

    A folder that somebody sent may hold one: a monitor of files, hooks, filters of what is compared.
    """
    found = ["core.fsmonitor", *_own_filters(folder)]
    if any("=" in name for name in found):
        return None
    switches = [f"core.hooksPath={os.devnull}", *(f"{name}=" for name in found)]
    return tuple(word for switch in switches for word in ("-c", switch))


def _own_filters(folder: Path) -> list[str]:
    """Names of the filters in the repository's own configuration; those of the user and of the machine are theirs."""
    names = ("--null", "--name-only", "--get-regexp", r"^filter\..")
    told = _git(folder, "config", "--show-scope", *names)
    if told is None:  # there are none, or this git is from before 2020
        return (_git(folder, "config", *names) or "").split("\0")[:-1]
    words = told.split("\0")
    scoped = zip(words[::2], words[1::2], strict=False)
    return [name for scope, name in scoped if scope not in ("system", "global", "command")]


def without_credentials(url: str) -> str:
    """A remote's URL without user, password, token or query (``git@host:path`` names no secret and stays)."""
    url = re.sub(r"[?#].*$", "", url)
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.\-]*://)[^/]*@", r"\1", url)


def _git(folder: Path, *arguments: str) -> str | None:
    # No optional locks: looking at a repository must not write to it. No protocols: nor fetch what it lacks.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=5,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "none", "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", errors="replace").strip() if done.returncode == 0 else None
