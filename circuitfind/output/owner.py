"""Whose a lock or a temporary file is: a process of a machine, and whether it still lives."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
import uuid
import zlib
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}\.tmp")
_FORGOTTEN = 24 * 3600.0
"""Seconds after which a temporary file of another machine is taken for one that was left behind."""


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def began(pid: int) -> str | None:
    """When a process began, as this boot of the machine counts time; None where that cannot be found out.

    The number of a process is given again, its number and its beginning are not.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The second field is the program's name, in brackets, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        return f"{boot}-{fields.split()[19]}"
    except (OSError, IndexError):
        return None


def is_alive(pid: int, since: str | None = None) -> bool:
    """Whether a process of this machine is there, and is the one that began ``since``."""
    if sys.platform == "win32":
        return True  # signal 0 is Ctrl-C there, so nobody can be asked
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # it is another user's
    now = began(pid)
    return since is None or now is None or now == since


def temporary_name(path: Path) -> Path:
    """A name beside a file for what is to become it, which says whose it is."""
    pid = os.getpid()
    mark = f"{_short(host())}-{pid}-{_short(began(pid))}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{path.name}.{mark}.tmp")


def sweep(folder: Path) -> None:
    """Delete temporary files in and below a folder whose process was killed."""
    with contextlib.suppress(OSError):
        for path in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
            found = _TEMPORARY.fullmatch(path.name)
            if found is not None and _is_stale(path, found[1], int(found[2]), found[3]):
                with contextlib.suppress(OSError):
                    path.unlink()


def _is_stale(path: Path, machine: str, pid: int, since: str) -> bool:
    if machine == _short(host()):
        return not is_alive(pid) or _short(began(pid)) != since
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _FORGOTTEN
    return False


def _short(text: str | None) -> str:
    return f"{zlib.crc32((text or '').encode()):08x}"
