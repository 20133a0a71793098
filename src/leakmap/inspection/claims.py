"""Published claims about architectures, and what measuring them gave: inspections quote these outcomes."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["holds", "does not hold", "not informative"]
PAPER = "docs/results/paper.md"


@dataclass(frozen=True)
class Claim:
    """A claim of arXiv:2508.19819, or about its subject.

    Args:
        words: What is claimed.
        outcome: Of the comparisons in docs/results/paper.md, by attacks that search.
    """

    words: str
    outcome: Outcome


CLAIMS = {
    "C1": Claim("clients in inference mode leak far more than in training mode", "not informative"),
    "C2": Claim(
        "in training mode success needs a shallow, wide network with skip connections and pre-activation at once",
        "does not hold",
    ),
    "C3": Claim("pre-activation matters most of these", "does not hold"),
    "C4": Claim("wider networks leak more, deeper ones less", "holds"),
    "C5": Claim("skip connections raise leakage", "holds"),
    "C6": Claim("recovered statistics help most, then those of public pictures, then running ones", "does not hold"),
    "C7": Claim("it is the recovered statistics that help", "does not hold"),
    "C8": Claim("dropout hinders in training mode; searching the masks recovers a part", "holds"),
    "C10": Claim("modern architectures at 224 pixels resist visually", "not informative"),
    "C14": Claim("part of that resistance is a degenerate initialisation", "does not hold"),
}
"""By number. Those of which nothing follows for an architecture are left out."""


def quoted(*numbers: str) -> str:
    """What became of some claims, in a sentence each."""
    return " ".join(f"{number}, {CLAIMS[number].words}: {_words(CLAIMS[number].outcome)}." for number in numbers)


def _words(outcome: Outcome) -> str:
    return "open" if outcome == "not informative" else f"{outcome} for searches"
