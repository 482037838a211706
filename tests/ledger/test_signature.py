import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.ledger import Signature
from weighbridge.ledger.errors import Malformed

part = st.none() | st.text(min_size=1, max_size=20).filter(lambda t: t.encode("utf-8", "replace").decode() == t)
digest = st.none() | st.text("0123456789abcdef", min_size=8, max_size=64)


def test_the_canonical_form_is_that_of_the_design() -> None:
    signature = Signature(
        base_model="qwen3-8b", version="2026-10-01", adapter="support-lora", quantization="q4_k_m", digest="9f3c01ab"
    )
    assert str(signature) == "qwen3-8b@2026-10-01+support-lora~q4_k_m#9f3c01ab"
    assert Signature.parse("qwen3-8b@2026-10-01+support-lora~q4_k_m#9f3c01ab") == signature


@given(part.filter(bool), st.tuples(part, part, part, part, digest))
def test_every_signature_parses_back(base: str, rest: tuple[str | None, ...]) -> None:
    fields = dict(zip(("version", "adapter", "quantization", "prompt_version", "digest"), rest, strict=True))
    signature = Signature(base_model=base, **fields)
    assert Signature.parse(str(signature)) == signature
    assert Signature.from_attributes(signature.attributes()) == signature
    assert str(signature).isascii()
    assert not set(str(signature)) & set(" \t\n\"'\\")


@given(st.text(max_size=40))
def test_text_is_a_signature_or_a_plain_refusal(text: str) -> None:
    try:
        signature = Signature.parse(text)
    except Malformed as error:
        assert "\n" not in str(error)
    else:
        assert Signature.parse(str(signature)) == signature


@pytest.mark.parametrize(
    "text", ["", "@v1", "a@", "a#12345", "a#9F3C01AB", "a~b+c", "a b", "x" * 5000, "a#" + "0" * 65]
)
def test_what_is_no_signature_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="not a parameter signature"):
        Signature.parse(text)


def test_parts_are_absent_or_said_never_empty() -> None:
    with pytest.raises(Malformed, match="adapter is empty"):
        Signature(base_model="a", adapter="")
    with pytest.raises(Malformed, match="hex"):
        Signature(base_model="a", digest="xyz")


def test_a_span_without_a_base_model_has_no_signature() -> None:
    with pytest.raises(Malformed, match="base_model"):
        Signature.from_attributes({"quantization": "q4_0"})
