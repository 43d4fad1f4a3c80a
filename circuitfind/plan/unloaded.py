"""What is planned for a model that is not loaded: its sizes, its prompts, how the work is cut up, and how fast it goes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from circuitfind.errors import PromptError, UsageError
from circuitfind.model.configurations import (
    Configuration,
)
from circuitfind.model.shapes import Shape
from circuitfind.output.store import stage_key
from circuitfind.plan.memory import Sized
from circuitfind.plan.room import Room, room_of
from circuitfind.plan.where import SIZE, configured
from circuitfind.plan.words import (
    WordTokenizer,
    check_lengths,
    check_prompt_tokens,
    of_length,
    word_tokenizer,
)
from circuitfind.session import Session

if TYPE_CHECKING:
    import torch

    from circuitfind.model.batches import Batch
    from circuitfind.model.memory import MemoryPlan
    from circuitfind.plan.speed import Speed
    from circuitfind.task.pairs import PromptPairs
    from circuitfind.task.prompts import Tokenizer

BYTES = {"fp32": 4, "bf16": 2}
"""Of a number, by precision."""
ASSUMED_BUDGET = 8 * 10**9
"""Bytes beyond the weights that are planned for where the weights alone do not fit."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
MOST_TFLOPS = 1e6
"""Of one device, and more than a thousand of the fastest have."""


@dataclass(frozen=True)
class Asked:
    """How to plan for a model that is not loaded.

    Attributes:
        always: Whether a model is not to be loaded even where it could be.
        model: The path of a configuration, or sizes as ``KEY=VALUE``; in place of the configuration of the model.
        prompt_tokens: Tokens of each prompt, in place of those that a tokenizer counts.
        tflops: Operations in a second, in 10^12, of one device; timed here if None.
    """

    always: bool = False
    model: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    tflops: float | None = None

    def __post_init__(self) -> None:
        check_prompt_tokens(self.prompt_tokens)
        if self.tflops is not None and not 0 < self.tflops <= MOST_TFLOPS:
            raise UsageError(
                f"--assume-tflops {self.tflops:g} is no speed of a device",
                hint="give 10^12 operations in a second, such as --assume-tflops 400",
            )


@dataclass(frozen=True)
class Estimate:
    """From what the plan of a model that is not loaded was made.

    Attributes:
        model, origin: Its name, and where its sizes are from.
        why: Why it is not loaded.
        shape: Its sizes.
        length: Tokens of a prompt, on average.
        speed: Operations in a second, of one device.
        room: Whether its weights fit, and where they would.
        assumed: What was taken for granted, in sentences.
    """

    model: str
    origin: str
    why: str
    shape: Shape
    length: float
    speed: Speed
    room: Room
    assumed: tuple[str, ...]

    @property
    def widths(self) -> dict[str, int]:
        """Bytes of a number, by precision."""
        return BYTES

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        shape = self.shape
        return {
            "model": self.model,
            "origin": self.origin,
            "why": self.why,
            "shape": shape.as_dict(),
            "parameters": shape.parameters,
            "edges": shape.n_edges,
            "weights_bytes": {name: shape.parameters * size for name, size in BYTES.items()},
            "flops_per_token": shape.flops(self.length),
            "tflops": self.speed.flops / 1e12,
            "speed": self.speed.told,
            "room": self.room.as_dict(),
            "assumed": list(self.assumed),
        }


