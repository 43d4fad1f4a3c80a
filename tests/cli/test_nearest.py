"""A name that nothing has is refused with the nearest one that there is: of commands, options, choices, files, runs, parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import Cli

CASES = {
    # commands
    "discvoer ioi": "discover",
    "transcoders trian mini": "train",
    "prompts chekc ioi": "check",
    "config shwo": "show",
    "config show dicsover": "discover",
    # options, and what they take
    "discover ioi --methd eap": "--method",
    "show --stat": "--stats",
    "show --edgs": "--edges",
    "diff a b --at-lest 0.5": "--at-least",
    "discover ioi --controls chep": "cheap",
    "discover ioi --format svgg": "svg",
    "render --format pfd": "pdf",
    "export latest --to graphm": "graphml",
    "figures latest --width colum": "column",
    "figures latest --only heatmp": "heatmap",
    "list task": "tasks",
    "completion bsh": "bash",
    "prompts suggest ioi --from modle": "model",
    # tasks and models
    "discover ioii": "ioi",
    "discover smal.yaml": "small.yaml",
    "attribute ioii": "ioi",
    "validate or-gat": "or-gate",
    "backups smal.yaml": "small.yaml",
    "check gated-bckup": "gated-backup",
    "discover ioi --model mimi": "mini",
    "discover ioi --model planted/and-gat": "planted/and-gate",
    # what a method works with
    "discover ioi --method epa": "eap",
    "discover ioi -o verfy=3": "verify",
    "discover ioi -o propose=eap-gi": "eap-ig",
    "discover ioi --metric logit-dif": "logit-diff",
    "discover ioi --ablation resampl": "resample",
    "discover ioi --direction noisin": "noising",
    "discover ioi --counterfactual abd": "abc",
    "discover ioi --positions nam": "named",
    "discover ioi --precision bf61": "bf16",
    "discover ioi --nodes heads,neuron": "heads,neurons",
    "discover ioi --nodes heads,features --errors frozn": "frozen",
    "prompts suggest ioi --change BB": "B",
    "transcoders train mini --width 3 --out x --activation topkk": "topk",
    "transcoders train mini --width 3 --out x --site resid_pst": "resid_post",
    # runs, and what is in them
    "show smal-and": "small-and-gate-",
    "show latst": "latest",
    "backups latst": "latest",
    "label latest a0.h9 x": "a0.h1",
    "label latest a0h0 x": "a0.h0",
    "evaluate latest --parts curv": "curve",
    "evaluate latest --ablation meen": "mean",
    "certify latest --ablation resmple": "resample",
    "evaluate --task ioi --known wag --model gpt2": "wang",
    "backups small.yaml --primaries a0.h7": "a0.h1",
    "backups small.yaml --reader logit": "logits",
    "patch small.yaml --nodes m9": "m1",
    "patch small.yaml --edges m1->logit": "logits",
}
"""Words of a command with one that is spelt wrong, and the nearest that is to be named."""


@pytest.mark.parametrize(("words", "near"), CASES.items(), ids=list(CASES))
def test_the_nearest_is_named(
    cli: Cli,
    one_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    near: str,
) -> None:
    monkeypatch.chdir(one_run)
    before = sorted(one_run.rglob("*"))
    found = cli(*words.split())
    assert (found.code, found.out) == (2, "")
    text = found.err[found.err.index("error: ") :]
    told = [
        part
        for mark in ("id you mean ", "the nearest is ", "the nearest name is ")
        for part in text.split(mark)[1:]
    ]
    assert told, text
    assert told[0].lstrip("'").startswith(near), text
    assert "\nhint: " in text
    assert "Traceback" not in text
    assert sorted(one_run.rglob("*")) == before, "nothing was written"
