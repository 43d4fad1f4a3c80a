"""The commented sweep file that ``circuitfind sweep --template`` prints."""

TEMPLATE = """\
# A sweep for circuitfind: every task on every model by every method, each a run of `circuitfind discover`.
# See what it would do with `circuitfind sweep sweep.yaml --dry-run`, run it with `circuitfind sweep sweep.yaml`.
# Runs that are finished are reused, so that the same command goes on after an interruption.

name: methods-compared           # names the folder of the results; the name of this file if left out

tasks: [ioi, greater-than]       # names (`circuitfind list tasks`), or files beside this one: ./my-task.yaml
models: [mini]                   # zoo names, folders or hub names; the model of each task if left out
methods:                         # names (`circuitfind list methods`), with options where they have some
  - eap
  - name: eap-ig
    options: {steps: 5}

# Any setting of `discover`, under the name of its flag. One value holds for every run;
# a list makes a run for each of its values.
settings:
  faithfulness: 0.9              # or edges: 40, or threshold: 0.05
  seed: [0, 1]                   # two runs of everything, on other prompts
  count: 32
  # counterfactual: [flip, other-names]
  # ablation: [resample, mean, zero]
  # metric: logit-diff
  # direction: noising
  # evaluations: 500
  # min-accuracy: 0.75
  # drop-bad-pairs: true
  # positions: named
  # precision: fp32
  # nodes: heads,mlps
  # dictionaries: ./my-transcoders
  # errors: frozen
  # model-b: ./my-model-after-tuning
  backups: false                 # true also looks for what stands in when heads are removed
  # include-backups: false
  controls: cheap                # none is faster, and certifies nothing; full takes longer
  # views: false                 # leaves out what only reports show: curves, effects, attention

# Combinations that are not wanted: what has all of the values that are named.
leave-out:
  - {task: greater-than, method: eap, seed: 1}
"""
