"""What a person reads first in a report: the answer, its place on the ladder, counts beside chance, what to do."""

import shlex
from dataclasses import dataclass
from typing import Literal

from leakmap.report import told
from leakmap.report.page import number
from leakmap.result.evidence import LineUpResult
from leakmap.result.result import Result
from leakmap.scoring.verdict import LEVELS, Level, Rule

MEANINGS: dict[Level, str] = {
    "inconclusive": "the audit cannot say",
    "none_found": "nothing, by this attack",
    "statistical": "a trace, over all clients together",
    "partial": "picked out of a line-up",
    "visual": "recognisable",
    "exact": "almost pixel by pixel",
}
"""What was found, in a few words."""
STATISTICAL: dict[Rule, str] = {
    "floors": "What clients send brings an attacker nearer to their pictures than all that is known without it, on "
    "average; no picture was recovered or picked out.",
    "ranks": "What clients send tells their pictures apart better than chance, on average; no picture was recovered.",
}
"""What a weak signal says, by the rule that saw it."""
USUAL, MANY = 36, 200
"""Clients that bound the exposed share below 10 % where none is found, and below 2 %."""


@dataclass(frozen=True)
class Tally:
    """A count beside what chance gives.

    Args:
        what: Was counted.
        hits: How many.
        n: Of how many.
        note: Against what it is read.
        expected: By chance; None where chance gives none.
        kind: ``evidence``, or a ``control`` of it.
    """

    what: str
    hits: int
    n: int
    note: str
    expected: float | None = None
    kind: Literal["evidence", "control"] = "evidence"


@dataclass(frozen=True)
class Step:
    """Something to do next.

    Args:
        text: What, and why.
        commands: How: a command or option, or several to choose from; empty where there is none.
    """

    text: str
    commands: tuple[str, ...] = ()


def answer(result: Result) -> str:
    """The verdict in one plain sentence, or two where something qualifies it."""
    prefix = "Null audit, every update came from other pictures: " if result.plan.null else ""
    if result.plan.threat.known_pixels:
        prefix += f"The server was given {result.plan.threat.known_pixels:.3g} of the true pixels. "
    return prefix + _answer(result)


def _answer(result: Result) -> str:
    level, found = result.verdict.level, result.exposure
    if found is None or not (own := result.line_up.attack):
        return "This audit cannot say whether a server could recover pictures: no client has all of its runs."
    if level in ("exact", "visual"):
        many = sum(one.level == level for one in found.found)
        how = "almost exactly" if level == "exact" else "so that they can be recognised"
        return f"From what one client sends, a server could recover {many} of {_pictures(found.of_pictures)} {how}."
    if level == "partial":
        shown, pose = own, ""
        if (any_pose := result.line_up.any_pose) and any_pose.hits > own.hits:
            shown, pose = any_pose, ", mirrored or turned"
        return (
            f"From what one client sends, a server could pick {shown.hits} of {_pictures(shown.n)} out of a line-up"
            f"{pose}; chance would give {_expected(shown)}."
        )
    if level == "statistical":
        # Of a rule that is not named here the statement is as plain as can be.
        return STATISTICAL.get(result.verdict.rule, result.verdict.statement)
    if level == "none_found":
        few = " Too few clients were audited to exclude more." if told.too_few(result) else ""
        return (
            f"This attack recovered none of {_pictures(found.of_pictures)}; up to {found.client_share.high:.1%} of "
            f"such clients could still be exposed.{few}"
        )
    return f"This audit cannot say whether a server could recover pictures: {told.rule(result)}."


def _pictures(n: int) -> str:
    return f"{n} picture{'' if n == 1 else 's'}"


def _expected(found: LineUpResult) -> str:
    return number(found.n * found.chance, 2)


def ladder(result: Result) -> list[tuple[Level, str, bool]]:
    """Every level but that of a failed measurement, with its meaning and whether it is the present one."""
    return [(level, MEANINGS[level], level == result.verdict.level) for level in LEVELS if level != "inconclusive"]


def tallies(result: Result) -> list[Tally]:
    """Counts beside what chance gives: what the audit found, then its controls; empty if no client finished."""
    found, of = result.exposure, result.line_up
    if found is None or of.attack is None or of.gallery is None:
        return []
    share = found.client_share
    fewest, most = of.gallery
    candidates = f"{fewest} candidates" if fewest == most else f"{fewest} to {most} candidates"
    rows = [
        Tally(
            "recovered",
            found.pictures,
            found.of_pictures,
            f"{found.clients} of {told.many(found.of_clients, 'client')}; of all such clients {share.low:.1%} to "
            f"{share.high:.1%} (95\u00a0%)",
        ),
        Tally(
            "picked out of a line-up",
            of.attack.hits,
            of.attack.n,
            f"of {candidates}; {_expected(of.attack)} expected by chance",
            of.attack.n * of.attack.chance,
        ),
    ]
    controls = (
        ("picked out from updates of other pictures", of.swapped, "must be at chance: {} expected"),
        ("picked out from clients that are known to leak", of.control, "must be found; {} expected by chance"),
    )
    rows += [
        Tally(what, one.hits, one.n, note.format(_expected(one)), one.n * one.chance, "control")
        for what, one, note in controls
        if one
    ]
    return rows


def subject(result: Result) -> list[tuple[str, str]]:
    """What was audited: names and values."""
    plan, finished = result.plan, result.finished
    weights = plan.weights or (f"trained for {plan.train_epochs} epochs" if plan.train_epochs else "untrained")
    if plan.captured:
        return [("updates", "real ones, captured"), *_of_clients(len(finished), plan.batch_size)]
    size = [("pictures", f"{plan.data}, {plan.image_size} pixels wide" if plan.image_size else plan.data)]
    mode = "training mode" if plan.rule.mode == "train" else "inference mode"
    sends = "one gradient" if plan.rule.share == "gradient" else "its weights after local training"
    return [
        ("model", plan.model),
        ("weights", weights),
        *size,
        *_of_clients(len(result.clients), plan.batch_size),
        ("each sends", f"{sends}, {mode}"),
    ]


