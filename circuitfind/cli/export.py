"""``export``: a circuit in the form of another program. Loads no model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from circuitfind.cli.common import Screen, common_options
from circuitfind.cli.options import complete_runs, outputs_option
from circuitfind.errors import UsageError

if TYPE_CHECKING:
    from circuitfind.circuit.graph import Circuit
    from circuitfind.circuit.scores import Scores

FORMATS = ("eap-ig",)


@click.command()
@click.argument("run", metavar="RUN|CIRCUIT", default="latest", shell_complete=complete_runs)
@click.option(
    "--to",
    "form",
    metavar="FORMAT",
    type=click.Choice(FORMATS),
    required=True,
    help="eap-ig, the JSON graph of EAP-IG and MIB.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write there; - is stdout.  [default: circuit.eap-ig.json beside circuit.json]",
)
@click.option(
    "--d-model",
    type=click.IntRange(min=1),
    metavar="N",
    help="Width of the residual stream, where the model's config.json is not at hand.",
)
@outputs_option
@common_options
def export(
    screen: Screen, run: str, form: str, output: str | None, d_model: int | None, outputs: str | None
) -> None:
    """Write the circuit and the scores of RUN in the form of another program.

    \b
    circuitfind export latest --to eap-ig                   # into the run folder
    circuitfind export ioi-gpt2 --to eap-ig -o ioi_gpt2/importances.json
    circuitfind export outputs/.../circuit.json --to eap-ig -o -

    RUN is a run's name, the beginning of it, its folder, or `latest`; CIRCUIT is a circuit.json, which knows the
    scores of its own edges alone.

    eap-ig: the JSON graph of EAP-IG, with every edge of the model, its score, and whether the circuit has it. The MIB
    benchmark evaluates it (docs/mib.md).
    """
    from circuitfind.output.exports import FORMS
    from circuitfind.output.files import write_atomic

    circuit, scores, beside = _found(run, outputs)
    made = FORMS[form].make(circuit, scores, d_model)
    if output == "-":
        if screen.as_json:
            raise UsageError(
                "--json and --output - both want stdout", hint="leave one out, or name a file with --output"
            )
        sys.stdout.write(made.text)
    else:
        target = Path(output).expanduser() if output else beside.with_suffix(FORMS[form].ending)
        if target.is_dir():
            raise UsageError(
                f"'{target}' is a folder", hint=f"name a file in it, such as {target / 'circuit.json'}"
            )
        path = write_atomic(target, made.text)
        counts = made.counts
        screen.result(
            {"version": 1, "to": form, "file": str(path), **counts, "notes": list(made.notes)},
            lambda: screen.out.print(
                f"{path}: {counts['edges']:,} edges, {counts['edges_in_graph']:,} of them in the graph, "
                f"and {counts['nodes']:,} nodes, {counts['nodes_in_graph']:,} of them in the graph",
                markup=False,
            ),
        )
    for note in made.notes:
        screen.note(note)


def _found(run: str, outputs: str | None) -> tuple[Circuit, Scores | None, Path]:
    """A circuit, its scores where they are there, and the file that it was read from."""
    from circuitfind.circuit.mib import read_circuit
    from circuitfind.output.store import Store
    from circuitfind.summary import stored

    if Path(run).is_file():
        circuit, scores = read_circuit(Path(run))
        return circuit, scores, Path(run)
    found = stored(Store(outputs).find(run))
    return found.circuit, found.scores, found.folder / "circuit.json"
