"""The local replacement model of a prompt: in place of each MLP the transcoder features that fire, and the error.

Dictionaries are read one after the other and let go; of each only the rows of active features stay, so that memory is that
of one dictionary and of what fires.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitfind.attribution.frozen import FrozenRun
from circuitfind.attribution.reads import check_transcoder, norm_of, read, to_stream
from circuitfind.dictionaries.dictionary import Dictionary, Site
from circuitfind.errors import UsageError


@dataclass(frozen=True)
class Active:
    """The features of one layer that fire somewhere in a prompt, by position, then by number.

    Attributes:
        position, index: Where each fires, and which it is.
        activation: How much. An active feature passes on its pre-activation, so this is that too.
        reads: Its encoder direction on the stream, through the frozen norm.
        constant: What biases add to its pre-activation behind the stream.
        writes: Its decoder row, to its own layer and (cross-layer) later ones.
    """

    position: Int[Tensor, " active"]
    index: Int[Tensor, " active"]
    activation: Float[Tensor, " active"]
    reads: Float[Tensor, "active d_model"]
    constant: Float[Tensor, " active"]
    writes: Float[Tensor, "active layer d_model"]

    def __len__(self) -> int:
        return len(self.index)

    def spans(self, n_pos: int) -> list[slice]:
        """Which of the features fire at each position."""
        ends = torch.bincount(self.position, minlength=n_pos).cumsum(0).tolist()
        return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass(frozen=True)
class Skip:
    """A linear map beside a transcoder's features, from what it reads to what it writes."""

    site: Site
    weight: Float[Tensor, "d_model d_model"]


@dataclass
class Replacement:
    """What stands for the MLPs of one prompt.

    Attributes:
        run: The prompt's run; one row.
        active: By layer.
        skips: By layer, where there are any.
        biases: What decoder biases add to the stream, by layer.
        errors: What the dictionaries miss, by layer. A layer that none writes to is all error.
    """

    run: FrozenRun
    active: dict[int, Active] = field(default_factory=dict)
    skips: dict[int, Skip] = field(default_factory=dict)
    biases: dict[int, Float[Tensor, " d_model"]] = field(default_factory=dict)
    errors: list[Float[Tensor, "pos d_model"]] = field(default_factory=list)

    @property
    def n_active(self) -> int:
        return sum(map(len, self.active.values()))

    def written(self, active: Active, step: int) -> Float[Tensor, "pos d_model"]:
        """What the features of a layer add to the layer ``step`` above their own."""
        out = self.run.embedded.new_zeros(self.run.embedded.shape[1:])
        return out.index_add(0, active.position, active.activation[:, None] * active.writes[:, step])


@torch.no_grad()
def replace_mlps(
    runs: Sequence[FrozenRun], dictionaries: Iterable[Dictionary], *, also: Sequence[FrozenRun] = ()
) -> list[Replacement]:
    """Put dictionaries in place of the MLPs of some prompts.

    Args:
        runs: One prompt each.
        dictionaries: In any order; each is asked for once.
        also: Runs of as many prompts of the same lengths: features that fire there are held too, with their (perhaps
            zero) activation in ``runs``.

    Raises:
        UnsupportedError: One that is no transcoder.
        ModelError: One of another model.
        UsageError: None, or two of one layer.
    """
    found = [Replacement(run) for run in runs]
    left = [[block.written[0].clone() for block in run.blocks] for run in runs]
    seen: dict[int, str] = {}
    for dictionary in dictionaries:
        model, layer = runs[0].model, dictionary.layer
        check_transcoder(dictionary, model)
        if layer in seen:
            raise UsageError(
                f"there are two dictionaries of layer {layer}",
                hint="give a folder with one for each layer",
                details=[seen[layer], dictionary.source],
            )
        seen[layer] = dictionary.source
        here = dictionary.to(model.device)
        for number, one in enumerate(found):
            _add(one, here, left[number], also[number] if also else None)
    if not seen:
        raise UsageError("there are no dictionaries", hint="give a folder that holds some")
    for one, errors in zip(found, left, strict=True):
        one.errors = errors
    return found


def encoded(run: FrozenRun, dictionary: Dictionary) -> Float[Tensor, "pos feature"]:
    """Activations of a dictionary's features on the one prompt of a run."""
    block = run.blocks[dictionary.layer]
    return dictionary.encode(read(block, dictionary.site_in, block.read)[0])


def _add(one: Replacement, dictionary: Dictionary, left: list[Tensor], also: FrozenRun | None) -> None:
    layer, block = dictionary.layer, one.run.blocks[dictionary.layer]
    features = encoded(one.run, dictionary)
    fires = features > 0
    if also is not None:
        fires = fires | (encoded(also, dictionary) > 0)
    position, index = fires.nonzero(as_tuple=True)
    directions = dictionary.w_enc[:, index].T * dictionary.scale_in
    constant = dictionary.b_enc[index]
    if dictionary.centred:
        constant = constant - dictionary.b_dec @ dictionary.w_enc[:, index]
    norm = norm_of(block, dictionary.site_in)
    if norm.bias is not None:
        constant = constant + directions @ norm.bias
    cross = dictionary.w_dec.ndim == 3
    writes = dictionary.w_dec[index] / dictionary.scale_out
    active = one.active[layer] = Active(
        position=position,
        index=index,
        activation=features[position, index],
        reads=to_stream(block, dictionary.site_in, directions, block.mlp_scale[0, position]),
        constant=constant,
        writes=writes if cross else writes[:, None],
    )
    biases = (dictionary.b_dec if cross else dictionary.b_dec[None]) / dictionary.scale_out
    for step, bias in enumerate(biases):
        at = layer + step
        one.biases[at] = one.biases[at] + bias if at in one.biases else bias
        left[at] -= one.written(active, step) + bias
    if dictionary.w_skip is not None:
        weight = dictionary.w_skip * (dictionary.scale_in / dictionary.scale_out)
        one.skips[layer] = Skip(dictionary.site_in, weight)
        left[layer] -= read(block, dictionary.site_in, block.read)[0] @ weight
