"""What commands share: options added in order, and lines of a verdict."""

from __future__ import annotations

from typing import Any

import click
import pytest

from circuitfind.cli.common import Screen
from circuitfind.cli.lines import RunLines, interval, print_line, print_title
from circuitfind.cli.options import in_order, layer_list, place_options, prompt_options
from circuitfind.errors import UsageError


def evaluation(value: float) -> dict[str, Any]:
    ends = {"value": value, "low": value - 0.1, "high": value + 0.1}
    return {
        "ablation": "mean",
        "metric": "logit-diff",
        "faithfulness": ends,
        "circuit": 3,
        "full": 4,
        "empty": 0,
        "n_prompts": 8,
    }


def test_options_stand_in_the_order_given() -> None:
    @click.command()
    @prompt_options
    @in_order(click.option("--first"), click.option("--second"))
    @place_options
    def command(**flags: object) -> None: ...

    names = "count seed min_accuracy drop_bad_pairs first second memory device trust_remote_code read_outside outputs"
    assert [option.name for option in command.params] == names.split()


@pytest.mark.parametrize(
    ("text", "layers"), [("all", None), (" all ", None), ("3", [3]), ("0, 1,5", [0, 1, 5])]
)
def test_layers(text: str, layers: list[int] | None) -> None:
    assert layer_list(text) == layers


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1.5"])
def test_no_layers(text: str) -> None:
    with pytest.raises(UsageError, match="names no layers"):
        layer_list(text)


def test_brackets_in_names_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    print_title(screen, {"task": "[bold]", "model": "./[a]"}, "found [0]")
    print_line(screen, "run", "out/[red]x", ("[b]", "bold"))
    assert capsys.readouterr().out == "[bold] on ./[a]: found [0]\n  run           out/[red]x[b]\n"


def test_the_word_below_a_low_second_ablation(capsys: pytest.CaptureFixture[str]) -> None:
    values = (0.4, 0.5, 0.49)
    RunLines(Screen(), {"evaluations": [evaluation(v) for v in values]}).evaluations(
        whole="full", low="because"
    )
    lines = capsys.readouterr().out.splitlines()
    tail = "under mean ablation (logit-diff 3.000; full 4.000, empty 0.000; 8 prompts)"
    assert lines == [
        f"  faithfulness  0.400 [0.300, 0.500] {tail}",
        f"                0.500 [0.400, 0.600] {tail}",
        f"                0.490 [0.390, 0.590] {tail}",
        "                (because)",
    ]


def test_an_interval_reads_as_that_of_a_circuit() -> None:
    from circuitfind.circuit.graph import Interval

    found = Interval(0.9, -0.25, 1.125)
    assert interval(vars(found)) == str(found)
