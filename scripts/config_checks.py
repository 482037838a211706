"""What the classes of transformers' configs and models refuse, read off their source: for make-configs.

transformers checks a config in three places: the annotations of a config class say of which kind each field is, its
`validate_` methods and the modules that models are made of raise errors under conditions. Those that can be said in the
language of blueprints become data.
"""

import ast
import collections.abc
import dataclasses
import inspect
import math
import re
import sys
import textwrap
import types
import typing
from functools import cache
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from weighbridge.formats.blueprints.expressions import compile_expression

# A fully rotated head of odd width has no rotation: `validate_rope`, in the words of blueprints.
_ROTATED = (
    "head_dim is not None and head_dim > 4 and head_dim % 2"
    " and field(rope_parameters, 'partial_rotary_factor', get('partial_rotary_factor', 1)) in [1, None]"
)


def kinds(config: type, found: dict[str, object]) -> dict[str, str]:
    """{field: kinds of JSON values that the class takes}, where its default among those `found` does not tell."""
    said = {}
    for field in dataclasses.fields(config):
        kind = kind_of(field.type)
        if kind not in ("", PLAIN.get(type(found.get(field.name)))):
            said[field.name] = kind
    return said


PLAIN = {int: "int", bool: "bool", float: "float", str: "str"}


def kind_of(annotation: object) -> str:
    """`int|null|list[int]` of an annotation; empty for any value. JSON has no tuples and no objects of classes."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is typing.Any or isinstance(annotation, (str, typing.ForwardRef)):
        return ""
    if origin in (typing.Union, types.UnionType):
        told = [kind_of(part) for part in parts if not of_python(part)]
        return "" if "" in told else "|".join(dict.fromkeys(told))
    if origin is typing.Literal:
        return "|".join(f"{part!r}" for part in parts)
    if origin in (list, collections.abc.Sequence):
        inner = kind_of(parts[0])
        return f"list[{inner}]" if inner else "list"
    if annotation in (None, type(None)):
        return "null"
    return "dict" if origin is dict else "" if of_python(annotation) else annotation.__name__


def of_python(annotation: object) -> bool:
    plain = (*PLAIN, list, dict, type(None))
    return tuple in (annotation, typing.get_origin(annotation)) or (
        isinstance(annotation, type) and typing.get_origin(annotation) is None and annotation not in plain
    )


class Untold(Exception):
    """A line of a check that has no words in the language of blueprints."""


_Names = dict[str, ast.expr | None]


class Told(ast.NodeTransformer):
    """From an expression over a config, called `owner`, to one over the names of its fields. `names` are what local
    names stand for.
    """

    CALLS = types.MappingProxyType(
        {"len": "len", "min": "min", "max": "max", "sum": "sum", "any": "any", "all": "all", "int": "int",
         "sorted": "sorted", "list": "list", "set": "unique", "range": "range", "enumerate": "enumerate"}
    )  # fmt: skip

    def __init__(self, config: type, owner: str, names: _Names) -> None:
        self.config, self.owner, self.names = config, owner, names
        self.bound: set[str] = set()

    def visit_comprehension_of(self, node: ast.ListComp | ast.GeneratorExp) -> ast.expr:
        for part in node.generators:
            self.bound |= {name.id for name in ast.walk(part.target) if isinstance(name, ast.Name)}
        return self.generic_visit(node)

    visit_ListComp = visit_GeneratorExp = visit_comprehension_of

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Store) or node.id in self.bound:
            return node
        known = self.names.get(node.id)
        if known is None:
            raise Untold
        return known

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        text = ast.unparse(node)
        if text in self.names:
            known = self.names[text]
            if known is None:
                raise Untold
            return known
        if not (isinstance(node.value, ast.Name) and node.value.id == self.owner):
            return self.generic_visit(node)
        value = inspect.getattr_static(self.config, node.attr, None)
        if isinstance(value, (list, tuple)) and node.attr not in {f.name for f in dataclasses.fields(self.config)}:
            return ast.parse(repr(list(value)), mode="eval").body
        if node.attr.startswith(("per_layer", "_")):
            raise Untold
        return ast.Name(id=node.attr, ctx=ast.Load())

    def visit_Call(self, node: ast.Call) -> ast.expr:
        text = ast.unparse(node.func)
        if text == "math.sqrt":
            return ast.Call(ast.Name("sqrt"), [self.visit(part) for part in node.args], [])
        if text in ("getattr", "hasattr") and ast.unparse(node.args[0]) == self.owner:
            return ast.Call(ast.Name("get" if text == "getattr" else "has"), node.args[1:], [])
        if text == "isinstance" and ast.unparse(node.args[1]) in ("list", "tuple", "str", "(list, tuple)"):
            word = "is_text" if ast.unparse(node.args[1]) == "str" else "is_list"
            return ast.Call(ast.Name(word), [self.visit(node.args[0])], [])
        if text not in self.CALLS or node.keywords:
            raise Untold
        arguments = [self.visit(part) for part in node.args]
        return ast.Call(ast.Name(self.CALLS[text]), arguments, [])

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        if "set(" in ast.unparse(node):  # a difference of sets
            raise Untold
        return self.generic_visit(node)

    def visit_Set(self, node: ast.Set) -> ast.expr:
        return ast.List([self.visit(part) for part in node.elts], ast.Load())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads the conditions under which lines of code raise an error. `above` is where `super()` looks."""

    config: type
    owner: str
    above: type | None = None
    method: str = ""

    def tell(self, node: ast.expr, names: _Names) -> str | None:
        """An expression in the words of blueprints, where they have such."""
        try:
            told = Told(self.config, self.owner, names).visit(ast.parse(ast.unparse(node), mode="eval").body)
            text = ast.unparse(ast.fix_missing_locations(told))
            compile_expression(text)
        except (Untold, SyntaxError, KeyError):
            return None
        return text

    def conditions(self, lines: list[ast.stmt], names: _Names, guards: list[str | None]) -> list[str]:
        """The conditions of all `raise` among the lines; `guards` are those under which the lines run."""
        found: list[str] = []
        for line in lines:
            if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
                for target in line.targets if isinstance(line, ast.Assign) else [line.target]:
                    text = self.tell(line.value, names)
                    names[ast.unparse(target)] = None if text is None else ast.parse(text, mode="eval").body
            elif isinstance(line, ast.Expr | ast.Return) and "super().validate" in ast.unparse(line):
                found += of_method(self.config, self.above, self.method) if self.above else []
            elif isinstance(line, ast.Raise) and guards and None not in guards:
                found.append(" and ".join(f"({guard})" for guard in guards) if len(guards) > 1 else str(guards[0]))
            elif isinstance(line, ast.If):
                test = self.tell(line.test, names)
                otherwise = None if test is None else f"not ({test})"
                found += self.conditions(line.body, dict(names), [*guards, test])
                found += self.conditions(line.orelse, dict(names), [*guards, otherwise])
                for node in ast.walk(line):  # what either way may set is not known below
                    if isinstance(node, ast.Assign):
                        names |= dict.fromkeys(map(ast.unparse, node.targets))
                if isinstance(line.body[-1], ast.Return):
                    guards = [*guards, otherwise]
            elif isinstance(line, ast.For) and not guards:
                source, inner = self.tell(line.iter, names), dict(names)
                for node in ast.walk(line.target):
                    if isinstance(node, ast.Name):
                        inner[node.id] = ast.Name(node.id, ast.Load())
                below = self.conditions(line.body, inner, [])
                found += [f"any([{text} for {ast.unparse(line.target)} in {source}])" for text in below if source]
        return found


