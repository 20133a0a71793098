"""What a run shows, as statements, quantities and records."""

from collections.abc import Sequence
from dataclasses import asdict

from leakmap.evidence.evidence import Quantity, Record, Statement, Topic, Value
from leakmap.evidence.planned import Planned, departures, thresholds
from leakmap.evidence.run import Run
from leakmap.registry.declared import leaves
from leakmap.report import told
from leakmap.report.page import FLOOR_NAMES, metric_name
from leakmap.result.clients import LostClient
from leakmap.result.evidence import LineUpResult
from leakmap.result.result import Result
from leakmap.scoring.exposure import Openness

NOT_RECORDED = "not recorded by this run"


def measured(key: str, label: str, value: Value) -> Statement:
    """A statement from the run."""
    return Statement(key, label, "measured", value)


def attacker(run: Run) -> list[Statement]:
    """Who attacked, with every fact that was granted or withheld."""
    knowledge, granted = run.result.knowledge, asdict(run.result.knowledge.granted)
    kind = "A to H of Carletti et al. (2025)"
    return [
        measured("who", "Who attacks", "an honest-but-curious server: it follows the protocol and looks"),
        measured("attacker", f"Nearest of {kind}, by what was granted", knowledge.attacker),
        measured("attacker_used", "The same, by what was used", knowledge.attacker_used),
        measured("granted", "Granted", [fact for fact, value in _facts(granted).items() if value]),
        measured("withheld", "Withheld", [fact for fact, value in _facts(granted).items() if not value]),
        measured("public", "Public pictures", knowledge.public),
        measured("used", "Facts that the attack used", list(knowledge.used)),
        measured("labels", "Labels", run.result.labels.statement),
    ]


def _facts(granted: dict[str, object]) -> dict[str, bool]:
    labels, public, pixels = granted["labels"], granted["public"], granted["known_pixels"]
    return {
        "the update": True,
        "the number of pictures": bool(granted["count"]),
        "the local rule": bool(granted["rule"]),
        "returned BatchNorm buffers": bool(granted["buffers"]),
        "how many pictures of each class": labels != "unknown",
        "the label of each picture": labels == "known",
        f"public pictures ({public})" if public else "public pictures": bool(public),
        f"a share of the true pixels ({pixels})" if pixels else "true pixels": bool(pixels),
    }


def client(run: Run) -> list[Statement]:
    """What the audited clients did."""
    plan = run.result.plan
    rule = [f"{one.name} = {_shown(getattr(plan.rule, one.name))}" for one in leaves(type(plan.rule))]
    source = "captured updates of real clients" if plan.captured else "simulated clients"
    each = "1 picture" if plan.batch_size == 1 else f"{plan.batch_size} pictures"
    return [
        measured("subject", "What was audited", f"{plan.victims} {source}, {each} each, {plan.model}"),
        measured("local_rule", "Local rule", rule),
        measured("defence", "Defence of the client", run.result.defence.statement if run.result.defence else "none"),
        measured("data", "Source of the pictures", plan.data),
        measured("groups", "Pictures in each group", [f"{n} {name}" for name, n in run.result.pictures.items()]),
        measured("near_copies", "Near copies", told.copies(run.result)),
        measured("accuracy", "Accuracy of the network", run.result.accuracy),
    ]


