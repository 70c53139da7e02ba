"""What the reference model expects of an operation: the answers that it allows, and whether an observation is one of them."""

from __future__ import annotations

from attrs import frozen

from migrate_vma_conformance.kernel.comparing.operations import Observation

WRITTEN, ERROR = 0x02, 0xFF
"""HMM_DMIRROR_PROT_WRITE, and _ERROR, where a snapshot says nothing else."""

Bytes = frozenset[int]
"""The bytes that may be found in a page."""


@frozen
class Expectation:
    """The allowed answers of one operation. What is None is not judged.

    Attributes:
        results: of these, or, where `errors`, any negated errno: which error a driver gives is its own affair.
        signals: that a load or a store may get, none of them where it is allowed.
        value: what a load may find.
        data: what a device may find, page by page.
        writable: of which pages a snapshot may say that they can be written.
    """

    results: frozenset[int] | None = None
    errors: bool = False
    signals: frozenset[int] = frozenset()
    value: Bytes | None = None
    data: tuple[Bytes, ...] | None = None
    writable: tuple[bool, ...] | None = None

    def refusal(self, seen: Observation) -> str | None:
        """Why the model does not allow this, in words."""
        if seen.ended is not None:
            return "no operation may end the kernel"
        if seen.signal is not None:
            return None if seen.signal in self.signals else f"signal {seen.signal}; allowed: {self}"
        if self.signals:
            return f"no signal; allowed: {self}"
        refused = self.results is not None and seen.result not in self.results
        if refused and not (self.errors and (seen.result or 0) < 0):
            return f"result {seen.result}; allowed: {self}"
        return self._contents(seen)

    def _contents(self, seen: Observation) -> str | None:
        if self.value is not None and seen.value is not None and seen.value not in self.value:
            return f"value {seen.value:#04x}; allowed: {_words(self.value)}"
        for page, byte in enumerate(seen.data or b""):
            if self.data is not None and page < len(self.data) and byte not in self.data[page]:
                return f"{byte:#04x} in its page {page}; allowed: {_words(self.data[page])}"
            if self.writable is not None and not self.writable[page] and byte & WRITTEN and byte != ERROR:
                return f"{byte:#04x} for its page {page}, which the mapping does not let be written"
        return None

    def __str__(self) -> str:
        if self.signals:
            return " or ".join(f"signal {number}" for number in sorted(self.signals))
        if self.results is None:
            return "anything"
        words = " or ".join([*map(str, sorted(self.results)), *(["an error"] if self.errors else [])]) or "nothing"
        if self.value is not None:
            words += f", value {_words(self.value)}"
        return words + (f", data {' '.join(map(_words, self.data))}" if self.data is not None else "")


def _words(choice: Bytes) -> str:
    return "|".join(f"{byte:02x}" for byte in sorted(choice)) or "nothing"


ANYTHING = Expectation()
