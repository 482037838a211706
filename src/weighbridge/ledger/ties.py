"""Tied tensors: one parameter under several names.

A copy is stored although the model has the parameter once (`lm_head.weight` beside `model.embed_tokens.weight` where
the config ties them). It is an extra, not a parameter. Ties that the file itself shows (PyTorch views of one storage)
are certain; ties that the config declares are believed when shape and dtype agree.
"""

from collections.abc import Mapping, Sequence

from weighbridge.ledger.architecture import Architecture
from weighbridge.ledger.families import PARAMETER, Family

# The names that a token embedding goes by, most usual first: what a tied head is a copy of.
_EMBEDDINGS = (
    "shared.weight",
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "token_embedding.weight",
    "tokens_embed.weight",
    "embed_in.weight",
    "word_embedding.weight",
    "embeddings.weight",
    "embed_audio_tokens.weight",
    "w.weight",
)
_HEADS = (
    "lm_head.weight",
    "embed_out.weight",
    "proj_out.weight",
    "lm_head.decoder.weight",
    "lm_head.out_proj.weight",
    "predictions.decoder.weight",
    "generator_lm_head.weight",
    "vocab_projector.weight",
    "output_projection.weight",
    "pred_layer.proj.weight",
    "lm_loss.weight",
    "mlm_score.decoder.weight",
    "head.decoder.weight",
)
# An encoder's or decoder's own name for the shared embedding: the same module in every class that has `shared`.
_SHARED_ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_BIASES = (("predictions.decoder.bias", "predictions.bias"), ("lm_head.decoder.bias", "lm_head.bias"))


def declared(families: Sequence[Family], architecture: Architecture) -> dict[str, str]:
    """{copy: original} for the ties that the configuration declares and the stored shapes bear out."""
    ties: dict[str, str] = {}
    # A tensor that occurs in every layer is no embedding and no head.
    few = [family for family in families if family.count <= 4 and family.kind == PARAMETER and not family.adapter]
    single = {name: family for family in few for name in family.names}
    embeddings = [name for end in _EMBEDDINGS for name in single if name.endswith(end) and not name.endswith(_HEADS)]
    for name, family in single.items():
        original = None
        if name.endswith(_SHARED_ALIASES):
            original = next(
                (e for e in embeddings if e.rpartition("shared.weight")[1] and _same(family, single[e])), None
            )
        elif (name.endswith(_HEADS) or name == "decoder.weight") and architecture.tied_embeddings:
            # The class has one tensor, whatever precision a copy was stored in.
            original = next((e for e in embeddings if family.shape == single[e].shape), None)
        else:
            for copy_end, original_end in _BIASES:
                other = name.removesuffix(copy_end) + original_end
                if name.endswith(copy_end) and other in single and _same(family, single[other]):
                    original = other
        if original is not None and original != name:
            ties[name] = original
    return ties


def _same(one: Family, other: Family) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def resolve(aliases: Mapping[str, str], ties: Mapping[str, str]) -> dict[str, str]:
    """Both kinds together, chains followed to their end."""
    joined = dict(ties) | dict(aliases)
    ends = {}
    for name in joined:
        seen, end = {name}, joined[name]
        while end in joined and end not in seen:
            seen.add(end)
            end = joined[end]
        if end != name:
            ends[name] = end
    return ends