def refused(config: type) -> list[str]:
    """The conditions under which the class, or the modules of its models, refuse a config."""
    found: list[str] = []
    for name in sorted(name for name in dir(config) if name.startswith("validate_")):
        if name not in ("validate_rope", "validate_token_ids"):
            found += of_method(config, config, name)
    if "rope_parameters" in {field.name for field in dataclasses.fields(config)}:
        found.append(_ROTATED)
    changed = changed_by(config)
    found = [text for text in found if changed.isdisjoint(re.findall(r"\w+", text))]
    return list(dict.fromkeys([*of_bounds(config), *found, *of_modules(config), *of_padding(config)]))


def of_bounds(config: type) -> list[str]:
    """The bounds that transformers' validators set to single fields."""
    found = []
    for field in dataclasses.fields(config):
        for check in field.metadata.get("validator", ()):
            bounds = inspect.getclosurevars(check).nonlocals
            if math.isfinite(bounds.get("min", math.inf)):
                found.append(f"{field.name} {'<=' if bounds['exclude_min'] else '<'} {bounds['min']}")
            if math.isfinite(bounds.get("max", math.inf)):
                found.append(f"{field.name} {'>=' if bounds['exclude_max'] else '>'} {bounds['max']}")
            if check.__name__ == "positive_int_field":
                found.append(f"{field.name} is not None and {field.name} <= 0")
            if "divisor" in bounds:
                found.append(f"{field.name} % {bounds['divisor']} != 0")
    return found


def changed_by(config: type) -> set[str]:
    """The fields that a class turns into something else before it checks them, whatever they are."""
    found = set()
    for owner in config.__mro__:
        if "__post_init__" in vars(owner) and owner is not PreTrainedConfig and issubclass(owner, PreTrainedConfig):
            text = textwrap.dedent(inspect.getsource(vars(owner)["__post_init__"]))
            found |= set(re.findall(r"self\.(\w+) = self\.\1\.\w+\(", text))
    return found


