"""What a pickle's names, instances and costs become when nothing is executed."""

from weighbridge.ledger.errors import Refused

SAFER = "ask its author for safetensors"


class Meter:
    """What reading one file may still cost, in bytes of memory as estimated; time follows, for every step costs."""

    __slots__ = ("left", "name")

    def __init__(self, name: str, budget: int) -> None:
        """`name` is the file's."""
        self.name = name
        self.left = budget

    def spend(self, cost: int) -> None:
        """Takes `cost` off.

        Raises:
            Refused: nothing is left.
        """
        self.left -= cost
        if self.left < 0:
            raise Refused(
                f"{self.name}: its pickle builds more than any real checkpoint does",
                fix="save the state dict alone, or as safetensors",
            )


class Global:
    """A name from the file, `module.name`: a class or function that was not looked up."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Record:
    """What a pickle says of one object: its class, the arguments it was made with, its state, its items.

    Not a frozen dataclass: a pickle makes an object first and gives it state and items later, cycles included.
    """

    __slots__ = ("arguments", "items", "state", "type")

    def __init__(self, type: Global, arguments: tuple[object, ...] = ()) -> None:
        self.type = type
        self.arguments = arguments
        self.state: object = None
        self.items: dict[object, object] | list[object] | None = None
