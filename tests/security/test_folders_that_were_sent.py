"""A folder that somebody sent, and commands that run in it: its repository, its configuration, its runs and its pages."""

from __future__ import annotations

import ast
import inspect
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import click
import pytest

from circuitfind.cli.command import key_of
from circuitfind.cli.config_limits import ANYWHERE, INSIDE
from circuitfind.cli.configuration import leaves, options_of
from circuitfind.output.provenance import git_state
from circuitfind.output.report import serve
from circuitfind.output.report.command import reproduce
from circuitfind.output.report.serve import Shelf
from tests.browser import opened
from tests.cli.helpers import Cli
from tests.cli.test_view import ask, serving
from tests.finished import QuickRun
from tests.output.circuits import conditions, make
from tests.security.conftest import SECRET

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and a file that has changed since."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    folder = tmp_path / "sent"
    folder.mkdir()
    git(folder, "init")
    (folder / ".gitattributes").write_text("*.txt filter=own\n", encoding="utf-8")
    (folder / "a.txt").write_text("one", encoding="utf-8")
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-m", "first")
    (folder / "a.txt").write_text("two", encoding="utf-8")
    return folder


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, timeout=60)


CONFIGURED = {
    "fsmonitor": {"core.fsmonitor": "touch {ran}; false"},
    "clean filter": {"filter.own.clean": "touch {ran}; cat"},
    "process filter": {"filter.own.process": "touch {ran}; cat", "filter.own.required": "true"},
    "included": {"include.path": "../more"},
}


@needs_git
@pytest.mark.parametrize("kind", CONFIGURED)
def test_git_runs_nothing_of_the_repository(repository: Path, tmp_path: Path, kind: str) -> None:
    ran = tmp_path / "it-ran"
    for key, value in CONFIGURED[kind].items():
        git(repository, "config", key, value.format(ran=ran))
    (repository / "more").write_text(f'[filter "own"]\n\tclean = "touch {ran}; cat"\n', encoding="utf-8")
    state = git_state(repository)
    assert state is not None
    assert (len(state["commit"]), state["dirty"]) == (40, True)
    assert not ran.exists()
    subprocess.run(["git", "-C", str(repository), "status"], check=False, capture_output=True, timeout=60)
    assert ran.exists(), "the trap works where git is asked carelessly"


@needs_git
def test_a_filter_whose_name_cannot_be_said(repository: Path, tmp_path: Path) -> None:
    ran = tmp_path / "it-ran"
    (repository / ".gitattributes").write_text("*.txt filter=a=b\n", encoding="utf-8")
    git(repository, "config", "filter.a=b.clean", f"touch {ran}; cat")
    state = git_state(repository)
    assert state is not None
    assert state["dirty"] is None
    assert not ran.exists()


