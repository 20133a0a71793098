"""How the clients were attacked: settings, suite, labels, knowledge, and what their updates are like."""

from typing import Literal

from leakmap.plan.plan import Column
from leakmap.result.part import Number, Part
from leakmap.threat import ThreatModel


class Settings(Part):
    """Where the settings of the attack come from; see [Tuning](tuning.md).

    Args:
        column: Results of different columns are not compared.
        statement: The same in words.
        budget: Of tuned ones: settings that were tried; else null, like all that follow.
        clients: Clients that each was rehearsed on.
        objective: What was maximised.
        score: Its mean with these settings.
        default: Its mean with the default settings.
    """

    column: Literal["default", "given"] | Column
    statement: str
    budget: int | None = None
    clients: int | None = None
    objective: str | None = None
    score: Number = None
    default: Number = None


class DefenceResult(Part):
    """What the clients do to their updates, and what that promises for one round; see [Defences](defences.md).

    Args:
        specification: The defence with its settings.
        statement: The same in words, with what it promises.
        epsilon: Of differential privacy; null where unknown or without noise.
        delta: The delta of that epsilon; null likewise.
    """

    specification: str
    statement: str
    epsilon: Number = None
    delta: Number = None


class SuiteMember(Part):
    """What one attack of a suite reached over all clients.

    Args:
        name: Of the attack.
        ran: Clients on which it came to a result.
        failed: Clients on which it should have come to a result and did not.
        won: Clients whose result is this attack's.
        rehearsed: NCC that it reached on simulated clients with public pictures, by which it was chosen; null without
            rehearsals.
        why: Why it did not run; empty if it did.
        term: Median of what it leaves unexplained of what the clients sent; null if it did not run.
        first: Pictures that it ranked first.
        pictures: Pictures.
        values: Metric -> its mean.
        seconds: Of a client, mean; null if it did not run.
    """

    name: str
    ran: int
    failed: int
    won: int
    rehearsed: Number
    why: str
    term: Number
    first: int
    pictures: int
    values: dict[str, Number]
    seconds: Number


class SuiteResult(Part):
    """What each attack of a suite reached.

    Args:
        version: Of the suite.
        members: Its attacks.
    """

    version: str
    members: tuple[SuiteMember, ...]


class LabelsResult(Part):
    """Where the classes that the attack used come from.

    Args:
        source: Granted ones are an upper bound for an attacker who does not know them.
        rule: The rule that inferred them, or several.
        confidence: Of the rule, mean over clients; null where it gives none.
        right: Share that was right, mean over clients; null if no client finished.
        statement: The same in words.
    """

    source: Literal["granted", "counts granted", "inferred"]
    rule: str
    confidence: Number
    right: Number
    statement: str


class UpdateCheck(Part):
    """What the update depends on; medians over the probed clients.

    Args:
        norm: Norm of the update.
        head_fraction: Share of its squared norm in the last layer.
        zero_below: Whether every tensor below the last layer is exactly zero; false where only that layer is trained.
        zero_tensors: Tensors that are exactly zero.
        tiny_tensors: Tensors below 1e-5 of the total norm.
        tensors: Tensors in the update.
        cos_other: Cosine to the update of other pictures with the same labels.
        cos_noise: Cosine to the update of noise with the same labels.
        cos_precise: Cosine to the same update computed in float64; null where the model cannot compute in it.
        loss: The client's loss in its own mode before training.
    """

    norm: Number
    head_fraction: Number
    zero_below: bool
    zero_tensors: float
    tiny_tensors: float
    tensors: int
    cos_other: Number
    cos_noise: Number
    cos_precise: Number
    loss: Number


class ClosedForms(Part):
    """Which attacks that solve equations can read a layer.

    Args:
        qualify: Their names.
        reasons: A sentence for each closed form, R-GAP's rank condition included.
    """

    qualify: tuple[str, ...]
    reasons: tuple[str, ...]


class Knowledge(Part):
    """What the server knew.

    Args:
        attacker: The nearest attacker of Carletti et al. (2025) by what was granted.
        attacker_used: The nearest one by what the attack used.
        granted: Every fact of the threat model.
        public: How many public pictures were granted, and where they come from.
        used: Facts that the attack used.
    """

    attacker: str
    attacker_used: str
    granted: ThreatModel
    public: str
    used: tuple[str, ...]