def _shown(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def fingerprints(run: Run) -> list[Statement]:
    """Digests by which others can tell what was audited, and how many parameters stand against a picture."""
    found = run.provenance
    values = {
        "architecture": ("SHA-256 of the architecture", found and found.architecture),
        "weights": ("SHA-256 of the weights", found and found.weights),
        "data_manifest": ("SHA-256 of all pictures and their division", found and found.pictures),
    }
    rows = [measured(key, label, value or NOT_RECORDED) for key, (label, value) in values.items()]
    sent = list(found.observations) if found and found.observations else "none: the updates were simulated"
    ratio = round(found.parameters / found.pictures_per_client, 3) if found else None
    return [
        *rows,
        measured("observations", "SHA-256 of the captured updates", sent if found else NOT_RECORDED),
        measured("result", "SHA-256 of result.json in the run", run.result_digest),
        measured("parameters", "Trained parameters", found and found.parameters),
        measured("parameters_per_example", "Parameters per picture of an update", ratio),
    ]


def plan_kept(run: Run, planned: Planned | None, digest: str) -> list[Statement]:
    """The thresholds, when they were fixed, and whether the run kept to them."""
    fixed = planned.thresholds if planned else thresholds()
    rows = [
        measured("thresholds", "Thresholds of the levels", [f"{name}: {value:g}" for name, value in fixed.items()]),
        measured("rule", "Rule that decided", told.rule(run.result)),
    ]
    if planned is None:
        none = "no plan was given: nothing shows that thresholds and settings were fixed before the test"
        return [measured("planned", "Fixed before the test", none), *rows]
    kept = departures(planned, run)
    return [
        measured("planned", "Fixed before the test", f"at {planned.made}, by the clock of the machine that wrote it"),
        measured("plan_digest", "SHA-256 of the plan", digest),
        measured("plan_command", "Command that was planned", planned.command),
        measured("gate", "Level that must not be reached", planned.gate or "none was fixed"),
        measured("kept", "The run kept to the plan", "yes" if not kept else "no"),
        measured("departures", "Departures from the plan", kept),
        *rows,
    ]


def attacks(run: Run) -> list[Statement]:
    """What was tried, with version, budget and seeds, and what was not, with the reason."""
    result, suite = run.result, run.result.suite
    ran = [f"{m.name}: {m.ran} clients, answered for {m.won}" for m in suite.members if m.ran] if suite else []
    left = [f"{m.name}: {m.why or 'was not chosen'}" for m in suite.members if not m.ran] if suite else []
    failures = [f"{f.role}, client {f.client + 1}: {f.kind}: {f.message}" for f in result.failures]
    return [
        measured("attack", "Attack", str(result.plan.attack)),
        measured("suite", "Version of the suite", suite.version if suite else "a single attack, no suite"),
        measured("settings", "Budget and settings", result.settings.statement),
        measured("seed", "Seed", result.plan.seed),
        measured("ran", "Attacks of the suite that ran", ran),
        measured("not_run", "Attacks of the suite that did not run, and why", left),
        measured("closed_forms", "Attacks that solve equations", list(result.closed_forms.reasons)),
        measured("control", "Planted control, which must be found", result.control_model),
        measured("failures", "Failed runs", failures),
        measured("unfinished", "Runs that are missing", result.unfinished),
    ]


def results(run: Run) -> list[Statement]:
    """The verdict, its worst and typical case, and everything that qualifies it."""
    result = run.result
    return [
        measured("level", "Level", result.verdict.level),
        measured("statement", "Verdict", result.verdict.statement),
        measured("exposed", "Exposed", told.counts_with_intervals(result) or "no client finished"),
        measured("worst", "Worst case", result.verdict.worst),
        measured("typical", "Typical case", result.verdict.typical),
        measured("reasons", "Reasons", list(result.verdict.reasons)),
        measured("flags", "Flags", [f"{name}: {text}" for name, text in result.flags.items()]),
        measured("ceiling", "Ceiling: what no attacker exceeds", _ceiling(result)),
    ]


def _ceiling(result: Result) -> str:
    found = result.ceiling
    return "not stated: the result is from before ceilings were" if found is None else found.statement


def privacy(run: Run) -> list[Statement]:
    """What differential privacy promises, as far as the run tells."""
    found = run.result.defence
    if found is None or found.epsilon is None:
        what = "none" if found is None else f"{found.specification}: no guarantee"
        return [measured("mechanism", "Mechanism in the audited client", what)]
    return [
        measured("mechanism", "Mechanism in the audited client", found.specification),
        measured("epsilon", "Epsilon of one round", found.epsilon),
        measured("delta", "Delta", found.delta),
        measured("promise", "What it promises, neighbours and accountant", found.statement),
    ]


def questions(run: Run) -> list[Statement]:
    """Which of the classic questions the result answers."""
    result, line_up = run.result, run.result.line_up.attack
    if result.verdict.level == "inconclusive" or line_up is None:
        answer = "not answered: the audit is inconclusive"
        singled = linked = inferred = seen = answer
    else:
        first = f"{line_up.hits} of {line_up.n} pictures were first in their line-up, {line_up.chance:.1%} by chance"
        singled = f"{'yes' if line_up.above_chance else 'not shown'}: {first}"
        linked = f"{'yes' if line_up.above_chance else 'not shown'}: a line-up links an update to a picture; {first}"
        right = result.labels.right
        told_right = f"; inferred labels were right in {right:.0%}" if right is not None else ""
        inferred = f"{result.bands.statement.rstrip('.') if result.bands else 'not measured'}{told_right}"
        seen = told.counts(result)
    return [
        measured("singling_out", "Singling out: can a record be picked out?", singled),
        measured("linkability", "Linkability: can an update be linked to a record?", linked),
        measured("inference", "Inference: what is told of a record (colour, layout, detail, label)?", inferred),
        measured("visible", "Can a person see the picture (visual, exact)?", seen),
    ]


def origin(run: Run) -> list[Statement]:
    """By what, when and where it was measured, and the command that repeats it."""
    found, versions = run.provenance, run.result.versions
    rows = [
        measured("command", "Command", run.result.command),
        measured("versions", "Versions", [f"{name} {version}" for name, version in versions.items()]),
    ]
    if found is None:
        return [*rows, measured("when", "When", NOT_RECORDED)]
    machine = f"{found.platform}, {found.processor}, {found.cores} cores, {found.device}"
    return [
        *rows,
        measured("started", "Began, UTC", found.started),
        measured("finished", "Ended, UTC", found.finished or "not finished"),
        measured("leakmap_commit", "Commit of leakmap", found.commit or "an installed package, no checkout"),
        measured("machine", "Machine", machine),
        measured("python", "Python", found.python),
        measured("lock", "Installed packages", list(found.packages)),
    ]


def topic(key: str, title: str, why: str, *parts: Sequence[Statement]) -> Topic:
    """Statements of several origins about one matter."""
    return Topic(key, title, why, tuple(one for part in parts for one in part))


def quantities(result: Result) -> tuple[Quantity, ...]:
    """Every number that the verdict rests on."""
    found: list[Quantity] = []
    if (exposure := result.exposure) is not None:
        for key, share, hits, n in (
            ("clients", exposure.client_share, exposure.clients, exposure.of_clients),
            ("pictures", exposure.picture_share, exposure.pictures, exposure.of_pictures),
        ):
            counted = f"{hits} of {n}"
            found.append(
                Quantity(
                    f"exposed_{key}", f"Exposed {key}", share.value, share.low, share.high, counted, None, "", None
                )
            )
    found += [_line_up(f"line_up_{key}", told.LINE_UP_NAMES[key], one) for key, one in told.line_ups(result).items()]
    found += [_line_up(f"band_{key}", f"{key} alone", one) for key, one in told.bands(result).items()]
    for name, gain in result.metrics.items():
        floor = FLOOR_NAMES.get(gain.best_floor, gain.best_floor)
        mean, label = gain.value, metric_name(name)
        reference = gain.floors.get(gain.best_floor)
        found.append(
            Quantity(name, label, mean.value, mean.low, mean.high, "", reference, f"best floor: {floor}", None)
        )
        risen = gain.gain
        found.append(
            Quantity(f"gain_{name}", f"{label}, gain", risen.value, risen.low, risen.high, "", 0.0, "no gain", None)
        )
    return tuple(found)


def _line_up(key: str, name: str, one: LineUpResult) -> Quantity:
    share, counted = one.rank_one, f"{one.hits} of {one.n}"
    return Quantity(
        key, f"First ranks, {name}", share.value, share.low, share.high, counted, one.chance, "chance", one.p
    )


def records(result: Result) -> tuple[Record, ...]:
    """Every picture of every client that finished, by pseudonyms: numbers that mean nothing without the data."""
    found = result.exposure.found if result.exposure else ()
    exposed: dict[tuple[int, int], Openness] = {(one.client, one.picture): one.level for one in found}
    return tuple(
        Record(
            client.client + 1,
            place + 1,
            rank,
            client.galleries[place],
            client.scores["psnr"][place],
            client.scores["ssim"][place],
            exposed.get((client.client, place)),
        )
        for client in result.finished
        for place, rank in enumerate(client.ranks)
    )


def lost(result: Result) -> tuple[str, ...]:
    """Clients without a result, with the reason."""
    return tuple(f"client {one.client + 1}: {one.failure}" for one in result.clients if isinstance(one, LostClient))
