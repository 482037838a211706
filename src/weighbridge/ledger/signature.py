"""The parameter signature: the identity of a model variant, in one line that parses back.

qwen/qwen3-8b@2026-10-01+support-lora~q4_k_m:prompt-3#9f3c01ab
└ base model  └ version  └ adapter    └ quantization   └ digest
                                             └ prompt version
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from weighbridge.ledger.errors import Malformed

# Everything else is percent-encoded inside a part, so the marks between parts stay unambiguous.
_MARKED = re.compile(r"[^A-Za-z0-9/._\-]")
_ENCODED = re.compile(r"(?:%[0-9A-F]{2})+")
_PART = r"(?:[A-Za-z0-9/._\-]|%[0-9A-F]{2})+"
_FORM = (  # compiled when first used
    rf"(?P<base_model>{_PART})(?:@(?P<version>{_PART}))?(?:\+(?P<adapter>{_PART}))?"
    rf"(?:~(?P<quantization>{_PART}))?(?::(?P<prompt_version>{_PART}))?(?:#(?P<digest>[0-9a-f]{{8,64}}))?"
)
_LONGEST = 4096

# Span attributes (OpenTelemetry has no standard name for an adapter or a quantization, so these are ours).
_ATTRIBUTES = {
    "base_model": "base_model",
    "version": "model.version",
    "adapter": "adapter.id",
    "quantization": "quantization",
    "prompt_version": "prompt.version",
    "digest": "model.digest",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Who a variant is. `digest` is lower-case hex over its tensors' values; a prefix names a variant.

    `str(signature)` is canonical and `Signature.parse` reads it back. Parts that are unknown are None, never "".
    """

    base_model: str
    version: str | None = None
    adapter: str | None = None
    quantization: str | None = None
    prompt_version: str | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) == "":
                raise Malformed(f"a signature's {field.name} is empty", fix="leave it out instead")
        if self.digest is not None and not re.fullmatch("[0-9a-f]{8,64}", self.digest):
            raise Malformed(f"a digest is 8 to 64 lower-case hex digits, not {self.digest!r}")

    def __str__(self) -> str:
        text = _encode(self.base_model)
        for mark, part in (
            ("@", self.version),
            ("+", self.adapter),
            ("~", self.quantization),
            (":", self.prompt_version),
            ("#", self.digest),
        ):
            if part is not None:
                text += mark + _encode(part)
        return text

    @classmethod
    def parse(cls, text: str) -> "Signature":
        """The signature that prints as `text`.

        Raises:
            Malformed: `text` is not a signature.

        """
        found = re.fullmatch(_FORM, text) if len(text) <= _LONGEST else None
        if found is None:
            raise Malformed(
                f"not a parameter signature: {text[:80]!r}",
                fix="the form is base@version+adapter~quantization:prompt#digest, all but the first optional",
            )
        parts = {name: _decode(part) for name, part in found.groupdict().items() if part is not None}
        return cls(**parts)

    def attributes(self) -> dict[str, str]:
        """Span attributes of the parts that are known."""
        values = ((name, getattr(self, part)) for part, name in _ATTRIBUTES.items())
        return {name: value for name, value in values if value is not None}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, object]) -> "Signature":
        """The signature that a span carries.

        Raises:
            Malformed: no base model among the attributes.

        """
        parts = {part: attributes.get(name) for part, name in _ATTRIBUTES.items()}
        if not parts["base_model"]:
            raise Malformed("no base_model among the span's attributes")
        return cls(**{part: str(value) for part, value in parts.items() if value})


def _encode(part: str) -> str:
    return _MARKED.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), part)


def _decode(part: str) -> str:
    return _ENCODED.sub(lambda found: bytes.fromhex(found[0].replace("%", "")).decode("utf-8", "replace"), part)
