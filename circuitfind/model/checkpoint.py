"""A model that is never whole in memory: read from its safetensors files block by block, and put where it is to lie.

transformers makes the model without weights and says which tensor of which file each parameter is. The bridge wraps
that; a block's weights are there while it is read, and while it computes in the probe. What passes read then is ours
(model/placement.py), and the bridge is an empty shell but for the embedding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from circuitfind.errors import ModelError, RunError, UnsupportedError
from circuitfind.model.device_map import DeviceMap, make_device_map
from circuitfind.model.layer import Layer
from circuitfind.model.placement import Pager, PlacedLayer, matrices
from circuitfind.model.shelves import End, Shelf, Weights, n_bytes, packed, whole_of, written
from circuitfind.offload import Offload, remove_folder
from circuitfind.sizes import size_text

Read = Callable[[], Tensor]
Made = dict[Read, nn.Parameter]

CPU = torch.device("cpu")

SPLITS = (("split_qkv_matrix", ("q", "k", "v")), ("split_gate_up_matrix", ("gate", "in")))
"""What of a bridge's component takes fused weights apart, and the components that get the pieces."""


class Checkpoint:
    """Where each parameter of a Hugging Face model is read from.

    Args:
        hf_model: As transformers loads it with everything on disk; its hooks are taken off.

    Raises:
        ModelError: A parameter is in no file.
    """

    def __init__(self, hf_model: Any) -> None:
        from accelerate.hooks import remove_hook_from_submodules

        self._sources: dict[int, dict[str, Read]] = {}
        shared: dict[int, Read] = {}
        later: list[tuple[nn.Module, str, str, Tensor]] = []
        names: set[str] = set()
        self._names = {id(module): name for name, module in hf_model.named_modules()}
        self._modules = dict(hf_model.named_modules())  # ids stay theirs as long as they live
        for prefix, module in self._modules.items():
            index = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
            names = names or (set() if index is None else set(index.dataset))
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                if not parameter.is_meta:
                    self._sources.setdefault(id(module), {})[name] = _constant(parameter.detach())
                elif index is not None and full in names:
                    read = _reader(index.dataset, full)
                    shared[id(parameter)] = read
                    self._sources.setdefault(id(module), {})[name] = read
                else:
                    later.append((module, name, full, parameter))
        for module, name, full, parameter in later:
            if id(parameter) not in shared:
                raise ModelError(
                    f"the weights lack '{full}'",
                    hint="config.json and the weights do not belong together, or a file is missing",
                )
            self._sources.setdefault(id(module), {})[name] = shared[id(parameter)]
        remove_hook_from_submodules(hf_model)
        self._hollow(hf_model)

    @staticmethod
    def _hollow(hf_model: Any) -> None:
        """Stand-ins for all weights that have their shape and no memory: the bridge takes fused ones apart when it is made."""
        made: dict[nn.Parameter, nn.Parameter] = {}
        for module in hf_model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter not in made:
                    empty = torch.zeros((), dtype=torch.float32).expand(parameter.shape)
                    made[parameter] = nn.Parameter(empty, requires_grad=False)
                module._parameters[name] = made[parameter]

    def reads(self, root: nn.Module) -> list[Read]:
        """What the weights of all that is in a module are read by."""
        return [read for one in root.modules() for read in self._sources.get(id(one), {}).values()]

    def name_of(self, module: nn.Module) -> str:
        """A module's name in the model, bridged or not."""
        own = getattr(module, "original_component", None)
        return str(self._names[id(module if own is None else own)])

    def fill(
        self,
        root: nn.Module,
        device: torch.device,
        but: Sequence[nn.Module] = (),
        made: Made | None = None,
    ) -> None:
        """Read the weights of all that is in a module, in 32 bits.

        Args:
            root: The module.
            device: Where to.
            but: Modules inside it that are left out.
            made: What was read before and is shared with it; what is read now is put there too.

        Raises:
            UnsupportedError: Something in it has no weights even so.
        """
        left_out = {id(inner) for module in but for inner in module.modules()}
        made = {} if made is None else made
        for module in root.modules():
            if id(module) in left_out:
                continue
            for name, read in self._sources.get(id(module), {}).items():
                if read not in made:
                    made[read] = nn.Parameter(read().to(device, torch.float32), requires_grad=False)
                module._parameters[name] = made[read]
        for module in root.modules():
            if id(module) not in left_out:
                _split(module, device)
        for path, module in root.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta and id(module) not in left_out:
                    raise UnsupportedError(
                        f"'{path}.{name}' cannot be read apart from the rest of the model",
                        hint="load the model whole: leave out --device-map and --max-memory",
                    )

    def empty(self, root: nn.Module) -> None:
        """Forget the weights of all that is in a module."""
        for module in root.modules():
            for name, parameter in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), requires_grad=False
                )