@dataclass
class Unloaded:
    """A session whose model is only a shape, and what the plan needs of it."""

    session: Session
    known: Configuration
    asked: Asked
    why: str
    assumed: list[str] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        return self.known.shape

    @cached_property
    def device(self) -> torch.device:
        """Where it would run."""
        from circuitfind.model.load import pick_device

        return pick_device(self.session.device)

    @cached_property
    def sized(self) -> Sized:
        """What the bytes depend on."""
        shape = self.shape
        return Sized(
            shape.widths.token_bytes(SIZE), shape.weights * SIZE, shape.copies * SIZE, shape.widths.writers
        )

    @cached_property
    def free(self) -> int:
        """Bytes that are free on the device."""
        from circuitfind.model.memory import free_bytes

        return free_bytes(self.device)

    @cached_property
    def plan(self) -> MemoryPlan:
        """What the budget allows."""
        from circuitfind.model.memory import SPARE, share_out, spilled

        budget, sized = self.session.memory, self.sized
        if budget is None:
            budget = int(SPARE * (self.free - sized.weights - sized.copies))
            if budget <= 0:
                budget = ASSUMED_BUDGET
                self.assumed.append("8 GB are planned for beyond the weights; --memory says otherwise")
        cuda = self.device.type == "cuda"
        return replace(share_out(budget, sized.cost, cuda=cuda), spill=spilled(cuda=cuda, offloaded=False))

    @cached_property
    def pairs(self) -> PromptPairs:
        """The prompts, as far as they can be known."""
        asked = self.asked.prompt_tokens
        try:
            found = self.session.all_pairs
        except PromptError as error:
            count = self.session.settings.count
            if not isinstance(self.session.model.tokenizer, WordTokenizer):
                raise
            if asked is None or count is None:
                raise PromptError(
                    f"the prompts cannot be counted without the model's tokenizer: {error.what}",
                    where=error.where,
                    details=error.details,
                    hint="say how many there are and how long they are: --count N --prompt-tokens N",
                ) from error
            found = _counted(count)
        if asked is not None:
            found = of_length(found, asked)
            self.assumed.append(f"every prompt has {asked} tokens")
        check_lengths(found, self.shape, self.known.name)
        return found

    @cached_property
    def batches(self) -> list[Batch]:
        """The batches of a run with this plan."""
        import torch

        from circuitfind.model.batches import make_batches

        return make_batches(
            self.pairs, self.plan.batch_tokens, causal=self.shape.causal, device=torch.device("cpu")
        )

    @property
    def tokens(self) -> int:
        """Of a pass over one side of all prompts."""
        return sum(int(batch.clean.numel()) for batch in self.batches)

    @property
    def length(self) -> float:
        """Of a prompt, on average."""
        return self.tokens / len(self.pairs)

    @cached_property
    def speed(self) -> Speed:
        """Operations in a second on one device: as assumed, or timed here."""
        from circuitfind.plan.speed import Speed, timed

        if self.asked.tflops is not None:
            return Speed(self.asked.tflops * 1e12, "assumed", timed=False)
        rows, length = self.batches[0].clean.shape
        return timed(self.shape, int(rows), int(length), self.device)

    @property
    def seconds(self) -> float:
        """Of a forward pass over one side of all prompts, on one device."""
        shape = self.shape
        work = self.tokens * shape.flops(self.length) + len(self.pairs) * shape.unembed_flops
        return work / self.speed.flops

    @property
    def estimate(self) -> Estimate:
        """What a reader should know."""
        import torch

        from circuitfind.model.memory import free_bytes

        longest = max(len(pair.clean) for pair in self.pairs)
        if self.plan.prompt_tokens < longest:
            self.assumed.append(f"a prompt of {longest} tokens takes more memory than is planned for")
        cpu_free = free_bytes(torch.device("cpu"))
        least = self.sized.least(longest)
        room = room_of(self.shape, SIZE, least, self.device.type, self.free, cpu_free)
        return Estimate(
            self.known.name,
            self.known.origin,
            self.why,
            self.shape,
            self.length,
            self.speed,
            room,
            tuple(self.assumed),
        )


def find(session: Session, asked: Asked) -> Unloaded | None:
    """The session with a shape for its model, if the model is not here, does not fit or shall not be loaded; else None.

    Raises:
        ModelError: A configuration that was named, or that is all there is, cannot be read.
        UnsupportedError: It is of a model that cannot be taken apart.
        UsageError: What was asked for makes no sense.
    """
    found = configured(session, asked.model, always=asked.always)
    if found is None:
        if asked.prompt_tokens is not None or asked.tflops is not None:
            raise UsageError(
                "--prompt-tokens and --assume-tflops are for models that are not loaded, and this one would be",
                hint="add --from-config to plan from its configuration alone",
            )
        return None
    known, why = found
    if session.settings.model_b is not None:
        raise UsageError(
            "with --model-b a plan needs both models loaded", hint="leave out --model-b, or --dry-run"
        )
    unloaded = Unloaded(session, known, asked, why)
    shape = known.shape
    tokenizer = _tokenizer(session, unloaded)
    stand = SimpleNamespace(
        anatomy=shape.anatomy,
        tokenizer=tokenizer,
        n_vocab=shape.d_vocab,
        fingerprint="",
        name=known.name,
    )
    unloaded.session = replace(
        session,
        lend=lambda name: cast(Any, stand),
        known_identity=stage_key("configuration", shape.as_dict()),
    )
    return unloaded


def _tokenizer(session: Session, unloaded: Unloaded) -> Tokenizer | None:
    """The model's own tokenizer where it is on this machine; else words, for tasks of text."""
    from circuitfind.task.prompts import needs_tokenizer

    known, spec = unloaded.known, session.spec
    if spec.vocab is not None or not needs_tokenizer(spec):
        return None
    from circuitfind.model.load import load_tokenizer

    if known.folder is not None and any((known.folder / file).is_file() for file in TOKENIZERS):
        return load_tokenizer(str(known.folder))
    unloaded.assumed.append(
        "its tokenizer is not here: every word, sign and pair of digits counts as one token; --prompt-tokens says otherwise"
    )
    return word_tokenizer(known.shape)


def _counted(count: int) -> PromptPairs:
    """So many pairs of which nothing else is known."""
    from circuitfind.task.pairs import PromptPair, PromptPairs

    one = PromptPair((1, 1), (0, 1), (0,), (1,), 1, {}, "", "", "", "")
    return PromptPairs((one,) * count, "clean")
