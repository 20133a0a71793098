"""The options of the gate of ``leakmap audit``."""

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Gate of continuous integration"

Gate = Annotated[
    str | None,
    typer.Option(metavar="LEVEL", help="Exit 1 if this level is reached, 2 if inconclusive.", rich_help_panel=PANEL),
]
Baseline = Annotated[
    Path | None,
    typer.Option(metavar="RESULT", help="Exit 1 only on what is worse than this result.json.", rich_help_panel=PANEL),
]
Junit = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write what the gate found as JUnit XML.", rich_help_panel=PANEL)
]
Sarif = Annotated[Path | None, typer.Option(metavar="FILE", help="The same as SARIF 2.1.0.", rich_help_panel=PANEL)]
Markdown = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The same as a table, also for $GITHUB_STEP_SUMMARY.", rich_help_panel=PANEL),
]
