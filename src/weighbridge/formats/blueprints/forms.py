"""Shapes in the config's own terms: `[num_attention_heads * head_dim, hidden_size]` beside [4096, 4096].

For `--explain` alone. Only sums and products of fields are worth reading: a dimension that hangs on a choice is given
as its number.
"""

import ast
from collections.abc import Mapping
from typing import Any

from weighbridge.formats.blueprints.settings import Settings

_PLAIN = (ast.Name, ast.Constant, ast.BinOp, ast.Attribute, ast.Load, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv)
_LONGEST = 120


def form(text: str, terms: Mapping[str, str], settings: Settings, value: Any) -> str:
    """An expression in terms of config fields; `terms` are what a part's parameters stand for, `value` what it comes
    to.
    """
    tree = ast.parse(text.strip(), mode="eval").body
    found = _Terms(terms, settings).visit(tree)
    if found is None or not all(isinstance(node, _PLAIN) for node in ast.walk(found)):
        return str(value)
    said = ast.unparse(found)
    return said if len(said) <= _LONGEST else str(value)


def forms(text: str, terms: Mapping[str, str], settings: Settings, shape: tuple[int, ...]) -> list[str]:
    """The dimensions of a shape, each in terms of config fields."""
    tree = ast.parse(text.strip(), mode="eval").body
    if not isinstance(tree, ast.List) or len(tree.elts) != len(shape):
        return [str(size) for size in shape]
    return [form(ast.unparse(part), terms, settings, size) for part, size in zip(tree.elts, shape, strict=True)]


class _Terms(ast.NodeTransformer):
    def __init__(self, terms: Mapping[str, str], settings: Settings) -> None:
        self.terms, self.settings = terms, settings

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.terms:
            return ast.parse(self.terms[node.id], mode="eval").body
        return ast.parse(self.settings.path(node.id), mode="eval").body
