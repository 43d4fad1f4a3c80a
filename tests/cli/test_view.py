"""`view`: what the server gives out, to whom, and what it does not; the command that starts it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from circuitfind.cli import run as run_command
from circuitfind.errors import UsageError
from circuitfind.output.report.fresh import is_fresh
from circuitfind.output.report.serve import ADDRESS, INDEX, Server, Shelf
from circuitfind.output.store import Store
from circuitfind.summary import REPORT
from tests.cli.helpers import Cli
from tests.sweeps import Swept


class Asked:
    """What the server answered."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


def ask(
    server: Server, path: str, method: str = "GET", *, host: str | None = None, word: bool = True
) -> Asked:
    """One request; the path is sent as it is, behind the random word unless ``word`` is false."""
    connection = http.client.HTTPConnection(ADDRESS, server.port, timeout=10)
    try:
        target = f"/{server.token}/{path}" if word else path
        connection.putrequest(method, target, skip_host=True)
        if host != "":
            connection.putheader("Host", host or f"{ADDRESS}:{server.port}")
        connection.endheaders()
        answer = connection.getresponse()
        return Asked(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@contextmanager
def serving(shelf: Shelf, start: str = REPORT) -> Iterator[Server]:
    with Server(shelf, start=start) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of runs with two of them, a secret beside them, and links that lead to it."""
    outputs = tmp_path / "outputs"
    for name in ("one", "two"):
        (outputs / name / "figures").mkdir(parents=True)
        for file in ("manifest.json", REPORT, "circuit.svg", "figures/curve.pdf", "prompts.jsonl"):
            (outputs / name / file).write_text(f"{name} {file}", encoding="utf-8")
        (outputs / name / ".hidden.json").write_text("hidden", encoding="utf-8")
        (outputs / name / "run.lock").write_text("lock", encoding="utf-8")
        (outputs / name / "odd name é%.csv").write_text("odd", encoding="utf-8")
    (outputs / "loose.json").write_text("loose", encoding="utf-8")
    (outputs / "notes").mkdir()
    (outputs / "notes" / "diary.txt").write_text("secret", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (outputs / "one" / "link.txt").symlink_to(tmp_path / "secret.txt")
    (outputs / "one" / "linked").symlink_to(outputs / "notes")
    (outputs / "three").symlink_to(outputs / "two")
    return outputs


@pytest.fixture
def one(folder: Path) -> Iterator[Server]:
    """The server of one run."""
    with serving(Shelf(folder / "one", runs=False, make=lambda name: None)) as server:
        yield server


@pytest.fixture
def every(folder: Path) -> Iterator[Server]:
    """The server of all runs."""
    with serving(
        Shelf(folder, runs=True, make=lambda name: "the index" if name == INDEX else None), INDEX
    ) as server:
        yield server


# --- what is given -----------------------------------------------------------------------------------------


def test_files_of_a_run(one: Server) -> None:
    kinds = {
        REPORT: "text/html; charset=utf-8",
        "manifest.json": "application/json",
        "circuit.svg": "image/svg+xml",
        "figures/curve.pdf": "application/pdf",
        "prompts.jsonl": "text/plain; charset=utf-8",
    }
    for name, kind in kinds.items():
        found = ask(one, name)
        assert (found.status, found.body.decode(), found.headers["content-type"]) == (
            200,
            f"one {name}",
            kind,
        )
        head = ask(one, name, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(found.body))
    assert ask(one, "odd%20name%20%C3%A9%25.csv").body == b"odd"
    assert ask(one, f"{REPORT}?theme=dark").status == 200


def test_the_index_and_the_files_of_every_run(every: Server) -> None:
    assert ask(every, INDEX).body == b"the index"
    assert ask(every, "one/report.html").body == b"one report.html"
    assert ask(every, "two/figures/curve.pdf").status == 200


def test_the_bare_address_leads_to_the_page(one: Server) -> None:
    for path in (f"/{one.token}", f"/{one.token}/"):
        found = ask(one, path, word=False)
        assert (found.status, found.headers["location"]) == (302, f"/{one.token}/{REPORT}")


def test_headers_that_keep_pages_apart(one: Server) -> None:
    for name in (REPORT, "circuit.svg", "nothing.html"):
        headers = ask(one, name).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer", "the random word goes nowhere"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers
        assert "python" not in headers["server"].lower()
    assert "script-src" not in ask(one, "circuit.svg").headers["content-security-policy"]
    assert "sandbox" in ask(one, "circuit.svg").headers["content-security-policy"]
    assert "default-src 'none'" in ask(one, REPORT).headers["content-security-policy"]


# --- what is not -------------------------------------------------------------------------------------------


def test_it_listens_on_loopback_alone(one: Server) -> None:
    assert one.server_address[0] == "127.0.0.1"
    assert len(one.token) >= 32


@pytest.mark.parametrize(
    "path", ["/", "/report.html", "/x/report.html", "//report.html", "/%00/report.html", "/favicon.ico"]
)
def test_without_the_word_nothing_is_given(one: Server, path: str) -> None:
    found = ask(one, path, word=False)
    assert found.status == 403
    assert one.token.encode() not in found.body + repr(found.headers).encode()


def test_a_part_of_the_word_is_not_the_word(one: Server) -> None:
    for word in (one.token[:-1], one.token + "x", one.token.swapcase(), ""):
        assert ask(one, f"/{word}/{REPORT}", word=False).status == 403
    assert ask(one, f"/x/{one.token}/{REPORT}", word=False).status == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1", "0.0.0.0", ""]
)
def test_another_host_is_refused(one: Server, host: str) -> None:
    assert ask(one, REPORT, host=host).status == 403
    assert ask(one, REPORT, host=f"localhost:{one.port}").status == 200


def test_two_hosts_are_refused(one: Server) -> None:
    own = f"{ADDRESS}:{one.port}"
    text = f"GET /{one.token}/{REPORT} HTTP/1.1\r\nHost: {own}\r\nHost: evil.example\r\n\r\n"
    assert raw(one, text.encode()).startswith(b"HTTP/1.0 403")
    absolute = f"GET http://evil.example/{one.token}/{REPORT} HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    assert raw(one, absolute.encode()).startswith(b"HTTP/1.0 403")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_only_reading(one: Server, method: str) -> None:
    found = ask(one, REPORT, method)
    assert (found.status, found.headers["allow"]) == (405, "GET, HEAD")


OUTSIDE = [
    "../two/report.html",
    "..%2ftwo%2freport.html",
    "%2e%2e/two/report.html",
    "%2e%2e%2ftwo%2freport.html",
    "%252e%252e%252ftwo%252freport.html",
    "figures/../../two/report.html",
    "figures/../report.html",
    "..\\two\\report.html",
    "..%5ctwo%5creport.html",
    "../../secret.txt",
    "/etc/passwd",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "./report.html",
    "report.html/",
    "report.html%00",
    "REPORT.HTML",
    "file:///etc/passwd",
    "~/.ssh/id_rsa.txt",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_of_the_run(one: Server, path: str) -> None:
    found = ask(one, path)
    assert found.status == 404
    assert b"secret" not in found.body
    assert b"two" not in found.body


@pytest.mark.parametrize(
    "path", ["link.txt", "linked/diary.txt", ".hidden.json", "run.lock", "figures", "figures/", "none.html"]
)
def test_no_links_no_hidden_files_no_folders(one: Server, path: str) -> None:
    assert ask(one, path).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "loose.json",
        "notes/diary.txt",
        "three/report.html",
        "one/link.txt",
        "../secret.txt",
        "one/../notes/diary.txt",
    ],
)
def test_no_files_but_those_of_runs(every: Server, path: str) -> None:
    assert ask(every, path).status == 404


def test_a_file_that_becomes_a_link_is_not_followed(folder: Path, one: Server) -> None:
    from circuitfind.output.report.serve import _read

    target = folder / "one" / "circuit.svg"
    target.unlink()
    target.symlink_to(folder.parent / "secret.txt")
    assert ask(one, "circuit.svg").status == 404
    assert _read(target) is None, "not even where it became one after the folder was walked"
    pipe = folder / "one" / "pipe.txt"
    os.mkfifo(pipe)
    assert ask(one, "pipe.txt").status == 404
    assert _read(pipe) is None


def raw(server: Server, data: bytes) -> bytes:
    """What comes back for some bytes."""
    with socket.create_connection((ADDRESS, server.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


@pytest.mark.parametrize(
    "data",
    [b"\r\n", b"GET\r\n\r\n", b"\x00\xff\x16\x03\r\n\r\n", b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n"],
)
def test_rubbish_is_answered_or_dropped(one: Server, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    found = raw(one, data)
    assert not found or found.startswith((b"HTTP/1.0 4", b"400", b"414", b"403"))
    assert b"Traceback" not in found
    assert ask(one, REPORT).status == 200, "it serves on"
    assert capsys.readouterr().err == ""


def test_a_page_that_cannot_be_made_is_told(folder: Path) -> None:
    def make(name: str) -> str | None:
        raise UsageError("the labels are damaged", hint="mend them")

    with serving(Shelf(folder / "one", runs=False, make=make)) as server:
        found = ask(server, REPORT)
        assert (found.status, found.headers["content-type"]) == (500, "text/plain; charset=utf-8")
        assert b"the labels are damaged" in found.body
        assert ask(server, "manifest.json").status == 200


def test_only_reports_of_runs_are_made(folder: Path) -> None:
    made: list[str] = []

    def make(name: str) -> str | None:
        made.append(name)
        return None

    with serving(Shelf(folder, runs=True, make=make)) as server:
        for path in (
            "one/report.html",
            "notes/report.html",
            "../report.html",
            "one/figures/report.html",
            "x/report.html",
        ):
            ask(server, path)
    assert made == ["one/report.html"]


def test_a_taken_port(one: Server, folder: Path) -> None:
    with pytest.raises(UsageError) as told:
        Server(Shelf(folder, runs=True, make=lambda name: None), start=INDEX, port=one.port)
    assert "--port" in told.value.hint


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The server answers for its first page and the index, then is stopped by Ctrl-C; what it answered."""
    answers: list[dict[str, Any]] = []
    real = Server.serve_forever

    def serve(self: Server, poll_interval: float = 0.5) -> None:
        thread = threading.Thread(target=real, args=(self, 0.01))
        thread.start()
        try:
            first = ask(self, urlsplit(self.url).path, word=False)
            answers.append(
                {"url": self.url, "status": first.status, "body": first.body.decode(), "server": self}
            )
        finally:
            self.shutdown()
            thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", serve)
    return answers


@pytest.fixture
def copy(swept: Swept, cli: Cli) -> str:
    """Its runs in the outputs folder of this test; the name of the first."""
    shutil.copytree(swept.outputs, cli.outputs)
    return swept.runs[0]


def test_view_of_a_run(cli: Cli, copy: str, stopped: list[dict[str, Any]]) -> None:
    report = cli.outputs / copy / REPORT
    report.unlink(missing_ok=True)
    found = cli.good("view", copy, "--no-open")
    assert found.out.strip() == stopped[0]["url"]
    assert stopped[0]["status"] == 200
    assert report.read_text(encoding="utf-8") == stopped[0]["body"], "it was written first"
    assert "Ctrl-C ends it" in found.err
    as_json = cli.good("view", "latest", "--no-open", "--json")
    line = json.loads(as_json.out)
    assert as_json.out.count("\n") == 1
    assert line["url"] == stopped[1]["url"]
    assert line["port"] == urlsplit(line["url"]).port


def test_an_old_report_is_written_again(cli: Cli, copy: str, stopped: list[dict[str, Any]]) -> None:
    run = Store(cli.outputs).find(copy)
    report = run.path / REPORT
    cli.good("report", copy)
    assert is_fresh(run)
    report.write_text("old", encoding="utf-8")
    cli.good("view", copy, "--no-open")
    assert stopped[0]["body"] == "old", "younger than all that it is made from"
    later = report.stat().st_mtime_ns + 10**9
    os.utime(run.path / "circuit.json", ns=(later, later))
    assert not is_fresh(run)
    cli.good("view", copy, "--no-open")
    assert "<html" in stopped[1]["body"]


def test_view_of_all_runs_and_of_a_sweep(
    cli: Cli, copy: str, swept: Swept, stopped: list[dict[str, Any]]
) -> None:
    cli.good("view", "--no-open")
    cli.good("view", "--all", "--no-open")
    assert stopped[0]["status"] == stopped[1]["status"] == 200
    for name in swept.runs:
        assert f"{name}/report.html" in stopped[0]["body"]
    cli.good("view", swept.results.name, "--no-open")
    assert stopped[2]["url"].endswith(f"/{swept.results.name}/sweep.html")
    cli.good("view", swept.results.name[:8], "--no-open")
    cli.good("view", cli.outputs / swept.results.name, "--no-open")
    assert stopped[4]["body"] == stopped[3]["body"] == stopped[2]["body"]
    assert stopped[2]["body"] == (swept.results / "sweep.html").read_text(encoding="utf-8")


def test_the_browser_is_opened_where_there_is_one(
    cli: Cli, copy: str, stopped: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    monkeypatch.setattr("webbrowser.open", lambda url: opened.set() or True)
    monkeypatch.setenv("BROWSER", "some")
    cli.good("view", copy)
    assert opened.wait(5)
    opened.clear()
    cli.good("view", copy, "--no-open")
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert "no browser was opened" in cli.good("view", copy).err
    assert not opened.is_set()


def test_views_that_are_not(cli: Cli, copy: str) -> None:
    cli.fails(2, "view", "smal", "--no-open", says=["is the beginning of"])
    cli.fails(2, "view", "nothing", "--no-open", says=["no run 'nothing'"])
    cli.fails(2, "view", copy, "--all", says=["--all shows every run"])
    assert run_command(["view", copy, "--port", "70000"]) == 2
    cli.fails(2, "view", "--outputs", "nowhere", says=["no runs in nowhere", "circuitfind discover"])
    refused = next(p.name for p in cli.outputs.glob("text-*"))
    cli.fails(3, "view", refused, "--no-open", says=["hint"])
