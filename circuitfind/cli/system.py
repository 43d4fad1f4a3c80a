"""``doctor`` and ``completion``."""

from __future__ import annotations

from dataclasses import asdict

import click

from circuitfind.cli.common import Screen, common_options
from circuitfind.errors import CheckDiffers

START = 24
"""Column in which what was found begins."""


@click.command()
@common_options
def doctor(screen: Screen) -> None:
    """Check the installation: versions, Graphviz, folders, devices. Exit code 1 if something would fail.

    \b
    circuitfind doctor
    """
    from rich.text import Text

    from circuitfind.doctor import examine

    findings = list(examine())
    bad = [f for f in findings if f.state == "bad"]

    def show() -> None:
        styles = {"ok": "green", "note": "yellow", "bad": "red"}
        for f in findings:
            line = Text.assemble((f"{f.state:<5}", styles[f.state]), f" {f.what:<18}", f.found)
            screen.out.hanging(line, START)
            if f.hint:
                screen.out.hanging(Text(f"{'':<{START}}{f.hint}"), START)

    screen.result({"version": 1, "ok": not bad, "findings": [asdict(f) for f in findings]}, show)
    if bad:
        told = f"{len(bad)} of {len(findings)} checks failed: {', '.join(f.what for f in bad)}"
        screen.fail(CheckDiffers(told, hint=bad[0].hint))


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@common_options
def completion(screen: Screen, shell: str) -> None:
    """Print a completion script for SHELL: commands, options, tasks, models and runs.

    \b
    bash:  circuitfind completion bash >> ~/.bashrc
    zsh:   circuitfind completion zsh >> ~/.zshrc
    fish:  circuitfind completion fish > ~/.config/fish/completions/circuitfind.fish
    """
    from click.shell_completion import get_completion_class

    from circuitfind.cli import group

    found = get_completion_class(shell)
    assert found is not None, "click knows the shells that the argument admits"
    script = found(group, {}, "circuitfind", "_CIRCUITFIND_COMPLETE").source()
    screen.result({"version": 1, "shell": shell, "script": script}, lambda: click.echo(script))
