"""The key of a suspended task: equal keys mean that the task will behave alike from here on.

The key is the pending trap with its arguments, and for each frame of the coroutine chain the code, the offset, the names that are
bound, and everything that the frame holds, value stack included, compared by value with the aliasing of mutable things kept.

Rules:
- Types are part of a value: True is not 1.
- What has no canonical form (an unordered set, an open file, an iterator that cannot say where it is) raises `NotMergeable`, and
  the caller uses the task's whole history of answers instead: sound, never merged.
- `canary` proves at start-up that this interpreter lets the value stack be read; without it every key is a history.
"""

from __future__ import annotations

import enum
import functools
import gc
import types
from collections.abc import Coroutine, Generator, Hashable
from typing import Any, cast

from migrate_vma_impl.machine.traps import Trap

_SCALARS = (int, float, str, bytes, bool, type(None), range, complex)
_NAMED = (type, types.CodeType, types.ModuleType)
_ITERATORS = frozenset(
    {
        "range_iterator", "list_iterator", "list_reverseiterator", "tuple_iterator", "str_ascii_iterator", "str_iterator",
        "bytes_iterator", "enumerate", "zip", "reversed", "map", "filter",
    }
)  # fmt: skip
_SUSPENDABLE = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)
_AWAIT_WRAPPERS = frozenset({"async_generator_asend", "async_generator_athrow", "coroutine_wrapper"})


class NotMergeable(Exception):
    """A task holds something without a canonical form; the message names it."""


class Canon:
    """One canonicalisation. Mutable objects are numbered in order of first meeting, so that aliasing is part of the key."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []

    def value(self, value: Any) -> Hashable:
        kind = cast("Any", type(value))
        if kind in _SCALARS:
            return kind, value
        if isinstance(value, enum.Enum):
            name = cast("str | None", value.name)  # None for a number that no flag names
            return kind, value.value if name is None else name
        if getattr(kind, "canonical_constant", False) or isinstance(value, _NAMED):
            return "constant", id(value)
        if kind is tuple:
            return kind, tuple(self.value(item) for item in value)
        if hasattr(kind, "__attrs_attrs__") and kind.__hash__ is not None:
            return kind, tuple(self.value(getattr(value, field.name)) for field in kind.__attrs_attrs__)
        if kind is types.BuiltinFunctionType and (value.__self__ is None or isinstance(value.__self__, types.ModuleType)):
            return "constant", id(value)
        return self._shared(value, kind)

    def _shared(self, value: Any, kind: type) -> Hashable:
        """A thing whose identity matters: the second meeting is a reference to the first."""
        number = self._numbers.get(id(value))
        if number is not None:
            return "same as", number
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        return kind, self._content(value, kind)

    def _content(self, value: Any, kind: type) -> Hashable:
        if kind is list:
            return tuple(self.value(item) for item in value)
        if kind is dict:
            return tuple((self.value(key), self.value(item)) for key, item in value.items())
        if kind in _SUSPENDABLE:
            return self.frame(value)
        if kind in (types.MethodType, types.BuiltinFunctionType):
            return self.value(getattr(value, "__func__", value.__name__)), self.value(value.__self__)
        if kind is types.FunctionType:
            parts = (value.__code__, value.__closure__, value.__defaults__, value.__kwdefaults__)
            return tuple(self.value(part) for part in parts)
        if kind is types.CellType:
            return self._cell(value)
        if kind is functools.partial:
            return self.value(value.func), self.value(value.args), self.value(value.keywords)
        if isinstance(value, BaseException):
            return self.value(value.args)
        if kind.__name__ in _ITERATORS:
            return self.value(tuple(value.__reduce__()[1:]))
        if kind.__name__ in _AWAIT_WRAPPERS:
            return tuple(self.value(held) for held in gc.get_referents(value))
        if kind.__module__ != "builtins" and (hasattr(value, "__dict__") or hasattr(kind, "__slots__")):
            return self._attributes(value, kind)
        raise NotMergeable(f"{kind.__module__}.{kind.__qualname__} has no canonical form")

    def _cell(self, cell: types.CellType) -> Hashable:
        try:
            return (self.value(cell.cell_contents),)
        except ValueError:
            return ()

    def _attributes(self, value: Any, kind: type) -> Hashable:
        if any(base.__module__ == "builtins" and base is not object for base in kind.__mro__):
            raise NotMergeable(f"{kind.__module__}.{kind.__qualname__} extends a built-in type")
        held = dict(getattr(value, "__dict__", {}))
        for base in kind.__mro__:
            slots = base.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__weakref__", "__dict__") and hasattr(value, name):
                    held[name] = getattr(value, name)
        return tuple((name, self.value(held[name])) for name in sorted(held))

    def frame(self, suspended: Any) -> Hashable:
        """A suspended coroutine or generator, and all that its frame holds."""
        frame = (
            getattr(suspended, "cr_frame", None) or getattr(suspended, "gi_frame", None) or getattr(suspended, "ag_frame", None)
        )
        if frame is None:
            return ("ended",)
        # Before 3.13, asking for the locals leaves their dictionary in the frame: it is no content of the task.
        names = frame.f_locals
        held = [
            item
            for item in gc.get_referents(suspended)
            if item is not frame
            and item is not names
            and item is not frame.f_code
            and not (isinstance(item, types.FunctionType) and item.__code__ is frame.f_code)
        ]
        bound = tuple(names)
        return frame.f_code, frame.f_lasti, bound, tuple(self.value(item) for item in held)


def local_state_key(coroutine: Coroutine[Any, Any, Any], trap: Trap) -> Hashable:
    """The key of a task suspended at `trap`.

    Raises:
        NotMergeable: the task holds something without a canonical form.
    """
    if not canary():
        raise NotMergeable("this interpreter does not show the value stack of a suspended coroutine")
    canon = Canon()
    return canon.value(trap), canon.frame(coroutine)


@types.coroutine
def _pause() -> Generator[None, object, object]:
    return (yield)


async def _stack_holder(value: object) -> tuple[object, object]:
    return value, await _pause()


@functools.cache
def canary() -> bool:
    """Whether the value stack of a suspended coroutine can be read here: the one place of `value` is the stack."""
    witness = object()
    coroutine: Any = _stack_holder(witness)
    coroutine.send(None)
    frame = coroutine.cr_frame
    local_references = sum(item is witness for item in frame.f_locals.values())
    all_references = sum(item is witness for item in gc.get_referents(coroutine))
    coroutine.close()
    return all_references > local_references
