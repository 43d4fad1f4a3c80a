"""Hook names of other tools, and the sites of a block that they stand for."""

from __future__ import annotations

import re

from circuitfind.dictionaries.dictionary import Site
from circuitfind.errors import UnsupportedError, did_you_mean

HOOKS: dict[str, Site] = {
    "hook_resid_pre": "resid",
    "hook_resid_mid": "mid",
    "hook_resid_post": "resid_post",
    "ln1.hook_in": "attn_in",
    "hook_attn_out": "attn_out",
    "attn.hook_out": "attn_out",
    "ln1_post.hook_out": "attn_out",
    "attn.hook_z": "z",
    "attn.o.hook_in": "z",
    "ln2.hook_in": "mlp_in",
    "hook_mlp_in": "mlp_in",
    "ln2.hook_normalized": "mlp_hat",
    "ln2.hook_out": "mlp_normed",
    "mlp.hook_in": "mlp_normed",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
    "ln2_post.hook_out": "mlp_out",
}
"""TransformerLens names behind ``blocks.N.``, of HookedTransformer and of the bridge."""

MODULES: dict[str, Site] = {
    "output": "resid_post",
    "self_attn.o_proj.input": "z",
    "pre_feedforward_layernorm.output": "mlp_normed",
    "post_feedforward_layernorm.output": "mlp_out",
}
"""Module paths of Gemma behind ``model.layers.N.``, as in the ``hf_hook_point_in`` of gemma-scope-2.

Names that mean other things in other families (``post_attention_layernorm``) are left out.
"""

BEFORE_POST_NORM = ("attn.hook_out", "mlp.hook_out")
"""Not what reaches the stream in models with post-norms (Gemma 2 and 3)."""

NAMES: dict[Site, str] = {
    "resid": "hook_resid_pre",
    "mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_in": "ln1.hook_in",
    "attn_out": "hook_attn_out",
    "mlp_in": "ln2.hook_in",
    "mlp_hat": "ln2.hook_normalized",
    "mlp_normed": "mlp.hook_in",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
}
"""How a site is written."""

STREAM: tuple[Site, ...] = ("resid", "mid", "resid_post", "attn_in", "mlp_in", "attn_out", "mlp_out")
"""Sites whose vectors lie on the residual stream as they are."""

_BLOCK = re.compile(r"blocks\.(?:(\d{1,4})|\{\w*\})\.(.+)")
_MODULE = re.compile(r"(?:model\.)?(?:language_model\.)?layers\.(?:(\d{1,4})|\{\w*\})\.(.+)")


def read_hook(name: object, where: str) -> tuple[int | None, Site]:
    """The layer (None where the name leaves it open) and the site of a hook name.

    Raises:
        UnsupportedError: No hook of a block is called so.
    """
    if not isinstance(name, str):
        raise UnsupportedError(
            f"a hook name is text, not {type(name).__name__}",
            where=where,
            hint="such as blocks.3.hook_mlp_out",
        )
    for pattern, known in ((_BLOCK, HOOKS), (_MODULE, MODULES)):
        if found := pattern.fullmatch(name):
            layer, rest = found.groups()
            if rest in known:
                return (None if layer is None else int(layer)), known[rest]
            raise _unknown(name, rest, where)
    if name in HOOKS:
        return None, HOOKS[name]
    raise _unknown(name, name, where)


def hook_name(layer: int, site: Site) -> str:
    """The TransformerLens name of a site."""
    return f"blocks.{layer}.{NAMES[site]}"


def short(name: str) -> str:
    """A hook name without its block."""
    found = _BLOCK.fullmatch(name)
    return found.group(2) if found else name


def _unknown(name: str, rest: str, where: str) -> UnsupportedError:
    known = HOOKS if "layers." not in name else MODULES
    return UnsupportedError(
        f"'{name[:100]}' is no hook that a dictionary can be read at or write to",
        where=where,
        hint=f"of the part behind the layer, {did_you_mean(rest[:100], known)}",
    )