def _of_clients(clients: int, pictures: int) -> list[tuple[str, str]]:
    return [("clients", f"{clients} with {_pictures(pictures)} each")]


def known(result: Result) -> tuple[list[str], list[str]]:
    """What the server was granted, and what it was not, in words."""
    granted = result.knowledge.granted
    classes = {"known": "the class of each picture", "counts": "how many pictures there are of each class"}
    public = result.knowledge.public
    facts = (
        (granted.rule, "how the clients train: mode, steps, learning rate, defence"),
        (granted.count, "how many pictures each client has"),
        (granted.buffers, "the running statistics of BatchNorm that clients return, where the network has any"),
        (not public.startswith("no "), "public pictures of the same kind" if public.startswith("no ") else public),
        (granted.labels != "unknown", classes.get(granted.labels, classes["known"])),
    )
    has = ["the network and its weights, which it sends out", "what each client sends back"]
    has += [words for given, words in facts if given]
    has += [f"{granted.known_pixels:.3g} of the true pixels"] if granted.known_pixels else []
    lacks = [words for given, words in facts if not given]
    return has, lacks


def limits(result: Result) -> list[str]:
    """What the result does not say, in sentences."""
    plan, found = result.plan, result.exposure
    said = [
        f"It speaks of the attack {plan.attack.name}, with this budget and this knowledge. Another attack, a "
        "larger budget or other knowledge may do better.",
        "The server is honest but curious. One that changes the model to make it leak was not tried.",
    ]
    if found is not None:
        said.append(
            f"{told.many(found.of_clients, 'client')} stand{'s' if found.of_clients == 1 else ''} for all that are "
            "like them: the same network, weights, rule, and kind and number of pictures. Others may leak more."
        )
    if plan.captured is None and (plan.data == "samples" or not (plan.weights or plan.train_epochs)):
        trying = [("photographs inside scikit-image", plan.data == "samples")]
        trying += [("untrained weights", not (plan.weights or plan.train_epochs))]
        words = " and ".join(word for word, so in trying if so).capitalize()
        said.append(f"{words} are for trying leakmap out: for a decision, audit weights and pictures of your own.")
    return said


def steps(result: Result) -> list[Step]:
    """What to do next, the most urgent first."""
    level = result.verdict.level
    if level == "inconclusive":
        return _repairs(result)
    if level == "none_found":
        return _harder(result)
    first = {
        "exact": "Treat what such clients send as if it were their pictures: whoever can read it can see them.",
        "visual": "Treat what such clients send as if it were their pictures: whoever can read it can recognise them.",
        "partial": "Whoever holds candidates can tell whose picture was used. Decide whether that may be known.",
        "statistical": "No single picture is in danger by this attack, but what is sent is not silent: try a stronger "
        "attacker before you rely on that.",
    }
    then = _harder(result)[:1] if level == "statistical" else []
    return [Step(first[level]), *then, *_changes(result)]


def _changes(result: Result) -> list[Step]:
    """What may lower the leak, one thing at a time."""
    plan, found = result.plan, []
    if plan.captured is None:
        found.append(
            Step(
                "See which traits of the network are expected to leak, and what to change:",
                (f"leakmap inspect {shlex.quote(plan.model)}",),
            )
        )
    options = [] if "buffers" not in result.knowledge.used else ["--no-buffers"]
    options += ["--batch-size 8"] if plan.batch_size < 8 else []
    options += ["--defence dp_sgd,clip=1.0,noise=1.1"] if result.defence is None else []
    if options and plan.captured is None:
        found.append(
            Step("Change one thing and audit again, with the command at the end and for example:", tuple(options))
        )
    found.append(Step("Look again whenever network, weights, local rule or pictures change."))
    return found


def _harder(result: Result) -> list[Step]:
    """How to look harder where nothing was found."""
    plan, found, granted = result.plan, result.exposure, result.knowledge.granted
    steps = []
    if plan.attack.name != "strongest":
        steps.append(Step("Let every attack try that the server's knowledge allows:", ("--attack strongest",)))
    options = ["--labels known"] if granted.labels == "unknown" else []
    options += ["--public auto"] if result.knowledge.public.startswith("no ") else []
    if options:
        steps.append(Step("Grant the server more, as an upper bound:", (" ".join(options),)))
    if found and found.of_clients < MANY:
        more = USUAL if found.of_clients < USUAL else MANY
        bound = "9.7 %" if more == USUAL else "1.8 %"
        steps.append(
            Step(
                f"Audit {more} clients: if none is exposed, at most {bound} of such clients are:",
                (f"--victims {more}",),
            )
        )
    return [*steps, Step("Look again whenever network, weights, local rule or pictures change.")]


def _repairs(result: Result) -> list[Step]:
    """What may make a failed measurement one that counts."""
    found = []
    if result.unfinished:
        found.append(
            Step("Some runs are missing. The same command continues; what is finished is kept:", (result.command,))
        )
    if result.failures:
        found.append(Step("Some runs failed: their messages stand below, under “Runs without a score”."))
    if result.verdict.rule == "control":
        more = ("--steps", "--restarts", f"--victims {USUAL}")
        found.append(Step("Give the attack more, or audit more clients:", more))
    if result.verdict.rule in ("flag", "no_evidence"):
        found.append(Step("The warnings below say what makes this no evidence. Repair that first."))
    return [*found, Step("Do not read this as a good result: nothing was measured.")]
