"""Markdown that leakmap writes: prose wrapped as in the pages written by hand."""

import re
import textwrap

WIDTH = 120
"""Characters of a line of prose; the tests allow 160."""
_KEPT = re.compile(r"\||#|    |<|!\[")
_ITEM = re.compile(r"(?:[-*]|\d+\.) +")


def wrapped(page: str) -> str:
    """A page whose paragraphs and list items have lines of at most :data:`WIDTH` characters.

    Tables, headings, pictures and code stay as they are, and so does a word that is longer than a line.

    Args:
        page: Markdown in which every paragraph and every list item is one line.
    """
    lines: list[str] = []
    fenced = False
    for line in page.split("\n"):
        fenced ^= line.startswith("```")
        if fenced or len(line) <= WIDTH or _KEPT.match(line):
            lines.append(line)
            continue
        item = _ITEM.match(line)
        indent = " " * item.end() if item else ""
        # A hyphen may belong to a setting or a path, so lines break at spaces only.
        lines += textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)
