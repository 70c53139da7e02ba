"""Handles: what names a slot of shared state, `Folio(3)`, `SpinLock("ptl", 0)`, and is the key of that slot.

Rules:
- Of equal handles there is one object, however often it is asked for: so handles are compared and hashed by identity, and the
  machine finds a slot as fast as Python finds anything.
- A handle holds numbers and words alone. A handle class is frozen and slotted, with `eq=False`: identity is what `Handle` is for.
- The order of a set of handles means nothing, and differs from process to process; nothing may depend on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from attrs import fields

if TYPE_CHECKING:
    _Interning = type
else:

    class _Interning(type):
        """The class of handle classes: calling one gives the handle that there is."""

        def __init__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any], **arguments: Any) -> None:
            super().__init__(name, bases, space, **arguments)
            cls._made: dict[tuple[Any, ...], Handle] = {}

        def __call__(cls, *parts: Any, **named: Any) -> Any:
            handle = None if named else cls._made.get(parts)
            return cls._enter(parts, named) if handle is None else handle

        def _enter(cls, parts: tuple[Any, ...], named: dict[str, Any]) -> Any:
            new = super().__call__(*parts, **named)
            handle = cls._made.setdefault(new.parts, new)
            if not named:
                cls._made[parts] = handle
            return handle


class Handle(metaclass=_Interning):
    """The base of all handles."""

    __slots__ = ()

    canonical_constant: ClassVar[bool] = True

    @property
    def parts(self) -> tuple[Any, ...]:
        """What it is made of."""
        kind: Any = type(self)
        return tuple(getattr(self, each.name) for each in fields(kind) if each.init)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, and a copy, has the one that there is as well."""
        return type(self), self.parts
