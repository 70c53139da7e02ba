"""An immutable map with value semantics: what the folded world keeps its objects in.

A changed copy costs one copy of the underlying dict; its hash is the sum of its items' hashes, so a copy whose parent was hashed
needs two item hashes and not a pass over the map. A hash that nobody asks for is never computed.
"""

from __future__ import annotations

from collections.abc import Hashable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeVar, overload

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)
D = TypeVar("D")

_MASK = (1 << 61) - 1


class FrozenMap(Mapping[K, V]):
    """Compares, hashes and prints as its content; the order in which keys came plays no part."""

    __slots__ = ("_hash", "_items")

    _items: dict[K, V]
    _hash: int | None

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        self._items = dict(items)
        self._hash = None

    @classmethod
    def _of(cls, items: dict[K, V], digest: int | None) -> FrozenMap[K, V]:
        """A map that owns this dict, without a copy, and its hash if that is known."""
        self = cls.__new__(cls)
        self._items = items
        self._hash = digest
        return self

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, /, default: V | D) -> V | D: ...
    def get(self, key: K, /, default: Any = None) -> Any:
        return self._items.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    # Those of Mapping come to the same, at several times the cost.

    def keys(self) -> KeysView[K]:
        return self._items.keys()

    def values(self) -> ValuesView[V]:
        return self._items.values()

    def items(self) -> ItemsView[K, V]:
        return self._items.items()

    def set(self, key: K, value: V) -> FrozenMap[K, V]:
        """This map with `key` set."""
        # An empty map's hash is known by nature, and says nothing of whether its descendants' will be asked for.
        digest = self._hash if self._items else None
        if digest is not None:
            if key in self._items:
                digest -= hash((key, self._items[key]))
            digest = (digest + hash((key, value))) & _MASK
        return self._of({**self._items, key: value}, digest)

    def drop(self, key: K) -> FrozenMap[K, V]:
        """This map without `key`; the map itself where it has no such key."""
        if key not in self._items:
            return self
        items = dict(self._items)
        old = items.pop(key)
        return self._of(items, None if self._hash is None else (self._hash - hash((key, old))) & _MASK)

    def drop_all(self, keys: Iterable[K]) -> FrozenMap[K, V]:
        dead = frozenset(keys) & self._items.keys()
        return FrozenMap((key, value) for key, value in self._items.items() if key not in dead) if dead else self

    def __eq__(self, other: Any) -> bool:  # noqa: PYI032  (isinstance would make the other map one of unknown types)
        if self is other:
            return True
        return bool(self._items == other._items) if other.__class__ is FrozenMap else NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = sum(map(hash, self._items.items())) & _MASK
        return self._hash

    def __repr__(self) -> str:
        return f"FrozenMap({self._items!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A hash is not carried to another process: strings hash differently there.
        return FrozenMap, (self._items,)
