"""Plain text within a width: paragraphs, hanging indents, numbers that stay short."""

from __future__ import annotations

import textwrap

WIDTH = 80


def paragraph(text: str, width: int = WIDTH, indent: str = "", hang: str | None = None) -> list[str]:
    """The text in lines of at most `width`; a word that is longer is cut, and what no terminal should get is a question mark."""
    later = indent if hang is None else hang
    plain = "".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in text)
    lines = textwrap.wrap(plain, width, initial_indent=indent, subsequent_indent=later, break_on_hyphens=False)
    return lines or [indent.rstrip()]


def labelled(label: str, text: str, width: int = WIDTH, column: int = 14) -> list[str]:
    """A label, and beside it the text with a hanging indent."""
    return paragraph(text, width, f"{'  ' + label:<{column}}", " " * column)


def short(number: int) -> str:
    """A count in at most eight characters: exact below a million, then to two digits with a power of ten."""
    return f"{number:,}" if abs(number) < 1_000_000 else _scientific(number)


def _scientific(number: int) -> str:
    """Of integers alone: a number of executions can be larger than any float."""
    digits = str(abs(number))
    return f"{'-' if number < 0 else ''}{digits[0]}.{digits[1]}e{len(digits) - 1}"


def shell_command(command: str, width: int = WIDTH) -> list[str]:
    """A command that can be pasted: in one line, or, where it is too long, in lines that the shell joins without a blank."""
    if len(command) <= width:
        return [command]
    size = width - 1
    pieces = [command[start : start + size] for start in range(0, len(command), size)]
    return [piece + "\\" for piece in pieces[:-1]] + pieces[-1:]
