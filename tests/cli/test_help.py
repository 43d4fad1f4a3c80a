"""Every command has an example in its help, and every example runs: as it stands, or with what a test has in place of it."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from circuitfind.cli import COMMANDS, SECTIONS, find
from circuitfind.cli.command import Command, Group, folded
from circuitfind.cli.configuration import leaves
from tests.cli.helpers import Cli
from tests.finished import ONE as TASK


@dataclass(frozen=True)
class Instead:
    """What is run in place of an example, with the same options: ``words`` after ``circuitfind``; as it stands if empty.

    Attributes:
        slow: It takes seconds.
        codes: Exit codes that are right: 1 is a verdict, or a check that differs.
        makes: Files that are there afterwards.
    """

    words: str = ""
    slow: bool = False
    codes: tuple[int, ...] = (0,)
    makes: tuple[str, ...] = ()


AS_IT_IS = Instead()
AND = "planted/and-gate"
PROMPT = "When Mary and John went to the store, John gave a drink to"

EXAMPLES: dict[str, Instead] = {
    # Find
    "discover ioi": Instead("discover small.yaml"),
    "discover ioi --model gpt2 --faithfulness 0.85": Instead(
        f"discover small.yaml --model {AND} --faithfulness 0.85", slow=True
    ),
    "discover gendered-pronoun --nodes heads,features": Instead(
        "discover neuron-lookup --nodes heads,features --count 16 --controls none", slow=True
    ),
    "discover ioi --model ./before --model-b ./after": Instead(
        "discover or-gate --model planted/or-gate --model-b planted/or-gate --direction denoising --count 8",
        slow=True,
        codes=(0, 2),
    ),
    "discover my-task.yaml --model ./my-model --method activation-patching": Instead(
        f"discover small.yaml --model {AND} --method activation-patching --no-views", slow=True
    ),
    "sweep --template > sweep.yaml": AS_IT_IS,
    "sweep sweep.yaml --dry-run": AS_IT_IS,
    "sweep sweep.yaml": Instead("sweep tiny-sweep.yaml", slow=True),
    "sweep sweep.yaml --only task=ioi --only method=eap": Instead(
        "sweep tiny-sweep.yaml --only task=small --only method=eap", slow=True
    ),
    "backups ioi": Instead("backups small.yaml"),
    "backups ioi --primaries a9.h9,9.6,L10H0 --reader logits": Instead(
        "backups small.yaml --primaries a0.h0,0.1,L1H0 --reader logits"
    ),
    "backups latest": AS_IT_IS,
    "patch ioi --nodes a1.h4,m0": Instead("patch small.yaml --nodes a0.h0,m1", slow=True),
    "patch ioi --nodes a1.h4,a2.h2 --each --alpha 0,0.25,0.5,1": Instead(
        "patch small.yaml --nodes a0.h0,a0.h1 --each --alpha 0,0.25,0.5,1"
    ),
    "patch ioi --edges 'a1.h4->logits' --direction denoising": Instead(
        "patch small.yaml --edges 'm1->logits' --direction denoising", slow=True
    ),
    "patch latest --nodes m0 --positions END --format pdf": Instead(
        "patch latest --nodes m1 --positions END --format pdf", slow=True
    ),
    f'attribute --text "{PROMPT}"': Instead(f'attribute --text "{PROMPT}" --max-features 20', slow=True),
    "attribute ioi --count 16": Instead("attribute ioi --count 2 --max-features 20", slow=True),
    "attribute outputs/attribution-mini-1a2b3c4d --node-threshold 0.6": Instead(
        "attribute {graphs} --node-threshold 0.6", slow=True
    ),
    "saes ioi --model mini --dictionaries my-saes": Instead(
        "saes subject-verb-agreement --model mini --dictionaries my-saes --count 16 --evaluations 5",
        slow=True,
    ),
    "saes ioi --model google/gemma-2-2b --dictionaries "
    "google/gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82": Instead(
        "saes ioi --model mini --dictionaries my-saes --count 16 --evaluations 5", slow=True
    ),
    "saes my-task.yaml --dictionaries my-saes --node-threshold 0.1 --ablation mean": Instead(
        "saes ioi --dictionaries my-saes --node-threshold 0.1 --ablation mean --count 64", slow=True
    ),
    # Evidence
    "evaluate latest": Instead(codes=(0, 1)),
    "evaluate latest --parts all --controls full --ablation resample --ablation mean --ablation zero": Instead(
        "evaluate latest --parts all --controls cheap --ablation resample --ablation mean --ablation zero --draws 3",
        slow=True,
        codes=(0, 1),
    ),
    "evaluate graph.json --task ioi --model gpt2": Instead(
        f"evaluate importances.json --task small.yaml --model {AND} --parts completeness", codes=(0, 1)
    ),
    "evaluate --task ioi --known any --model gpt2": Instead(
        f"evaluate --task known.yaml --known any --model {AND} --count 16", codes=(0, 1)
    ),
    "certify latest": Instead(codes=(0, 1)),
    "certify latest --faithfulness 0.85 --ablation resample": Instead(codes=(0, 1)),
    "certify --task gendered-pronoun --known any --model gpt2": Instead(
        f"certify --task known.yaml --known any --model {AND} --count 16", codes=(0, 1)
    ),
    "check": Instead("check small.yaml --jobs 1 --baselines baselines", slow=True),
    "check ioi --update": Instead("check small.yaml --update --baselines baselines", slow=True),
    "check --tier 2 --junit results.xml": Instead(
        "check small.yaml --tier 1 --junit results.xml --baselines baselines",
        slow=True,
        makes=("results.xml",),
    ),
    "check my-task.yaml --model ./my-model --json": Instead(
        f"check small.yaml --model {AND} --json --baselines baselines", slow=True
    ),
    # Look
    "show latest": AS_IT_IS,
    "show latest --nodes --top 20": AS_IT_IS,
    "show latest --stats": AS_IT_IS,
    "show importances.json": AS_IT_IS,
    "report": AS_IT_IS,
    "report ioi-mini-1a2b -o ioi.html": Instead("report small -o ioi.html", makes=("ioi.html",)),
    "report ioi-mini-1a2b latest": Instead("report small other"),
    "report --index": Instead(makes=("outputs/index.html",)),
    "view latest": AS_IT_IS,
    "view": AS_IT_IS,
    "view ioi-mini-1a2b --no-open --port 8800": Instead("view small --no-open --port 0"),
    "figures latest": Instead(slow=True),
    "figures latest --only heatmap,curve --width column": Instead(slow=True),
    "figures latest --only patterns --head a0.h2 --prompt 2": Instead(
        "figures latest --only patterns --head a0.h1 --prompt 2"
    ),
    "figures ioi-mini --format svg --format png --out paper/figures": Instead(
        "figures small --format svg --format png --out paper/figures --only heatmap"
    ),
    "render latest --format png --format pdf": AS_IT_IS,
    'render latest --to figure.svg --title "Indirect objects" --no-legend': Instead(makes=("figure.svg",)),
    "diff ioi-mini-1a2b latest": Instead("diff small other"),
    "diff baseline/circuit.json ioi-mini-1a2b --at-least 0.8": Instead(
        "diff baseline/circuit.json small --at-least 0.8"
    ),
    "diff ioi-base-1a2b ioi-tuned-3c4d --to changes.svg": Instead(
        "diff small other --to changes.svg", makes=("changes.svg",)
    ),
    "name latest": Instead("name latest --node m1.n0 --tokens 200"),
    "name latest --text corpus.txt --top 10": Instead("name {units} --text corpus.txt --top 10", slow=True),
    "name latest --node m1.n203 --task greater-than": Instead("name latest --node m1.n1 --task and-gate"),
    'label latest a0.h2 "duplicate tokens"': Instead('label latest a0.h0 "duplicate tokens"'),
    "label latest a0.h2 --remove": Instead("label latest a0.h0 --remove"),
    "label latest": AS_IT_IS,
    # Files
    "prune latest --edges 30": AS_IT_IS,
    "prune latest --threshold 0.05 --format svg": AS_IT_IS,
    "prune latest --target 0.95": AS_IT_IS,
    "prune importances.json --edges 100 -o small.json": Instead(makes=("small.json",)),
    "list tasks": AS_IT_IS,
    "list methods": AS_IT_IS,
    "list runs --json": AS_IT_IS,
    "export latest --to graphml": AS_IT_IS,
    "export latest --to svg,pdf --to csv -o figures/": AS_IT_IS,
    "export latest --to python -o circuit.py": Instead(makes=("circuit.py",)),
    "export latest --to node-link -o -": AS_IT_IS,
    "transcoders train mini --width 512 --out my-transcoders": Instead(
        "transcoders train mini --width 8 --out my-transcoders --steps 2 --k 2 --batch 64", slow=True
    ),
    "transcoders train ./my-model --text corpus.txt --width 4096 --activation jumprelu --out jumps": Instead(
        "transcoders train mini --text corpus.txt --width 8 --activation jumprelu --out jumps --steps 2 --batch 16",
        slow=True,
    ),
    "transcoders train mini --site resid_post --layers 1,2 --width 512 --out my-saes": Instead(
        "transcoders train mini --site resid_post --layers 1,2 --width 8 --out more-saes --steps 2 --k 2",
        slow=True,
    ),
    "transcoders eval my-transcoders --model mini": Instead(
        "transcoders eval {transcoders} --model mini --tokens 100", slow=True
    ),
    "transcoders eval my-transcoders --model mini --task ioi": Instead(
        "transcoders eval {transcoders} --model mini --task ioi --count 4", slow=True
    ),
    # Tasks
    "validate my-task.yaml --no-model": Instead("validate small.yaml --no-model"),
    "validate ioi --counterfactual abc": Instead("validate small.yaml --counterfactual corrupted"),
    "validate my-task.yaml --model ./my-model": Instead(f"validate small.yaml --model {AND}"),
    "prompts check ioi": Instead("prompts check small.yaml", codes=(0, 1)),
    "prompts check ioi --counterfactual abc --count 16 --strict": Instead(
        "prompts check small.yaml --counterfactual corrupted --count 16 --strict", codes=(0, 1), slow=True
    ),
    "prompts check my-task.yaml --no-run": Instead("prompts check small.yaml --no-run", codes=(0, 1)),
    "prompts show ioi": Instead("prompts show small.yaml"),
    "prompts show ioi --count 2": Instead("prompts show small.yaml --count 2"),
    "prompts suggest ioi --change B": Instead(slow=True),
    "prompts show ioi --pair 7 --counterfactual abc": Instead(
        "prompts show small.yaml --pair 7 --counterfactual corrupted"
    ),
    f'prompts suggest "{PROMPT}" --change John': Instead(slow=True),
    'prompts suggest "The {cat} by the trees" --from model --count 5': Instead(slow=True),
    "prompts suggest ioi --change B --to my-ioi.yaml": Instead(slow=True, makes=("my-ioi.yaml",)),
    "init": Instead(makes=("my-task.yaml",)),
    "init tasks/capitals.yaml": Instead(makes=("tasks/capitals.yaml",)),
    "schema > task.schema.json": AS_IT_IS,
    # Set-up
    "doctor": Instead(codes=(0, 1)),
    "config show": AS_IT_IS,
    "config show discover --origin": AS_IT_IS,
    "config show transcoders train --json": AS_IT_IS,
    "config path": AS_IT_IS,
    "config init": Instead("config init first.toml"),
    "config init other.toml": Instead(makes=("other.toml",)),
    "completion bash >> ~/.bashrc": AS_IT_IS,
    "completion zsh >> ~/.zshrc": AS_IT_IS,
    "completion fish > ~/.config/fish/completions/circuitfind.fish": AS_IT_IS,
}
"""Each example without ``circuitfind`` to what is run. A new example needs a line here: a test says so."""


def examples(command: click.Command) -> list[str]:
    r"""The lines behind ``\b`` in a command's help that call it, without the word ``circuitfind`` and without comments."""
    found, plain = [], False
    for line in (command.help or "").splitlines():
        plain = line.strip() == "\b" or (plain and bool(line.strip()))
        called = re.match(r"\s*(?:\w+:\s+)?circuitfind (.*)", line) if plain else None
        if called:
            found.append(re.split(r"\s+#\s", called[1])[0].strip())
    return found


