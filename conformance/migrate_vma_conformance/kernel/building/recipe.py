"""What a guest is made of that is ours: the fragments of its configuration, the agent, the edit of its module.

A change of any of these makes a built guest stale; the hashes here say so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from migrate_vma_conformance.kernel.building.manifest import sha256

SOURCES = Path(__file__).parent.parent / "guest"
"""Our own sources of a guest: the agent and the configuration."""

LAYOUT = "1"
"""Changes with what the builder puts where, so that older guests are built again."""

MODULE_LINE = "entry = page;"
"""Where lib/test_hmm.c stores the page that a device fault brought, in dmirror_do_fault."""

MENDED_LINE = """entry = page;
		if (is_device_private_page(page))
			entry = (struct page *)compound_head(page)->zone_device_data + (page - compound_head(page));"""
"""What is right: a device page has no memory, its contents stand in the page behind it, which a large folio's head names."""

_SETTING = re.compile(r"CONFIG_\w+=\S+")


class NotEdited(Exception):
    """The source of the module is not as it was when the edit was made. The message is a sentence without its end."""


def settings(fragments: Iterable[str]) -> dict[str, str]:
    """What the fragments ask for, symbol by symbol; of two that differ the later one counts."""
    found: dict[str, str] = {}
    for fragment in fragments:
        for line in (SOURCES / fragment).read_text().splitlines():
            if _SETTING.fullmatch(line):
                symbol, value = line.split("=", 1)
                found[symbol] = value
    return found


def unheeded(wanted: Mapping[str, str], configuration: str) -> list[str]:
    """The settings that a kernel's own .config does not have: what it depends on is missing, or it is no choice there."""
    has = dict(line.split("=", 1) for line in configuration.splitlines() if line.startswith("CONFIG_"))
    return [f"{symbol}={value}" for symbol, value in wanted.items() if has.get(symbol, "n") != value]


def mended(module: str) -> str:
    """The source of test_hmm with the defect of its dmirror_do_fault mended; 6.1 and 7.3 have it alike.

    Raises:
        NotEdited: the line is not there, or not only there.
    """
    function = re.search(r"^static int dmirror_do_fault\(.*?^}$", module, re.DOTALL | re.MULTILINE)
    if function is None or function[0].count(MODULE_LINE) != 1:
        raise NotEdited("dmirror_do_fault of lib/test_hmm.c does not have the one line that is mended there")
    return module.replace(function[0], function[0].replace(MODULE_LINE, MENDED_LINE))


def kernel_inputs(package: str, fragments: Iterable[str]) -> dict[str, str]:
    """Hashes of what decides the kernel, its modules and hmm-tests."""
    asked = "\n".join(f"{symbol}={value}" for symbol, value in sorted(settings(fragments).items()))
    edit = f"{MODULE_LINE}\n{MENDED_LINE}"
    return {"package": package, "configuration": _hash(asked), "edit of test_hmm": _hash(edit), "layout": LAYOUT}


def initrd_inputs() -> dict[str, str]:
    """Hashes of what decides the initrd besides: the sources of the agent."""
    return {path.name: sha256(path) for path in agent_sources()}


def agent_sources() -> list[Path]:
    """The C files of the agent, in the order of their names."""
    return sorted(path for path in SOURCES.iterdir() if path.suffix in {".c", ".h"})


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
