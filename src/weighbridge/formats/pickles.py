"""Pickles, read as data: a small machine that builds what a pickle describes and never runs anything it names.

A pickle is a program: its opcodes push values, and some name functions and call them. Here names become `Global`
records, calls go to a function that the reader supplies (which understands a fixed list and refuses the rest), and
instances become `Record`s of class, arguments and state. Nothing is imported, looked up or called by a name from the
file.

Why not a subclass of `pickle.Unpickler`: its opcodes for instances, extension codes and state reach `__new__`,
`copyreg` and `__setstate__` by paths that each would have to be closed; here they do not exist. Nor has it a bound on
memory and time.
"""

import struct
from collections.abc import Callable

from weighbridge.formats.inert import SAFER, Global, Meter, Record
from weighbridge.formats.opcodes import STOP, TABLE
from weighbridge.ledger.errors import Malformed, Refused, Truncated

# What one opcode is charged, so that a budget of memory bounds time as well.
_STEP = 28
_LONGEST_LINE = 4096

# Python 2 called them so, and protocol 2 still writes it.
_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_PYTHON_2_BUILTINS = {"long": "int", "unicode": "str", "xrange": "range"}


class Machine:
    """Reads the pickles that follow one another in `data`, from `pos` on."""

    def __init__(
        self,
        data: bytes,
        *,
        meter: Meter,
        admit: Callable[[Global, Meter], None],
        call: Callable[[Global, tuple[object, ...], Meter], object],
        persistent: Callable[[object], object],
    ) -> None:
        """`admit` raises for names that may not even occur, `call` gives the outcome of calling one, `persistent` that
        of an id into the file's own storages.
        """
        self.data = data
        self.pos = 0
        self.meter = meter
        self.persistent = persistent
        self._admit = admit
        self._call = call
        self._globals: dict[tuple[str, str], Global] = {}
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: list[object] = []

    def load(self) -> object:
        """The value of the next pickle.

        Raises:
            Truncated: `data` ends before the pickle does.
            Refused: it calls what no checkpoint needs, or costs more than the meter allows.
            Malformed: it is no pickle.
        """
        self.stack, self.marks, self.memo = [], [], []
        data, meter, table = self.data, self.meter, TABLE
        try:
            while True:
                meter.left -= _STEP
                if meter.left < 0:
                    meter.spend(0)
                code = data[self.pos]
                self.pos += 1
                if code == STOP:
                    return self.stack.pop()
                table[code](self)
        except (IndexError, struct.error):
            # No argument of fixed width is wider than 8 bytes; elsewhere it is the stack that ran out.
            raise (self.truncated() if self.pos + 8 > len(data) else self.malformed("its stack runs out")) from None
        except (ValueError, TypeError, OverflowError) as error:
            raise self.malformed(str(error)[:200]) from None

    def malformed(self, why: str) -> Malformed:
        """The error to raise for a stream that is no pickle."""
        return Malformed(f"{self.meter.name}: not a sound pickle at byte {self.pos:,}: {why}")

    def truncated(self) -> Truncated:
        """The error to raise for a stream that ends too early."""
        return Truncated(f"{self.meter.name}: the pickle in it ends too early", fix="download it again")

    def take(self, length: int, *, cost: int) -> bytes:
        """The `length` bytes at `pos`."""
        end = self.pos + length
        if end > len(self.data):
            raise self.truncated()
        self.meter.spend(cost)
        taken = self.data[self.pos : end]
        self.pos = end
        return taken

    def line(self) -> str:
        """The rest of the line at `pos`."""
        end = self.data.find(b"\n", self.pos, self.pos + _LONGEST_LINE)
        if end < 0:
            raise self.malformed("a line too long") if self.pos + _LONGEST_LINE <= len(self.data) else self.truncated()
        line = self.data[self.pos : end]
        self.pos = end + 1
        return text(line)

    def since_mark(self) -> list[object]:
        """What was pushed since the last mark, taken off."""
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def named(self, module: str, name: str) -> Global:
        """The record of a name.

        Raises:
            Refused: no checkpoint needs it, not even uncalled.
        """
        if len(module) + len(name) > _LONGEST_LINE:
            raise self.malformed("a name too long")
        if module in _PYTHON_2_MODULES:
            module, name = _PYTHON_2_MODULES[module], _PYTHON_2_BUILTINS.get(name, name)
        found = self._globals.get((module, name))
        if found is None:
            self.meter.spend(400 + 4 * (len(module) + len(name)))
            found = Global(module, name)
            self._admit(found, self.meter)
            self._globals[module, name] = found
        return found

    def outcome(self, function: object, arguments: object) -> object:
        """What stands for the result of a call.

        Raises:
            Refused: no checkpoint needs that call.
        """
        if type(function) is Record:
            told = f"the pickle calls what {function.type} gave it, which no tensor file needs; nothing was executed"
            raise Refused(f"{self.meter.name}: {told}", fix=SAFER)
        if type(function) is not Global or type(arguments) is not tuple:
            raise self.malformed("a call of what is no function")
        self.meter.spend(128)
        return self._call(function, arguments, self.meter)


def text(raw: bytes) -> str:
    """UTF-8, and always encodable again: names go to terminals and digests, which lone surrogates would break."""
    return raw.decode("utf-8", "backslashreplace")