MAKERS = ("discover", "backups", "patch", "sweep", "saes", "check", "attribute")
"""Commands that make new runs."""

EVERY = [(command.path, example) for command in leaves() for example in examples(command)]


@pytest.fixture(scope="module")
def place(one_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and with the files that examples name."""
    folder = tmp_path_factory.mktemp("examples") / "here"
    shutil.copytree(one_run, folder)
    (run,) = (path for path in (folder / "outputs").iterdir() if (path / "manifest.json").is_file())
    (folder / "baseline").mkdir()
    shutil.copy(run / "circuit.json", folder / "baseline" / "circuit.json")
    (folder / "corpus.txt").write_text(
        "\n\n".join(["We met Mary at the shop, where John gave a book to Mary."] * 40)
    )
    known = f"known:\n  {AND}: {{name: arms, source: its weights, heads: [a0.h0, a0.h1]}}\n"
    (folder / "known.yaml").write_text(TASK.replace("small", "known") + known, encoding="utf-8")
    (folder / "tiny-sweep.yaml").write_text(
        "name: tiny\ntasks: [small.yaml]\nmethods: [eap, eap-ig]\nsettings: {controls: none, views: false}\n"
    )
    from circuitfind.cli import run as run_command

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "other.yaml").write_text(TASK.replace("small", "other"), encoding="utf-8")
        assert run_command(["discover", "other.yaml", "-q", "--edges", "4"]) == 0
        assert run_command(["export", "latest", "--to", "eap-ig", "-o", "importances.json", "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, str]:
    """Dictionaries and graphs that slow examples start from, by what they are called in the table."""
    from circuitfind.cli import run
    from circuitfind.zoo.mini import transcoders_folder

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        site = "--site resid_post --layers 2 --width 16 --k 4 --steps 2 --batch 64 --out my-saes -q"
        assert run(["transcoders", "train", "mini", *site.split()]) == 0
        graphs = ["attribute", "--text", PROMPT, "--max-features", "20", "--out", "graphs", "-q"]
        assert run(graphs) == 0
        patch.setenv("CIRCUITFIND_OUTPUTS", "units")
        flags = (
            "--nodes heads,neurons --faithfulness 0.3 --count 8 --controls none --no-views --no-backups -q"
        )
        assert run(["discover", "subject-verb-agreement", *flags.split()]) == 0
    (units,) = (path for path in (place / "units").iterdir() if path.is_dir())
    return {"graphs": "graphs", "transcoders": str(transcoders_folder()), "units": str(units)}


@pytest.fixture
def no_serving(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A server that ends as soon as it serves, and a browser that only notes what it is to open."""
    import webbrowser
    from http.server import ThreadingHTTPServer
    from socketserver import BaseServer

    opened: list[str] = []

    def stop(*args: Any, **keys: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BaseServer, "serve_forever", stop)
    assert ThreadingHTTPServer.serve_forever is stop
    monkeypatch.setattr(webbrowser, "open", lambda url, *a, **k: opened.append(url) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    return opened


def test_every_command_has_an_example_of_its_own() -> None:
    for command in leaves():
        mine = examples(command)
        assert mine, f"`{' '.join(command.path)}` shows no example in its help"
        for example in mine:
            assert tuple(example.split()[: len(command.path)]) == command.path, example
    for name in COMMANDS:
        command = find(name)
        if isinstance(command, Group):
            assert examples(command), f"`{name}` shows no example in its help"


def test_every_example_has_an_entry() -> None:
    told = {example for _, example in EVERY}
    told |= {one for name in COMMANDS if isinstance(find(name), Group) for one in examples(find(name))}
    missing = told - EXAMPLES.keys() - {one for one in told if one.split()[0] in ("transcoders", "config")}
    assert not missing, f"say in EXAMPLES what is run for: {sorted(missing)}"
    gone = EXAMPLES.keys() - told
    assert not gone, f"no help shows these any more: {sorted(gone)}"


@pytest.mark.parametrize(("path", "example"), EVERY, ids=lambda one: one if isinstance(one, str) else "")
def test_substitutes_take_the_same_options(path: tuple[str, ...], example: str) -> None:
    """So that what is run is what is shown, but for names and sizes; and both are parsed."""
    instead = EXAMPLES.get(example, AS_IT_IS).words or example
    command = _leaf(path)
    words = [_words(one)[len(path) :] for one in (example, instead)]
    given = [_options(command, one) for one in words]
    assert given[0] <= given[1], f"{instead} leaves out {given[0] - given[1]}"


RUN = [
    pytest.param(example, marks=pytest.mark.slow if EXAMPLES[example].slow else ())
    for _, example in EVERY
    if example in EXAMPLES
]


@pytest.mark.parametrize("example", RUN)
def test_examples_run(
    cli: Cli,
    place: Path,
    no_serving: list[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    example: str,
) -> None:
    instead = EXAMPLES[example]
    monkeypatch.chdir(place)
    names = request.getfixturevalue("made") if instead.slow else {}
    line, target = instead.words or example, None
    for name, path in names.items():
        line = line.replace(f"{{{name}}}", path)
    words = _words(line)
    if example.startswith("sweep sweep.yaml") and not (place / "sweep.yaml").is_file():
        (place / "sweep.yaml").write_text(cli.good("sweep", "--template").out, encoding="utf-8")
    if words[0] in MAKERS and "latest" not in words:  # the latest run stays the one that others look at
        monkeypatch.setenv("CIRCUITFIND_OUTPUTS", "others")
    shown = shlex.split(example)
    if ">" in shown:
        target = place / Path(shown[shown.index(">") + 1]).name
    found = cli(*words)
    assert found.code in instead.codes, found.err + found.out
    assert "Traceback" not in found.err
    assert found.out or found.code == 2
    if target is not None:
        target.write_text(found.out, encoding="utf-8")
    for name in instead.makes:
        assert (place / name).stat().st_size > 0
    if words[0] == "view":
        assert bool(no_serving) is ("--no-open" not in words)


def _leaf(path: tuple[str, ...]) -> Command:
    found: Any = find(path[0])
    for word in path[1:]:
        found = found.commands[word]
    assert isinstance(found, Command)
    return found


def _words(example: str) -> list[str]:
    """What the shell hands over, up to where it writes the output."""
    words = shlex.split(example)
    ends = [words.index(mark) for mark in (">", ">>") if mark in words]
    return words[: min(ends, default=len(words))]


def _options(command: Command, words: list[str]) -> set[str]:
    """Names of the options that are given."""
    context = click.Context(command, info_name=" ".join(command.path))
    given, _, _ = command.make_parser(context).parse_args(args=list(words))
    options = {one.name for one in command.params if isinstance(one, click.Option)}
    return {name for name in given if name in options}


# --- the pages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["60", "80", "100"])
def test_help_fits(cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    pages = [(), *((name,) for name in COMMANDS), *(command.path for command in leaves())]
    for path in pages:
        for line in cli.good(*path, "--help").out.splitlines():
            assert len(line) <= int(columns) or " " not in line.strip().rstrip("\\").strip(), (path, line)


def test_every_command_stands_below_a_heading(cli: Cli) -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(COMMANDS)
    out = cli.good("--help").out
    at = [out.index(f"\n{title}:\n") for title in SECTIONS]
    assert at == sorted(at)


def test_long_examples_are_folded() -> None:
    text = "Title.\n\n\\b\ncircuitfind one two three four five six --seven eight   # why\ncircuitfind short\n\nA paragraph."
    assert folded(text.replace("\\b", "\b"), 40).splitlines() == [
        "Title.",
        "",
        "\b",
        "# why",
        "circuitfind one two three four five \\",
        "    six --seven eight",
        "circuitfind short",
        "",
        "A paragraph.",
    ]
