"""Options that are not given: variables of the environment, circuitfind.toml, defaults, and how they go before each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from circuitfind.cli import COMMANDS, find, group
from circuitfind.cli.command import key_of, variable_of, variables_of
from circuitfind.cli.common import common_options
from circuitfind.cli.config import template
from circuitfind.cli.configuration import APART, SHARED, leaves, options_of, places
from tests.cli.helpers import Cli


@pytest.fixture(autouse=True)
def no_file_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a test is a repository, so that nothing above it is read."""
    monkeypatch.delenv("CIRCUITFIND_CONFIG", raising=False)
    (tmp_path / ".git").mkdir()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``label`` and ``show`` would work with, in place of their work."""
    calls: list[dict[str, Any]] = []
    for name in ("show", "diff", "discover"):

        def stand_in(screen: Any, _name: str = name, **values: Any) -> None:
            calls.append({"command": _name, "quiet": screen.quiet, **values})

        monkeypatch.setattr(find(name), "callback", common_options(stand_in))
    return calls


def write(folder: Path, text: str, name: str = "circuitfind.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- precedence ---------------------------------------------------------------------------------------------


def test_flag_variable_file_default(
    cli: Cli, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def top(*words: str) -> Any:
        cli.good("diff", "a", "b", *words)
        return seen[-1]["top"]

    assert top() == 10, "the default"
    write(cli.folder, "[diff]\ntop = 11\n")
    assert top() == 11, "the file goes before the default"
    monkeypatch.setenv("CIRCUITFIND_DIFF_TOP", "12")
    assert top() == 12, "a variable goes before the file"
    assert top("--top", "13") == 13, "a flag goes before all"
    monkeypatch.delenv("CIRCUITFIND_DIFF_TOP")
    assert top() == 11


def test_switches_are_switched_off_by_their_flag(
    cli: Cli, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cli.folder, "[defaults]\nquiet = true\n[show]\nnodes = true\n")
    cli.good("show")
    assert (seen[-1]["quiet"], seen[-1]["nodes"]) == (True, True)
    cli.good("show", "--no-quiet", "--no-nodes")
    assert (seen[-1]["quiet"], seen[-1]["nodes"]) == (False, False)
    monkeypatch.setenv("CIRCUITFIND_SHOW_NODES", "no")
    cli.good("show")
    assert (seen[-1]["quiet"], seen[-1]["nodes"]) == (True, False)


def test_the_section_of_a_command_goes_before_the_common_one(cli: Cli, seen: list[dict[str, Any]]) -> None:
    write(cli.folder, '[defaults]\noutputs = "all"\n[show]\noutputs = "shown"\n')
    cli.good("show")
    cli.good("diff", "a", "b")
    assert [one["outputs"] for one in seen] == ["shown", "all"]


def test_the_older_variable_for_outputs(
    cli: Cli, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cli.folder, '[defaults]\noutputs = "of-file"\n')
    monkeypatch.setenv("CIRCUITFIND_OUTPUTS", "of-all")
    cli.good("show")
    monkeypatch.setenv("CIRCUITFIND_SHOW_OUTPUTS", "of-show")
    cli.good("show")
    cli.good("show", "--outputs", "flag")
    assert [one["outputs"] for one in seen] == ["of-all", "of-show", "flag"]


def test_a_flag_puts_out_its_rivals_in_the_file(
    cli: Cli, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(*words: str) -> tuple[Any, ...]:
        cli.good("discover", "ioi", *words)
        return tuple(seen[-1][name] for name in ("faithfulness", "edges", "threshold"))

    write(cli.folder, "[discover]\nfaithfulness = 0.7\n")
    assert rule() == (0.7, None, None)
    assert rule("--edges", "30") == (None, 30, None)
    monkeypatch.setenv("CIRCUITFIND_DISCOVER_THRESHOLD", "0.1")
    assert rule() == (None, None, 0.1)
    assert rule("--edges", "30", "--faithfulness", "0.8") == (0.8, 30, None), (
        "both given: the command refuses"
    )


def test_options_that_may_be_repeated(cli: Cli, seen: list[dict[str, Any]]) -> None:
    write(cli.folder, '[discover]\nformat = ["svg", "png"]\noption = "steps=3"\n')
    cli.good("discover", "ioi")
    assert (seen[-1]["formats"], seen[-1]["options"]) == (("svg", "png"), ("steps=3",))
    cli.good("discover", "ioi", "--format", "pdf")
    assert seen[-1]["formats"] == ("pdf",)


def test_errors_as_json_where_a_file_asks_for_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write(cli.folder, "[defaults]\njson = true\n")
    assert cli("show").json["error"] == "UsageError"
    assert cli("show", "--no-json").err.startswith("error: no runs")
    monkeypatch.setenv("CIRCUITFIND_SHOW_JSON", "0")
    assert cli("show").err.startswith("error: no runs")


# --- where the file is --------------------------------------------------------------------------------------


def test_the_nearest_file_up_to_the_repository(
    cli: Cli, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = cli.folder / "deep" / "er"
    inner.mkdir(parents=True)
    write(cli.folder, '[diff]\ntop = 3\noutputs = "runs"\n')
    monkeypatch.chdir(inner)
    cli.good("diff", "a", "b")
    assert seen[-1]["top"] == 3
    assert Path(seen[-1]["outputs"]).resolve() == cli.folder / "runs", "as seen from the file"
    write(inner.parent, "[diff]\ntop = 4\n")
    cli.good("diff", "a", "b")
    assert (seen[-1]["top"], seen[-1]["outputs"]) == (4, None), "the nearest one alone"
    (inner / ".git").write_text("gitdir: elsewhere")
    cli.good("diff", "a", "b")
    assert seen[-1]["top"] == 10, "what is above a repository is not of it"


def test_a_folder_of_nobody_reads_its_own_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").rmdir()
    inner = tmp_path / "inner"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert places(inner) == [inner / "circuitfind.toml"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places(inner) == [inner / "circuitfind.toml", tmp_path / "circuitfind.toml"]


@pytest.mark.parametrize("how", ["before", "behind", "variable"])
def test_another_file(
    cli: Cli, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    write(cli.folder, "[diff]\ntop = 3\n")
    write(cli.folder, "[diff]\ntop = 5\n", "other.toml")
    named = ["--config", "other.toml"]
    if how == "variable":
        monkeypatch.setenv("CIRCUITFIND_CONFIG", "other.toml")
    cli.good(*(named if how == "before" else []), "diff", "a", "b", *(named if how == "behind" else []))
    assert seen[-1]["top"] == 5
    cli.fails(2, "diff", "a", "b", "--config", "gone.toml", says=["'gone.toml' is not there", "config init"])


def test_help_reads_no_file(cli: Cli) -> None:
    write(cli.folder, "[nonsense\n")
    for words in (["--help"], ["show", "--help"], ["--version"], ["config", "--help"]):
        cli.good(*words)
    cli.fails(2, "show", says=["circuitfind.toml:1: broken TOML"])


# --- what a file may not say --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n[discver]\nedges = 1\n", [":2 (discver)", "no command 'discver'", "did you mean 'discover'?"]),
        (
            '[discover]\nmodle = "x"\n',
            [":2 (discover.modle)", "has no option 'modle'", "did you mean 'model'?"],
        ),
        ("[discover]\nconfig = 'x'\n", ["has no option 'config'"]),
        ("[discover]\ntask = 'ioi'\n", ["has no option 'task'"]),
        ("[discover]\nno-backups = true\n", ["no option 'no-backups'", "write backups = false"]),
        (
            "[discover]\nedges = 1.5\n",
            [":2 (discover.edges)", "1.5 is not what 'edges' takes", "a whole number"],
        ),
        ("[discover]\nedges = true\n", ["true is not what 'edges' takes"]),
        ('[discover]\nedges = "30"\n', ["'30' is not what 'edges' takes"]),
        ("[discover]\nmetric = 3\n", ["3 is not what 'metric' takes", "a text in quotes"]),
        ('[discover]\nforce = "yes"\n', ["'yes' is not what 'force' takes", "true or false"]),
        ('[discover]\ncontrols = "ful"\n', ["'ful' is not one of", "Did you mean 'full'?"]),
        ('[discover]\nformat = ["svg", "gif"]\n', ["'gif' is not one of"]),
        ("[discover]\nedges = [1, 2]\n", ["'edges' takes one value"]),
        ("[check]\ntier = 9\n", ["9 is not in the range"]),
        ("[defaults]\ncount = 3\n", [":2 (defaults.count)", "[defaults] has no key 'count'"]),
        ("[defaults]\nquiet = 1\n", ["1 is not what 'quiet' takes"]),
        ("[transcoders]\nwidth = 3\n", ["no options of its own", "[transcoders.train]"]),
        ("[transcoders.trian]\nwidth = 3\n", ["no command 'transcoders trian'", "did you mean 'train'?"]),
        ('model = "x"\n', [":1 (model)", "stands in no section"]),
        ("[show]\nnodes = true\nnodes = false\n", ["broken TOML"]),
    ],
)
def test_mistakes_in_a_file(cli: Cli, text: str, says: list[str]) -> None:
    write(cli.folder, text)
    cli.fails(2, "list", "runs", says=["circuitfind.toml", *says])


def test_a_variable_of_the_wrong_type(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCUITFIND_DIFF_TOP", "many")
    cli.fails(2, "diff", "a", "b", says=["'many'", "--top"])
    cli.fails(2, "config", "show", "diff", says=["$CIRCUITFIND_DIFF_TOP", "'many'"])


def test_a_file_that_is_no_text(cli: Cli) -> None:
    (cli.folder / "circuitfind.toml").write_bytes(b"\xff\xfe\x00")
    cli.fails(2, "list", "runs", says=["circuitfind.toml", "no UTF-8"])


# --- config -------------------------------------------------------------------------------------------------


def test_show_with_origin(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write(cli.folder, '# mine\n[defaults]\ndevice = "cpu"\n\n[discover]\nedges = 30\nbackups = false\n')
    monkeypatch.setenv("CIRCUITFIND_DISCOVER_COUNT", "12")
    found = cli.good("config", "show", "discover", "--json").json["commands"]["discover"]
    assert found["device"] == {"value": "cpu", "origin": "file", "where": "circuitfind.toml:3"}
    assert found["edges"] == {"value": 30, "origin": "file", "where": "circuitfind.toml:6"}
    assert found["backups"] == {"value": False, "origin": "file", "where": "circuitfind.toml:7"}
    assert found["count"] == {"value": 12, "origin": "environment", "where": "CIRCUITFIND_DISCOVER_COUNT"}
    assert found["evaluations"] == {"value": 2000, "origin": "default", "where": None}
    assert list(found) == [key_of(one) for one in options_of(find("discover"))]
    out = cli.good("config", "show", "discover", "--origin").out
    assert re.search(r"edges +30 +circuitfind.toml:6", out)
    assert re.search(r"count +12 +CIRCUITFIND_DISCOVER_COUNT", out)
    assert re.search(r"model +\(the task's\) +default", out)
    assert "circuitfind.toml:6" not in cli.good("config", "show", "discover").out


def test_show_says_what_commands_do(
    cli: Cli, seen: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cli.folder, '[defaults]\noutputs = "all"\n[show]\ntop = 4\nnodes = true\n')
    monkeypatch.setenv("CIRCUITFIND_SHOW_EDGES", "1")
    cli.good("show")
    told = cli.good("config", "show", "show", "--json").json["commands"]["show"]
    names = {key_of(one): one.name for one in options_of(find("show"))}
    for key, one in told.items():
        if names[key] in seen[-1]:
            assert seen[-1][str(names[key])] == one["value"], key


def test_show_without_a_command_tells_what_is_changed(cli: Cli) -> None:
    assert "nothing is set" in cli.good("config", "show").out
    write(cli.folder, '[defaults]\nmodel = "mini"\n[transcoders.train]\nwidth = 512\n')
    found = cli.good("config", "show", "--json").json["commands"]
    assert found["transcoders train"]["width"]["value"] == 512
    assert "model" in found["discover"]
    for name in APART["model"]:
        assert "model" not in found.get(name, {}), f"{name} takes a run's model"
    out = cli.good("config", "show").out
    assert out.count("mini") == 1, "a shared value is told once"
    cli.fails(2, "config", "show", "discvoer", says=["did you mean 'discover'?"])
    cli.fails(2, "config", "show", "transcoders", "trian", says=["did you mean 'train'?"])


def test_path(cli: Cli) -> None:
    assert "there is no circuitfind.toml here" in cli.good("config", "path").out
    assert cli.good("config", "path", "--json").json["path"] is None
    path = write(cli.folder, "")
    assert cli.good("config", "path").out == f"{path.resolve()}\n"


def test_init_writes_a_file_that_holds_with_every_comment_taken_off(cli: Cli) -> None:
    cli.good("config", "init")
    assert cli.good("config", "show", "--json").json["commands"] == {}, "it changes nothing as it is"
    says = ["'circuitfind.toml' is there already", "--force"]
    cli.fails(2, "config", "init", says=says)
    cli.good("config", "init", "--force")
    cli.fails(2, "config", "init", ".", says=["is a folder"])
    bare = "\n".join(line.removeprefix("# ") for line in template().splitlines())
    write(cli.folder, bare)
    found = cli.good("config", "show", "--json").json["commands"]
    for command in leaves():
        mine = {key_of(one) for one in options_of(command)} - {*SHARED}
        told = found.get(" ".join(command.path), {})
        assert mine <= {key for key, one in told.items() if one["origin"] == "file"}, command.path


# --- every option -------------------------------------------------------------------------------------------


def every_option() -> list[tuple[Any, click.Option]]:
    return [(command, option) for command in leaves() for option in options_of(command)]


def test_every_option_has_its_variable() -> None:
    for command, option in every_option():
        name = variable_of(option, command.path)
        assert name == "_".join(["CIRCUITFIND", *command.path, key_of(option)]).upper().replace("-", "_")
        assert variables_of(option)[0] == name


def test_shared_options_are_of_one_type() -> None:
    for key in SHARED:
        kinds = {
            (type(option.type), option.is_bool_flag, option.multiple)
            for command, option in every_option()
            if key_of(option) == key and " ".join(command.path) not in APART.get(key, ())
        }
        assert len(kinds) == 1, f"--{key} means different things: {kinds}"
    assert set().union(*APART.values()) <= COMMANDS.keys()


def test_both_forms_of_every_switch() -> None:
    """All but --help and --version, which end the command at once: there is nothing to turn off."""
    context = click.Context(group)
    options = [p for c in (group, *leaves()) for p in c.get_params(context) if isinstance(p, click.Option)]
    alone = {key_of(o) for o in options if o.is_flag and o.is_bool_flag and not o.secondary_opts}
    assert alone == {"help", "version"}
    for command, option in every_option():
        if option.is_bool_flag:
            taken = [name for other in command.params if other is not option for name in other.opts]
            assert not {*option.opts, *option.secondary_opts} & {*taken}, f"{command.path} {option.opts}"


def test_help_stays_readable(cli: Cli) -> None:
    text = cli.good("show", "--help").out
    assert "--no-nodes" not in text, "of what is off the first form alone"
    assert "A switch is turned off by its --no- form" in text
    assert "--backups / --no-backups" in cli.good("discover", "--help").out, "of what is on both"


def test_a_table_of_the_file_is_json_too(cli: Cli) -> None:
    write(cli.folder, "[show]\nnodes = true\n")
    text = cli.good("config", "show", "--json").out
    assert json.loads(text)["file"] == "circuitfind.toml"
