"""Which copies of a tied tensor a digest leaves out.

A model that ties its head to its embedding has one tensor under two names. PyTorch's own format stores both names,
safetensors one, some tools write the values twice; and a PyTorch file may call either name the copy. All of these are
the same model, so the rule looks at names and values alone, never at the direction of a tie:

1. Names that the ledger ties to each other, and whose dtype, shape and leaf are equal, are one group. A head (a name
   that ends in one of `HEADS`) whose dtype, shape and leaf equal those of an embedding (one whose last module is
   among `EMBEDDINGS`) joins its group whether or not a configuration is there to declare the tie.
2. A group keeps its embedding if it has one, then the name with the fewest dots, then the first by name
   (`shared.weight` before `encoder.embed_tokens.weight`): the name that transformers keeps in safetensors.

The lists are frozen with version 1 of the digest: to change them is to change digests.
"""

from collections.abc import Iterable, Mapping

EMBEDDINGS = frozenset(
    {
        *("shared", "wte", "w", "embed_tokens", "embed_in", "tok_embeddings", "tokens_embed", "token_embd"),
        *("token_embedding", "token_embeddings", "word_embedding", "word_embeddings", "embedding", "embeddings"),
    }
)
HEADS = (
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
    "head.decoder.weight",
)
# llama.cpp's and Meta's names for the head, too plain to be believed anywhere but at the top.
_TOP_HEADS = frozenset({"output.weight", "head.weight"})

Value = tuple[str, tuple[int, ...], bytes]  # dtype, shape, leaf


def rank(name: str) -> tuple[bool, int, str]:
    """Sorts first the name that stands for all of its group."""
    return not _is_embedding(name), name.count("."), name


def left_out(values: Mapping[str, Value], ties: Mapping[str, str]) -> set[str]:
    """The names among `values` that are copies of another one that stays."""
    edges = [(copy, original) for copy, original in ties.items() if copy in values and original in values]
    edges += _heads(values)
    dropped = set()
    for component in _components(edges):
        kept: dict[Value, str] = {}
        for name in sorted(component, key=rank):
            if kept.setdefault(values[name], name) != name:
                dropped.add(name)
    return dropped


def _is_embedding(name: str) -> bool:
    modules, _, leaf = name.rpartition(".")
    return leaf == "weight" and modules.rpartition(".")[2] in EMBEDDINGS


def _heads(values: Mapping[str, Value]) -> Iterable[tuple[str, str]]:
    heads = [name for name in values if name.endswith(HEADS) or name in _TOP_HEADS]
    if heads:
        embeddings: dict[Value, str] = {}
        for name in sorted((name for name in values if _is_embedding(name)), key=rank):
            embeddings.setdefault(values[name], name)
        for head in heads:
            original = embeddings.get(values[head])
            if original is not None:
                yield head, original


def _components(edges: Iterable[tuple[str, str]]) -> Iterable[list[str]]:
    """Names that edges connect, whichever way they point (union-find: a forged file may tie 100,000 names)."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for one, other in edges:
        parent[root(one)] = root(other)
    members: dict[str, list[str]] = {}
    for name in parent:
        members.setdefault(root(name), []).append(name)
    return members.values()
