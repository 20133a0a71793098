"""What a diagnosis says of a layer, and which rules of a client stand in the way of equations."""

from dataclasses import dataclass
from typing import Literal

from leakmap.defences import defence_of
from leakmap.local_rule import LocalRule

ClosedForm = Literal["linear", "spear", "april", "patch_positions", "rgap"]


@dataclass(frozen=True)
class Finding:
    """Whether one closed form can read what one layer sees.

    Args:
        attack: The closed form.
        layer: Name of the layer in the model; empty where the network has no layer of the kind.
        kind: Class of the layer.
        qualifies: Whether it can.
        why: The reason, as a sentence whose subject is the layer.
    """

    attack: ClosedForm
    layer: str
    kind: str
    qualifies: bool
    why: str

    def __str__(self) -> str:
        return f"{self.layer} ({self.kind}) {self.why}" if self.layer else self.why


def defended(rule: LocalRule, *, exactly: bool) -> str:
    """Why equations between the entries of a gradient do not hold for a defended one, else empty."""
    defence = defence_of(rule.defence)
    if defence.left == "signs":
        return f"is shared under the defence {rule.defence}, which leaves no sizes to divide by one another"
    if exactly and not (defence.exact and defence.left != "largest"):
        return f"is shared under the defence {rule.defence}; the equations hold exactly or not at all"
    return ""


def several_steps(count: int | None, rule: LocalRule) -> str:
    """Why equations for one local step do not hold for the rule, else empty."""
    steps = rule.steps(count or 1)
    return f"changes during the client's {steps} local steps; the equations hold for one" if steps > 1 else ""
