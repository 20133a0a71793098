"""The glossary inside a page: the sentences of docs/glossary.md, which a wheel carries along."""

import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup, escape

_ROW = re.compile(r"^\| \*\*(.+?)\*\* \| (.+?) \| .+ \|$", re.M)


@lru_cache(maxsize=1)
def glossary() -> dict[str, Markup]:
    """Term -> its sentence as HTML, in alphabetical order."""
    packaged = Path(str(files("leakmap.report"))) / "glossary.md"
    path = packaged if packaged.is_file() else Path(__file__).parents[3] / "docs" / "glossary.md"
    return {term: _html(sentence) for term, sentence in _ROW.findall(path.read_text(encoding="utf-8"))}


def _html(sentence: str) -> Markup:
    told = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", str(escape(sentence)))  # links lead to pages that are not here
    told = re.sub(r"`([^`]+)`", r"<code>\1</code>", told)
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", told))


class Terms:
    """Links from the words of a page to the glossary at its end, which holds the terms that were linked."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def __call__(self, term: str, text: str = "") -> Markup:
        """A link to a term.

        Args:
            term: As the glossary has it.
            text: What is written; by default the term, in small letters.

        Raises:
            KeyError: the glossary has no such term.
        """
        glossary()[term]
        self._used.add(term)
        return Markup('<a class="term" href="#{}">{}</a>').format(_anchor(term), text or term.lower())

    @property
    def used(self) -> list[tuple[str, str, Markup]]:
        """Anchor, term and sentence of every term that was linked."""
        return [(_anchor(term), term, told) for term, told in glossary().items() if term in self._used]


def _anchor(term: str) -> str:
    return "term-" + term.lower().replace(" ", "-")
