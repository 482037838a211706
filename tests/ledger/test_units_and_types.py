import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.ledger import DTYPES, Bytes, Count, dtype
from weighbridge.ledger.errors import MissingExtra, Unknown, WeighError

_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "C128": torch.complex128,
}


@pytest.mark.parametrize("name", _TORCH)
def test_scalar_types_are_as_wide_as_torch_has_them(name: str) -> None:
    assert dtype(name).nbytes(10) == torch.zeros(10, dtype=_TORCH[name]).nbytes


@pytest.mark.parametrize(
    ("name", "bits"), [("MXFP4", 4.25), ("Q8_0", 8.5), ("Q4_0", 4.5), ("Q4_K", 4.5), ("Q6_K", 6.5625)]
)
def test_bits_per_element_include_the_block_scales(name: str, bits: float) -> None:
    assert dtype(name).bits == bits


def test_part_of_a_block_has_no_size() -> None:
    with pytest.raises(Unknown, match="blocks of 32"):
        DTYPES["Q4_0"].nbytes(33)


def test_an_unknown_type_is_never_given_a_width() -> None:
    with pytest.raises(Unknown, match="F3"):
        dtype("F3")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00K"),
        (999_999, "1.00M"),
        (8_190_735_360, "8.19B"),
        (1_026_408_232_448, "1.03T"),
    ],
)
def test_counts_are_rounded_for_reading_only(value: int, text: str) -> None:
    assert Count(value).human() == text
    assert Count(value) == value


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (16_381_470_720, "16.38 GB"), (5 * 10**12, "5.00 TB")])
def test_bytes_are_shown_in_powers_of_ten(value: int, text: str) -> None:
    assert Bytes(value).human() == text


@given(st.integers(0, 10**16))
def test_no_count_is_shown_with_four_digits_before_the_point(value: int) -> None:
    assert len(Count(value).human().partition(".")[0]) <= 3 or value >= 10**15 - 10**12


def test_an_error_is_one_printable_line_with_its_mend() -> None:
    assert str(WeighError("bad name 'a\nb\x1b[31m'", fix="rename it")) == r"bad name 'a\nb\x1b[31m'; rename it"
    assert "pip install 'weighbridge[tensors]'" in str(MissingExtra("blake3", extra="tensors", purpose="signing"))
