"""The byte-level BPE tokenizer of mini, trained until every word of the corpus is one token."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuitfind.zoo.mini import corpus
from circuitfind.zoo.mini import words as w

END_OF_TEXT = "<|endoftext|>"
# GPT-2's split, except that digits come in pairs: " 1732" is " 17" and "32".
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\d{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Merging stops by itself once every word is one token; this is only a ceiling.
MAX_VOCABULARY = 8192
SAMPLE_DOCUMENTS = 20_000


def slot_words() -> tuple[str, ...]:
    """Every word that can fill a slot, without its leading space."""
    lists = (
        *(w.NAMES, w.PLACES, w.OBJECTS, w.EVENTS, w.CENTURIES, w.JOBS, w.SINGULAR, w.PLURAL),
        *(w.PREPOSITIONS, w.STATES, w.COLOURS, w.THINGS, w.SURFACES, w.DAYS, w.MONTHS, w.NUMBERS),
        *(w.DIGITS, tuple(w.CAPITALS), tuple(w.CAPITALS.values()), corpus.WORD_POOL),
    )
    return tuple(dict.fromkeys(itertools.chain.from_iterable(lists)))


def training_texts() -> Iterator[str]:
    """The texts the tokenizer learns from, in a fixed order."""
    yield from (" " + word for word in slot_words())
    yield from (word for word in (*w.YEARS, *w.DAYS, *w.MONTHS, *w.DESCRIPTIONS))
    for document in itertools.islice(corpus.documents(random.Random(0)), SAMPLE_DOCUMENTS):
        yield document.text


def build_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer. It depends on nothing but the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=1,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    # The class has no annotations of its own.
    wrap: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    return made


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that opens, ends and pads texts."""
    return int(tokenizer.get_vocab()[END_OF_TEXT])
