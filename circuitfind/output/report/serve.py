"""A server of finished pages for one browser on this machine: loopback only, behind a random word, reading and nothing else.

Every address begins with the random word, so that other pages in the browser and other users of the machine, who can reach
the port, cannot read prompts; the ``Host`` header has to be the server's own, so that no name that someone points at this
machine serves in its place (DNS rebinding). Only files that were found by walking the folder are given out, links are not.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from circuitfind.errors import CircuitfindError, UsageError
from circuitfind.output.manifest import MANIFEST
from circuitfind.summary import REPORT

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
"""What the ``Host`` header may call this machine."""

TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".dot": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".pdf": "application/pdf",
    ".npz": "application/octet-stream",
}
"""What is served, and as what; nothing else is."""

SWEEP = "sweep.json"
INDEX = "index.html"
WAIT = 30
"""Seconds that a browser may take over its request."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
_PAGE = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-downloads"
)
"""Of pages, which narrow it down to their own scripts themselves. A page that came with somebody's run may not: so each is on
its own, with no way to those of other runs."""
_OTHER = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
"""Of everything else: a picture runs no script."""


@dataclass(frozen=True)
class Shelf:
    """What is served.

    Attributes:
        root: A run folder, or a folder of run folders.
        runs: Whether it is a folder of them: then their files, those of sweeps and the index are served.
        make: Called with the name of a report or of the index before it is read: gives its text, or writes it where it is
            missing and gives None.
    """

    root: Path
    runs: bool
    make: Callable[[str], str | None]

    def is_made(self, name: str, files: Mapping[str, Path]) -> bool:
        """Whether a name is that of the index, or of the report of a run that is here."""
        folder, slash, page = name.rpartition("/")
        if not self.runs:
            return name == REPORT
        return name == INDEX or (page == REPORT and f"{folder}{slash}{MANIFEST}" in files)

    def files(self) -> dict[str, Path]:
        """By the name in its address: every file that may be given out."""
        if not self.runs:
            return _inside(self.root, "")
        found: dict[str, Path] = {}
        for folder in _entries(self.root):
            if folder.is_dir(follow_symlinks=False):
                inside = _inside(Path(folder.path), f"{folder.name}/")
                if f"{folder.name}/{MANIFEST}" in inside or f"{folder.name}/{SWEEP}" in inside:
                    found |= inside
        return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []


def _inside(folder: Path, prefix: str) -> dict[str, Path]:
    """Real files of a folder and of those below it, under names that begin with ``prefix``; links are left out."""
    found: dict[str, Path] = {}
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            found |= _inside(Path(entry.path), f"{prefix}{entry.name}/")
        elif entry.is_file(follow_symlinks=False) and Path(entry.name).suffix in TYPES:
            found[f"{prefix}{entry.name}"] = Path(entry.path)
    return found


class Server(ThreadingHTTPServer):
    """Serves a shelf on a port of this machine.

    Raises:
        UsageError: The port is taken, or may not be used.
    """

    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would let another program take the port over

    def __init__(self, shelf: Shelf, *, start: str, port: int = 0) -> None:
        self.shelf, self.start = shelf, start
        self.token = secrets.token_urlsafe(24)
        self.writing = threading.Lock()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port {port} cannot be used: {getattr(error, 'strerror', None) or error}",
                hint="choose another --port, or leave it out to get a free one",
            ) from error

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where the first page is."""
        return f"http://{ADDRESS}:{self.port}/{self.token}/{self.start}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is nothing to tell of."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "circuitfind"
    sys_version = ""
    timeout = WAIT

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if not self._of_this_machine():
            self.send_error(HTTPStatus.FORBIDDEN, "this is not the server's own address")
            return
        name = self._name()
        if name is None:
            self.send_error(HTTPStatus.FORBIDDEN, "give the address that circuitfind view printed")
            return
        if not name:
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", f"/{self.server.token}/{self.server.start}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        try:
            content = self._content(name)
        except CircuitfindError as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode("utf-8", "replace"), ".txt")
            return
        except Exception as error:  # noqa: BLE001  # one page that cannot be made must not end the others
            text = f"{type(error).__name__}: {error}\n"
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, text.encode("utf-8", "replace"), ".txt")
            return
        if content is None:
            self.send_error(HTTPStatus.NOT_FOUND, "no such file of this run")
            return
        self._send(HTTPStatus.OK, content, Path(name).suffix)

    def _of_this_machine(self) -> bool:
        """Whether the browser asked for this server by its own name, once."""
        hosts = self.headers.get_all("Host") or []
        return len(hosts) == 1 and hosts[0].lower() in {f"{name}:{self.server.port}" for name in NAMES}

    def _name(self) -> str | None:
        """The file that is asked for, empty for none; None without the random word."""
        try:
            path = urlsplit(self.path).path
        except ValueError:
            return None
        word, _, rest = path.removeprefix("/").partition("/")
        given = word.encode("utf-8", "surrogateescape")
        if not path.startswith("/") or not hmac.compare_digest(given, self.server.token.encode()):
            return None
        return unquote(rest, errors="replace")

    def _content(self, name: str) -> bytes | None:
        shelf = self.server.shelf
        files = shelf.files()
        if shelf.is_made(name, files):
            with self.server.writing:
                text = shelf.make(name)
            if text is not None:
                return text.encode("utf-8")
            files = shelf.files()
        path = files.get(name)
        return None if path is None else _read(path)

    def _send(self, status: HTTPStatus, content: bytes, suffix: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", TYPES[suffix])
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", _PAGE if suffix == ".html" else _OTHER)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """In plain text; what the browser sent is not repeated."""
        if code == HTTPStatus.NOT_IMPLEMENTED:  # any method but GET and HEAD
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD"
        status = HTTPStatus(code)
        said = message if message is not None and code < 500 and code != 400 else status.phrase
        self.close_connection = True
        content = f"{int(status)} {said}\n".encode("ascii", "replace")
        self.send_response(status, status.phrase)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", TYPES[".txt"])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is that of the standard library
        """Nothing: the terminal is for the address."""


def _read(path: Path) -> bytes | None:
    """A file's content, unless it has become a link, a folder or a device in between."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
