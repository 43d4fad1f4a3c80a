"""Mixed precision: matrix products in fewer bits; the stream, norms, logits, metrics and every sum over tokens in 32.

``torch.autocast`` is put around single passes, not around a method: what a pass leaves is raised to 32 bits at once, so the
contraction of scores, the sums of edges into a reader's input and the metric never see 16 bits. With ``fp16`` gradients
are taken in 32 bits: many of them are smaller than what it can hold.

``tf32`` keeps 32 bits everywhere and lets a GPU round what its matrix products read to 10 bits of mantissa (TensorFloat-32).
It is a switch of the whole process, so it is on inside passes alone, and as it was after each of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitfind.config import Precision
from circuitfind.errors import UnsupportedError

if TYPE_CHECKING:
    from circuitfind.model.bridge import Model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
TENSOR_FLOAT = (8, 0)
"""Compute capability of the first GPUs that have TensorFloat-32."""

P = ParamSpec("P")
Found = TypeVar("Found")
Seen = TypeVar("Seen")


@contextmanager
def using(model: Model, precision: Precision) -> Iterator[None]:
    """Run the passes of a model in a precision for the time of the block.

    Raises:
        UnsupportedError: The device cannot.
    """
    if precision == "tf32":
        _check_tensor_float(model.device)
    elif precision != "fp32":
        _check(model.device, precision)
    before, model.precision = model.precision, precision
    try:
        yield
    finally:
        model.precision = before


def _check(device: torch.device, precision: Precision) -> None:
    dtype = DTYPES[precision]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an older torch warns, and goes on in 32 bits
            with torch.autocast(device.type, dtype):
                x = torch.ones(1, 1, 2, 2, device=device)
                found = torch.nn.functional.scaled_dot_product_attention(x @ x, x, x).dtype
        fits = found == dtype
    except RuntimeError:
        fits = False
    if not fits:
        raise UnsupportedError(
            f"--precision {precision} does not work on {device.type} with torch {torch.__version__}",
            hint="use --precision fp32, or another --device"
            if precision == "bf16"
            else "use --precision bf16 or fp32, or another --device",
        )


def _check_tensor_float(device: torch.device) -> None:
    there = device.type == "cuda" and torch.version.cuda is not None
    if not there or torch.cuda.get_device_capability(device) < TENSOR_FLOAT:
        raise UnsupportedError(
            f"--precision tf32 does not work on {device.type}: TensorFloat-32 is a mode of NVIDIA GPUs of compute capability "
            f"{'.'.join(map(str, TENSOR_FLOAT))} or later",
            hint="use --precision fp32 or bf16, or --device cuda on such a GPU",
        )


@contextmanager
def _products(*, tensor_float: bool) -> Iterator[None]:
    """Round what matrix products of a GPU read to TensorFloat-32, or do not; afterwards it is as it was."""
    # torch 2.9 brought a switch for each backend, and refuses a mixture of both kinds while it is on.
    switches: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    switches = [switch for switch in switches if hasattr(switch, "fp32_precision")]
    before = [switch.fp32_precision for switch in switches]
    old: str | None
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # the program has set a newer one
        old = None
    if old is not None:
        torch.set_float32_matmul_precision("high" if tensor_float else "highest")
    else:
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tensor_float else "ieee"
    try:
        yield
    finally:
        if old is not None:
            torch.set_float32_matmul_precision(old)
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def _low(model: Model) -> AbstractContextManager[Any]:
    """A block in the precision of a model, which is not fp32."""
    if model.precision == "tf32":
        return _products(tensor_float=True)
    return torch.autocast(model.device.type, DTYPES[model.precision])


def _high(model: Model) -> AbstractContextManager[Any]:
    """A block in 32 bits inside of such a block."""
    if model.precision == "tf32":
        return _products(tensor_float=False)
    return torch.autocast(model.device.type, enabled=False)


def moved(
    start: Float[Tensor, "*#shape"], end: Float[Tensor, "*#shape"], amount: Float[Tensor, "*#shape"]
) -> Float[Tensor, ...]:
    """From one value towards another, exactly the one at 0 and the other at 1; in the wider of their types."""
    dtype = torch.promote_types(start.dtype, end.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), amount.to(dtype))


def advice(model: Model) -> str:
    """What to do about values that are not finite."""
    if model.precision not in ("fp32", "tf32"):  # these two hold the same range
        return f"use --precision {'bf16 or fp32' if model.precision == 'fp16' else 'fp32'}: {model.precision} may not hold them"
    return "check the model's weights; a damaged or wrongly converted model does this"


def lowered(function: Callable[P, Found]) -> Callable[P, Found]:
    """A pass in the precision of its model: the first argument, or that argument's ``_model``. Its result is raised."""

    @wraps(function)
    def wrapped(*args: P.args, **keys: P.kwargs) -> Found:
        model = _model_of(args)
        if model.precision == "fp32":
            return function(*args, **keys)
        with _low(model):
            found = function(*args, **keys)
        if model.precision == "tf32":
            return found
        up: Found = raised(found)
        return up

    return wrapped


def lowered_gradient(function: Callable[P, Found]) -> Callable[P, Found]:
    """The same for a backward pass, which ``fp16`` leaves in 32 bits."""
    low = lowered(function)

    @wraps(function)
    def wrapped(*args: P.args, **keys: P.kwargs) -> Found:
        return (function if _model_of(args).precision == "fp16" else low)(*args, **keys)

    return wrapped


def full(function: Callable[P, Found]) -> Callable[P, Found]:
    """A part of a pass that is always in 32 bits."""

    @wraps(function)
    def wrapped(*args: P.args, **keys: P.kwargs) -> Found:
        if _model_of(args).precision == "fp32":
            return function(*args, **keys)
        with _high(_model_of(args)):
            return function(*args, **keys)

    return wrapped


def seen_in_full(model: Model, visit: Callable[[Seen], None]) -> Callable[[Seen], None]:
    """A visitor of a backward pass that works in 32 bits on what it is shown."""
    if model.precision == "fp32":
        return visit

    def visit_raised(found: Seen) -> None:
        with _high(model):
            visit(raised(found))

    return visit_raised


def _model_of(args: tuple[Any, ...]) -> Model:
    found: Model = getattr(args[0], "_model", args[0])
    return found


def raised(thing: Any) -> Any:
    """The same with every 16-bit tensor in 32 bits, inside tuples, lists and dataclasses too."""
    if isinstance(thing, Tensor):
        return thing.float() if thing.dtype in DTYPES.values() else thing
    if isinstance(thing, (list, tuple)):
        return type(thing)(raised(part) for part in thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: raised(getattr(thing, f.name)) for f in fields(thing) if f.init})
    return thing
