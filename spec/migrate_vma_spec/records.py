"""Records: frozen, slotted attrs classes, made and changed at a fraction of what attrs itself takes for it.

Rules:
- To whoever reads or type-checks the code, `frozen` and `evolve` are those of attrs; so they are used for classes without
  converters, validators or hooks, and what is no such class is attrs' own affair.
- attrs sets each field of a frozen object through the ban on setting fields. Here it is set on a *draft*, of a subclass without
  the ban, which is a record like any other, and as frozen, before anybody sees it.
- Every step of a simulated kernel makes a dozen records, and folding it as many: this is a third of the speed of both.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from attrs import evolve as evolve  # noqa: PLC0414  (to be had from here)
    from attrs import frozen as frozen  # noqa: PLC0414
else:

    def frozen(maybe_class=None, /, **arguments):  # noqa: ANN001, ANN003, ANN201
        """attrs.frozen, with an `__init__` that sets its fields on a draft."""

        def decorate(written):  # noqa: ANN001, ANN202
            kind = attrs.frozen(written, **arguments)
            if _is_plain(kind) and attrs.fields(kind) and not any(map(_is_made, attrs.fields(kind))):
                kind.__init__ = _initialiser(kind)
            return kind

        return decorate if maybe_class is None else decorate(maybe_class)

    _CHANGERS: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def evolve(record, /, **changes):  # noqa: ANN001, ANN003, ANN201
        """attrs.evolve: the record with these fields changed."""
        key = (record.__class__, *changes)
        changer = _CHANGERS.get(key)
        if changer is None:
            changer = _CHANGERS[key] = _changer(*key)
        return changer(record, *changes.values())


def _is_plain(kind: type[Any]) -> bool:
    """Whether an object of the class is its fields and nothing else."""
    unusual = (attribute.converter or attribute.validator or not attribute.init for attribute in attrs.fields(kind))
    return "__slots__" in vars(kind) and not hasattr(kind, "__attrs_post_init__") and not any(unusual)


def _is_made(attribute: attrs.Attribute[Any]) -> bool:
    """Whether it needs more than a parameter with a default."""
    return attribute.kw_only or type(attribute.default).__name__ == "Factory"


_DRAFTS: dict[type[Any], type[Any]] = {}


def _draft(kind: type[Any]) -> type[Any]:
    """The class of records of this kind while they are made."""
    known = _DRAFTS.get(kind)
    if known is not None:
        return known
    unlocked = {"__slots__": (), "__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    draft = _DRAFTS[kind] = types.new_class(kind.__name__, (kind,), exec_body=lambda space: space.update(unlocked))
    return draft


def _sealing(kind: type[Any], record: str) -> list[str]:
    """The last lines of what makes a record: from here on it is one."""
    unhashed = [f"    {record}._attrs_cached_hash = None"] if "_attrs_cached_hash" in vars(kind)["__slots__"] else []
    return [*unhashed, f"    {record}.__class__ = _kind"]


def _compiled(lines: list[str], **space: Any) -> Any:
    exec("\n".join(lines), space)  # noqa: S102  (as attrs itself makes the methods of a class)
    return space["_made"]


_become = vars(object)["__class__"].__set__


def _initialiser(kind: type[Any]) -> Callable[..., None]:
    """An `__init__` for the class. A subclass that is not decorated itself has attrs' own."""
    slow: Any = kind.__init__
    space: dict[str, Any] = {"_slow": slow, "_kind": kind, "_draft": _draft(kind), "_become": _become}
    parameters: list[str] = []
    for attribute in attrs.fields(kind):
        has_default = attribute.default is not attrs.NOTHING
        parameters.append(f"{attribute.alias}=_default_{attribute.name}" if has_default else attribute.alias)
        space[f"_default_{attribute.name}"] = attribute.default
    given = ", ".join(attribute.alias for attribute in attrs.fields(kind))
    lines = [f"def _made(self, {', '.join(parameters)}):"]
    lines += ["    if self.__class__ is not _kind:", f"        return _slow(self, {given})", "    _become(self, _draft)"]
    lines += [f"    self.{attribute.name} = {attribute.alias}" for attribute in attrs.fields(kind)]
    made: Callable[..., None] = _compiled([*lines, *_sealing(kind, "self")], **space)
    made.__name__, made.__qualname__, made.__module__ = slow.__name__, slow.__qualname__, kind.__module__
    made.__annotations__ = slow.__annotations__
    return made


def _changer(kind: type[Any], *names: str) -> Callable[..., Any]:
    """A function that copies a record of this kind with new values for these fields, in their order.

    Raises:
        TypeError: there is no such field, or the class is no record.
    """
    known = [attribute.name for attribute in attrs.fields(kind)]
    if not _is_plain(kind) or not set(names) <= set(known):
        raise TypeError(f"{kind.__name__} is no record with the fields {', '.join(names)}: it has {', '.join(known)}")
    lines = [f"    _new.{name} = {name if name in names else f'_old.{name}'}" for name in known]
    first = [f"def _made(_old, {', '.join(names)}):", "    _new = _make(_draft)"]
    space: dict[str, Any] = {"_make": object.__new__, "_draft": _draft(kind), "_kind": kind}
    made: Callable[..., Any] = _compiled([*first, *lines, *_sealing(kind, "_new"), "    return _new"], **space)
    return made
