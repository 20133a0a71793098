"""The report of a bundle: one page, and the same printed."""

import re
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from leakmap.errors import in_words, plain
from leakmap.evidence.evidence import Evidence
from leakmap.evidence.run import Rows, Run
from leakmap.report import charts
from leakmap.report.page import write_page
from leakmap.report.pictures import chosen, names_of, told_chosen, uris

SHOWN_RECORDS = 400
PRINTER = "weasyprint"
BY_HAND = "open report.html in a browser and print it as PDF, or install a printer with: pip install 'leakmap[pdf]'"


def write_report(path: Path, evidence: Evidence, run: Run, rows: Rows, why_none: str) -> None:
    """Writes the page.

    Args:
        path: The file.
        evidence: What it says.
        run: The audit, for its chart.
        rows: Named pictures of each finished client; empty leaves all pictures out.
        why_none: Why there are none, where there are none.
    """
    shown = chosen(run.result, rows)
    names = names_of(shown)
    drawn = iter(uris([one.picture(name) for one in shown for name in names]))
    exposed_first = sorted(evidence.records, key=lambda one: one.exposed is None)[:SHOWN_RECORDS]
    left = len(evidence.records) - len(exposed_first)
    readable: Any = _plain(asdict(evidence))
    write_page(
        path,
        "evidence.html",
        title=f"Evidence: what updates of {plain(run.result.plan.model)[:120]} leak",
        version=evidence.leakmap,
        told_pictures="" if rows else f"This bundle holds no pictures: {plain(why_none)}.",
        told_records=f"{left} more are in evidence.json; exposed ones come first." if left else "",
        chart=_for_print(charts.line_up(run.result)),
        names=names,
        told_chosen=told_chosen(run.result, shown, sum(len(row["original"]) for row in rows)),
        **{key: value for key, value in readable.items() if key not in ("pictures", "records", "leakmap", "schema")},
        records=exposed_first,
        pictures=[
            {"client": one.client + 1, "caption": one.caption, "uris": [next(drawn) for _ in names]} for one in shown
        ],
    )


def _plain(value: Any) -> Any:
    """The same with what does not print written out, in every text."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _for_print(chart: str) -> str:
    """A chart with colours of its own: a printer knows no variables in SVG."""
    return re.sub(r"var\(--\w+, (#\w+)\)", r"\1", chart)


def print_page(page: Path, path: Path) -> str:
    """Prints a page as PDF; returns why that was not possible, or nothing.

    Only what the page carries is read: addresses in it are not followed.

    Args:
        page: HTML.
        path: Of the PDF.
    """
    try:
        printer = import_module(PRINTER)
        # allowed_protocols: the page carries everything that it shows, and a printer has no business elsewhere.
        fetcher = printer.urls.URLFetcher(allowed_protocols=("data",))
        printer.HTML(string=page.read_text(encoding="utf-8"), url_fetcher=fetcher).write_pdf(path)
    except Exception as error:  # absent, without the libraries of the system that it draws with, or at a loss
        path.unlink(missing_ok=True)
        reason = "is not installed" if isinstance(error, ImportError) else f"cannot print it ({in_words(error)[:200]})"
        return f"{PRINTER} {reason}; {BY_HAND}"
    return ""
