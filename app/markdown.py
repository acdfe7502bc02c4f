"""Pieces of a Markdown page with front matter: tables, and text made harmless."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escape(text: str) -> str:
    """Make text harmless in Markdown: a data set is named after a folder, which may have any name."""
    return re.sub(r"([\\`*_\[\]<>|&#~])", r"\\\1", re.sub(r"\s+|[^\x20-\U0010FFFF]", " ", text))


def quote(text: str) -> str:
    """Quote text for YAML; what is not printable there becomes an escape."""
    escaped = (f"\\{char}" if char in '"\\' else char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
    return f'"{"".join(escaped)}"'
