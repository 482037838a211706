"""Integers that know their unit. Arithmetic stays exact; only display rounds."""

_DECIMAL = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
_BYTES = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def _scaled(value: int, steps: tuple[tuple[int, str], ...], *, join: str) -> str | None:
    for step, unit in steps:
        # 999,950 rounds to 1,000.0K: such a value belongs to the next step up.
        if abs(value) * 20 >= step * 20 - step // 1000:
            return f"{value / step:.2f}{join}{unit}"
    return None


class Count(int):
    """A number of elements."""

    def human(self) -> str:
        """Rounded for reading: `8.19B`."""
        return _scaled(self, _DECIMAL, join="") or str(int(self))


class Bytes(int):
    """A number of bytes."""

    def human(self) -> str:
        """Rounded for reading, in powers of 1000: `16.38 GB`."""
        return _scaled(self, _BYTES, join=" ") or f"{int(self)} B"
