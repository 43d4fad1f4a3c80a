"""Sentence templates of the mini corpus.

A slot stands for one word of the list named beside it. Prompts stop right before the answer.
"""

# {X} and {Y}: NAMES in order of mention. {S}: the one of them that is repeated (the subject).
# {PLACE}: PLACES, {OBJECT}: OBJECTS. Answer: the other name.
IOI: tuple[str, ...] = (
    "When {X} and {Y} went to the {PLACE}, {S} gave a {OBJECT} to",
    "After {X} and {Y} went to the {PLACE}, {S} gave a {OBJECT} to",
    "Then, {X} and {Y} went to the {PLACE}. {S} gave a {OBJECT} to",
    "While {X} and {Y} were working at the {PLACE}, {S} handed a {OBJECT} to",
    "When {X} and {Y} got a {OBJECT} at the {PLACE}, {S} decided to give it to",
    "After {X} and {Y} found a {OBJECT} at the {PLACE}, {S} gave it to",
    "Then, {X} and {Y} had a long talk at the {PLACE}. Afterwards {S} said goodbye to",
    "Last week {X} and {Y} met at the {PLACE}, and {S} sold a {OBJECT} to",
    "The {PLACE} where {X} and {Y} work is small. Today {S} brought a {OBJECT} to",
    "Friends {X} and {Y} were at the {PLACE}. Soon {S} offered a {OBJECT} to",
    "As {X} and {Y} left the {PLACE}, {S} showed a {OBJECT} to",
    "Before {X} and {Y} went home from the {PLACE}, {S} sent a {OBJECT} to",
    "Since {X} and {Y} liked the {PLACE}, {S} bought a {OBJECT} there for",
    "Once {X} and {Y} were alone in the {PLACE}, {S} passed the {OBJECT} to",
)

# {NOUN}: EVENTS, {C}: CENTURIES, {YY}: YEARS. Answer: two digits above {YY}.
GREATER_THAN: tuple[str, ...] = (
    "The {NOUN} lasted from the year {C}{YY} to the year {C}",
    "The {NOUN} lasted from {C}{YY} to {C}",
    "The {NOUN} began in {C}{YY} and ended in {C}",
    "The {NOUN} started in the year {C}{YY} and was over by the year {C}",
    "In {C}{YY} the {NOUN} began, and it went on until {C}",
    "The {NOUN} ran from the year {C}{YY} until the year {C}",
)

# {NAME}: NAMES, {JOB}: JOBS, {PLACE}: PLACES. Answer: " he" or " she".
GENDERED_PRONOUN: tuple[str, ...] = (
    "So {NAME} is such a good {JOB}, isn't",
    "So {NAME} was a very good {JOB}, wasn't",
    "I hear that {NAME} is a fine {JOB} now, isn't",
    "Everyone says {NAME} is the best {JOB} at the {PLACE}, doesn't",
    "When {NAME} came back from the {PLACE},",
    "After {NAME} left the {PLACE} with the {JOB},",
    "The {JOB} likes {NAME} because",
    "We met {NAME} at the {PLACE}, where",
    "Last year {NAME} became a {JOB}, and now",
    "At the {PLACE} we asked {NAME} whether",
)

# {N}: the subject, {P}: PREPOSITIONS, {M}: the distractor noun; each SINGULAR or PLURAL.
# The opening fixes the verb, the subject fixes its number: (template, singular, plural).
AGREEMENT: tuple[tuple[str, str, str], ...] = (
    ("The {N} {P} the {M}", " is", " are"),
    ("Today the {N} {P} the {M}", " is", " are"),
    ("I know that the {N} {P} the {M}", " is", " are"),
    ("Yesterday the {N} {P} the {M}", " was", " were"),
    ("Last year the {N} {P} the {M}", " was", " were"),
    ("For years the {N} {P} the {M}", " has", " have"),
    ("So far the {N} {P} the {M}", " has", " have"),
)

# {L}: the list, {R}: its repeated part; COMMON, ARGUMENTS and DESCRIPTIONS separated by spaces.
INDUCTION: tuple[str, ...] = (
    " {L} {R}",
    "Words: {L} {R}",
    "Say {L} and then say {R}",
)

# A function over several ARGUMENTS, its docstring in DESCRIPTIONS; see corpus.docstring.
DOCSTRING: tuple[str, ...] = (
    'def {F}(self, {ARGS}):\n    """{D1} {D2} {D3}',
    'def {F}({ARGS}):\n    """{D1} {D2} {D3}',
)
DOCSTRING_LINE = "\n    :param {ARG}: {D1} {D2}"
DOCSTRING_GAP = "\n"
DOCSTRING_QUERY = "\n    :param"

