"""What every bundle of this version says: how often the instrument errs, and what it does not evaluate."""

from leakmap.scoring.statistics import clopper_pearson

INSTRUMENT: tuple[tuple[str, str, int, int], ...] = (
    ("false_alarms", "Null audits called statistical or more (false alarms)", 9, 620),
    ("false_alarms_visible", "Null audits called visual or exact", 3, 620),
    ("detection", "Networks known to leak called partial or more (detection)", 200, 200),
    ("detection_of_one", "Audits with one exposed client of 12 called visual or more", 200, 200),
)
"""Measured by ``python -m benchmarks.verdict``; docs/results/verdict.md is the page, and a test holds both together."""

NOT_EVALUATED = (
    "Active servers, which change the model to make it leak (fishing, Loki, SEER, Scale-MIA, Geminio and others)",
    "Text, tables and time series",
    "Sums of many clients, as secure aggregation shows them",
    "Membership, property and attribute inference without a reconstruction",
    "Other clients, eavesdroppers, and whoever gets the trained model",
    "Attacks that are not listed here, larger budgets, and knowledge that was not granted",
)
MAPPING = (
    "OWASP Machine Learning Security Top 10: ML03:2023, model inversion attack",
    "MITRE ATLAS: AML.T0024.001, invert AI model",
    "OWASP AI Security Verification Standard: C11.2",
    "Regulation (EU) 2024/1689 (AI Act): accuracy, robustness and cybersecurity",
)
CITED = (
    "Documents are cited, not their paragraphs: paragraph numbers were not checked against the originals. This bundle "
    "is evidence for an assessment, not an assessment, and no legal advice."
)


def instrument() -> list[str]:
    """How often the verdict errs, each as a sentence with its exact 95 % interval."""
    found = []
    for _, label, hits, n in INSTRUMENT:
        share = clopper_pearson(hits, n)
        found.append(f"{label}: {hits} of {n}, {share.value:.1%} [{share.low:.1%}, {share.high:.1%}]")
    return [*found, "Audits of 12 clients with pictures of 16 pixels (python -m benchmarks.verdict)"]
