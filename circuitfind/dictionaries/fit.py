"""Whether a dictionary belongs to a model: sizes, layers, sites, and what the hook names meant when it was trained."""

from __future__ import annotations

from circuitfind.dictionaries.dictionary import Dictionary, Site
from circuitfind.dictionaries.sites import BEFORE_POST_NORM, short
from circuitfind.errors import ModelError, UnsupportedError
from circuitfind.model.bridge import Model


def check_fits(dictionary: Dictionary, model: Model) -> None:
    """That a dictionary can be put into a model and means there what it meant where it was trained.

    Raises:
        ModelError: Other sizes or layers, or another model.
        UnsupportedError: A site that the model does not have, or whose hook meant another thing.
    """
    where = dictionary.source or f"dictionary of layer {dictionary.layer}"
    n_layers = len(model.layers)
    if not 0 <= dictionary.layer < n_layers:
        raise ModelError(
            f"it reads in layer {dictionary.layer}, and {model.name} has {n_layers} layers (0 to {n_layers - 1})",
            where=where,
            hint="is it a dictionary of this model?",
        )
    last = dictionary.layer + dictionary.n_layers_out
    if dictionary.kind == "cross-layer" and last != n_layers:
        raise ModelError(
            f"it writes to layers {dictionary.layer} to {last - 1}, and {model.name} ends with layer {n_layers - 1}",
            where=where,
            hint="is it a dictionary of this model?",
        )
    for name, site, width in (
        ("reads", dictionary.site_in, dictionary.d_in),
        ("writes", dictionary.site_out, dictionary.d_out),
    ):
        _check_site(site, model, where)
        wanted = _width(site, dictionary.layer, model)
        if width != wanted:
            raise ModelError(
                f"it {name} {width} numbers at {site}, where {model.name} has {wanted}",
                where=where,
                hint="is it a dictionary of this model?",
            )
    _check_name(dictionary, model, where)
    _check_processing(dictionary, model, where)
    _check_post_norm(dictionary, model, where)


def _width(site: Site, layer: int, model: Model) -> int:
    return model.layers[layer].n_heads * model.d_head if site == "z" else model.d_model


def _check_site(site: Site, model: Model, where: str) -> None:
    if site.startswith("mlp") and not model.has_mlp:
        raise UnsupportedError(
            f"it needs {site}, and {model.name} has no MLPs", where=where, hint="use a model with MLPs"
        )
    if site == "mid" and model.anatomy.parallel:
        raise UnsupportedError(
            f"the blocks of {model.name} run attention and MLP side by side: there is no stream between them (mid)",
            where=where,
            hint="use a dictionary of resid, mlp_in or mlp_out",
        )


def _check_name(dictionary: Dictionary, model: Model, where: str) -> None:
    """By the last part of the name; a model of a local folder may be called anything."""
    named = dictionary.facts.get("model_name")
    if (
        isinstance(named, str)
        and not model.source.startswith("folder:")
        and _plain(named) != _plain(model.name)
    ):
        raise ModelError(
            f"it belongs to the model '{named}', not to '{model.name}'",
            where=where,
            hint=f"run it on {named}, or correct model_name in its configuration",
        )


def _plain(name: str) -> str:
    plain = name.lower().rsplit("/", 1)[-1].removesuffix("-pt")
    return {"gpt2-small": "gpt2"}.get(plain, plain)


def _check_processing(dictionary: Dictionary, model: Model, where: str) -> None:
    layer = model.layers[dictionary.layer]
    facts = dictionary.facts
    plain = dictionary.site_in == "mlp_hat" and facts.get("fold_ln") is False
    weighted = layer.mlp_norm.weight is not None or layer.mlp_norm.bias is not None
    if plain and layer.mlp_norm.kind == "ln" and weighted:
        raise UnsupportedError(
            "ln2.hook_normalized stands behind the weight of a LayerNorm in a plain HookedTransformer, and before it in one "
            "whose norms are folded and in TransformerBridge; the file does not say which was used",
            where=where,
            hint="in its configuration set hook_name to blocks.N.mlp.hook_in (behind the weight), or "
            'model_from_pretrained_kwargs to {"fold_ln": true} (before it)',
        )
    if facts.get("center_writing_weights") and layer.norm.kind == "rms":
        raise UnsupportedError(
            f"it was trained on a stream whose mean was taken off, which models with RMSNorm such as {model.name} "
            "never are",
            where=where,
            hint="set center_writing_weights to false in its configuration: there it had no effect",
        )


def _check_post_norm(dictionary: Dictionary, model: Model, where: str) -> None:
    layer = model.layers[dictionary.layer]
    mlp = layer.mlp
    posts = {"attn.hook_out": layer.post_norm, "mlp.hook_out": None if mlp is None else mlp.post_norm}
    for key in ("hook_in", "hook_out"):
        hook = short(str(dictionary.facts.get(key, "")))
        if hook in BEFORE_POST_NORM and posts[hook] is not None:
            raise UnsupportedError(
                f"{hook} stands before the post-norm of {model.name}, not where it reaches the stream",
                where=where,
                hint="use a dictionary of hook_attn_out or hook_mlp_out",
            )