def _constant(tensor: Tensor) -> Read:
    return lambda: tensor


def _reader(dataset: Any, name: str) -> Read:
    def read() -> Tensor:
        try:
            found: Tensor = dataset[name]
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(
                f"the weight '{name}' cannot be read: {error}", hint="copy the file again"
            ) from error
        return found

    return read


def _split(module: Any, device: torch.device) -> None:
    """Take fused weights apart once more: the bridge did so before there were any."""
    for method, names in SPLITS:
        split = getattr(type(module), "__dict__", {}).get(method) or vars(module).get(method)
        if split is None:
            continue
        for name, piece in zip(names, getattr(module, method)(module.original_component), strict=True):
            own = getattr(module, name).original_component
            for key, parameter in piece.named_parameters(recurse=False):
                own._parameters[key] = nn.Parameter(parameter.detach().to(device), requires_grad=False)


def placed_apart(hf_model: Any, offload: Offload, device: torch.device, folder: Path) -> Placement:
    """A model that transformers left on disk, and where its weights are to lie; what of it is no weight goes to memory.

    Raises:
        ModelError: It does not fit where it may lie.
        UsageError: The device map names what is not there.
    """
    try:
        spread = make_device_map(hf_model, offload, device)
        found = Placement(Checkpoint(hf_model), spread, folder)
    except BaseException:
        remove_folder(folder)
        raise
    if hasattr(hf_model, "hf_device_map"):
        del hf_model.hf_device_map  # what transformers did, which is over
    return found


