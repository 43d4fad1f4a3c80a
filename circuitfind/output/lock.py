"""One writer for each run folder: a lock file that names the process and the machine that hold it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from circuitfind.errors import RunError
from circuitfind.output.files import explained
from circuitfind.output.owner import began, host, is_alive, temporary_name
from circuitfind.reading import read_json

_HELD: set[Path] = set()
_GUARD = threading.Lock()


class FolderLock:
    """Held from ``acquire`` to ``release``. A lock whose process is gone is stale and is taken over."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.held = False

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RunError: A living process, or one on another machine, holds it.
        """
        if self.held:
            return
        with _GUARD:
            for _ in range(3):
                if self._create():
                    self.held = True
                    _HELD.add(self.path)
                    return
                owner = self.owner()
                if owner is not None and self._is_alive(owner):
                    raise self._taken(owner)
                self._set_aside()
        raise self._taken(self.owner() or {})

    def release(self) -> None:
        if self.held:
            self.held = False
            _HELD.discard(self.path)
            with contextlib.suppress(OSError):
                self.path.unlink()

    def owner(self) -> dict[str, Any] | None:
        """What the lock file says, or None when there is none or it cannot be read."""
        return _read(self.path)

    def is_taken(self) -> bool:
        """Whether someone holds the lock now."""
        owner = self.owner()
        return owner is not None and self._is_alive(owner)

    def _create(self) -> bool:
        pid = os.getpid()
        text = json.dumps({"pid": pid, "host": host(), "began": began(pid)})
        fresh = temporary_name(self.path)
        try:
            # Written beside and linked into place: another process never sees a lock without its owner.
            fresh.write_text(text, encoding="utf-8")
            try:
                os.link(fresh, self.path)
            except FileExistsError:
                return False
            except OSError:
                return self._create_without_links(text)
        except OSError as error:
            raise explained(error, self.path) from error
        finally:
            with contextlib.suppress(OSError):
                fresh.unlink()
        return True

    def _create_without_links(self, text: str) -> bool:
        """For file systems without hard links."""
        try:
            with self.path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _is_alive(self, owner: dict[str, Any]) -> bool:
        if owner.get("host") != host():
            return True
        pid = owner.get("pid")
        if not isinstance(pid, int) or pid <= 0:
            return False
        if pid == os.getpid():
            # The number of a dead process may have come round to this one.
            return self.path in _HELD
        since = owner.get("began")
        return is_alive(pid, since if isinstance(since, str) else None)

    def _set_aside(self) -> None:
        aside = temporary_name(self.path)
        with contextlib.suppress(OSError):
            self.path.replace(aside)
            owner = _read(aside)
            if owner is not None and self._is_alive(owner):
                # Another process took the stale lock over first, and this is already its own: give it back.
                os.link(aside, self.path)
            aside.unlink()

    def _taken(self, owner: dict[str, Any]) -> RunError:
        who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        return RunError(
            f"another run is writing to this folder ({who})",
            where=str(self.path.parent),
            hint=f"wait until it ends; if it is gone for certain, delete {self.path.name} in that folder",
        )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