@needs_git
def test_nothing_is_fetched(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository may say that it lacks objects, and where and by what program they are to be had."""
    seen: list[dict[str, str]] = []
    real = subprocess.run

    def spy(words: Any, **keys: Any) -> Any:
        seen.append(keys["env"])
        return real(words, **keys)

    monkeypatch.setattr("circuitfind.output.provenance.subprocess.run", spy)
    assert git_state(repository) is not None
    assert len(seen) > 3
    assert all(env["GIT_ALLOW_PROTOCOL"] == "none" and env["GIT_TERMINAL_PROMPT"] == "0" for env in seen)


# --- its configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("export", "output", ("export", "latest", "--to", "json")),
        ("figures", "out", ("figures", "latest")),
        ("check", "junit", ("check", "or-gate")),
        ("check", "baselines", ("check", "or-gate", "--update")),
        ("prune", "output", ("prune", "latest", "--edges", "3")),
        ("render", "to", ("render", "latest")),
        ("name", "text", ("name", "latest")),
    ],
)
def test_a_configuration_that_lies_there_names_nothing_elsewhere(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, key: str, words: tuple[str, ...]
) -> None:
    """`circuitfind.toml` comes with a folder; what it sets must not reach the user's own files."""
    folder = tmp_path / "sent"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for value in ("../victim", str(tmp_path / "victim"), "~/victim", "link/victim"):
        (folder / "link").unlink(missing_ok=True)
        (folder / "link").symlink_to(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        (folder / "circuitfind.toml").write_text(f'[{section}]\n{key} = "{value}"\n', encoding="utf-8")
        says = [f"circuitfind.toml:2 ({section}.{key})", "lies outside of the folder", f"--{key}"]
        cli.fails_loosely(2, *words, says=says)
    assert not (tmp_path / "victim").exists()


def test_every_path_that_a_configuration_may_set_is_one_or_the_other() -> None:
    found = {
        key_of(option)
        for command in leaves()
        for option in options_of(command)
        if option.metavar in ("FILE", "FOLDER") or isinstance(option.type, click.Path)
    }
    assert found == {*INSIDE, *ANYWHERE}


def test_one_that_is_named_is_the_users_own(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "own.toml").write_text('[export]\noutput = "../elsewhere.json"\n', encoding="utf-8")
    monkeypatch.chdir(folder)
    words = ("export", "latest", "--to", "json")
    cli.fails_loosely(2, *words, "--config", "own.toml", says=["no runs in outputs"])
    (folder / "circuitfind.toml").write_text('[export]\noutput = "inside.json"\n', encoding="utf-8")
    cli.fails_loosely(2, *words, says=["no runs in outputs"])


# --- its pages ------------------------------------------------------------------------------------------------

EVIL_PAGE = """\
<!DOCTYPE html><html data-ready="yes"><title>evil</title>
<p id="said">it did not run</p><a id="on" href="../mine/report.html">on</a>
<script>
const said = document.getElementById('said');
said.textContent = 'it ran';
try {
  const other = window.open('../mine/report.html');
  setTimeout(() => { try { said.textContent += ' and read ' + other.document.body.textContent; } catch (e) {} }, 400);
} catch (e) {}
try { localStorage.setItem('a', 'b'); said.textContent += ' and kept'; } catch (e) {}
fetch('../mine/report.html').then((r) => r.text()).then((t) => { said.textContent += ' and fetched ' + t; }).catch(() => {});
</script>
"""


def test_a_page_of_somebody_cannot_look_at_mine(browser: Any, tmp_path: Path) -> None:
    for name, text in (("evil", EVIL_PAGE), ("mine", f"<title>mine</title>{SECRET}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}", encoding="utf-8")
        (tmp_path / name / "report.html").write_text(text, encoding="utf-8")
    shelf = Shelf(tmp_path, runs=True, make=lambda name: None)
    with serving(shelf, "evil/report.html") as server, opened(browser, server.url) as shown:
        shown.page.wait_for_timeout(700)
        assert shown.text("#said") == "it ran"
        shown.page.click("#on")
        shown.page.wait_for_function("document.title === 'mine'")


def test_pages_of_ours_do_not_mind(browser: Any, one_run: Path) -> None:
    """The report of a run through the server: nothing is complained of, its table can be had as a file, links lead on."""
    from circuitfind.output.report.fresh import fresh_report
    from circuitfind.output.store import Store

    store = Store(one_run / "outputs")
    run = store.find("latest")
    fresh_report(run)
    with (
        serving(Shelf(run.path, runs=False, make=lambda name: None)) as server,
        opened(browser, server.url) as shown,
    ):
        assert shown.complaints == []
        button = shown.page.locator("button", has_text="download CSV").first
        button.scroll_into_view_if_needed()
        with shown.page.expect_download() as got:
            button.click()
        assert got.value.suggested_filename.endswith(".csv")
        assert shown.complaints == []


# --- what the server says -------------------------------------------------------------------------------------


def test_the_word_is_compared_in_constant_time() -> None:
    """Its length and its letters are not to be found out by how long an answer takes."""
    source = inspect.getsource(serve)
    compared = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Compare)]
    assert not [node for node in compared if "token" in ast.unparse(node)]
    assert "hmac.compare_digest(" in source
    assert "secrets.token_urlsafe(24)" in source


def test_the_word_is_new_each_time_and_is_not_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = set()
    for _ in range(2):
        with serving(Shelf(tmp_path, runs=False, make=lambda name: None)) as server:
            words.add(server.token)
            for path in ("manifest.json", "report.html", "../x", "%00"):
                answer = ask(server, path)
                told = answer.body.decode("utf-8", "replace") + repr(answer.headers)
                assert server.token not in told
            ask(server, f"/{server.token}x/", word=False)
    assert len(words) == 2
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_every_answer_is_fenced(tmp_path: Path) -> None:
    """Pages and everything else alike: no origin, nothing loaded, no frame around."""
    for name in ("report.html", "circuit.svg", "manifest.json", "a.txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    with serving(Shelf(tmp_path, runs=False, make=lambda name: None)) as server:
        for name in ("report.html", "circuit.svg", "manifest.json", "a.txt"):
            answer = ask(server, name)
            policy = answer.headers["content-security-policy"]
            assert answer.status == 200
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "sandbox" in policy
            assert "allow-same-origin" not in policy
            assert "allow-popups" not in policy
            assert ("allow-scripts" in policy) == (name == "report.html")


def test_the_address_is_no_word_of_a_command(
    cli: Cli, tmp_path: Path, quick_run: QuickRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone on a machine can list the words of commands, such as those that a browser is started with."""
    run = quick_run(tmp_path)
    given: list[tuple[str, int, str]] = []
    opened_it = threading.Event()

    def browse(address: str) -> bool:
        path = Path(unquote(urlsplit(address).path))
        given.append((address, stat.S_IMODE(path.stat().st_mode), path.read_text(encoding="utf-8")))
        opened_it.set()
        return True

    def serve_until_opened(self: serve.Server, poll_interval: float = 0.5) -> None:
        assert opened_it.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", browse)
    monkeypatch.setattr(serve.Server, "serve_forever", serve_until_opened)
    monkeypatch.setenv("BROWSER", "some")
    told = cli.good("view", run.name)
    ((address, mode, text),) = given
    url = told.out.strip()
    assert address.startswith("file://")
    assert url.rsplit("/", 2)[1] not in address
    assert f'content="0; url={url}"' in text
    assert mode == 0o600
    assert not list(tmp_path.rglob("view-*.html")), "it goes with the server"


# --- its circuits ---------------------------------------------------------------------------------------------


def test_commands_that_are_advised_are_quoted(cli: Cli, tmp_path: Path) -> None:
    """They are copied into a shell; a circuit that somebody sent says what its task and model are called."""
    evil = "x; touch it-ran #"
    made = make({"input->m0": 1.0, "m0->logits": 0.5}, conditions=conditions(task=evil, model=evil))
    (tmp_path / "circuit.json").write_text(json.dumps(made.as_dict()), encoding="utf-8")
    told = cli.good("prune", "circuit.json", "--edges", "2", "-o", "pruned.json", "--json").json
    words = shlex.split(told["next"])
    assert words == ["circuitfind", "evaluate", "pruned.json", "--task", evil, "--model", evil]
    manifest: dict[str, Any] = {"command": ["circuitfind", "show", evil], "config": {}}
    assert shlex.split(reproduce(manifest)) == ["circuitfind", "show", evil]


# --- its modules ----------------------------------------------------------------------------------------------

STARTS = """\
import sys
sys.path[0] = {repository!r}  # as for a command, which does not look here
from circuitfind.engine.{module} import {name} as engine
from tests.security.jobs import Where
with engine({arguments}) as workers:
    print([found for _, found in workers.map([Where()])])
"""


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("processes", "processes", "1"),
        pytest.param("ray", "ray_engine", "1, None", marks=pytest.mark.slow),
    ],
)
def test_workers_import_nothing_from_the_working_directory(
    tmp_path: Path, module: str, name: str, arguments: str
) -> None:
    """Python begins a process by importing what is called `struct`, wherever it looks first."""
    for shadowed in ("struct", "pickle", "yaml", "numpy", "torch", "random", "socket"):
        text = f"open({str(tmp_path / 'it-ran')!r}, 'a').write(__name__)\nraise ImportError('not yours')\n"
        (tmp_path / f"{shadowed}.py").write_text(text, encoding="utf-8")
    repository = Path(__file__).resolve().parents[2]
    code = STARTS.format(repository=str(repository), module=module, name=name, arguments=arguments)
    script = tmp_path.parent / f"start-{module}.py"
    script.write_text(code, encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert not (tmp_path / "it-ran").exists(), done.stderr
    assert done.stdout.strip() == "[[]]", done.stderr
