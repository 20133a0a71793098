"""From a run and a profile to the evidence: every field of the bundle, each with its origin."""

from leakmap.auditing.provenance import now
from leakmap.evidence import measured as of
from leakmap.evidence.evidence import Evidence, Statement
from leakmap.evidence.planned import Planned
from leakmap.evidence.profile import Profile, statements_of
from leakmap.evidence.run import Run
from leakmap.evidence.shipped import CITED, MAPPING, NOT_EVALUATED, instrument
from leakmap.gate.rules import LEVELS
from leakmap.report import told
from leakmap.version import __version__


def build(
    run: Run, profile: Profile, planned: Planned | None = None, plan_digest: str = "", *, pictures: bool
) -> Evidence:
    """The evidence of a run.

    Args:
        run: The audit.
        profile: What the institution says; what it leaves empty stays empty.
        planned: What was fixed before the audit.
        plan_digest: SHA-256 of the file that says so.
        pictures: Whether pictures are in the bundle.
    """
    topic, result = of.topic, run.result
    proposed = [
        Statement("proposed", "Proposed by the result", "measured", LEVELS[result.verdict.level].advice),
        Statement("expires_with", "What ends the evidence at the latest", "shipped", ENDS),
    ]
    signed, decided = _of(profile, "sign_off"), _of(profile, "decision")
    topics = (
        topic("institution", "Institution and purpose", "GDPR, impact assessment", _of(profile, "institution")),
        topic("topology", "Who sees what", "EDPS TechDispatch 1/2025", _of(profile, "topology")),
        topic("client", "Audited client", "EDPB Opinion 28/2024", of.client(run), _of(profile, "training")),
        topic("attacker", "Attacker", "ISO/IEC 27559", of.attacker(run)),
        topic("results", "Results", "ISO/IEC 27559", of.results(run)),
        topic("questions", "What the result answers", "Article 29 Working Party, Opinion 05/2014", of.questions(run)),
        topic("limits", "What was not evaluated", "completeness", [_shipped("not_evaluated", list(NOT_EVALUATED))]),
        topic("decision", "Residual risk and measures", "ISO/IEC 27559", decided, proposed),
        topic(
            "differential_privacy",
            "Differential privacy",
            "NIST SP 800-226",
            of.privacy(run),
            _of(profile, "differential_privacy"),
        ),
        topic("attacks", "Attacks", "EDPB Opinion 28/2024", of.attacks(run)),
        topic("plan", "Fixed before the test", "AI Act", of.plan_kept(run, planned, plan_digest)),
        topic("instrument", "How often the instrument errs", "EDPB Opinion 28/2024", [_shipped("rates", instrument())]),
        topic("fingerprints", "Fingerprints", "EDPB Opinion 28/2024", of.fingerprints(run)),
        topic("mapping", "Where it belongs", "classification", [_shipped("mapping", list(MAPPING))]),
        topic("origin", "How it was made", "reproducibility", of.origin(run), signed, [_shipped("cited", CITED)]),
    )
    return Evidence(
        made=now(),
        leakmap=__version__,
        level=result.verdict.level,
        headline=told.headline(result),
        pictures=pictures,
        topics=topics,
        quantities=of.quantities(result),
        records=of.records(result),
        lost=of.lost(result),
    )


ENDS = "a change of the model, its weights, the local rule, the platform, or an attack that finds more"
_LABELS = {
    "rates": "Rates, with 95 % intervals",
    "not_evaluated": "Not evaluated",
    "mapping": "Classified as",
    "cited": "How documents are cited",
}


def _of(profile: Profile, table: str) -> list[Statement]:
    """What the institution says in one table; null where it says nothing."""
    return [
        Statement(one.name, one.declared.help, "profile", getattr(profile, one.name) or None)
        for one in statements_of(table)
    ]


def _shipped(key: str, value: str | list[str]) -> Statement:
    return Statement(key, _LABELS[key], "shipped", value)
