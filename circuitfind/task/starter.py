"""The commented task file that `circuitfind init` writes."""

STARTER = """\
# A task for circuitfind: what the model should do, and the same prompt with one thing changed.
# Check it with `circuitfind validate my-task.yaml`, run it with `circuitfind discover my-task.yaml`.

name: my-task                    # a-z, 0-9 and -
description: The name that was mentioned once receives the gift.
model: mini                      # the default; `--model gpt2` or `--model path/to/folder` runs another

prompts:
  # Each template gives a clean and a corrupted prompt up to right before the answer.
  # Both must have the same number of tokens, with each slot at the same place.
  templates:
    - clean: "When {A} and {B} went to the {PLACE}, {B} gave a {OBJECT} to"
      corrupted:                 # one text, or several counterfactuals by name; the first is the default
        flip: "When {A} and {B} went to the {PLACE}, {A} gave a {OBJECT} to"
        other-names: "When {C} and {D} went to the {PLACE}, {E} gave a {OBJECT} to"
      answer: " {A}"             # one token, with its leading blank; a list of texts is a set of answers
      wrong: " {B}"              # what the right answer is compared with
      weight: 1                  # how often this template is drawn, next to the others
  slots:
    A: &names [Mary, John, Anna, James, Laura, Peter, Susan, Thomas, Linda, David]
    B: *names                    # the same list again
    C: *names
    D: *names
    E: *names
    PLACE: [store, park, school, garden]
    OBJECT:                      # the long way to write a slot:
      values: [drink, book, ring]
      tokens: one                # values that the model's tokenizer splits are left out; any keeps them
  distinct: [[A, B, C, D, E]]    # slots that take different values in one pair
  count: 64                      # pairs to draw
  seed: 0                        # the same seed always draws the same pairs
  # Slots whose values belong together are rows of a table; {COUNTRY.2} is the country of a second row:
  #   rows:
  #     - {COUNTRY: France, CAPITAL: Paris}
  #     - {COUNTRY: Italy, CAPITAL: Rome}
  # Answers can be picked by number from the values of a slot: answer: {from: YEARS, above: YY}
  #
  # Instead of templates, one of these:
  #   pairs: [{clean: "I met a girl.", corrupted: "I met a boy.", answer: " She", wrong: " He"}]
  #   file: prompts.csv          # or .jsonl; columns clean, corrupted, answer, wrong; a|b is a set of answers
  # For models without a tokenizer prompts are lists of token ids, or words of a list `vocab: [A, B, C]`.

positions:                       # names for places in the prompt, used in reports
  S1: {slot: B, occurrence: 1}   # the token at which the slot's value ends
  S2: {slot: B, occurrence: 2}
  END: -1                        # an index, or {token: " to"}
answer-position: END             # where the answer is read

metric: logit-diff               # logit-diff, prob-diff, log-prob, kl or accuracy
ablation: resample               # resample, mean or zero: what takes the place of what is cut out
mean-over: both                  # for ablation by the mean: over clean, corrupted or both prompts
direction: noising               # noising (what is necessary) or denoising (what is sufficient)
min-accuracy: 0.75               # the model must answer this share of the pairs rightly
prepend-bos: auto                # true or false to overrule the tokenizer

# Circuits that others found, by model; the report compares with them:
# known:
#   gpt2: {source: "who, when", heads: [a9.h9, a10.h0], edges: ["a9.h9->logits"]}

# What `circuitfind check` holds a model to:
expect:
  mini:
    accuracy: {min: 0.9}
    faithfulness: {min: 0.8}
"""
