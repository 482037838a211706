"""What a format itself says of its tensors, which needs no judging by name."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """Statements by full tensor name; what is not stated is judged by name, dtype and shape.

    `kinds` are "parameter", "buffer" or the name of an extra; `elements` the logical count of a packed tensor;
    `frozen` the parameters that training leaves alone, `trained` those that it sets although they are no floats, as the
    split features of a tree. `complete`: tensors without a stated kind are parameters,
    whatever they are called. `apart` says whether the model's class has a tensor of that name for itself: then it is no
    copy of another, whatever its name suggests.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    elements: Mapping[str, int] = field(default_factory=dict)
    frozen: Collection[str] = frozenset()
    trained: Collection[str] = frozenset()
    complete: bool = False
    apart: Callable[[str], bool] | None = None

    def of(self, name: str) -> tuple[str | None, str | None, int | None, bool | None]:
        """(kind, role, elements, frozen) of a tensor: those alike in all of them are one family. Frozen is None where
        nothing is stated, and False where it is stated to be trained.
        """
        frozen = True if name in self.frozen else False if name in self.trained else None
        kind = self.kinds.get(name, "parameter" if self.complete else None)
        return kind, self.roles.get(name), self.elements.get(name), frozen

    def freezing(self, names: Iterable[str], frozen: tuple[str, ...]) -> "Stated":
        """The same, and that training leaves alone whatever is called like one of `frozen` or lies below it."""
        if not frozen:
            return self
        below = tuple(f"{name}." for name in frozen)
        found = frozenset(name for name in names if name in frozen or name.startswith(below))
        return replace(self, frozen=found.union(self.frozen))

    def renamed(self, names: Mapping[str, str]) -> "Stated":
        """The same of tensors under other names."""
        return replace(
            self,
            kinds={names.get(name, name): kind for name, kind in self.kinds.items()},
            roles={names.get(name, name): role for name, role in self.roles.items()},
            elements={names.get(name, name): count for name, count in self.elements.items()},
            frozen=frozenset(names.get(name, name) for name in self.frozen),
            trained=frozenset(names.get(name, name) for name in self.trained),
        )

    @classmethod
    def joined(cls, parts: "Iterable[Stated]") -> "Stated":
        """What several files say of their own tensors."""
        listed = [part for part in parts if not part.empty]
        if not listed:
            return NOTHING
        return cls(
            kinds={name: kind for part in listed for name, kind in part.kinds.items()},
            roles={name: role for part in listed for name, role in part.roles.items()},
            elements={name: count for part in listed for name, count in part.elements.items()},
            frozen=frozenset(name for part in listed for name in part.frozen),
            trained=frozenset(name for part in listed for name in part.trained),
            complete=all(part.complete for part in listed),
        )

    @property
    def empty(self) -> bool:
        """Whether nothing is stated."""
        return not (self.kinds or self.roles or self.elements or self.frozen or self.trained or self.complete)


NOTHING = Stated()