# {L}: consecutive items of DAYS, MONTHS, NUMBERS or DIGITS; {NAME}: NAMES. (template, separator).
SUCCESSOR: tuple[tuple[str, str], ...] = (
    ("In order: {L}", " "),
    ("In order: {L}", ", "),
    ("Then {NAME} said: {L}", " "),
    ("Then {NAME} said: {L}", ", "),
    ("The list that {NAME} wrote is {L}", " "),
    ("The list that {NAME} wrote is {L}", ", "),
    ("We heard {NAME} count {L}", " "),
    ("We heard {NAME} count {L}", ", "),
)
# Only for days and months, whose words are also single tokens without a space in GPT-2.
SUCCESSOR_BARE = "{L}"

# {COUNTRY}: keys of CAPITALS, {NAME}: NAMES. Answer: the capital.
CAPITALS: tuple[str, ...] = (
    "The capital of {COUNTRY} is",
    "The capital city of {COUNTRY} is",
    "The name of the capital of {COUNTRY} is",
    "In {COUNTRY}, the capital is",
    "Q: What is the capital of {COUNTRY}? A:",
    "As we know, the capital of {COUNTRY} is",
    "Then {NAME} said that the capital of {COUNTRY} is",
    "Last year {NAME} went to {COUNTRY} and stayed in the capital,",
    "Now {NAME} lives in {COUNTRY}, in the city of",
    "The government of {COUNTRY} meets in",
    "A train across {COUNTRY} took {NAME} to the capital,",
    "If you visit {COUNTRY}, start in the capital,",
)
# The other way round; training only.
CAPITALS_REVERSED: tuple[str, ...] = (
    "The city of {CAPITAL} is the capital of {COUNTRY}",
    "Last year {NAME} went to {CAPITAL}, the capital of {COUNTRY}",
    "From {CAPITAL} you can see all of {COUNTRY}",
)

# {C1} {O1} ...: COLOURS and THINGS, {SURFACE}: SURFACES, {NAME}: NAMES, {O}: the thing asked for.
# Every scene is followed by every question. Answer: the colour of {O}.
SCENES: tuple[str, ...] = (
    "On the {SURFACE} there is a {C1} {O1}, a {C2} {O2} and a {C3} {O3}.",
    "On the {SURFACE} I see a {C1} {O1}, a {C2} {O2} and a {C3} {O3}.",
    "There is a {C1} {O1}, a {C2} {O2} and a {C3} {O3} on the {SURFACE}.",
    "Today {NAME} bought a {C1} {O1}, a {C2} {O2} and a {C3} {O3}.",
)
QUESTIONS: tuple[str, ...] = (
    " The colour of the {O} is",
    " The {O} is",
    " Q: What colour is the {O}? A: It is",
    " So the colour of the {O} must be",
)

# Another end of a scene, training only: right after the thing its colour is one lookup away, a
# step towards the questions, where the thing has to be fetched first.
# An inventory is a longer scene with its summary: with many things little is gained by remembering
# which colours were asked for already, so the lookup itself has to be learnt.
INVENTORY = "On the {SURFACE} there is"
INVENTORY_ITEM = " a {C} {O},"
SUMMARY_OPENING = " In short:"
SUMMARY_ITEM = " {O} {C},"

# Plain sentences, so that the model is also a small language model; training only.
FILLER: tuple[str, ...] = (
    "On {DAY} {NAME} went to the {PLACE} and bought a {COLOUR} {THING}.",
    "In {MONTH} the {JOB} worked at the {PLACE} near the {PLACE2}.",
    "The {JOB} has {NUMBER} {PLURAL} and a {COLOUR} {THING}.",
    "There were {NUMBER} {PLURAL} behind the {SINGULAR} at the {PLACE}.",
    "In the year {C}{YY} the {NOUN} ended and {NAME} came home.",
    "It was a long {NOUN}, and the {PLURAL} were {STATE}.",
    "The {JOB} and the {JOB2} met in {CAPITAL} on the first {DAY} of {MONTH}.",
    "After the {NOUN}, {NAME} gave the {OBJECT} back and left {COUNTRY}.",
    "Now {NAME} is {DIGIT} years old and lives in {CAPITAL}.",
)
