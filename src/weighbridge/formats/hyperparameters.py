"""Hyperparameters out of inert values: flat, scalar, and without anything secret."""

import re
from collections.abc import Iterable

from weighbridge.formats.inert import Global, Meter, Record
from weighbridge.formats.torch_contents import children, module_state

Scalar = str | int | float | bool | None
Value = Scalar | list[Scalar]

_DEEPEST = 6
_LONGEST_TEXT = 1000
_LONGEST_LIST = 64
# Beyond these it is a table (labels, vocabularies), not a setting.
_WIDEST = 2000
_MOST = 10_000

_SECRET_NAME = re.compile(r"(token|password|passwd|passphrase|secret|key|credentials?|cookie|authorization)$", re.I)
# Special tokens of a vocabulary: settings, not secrets.
_SPECIAL_TOKEN = re.compile(
    r"(^|[._])(bos|eos|pad|unk|sep|cls|mask|image|audio|video|eot|eop|prefix|suffix)_token$", re.I
)
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[opsu]_[A-Za-z0-9]{20,}|github_pat_|AKIA[A-Z0-9]{12,}|xox[abp]-"
    r"|eyJ[A-Za-z0-9_-]{20,}\.|-----BEGIN|://[^/\s:@]*:[^/\s@]+@"
)


class _Other:
    """What is neither a scalar nor a list of them."""


_OTHER = _Other()


def is_secret(name: str, value: object) -> bool:
    """Whether a setting looks like a token, password or key, by its name or by itself."""
    if value is None or isinstance(value, bool):
        return False
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and _SECRET_VALUE.search(text) for text in texts):
        return True
    return bool(_SECRET_NAME.search(name)) and not _SPECIAL_TOKEN.search(name)


def flatten(named: Iterable[tuple[str, object]], meter: Meter) -> dict[str, Value]:
    """{dotted name: scalar or list of scalars} of everything beneath, up to 10,000 of them.

    Left out: names beneath that begin with an underscore, texts over 1,000 letters, tables over 2,000 entries, tensors,
    functions and secrets.
    """
    found: dict[str, Value] = {}
    for name, value in named:
        _into(value, name, found, meter, depth=0)
    return found


def _into(value: object, name: str, found: dict[str, Value], meter: Meter, *, depth: int) -> None:
    meter.spend(64 + 2 * len(name))
    if len(found) >= _MOST or depth > _DEEPEST:
        return
    plain = _plain(value, meter)
    if not isinstance(plain, _Other):
        if not is_secret(name, plain):
            found[name] = plain
    elif module_state(value) is None:
        listed: list[tuple[object, object]] = []
        for key, child in children(value, meter):
            if len(listed) > _WIDEST:
                return
            listed.append((key, child))
        for key, child in listed:
            if not str(key).startswith("_"):
                _into(child, f"{name}.{key}" if name else str(key), found, meter, depth=depth + 1)


def _plain(value: object, meter: Meter) -> "Value | _Other":
    """A scalar or list of scalars as it is to be shown."""
    if not isinstance(value, list | tuple):
        return _scalar(value)
    if len(value) > _LONGEST_LIST:
        return _OTHER
    meter.spend(24 * len(value))
    items: list[Scalar] = []
    for item in value:
        scalar = _scalar(item)
        if isinstance(scalar, _Other):
            return scalar
        items.append(scalar)
    return items


def _scalar(value: object) -> "Scalar | _Other":
    # An enum member is its class, called with its value.
    if isinstance(value, Record) and len(value.arguments) == 1 and value.state is None and value.items is None:
        value = value.arguments[0]
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 64 else _OTHER
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else _OTHER
    if isinstance(value, Global) and value.module == "torch":
        return f"torch.{value.name}"
    return _OTHER