def _give_memory_back() -> None:
    """Have glibc hand back what was freed while blocks were read: it else keeps several blocks' worth for itself."""
    import ctypes

    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class Placement:
    """Where the weights of one model lie, while it is made and after.

    Args:
        checkpoint: What they are read from.
        spread: Which module lies where.
        folder: Where what is on disk is written; removed with this.

    Attributes:
        device: Where the passes run.
        home: Where the embedding lies, and the bridge runs.
    """

    def __init__(self, checkpoint: Checkpoint, spread: DeviceMap, folder: Path) -> None:
        self._checkpoint, self._spread, self.folder = checkpoint, spread, folder
        weakref.finalize(self, remove_folder, folder)
        self.device = spread.device
        self.home = CPU
        self._settled: Made = {}
        self.pager = Pager(self.device, ahead=False)
        self.bytes_on: dict[str, int] = {}

    @property
    def window(self) -> int:
        """Most bytes of offloaded blocks that are brought at once."""
        return self.pager.largest * (2 if self.pager.ahead else 1)

    def told(self) -> str:
        """The same in words."""
        places = ", ".join(f"{size_text(count)} on {where}" for where, count in self.bytes_on.items())
        return f"weights lie apart: {places}; {size_text(self.window)} of them are brought at once"

    @property
    def here(self) -> int:
        """Bytes of weights that stay on the device that computes."""
        return self.bytes_on.get(str(self.device), 0)

    @property
    def offloads(self) -> bool:
        """Whether any block has to be brought."""
        return self.pager.largest > 0

    def facts(self) -> dict[str, Any]:
        """What a run records: bytes of weights by place, and what is brought at once."""
        return {"weights": dict(self.bytes_on), "brought_at_once": self.window, "device": str(self.device)}

    @contextmanager
    def present(self, module: nn.Module) -> Iterator[None]:
        """The weights of a module are in CPU memory for the time of the block; what it shares with the embedding, there."""
        tied = any(read in self._settled for read in self._checkpoint.reads(module))
        self._checkpoint.fill(module, self.home if tied else CPU, made=dict(self._settled))
        try:
            yield
        finally:
            self._checkpoint.empty(module)

    @contextmanager
    def running(self, blocks: Sequence[nn.Module], unembed: nn.Module) -> Iterator[None]:
        """The bridge runs: each block has its weights while it computes."""

        def come(module: nn.Module, *args: Any) -> None:
            self._checkpoint.fill(module, self.home, made=dict(self._settled))

        def go(module: nn.Module, *args: Any) -> None:
            self._checkpoint.empty(module)

        with ExitStack() as stack:
            for module in (*blocks, unembed):
                stack.callback(module.register_forward_pre_hook(come).remove)
                stack.callback(module.register_forward_hook(go).remove)
            yield

    def settle(self, bridge: Any) -> None:
        """Read what stays with the bridge: all but the blocks and the unembedding."""
        blocks, unembed = list(bridge.blocks), bridge.unembed
        self._checkpoint.empty(bridge)
        where = self._spread.of(self._checkpoint.name_of(bridge.embed))
        if where == "here":
            self.home = self.device
        made: Made = {}
        self._checkpoint.fill(bridge, self.home, but=(*blocks, unembed), made=made)
        if where in ("here", "cpu"):
            self._settled = made
        for module in bridge.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if not buffer.is_meta:
                    module._buffers[name] = buffer.to(self.home)
        kept = [bridge.embed, getattr(bridge, "pos_embed", None)]
        for module in (one for one in kept if one is not None):
            weights = {name: p for name, p in module.named_parameters() if not p.is_meta}
            if where == "disk":
                self._map(module, self.folder / f"{len(self.bytes_on)}-{type(module).__name__}.safetensors")
            self._count(where, n_bytes(weights))

    def _map(self, root: nn.Module, path: Path) -> None:
        """Put the weights of a module into a file that is mapped: what is read of it is in memory, and may leave it again."""
        owners = [
            (module, name) for module in root.modules() for name, _ in module.named_parameters(recurse=False)
        ]
        mapped = written({str(i): m._parameters[n].detach() for i, (m, n) in enumerate(owners)}, path)  # type: ignore[union-attr]
        for i, (module, name) in enumerate(owners):
            module._parameters[name] = nn.Parameter(mapped[str(i)], requires_grad=False)

    def placed(self, index: int, block: nn.Module, candidates: Sequence[Layer]) -> list[Layer]:
        """Take the weights of a block in; returns the layers that ask for them."""
        first = candidates[0]
        whole = matrices(first)
        fold = None
        if first.post_norm is not None and first.post_norm.weight is not None:
            fold = first.post_norm.weight.to(self.device)
        size = sum(t.numel() for t in whole.values()) * 4 + (
            0 if fold is None else whole["w_o_raw"].numel() * 4
        )
        where = self._spread.of(self._checkpoint.name_of(block))
        weights, held, path = packed(whole), None, None
        if where == "disk":
            path = self.folder / f"block-{index}.safetensors"
            written(weights, path)
        elif where != "here":
            held = {name: self._stored(tensor, where) for name, tensor in weights.items()}
        self.pager.keep(
            index,
            whole_of(weights) if where == "here" else weights,
            where,
            Shelf(where, held, path, size, fold),
        )
        self._count(where, size if where == "here" else n_bytes(weights))
        source = _asks(self.pager, index)
        return [PlacedLayer(layer, source, self.device) for layer in candidates]

    def _stored(self, tensor: Tensor, where: str) -> Tensor:
        if where != "cpu":
            return tensor.to(where)
        # Memory that is pinned is copied to a GPU while it computes.
        tensor = tensor.cpu()
        return tensor.pin_memory() if self.device.type == "cuda" else tensor.clone()

    def end(self, unembed: nn.Module, w_u: Tensor, b_u: Tensor | None) -> tuple[End, Tensor | None]:
        """Take the unembedding in."""
        where = self._spread.of(self._checkpoint.name_of(unembed))
        shared = any(w_u.data_ptr() == one.data_ptr() for one in self._settled.values())
        if shared and self.home == self.device:  # it lies where the embedding does
            return End(w_u, self.device, here=True), None if b_u is None else b_u.to(self.device)
        if where == "here":
            stored = w_u.to(self.device)
        elif where == "disk":
            stored = written({"w_u": w_u.T}, self.folder / "unembedding.safetensors")["w_u"].T
        else:
            stored = self._stored(w_u.T.contiguous(), where).T
        self._count(where, n_bytes({"": stored}))
        # What is mapped from a file is read as passes look at it, where they run in CPU memory.
        here = where == "here" or (where == "disk" and self.device.type == "cpu")
        return End(stored, self.device, here), None if b_u is None else b_u.to(self.device)

    def finish(self) -> None:
        """All is taken in: bring two blocks at once where there is room for them."""
        _give_memory_back()
        self.pager.ahead = self.offloads and self.here + 2 * self.pager.largest <= self._spread.budget

    def rotary(self, found: list[Any]) -> list[Any]:
        """Rotations where the passes run."""
        from dataclasses import replace

        return [replace(one, cos=one.cos.to(self.device), sin=one.sin.to(self.device)) for one in found]

    def _count(self, where: str, size: int) -> None:
        name = str(self.device) if where == "here" else where
        self.bytes_on[name] = self.bytes_on.get(name, 0) + size


def _asks(pager: Pager, index: int) -> Callable[[], Weights]:
    return lambda: pager.weights(index)