def of_padding(config: type) -> list[str]:
    """An embedding's padding is one of its entries: PyTorch refuses others."""
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    text = "\n".join(text for _, text in modules(config))
    padded = re.search(r"Embedding\((?:self\.)?config\.vocab_size, [^)]*(padding_idx|pad_token_id)", text)
    if not padded or not {"vocab_size", "pad_token_id"} <= fields.keys():
        return []
    pad = f"get('pad_token_id', {fields['pad_token_id']})"
    return [f"{pad} is not None and not -vocab_size <= {pad} < vocab_size"]


def of_method(config: type, owner: type, name: str) -> list[str]:
    line = [one for one in owner.__mro__ if name in vars(one)]
    if not line or line[0] is PreTrainedConfig or not inspect.isfunction(vars(line[0])[name]):
        return []
    reader = Reader(config=config, owner="self", above=line[0].__mro__[1], method=name)
    return reader.conditions(lines_of(vars(line[0])[name]), computed_by(config, reader), [])


def lines_of(function: types.FunctionType) -> list[ast.stmt]:
    return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body


def computed_by(config: type, reader: Reader) -> _Names:
    """What a class computes before it checks: attributes that are no fields, by the lines that set them."""
    names: _Names = {}
    fields = {field.name for field in dataclasses.fields(config)}
    for line in lines_of(config.__post_init__):
        target = ast.unparse(line.targets[0]) if isinstance(line, ast.Assign) else ""
        if target.count(".") == 1 and target.startswith("self.") and target.removeprefix("self.") not in fields:
            text = reader.tell(line.value, names)
            if text is not None:
                names[target] = ast.parse(text, mode="eval").body
    return names


def of_modules(config: type) -> list[str]:
    """Of the modules of models, what sizes they demand to be multiples: other checks hang on how they are used."""
    found: list[str] = []
    for module, _ in modules(config):
        if any("PreTrainedModel" in ast.unparse(base) for base in module.bases):
            continue
        for start in module.body:
            if isinstance(start, ast.FunctionDef) and start.name == "__init__":
                found += Reader(config=config, owner="config").conditions(start.body, {}, [])
    return [text for text in dict.fromkeys(found) if re.search("%|//|&", text)]


@cache
def parsed(path: Path) -> list[tuple[ast.ClassDef, str]]:
    return [(node, ast.unparse(node)) for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]


@cache
def beside(module: str) -> list[type]:
    """The config classes that a file defines."""
    classes = [one for one in vars(sys.modules[module]).values() if inspect.isclass(one) and one.__module__ == module]
    return [one for one in classes if issubclass(one, PreTrainedConfig)]


def modules(config: type) -> list[tuple[ast.ClassDef, str]]:
    """The modules that may be built from a config, with their text: one says which, or is called like it; else it may
    be any of the family's.
    """
    found = []
    for path in sorted(Path(inspect.getfile(config)).parent.glob("modeling_*.py")):
        for module, text in parsed(path):
            own = re.search(r"config: ([^,)=]+)", text)
            read = set(re.findall(r"\bconfig\.(\w+)", text))
            known = {name for name in read if any(hasattr(one, name) for one in beside(config.__module__))}
            near = [one for one in beside(config.__module__) if module.name.startswith(stem(one))]
            near = [one for one in near if all(hasattr(one, name) for name in known)]
            named = re.findall(r"\w+Config\b", own[1]) if own else [max(near, key=stem_length).__name__] if near else []
            # A family's plain module serves its narrower configs, too.
            if not named or any(stem(config).startswith(name.removesuffix("Config")) for name in named):
                found.append((module, text))
    return found


def activations(config: type) -> list[str]:
    """The fields whose words the models of a config look up among the activations."""
    text = "\n".join(text for _, text in modules(config))
    names = set(re.findall(r"ACT2(?:FN|CLS)\[\w*(?:\.\w+)*\.(\w+)\]", text))
    if re.search(r"ACT2(?:FN|CLS)\[\w+\]", text):  # a module is handed the word
        names |= set(re.findall(r"config\.(\w*act(?:ivation)?(?:_fn|_function)?)\b", text))
    fields = dataclasses.fields(config)
    names &= {field.name for field in fields if field.type in (str, str | None)}
    checks = {field.name: field.metadata.get("validator", ()) for field in fields}
    names |= {name for name, those in checks.items() if any(one.__name__ == "activation_fn_key" for one in those)}
    return sorted(name for name in names if getattr(config, name, None) in (None, *ACT2FN))


def stem_length(config: type) -> int:
    return len(stem(config))


def stem(config: type) -> str:
    return config.__name__.removesuffix("Config")
