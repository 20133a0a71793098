"""An inspection as a person reads it in a terminal of 80 columns, and as JSON."""

import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from leakmap.auditing.update_check import degenerate
from leakmap.inspection.inspection import Inspection
from leakmap.inspection.probe import Probe

NATURE = "What is said of traits was measured on other networks. leakmap audit measures this one."

UNPREDICTED = (
    "No predictor is measured: none was shown, on the map, to tell leakage better than the number of parameters and "
    "the traits do."
)


def conclusion(inspection: Inspection) -> str:
    """What follows from all traits together, in two or three sentences."""
    forms = [form.partition(":")[0] for form in inspection.traits.closed_forms]
    told = [
        f"Pictures can be computed from an update without a search, by {', '.join(forms)}."
        if forms
        else "No closed form reads pictures out of an update; what is left are attacks that are fitted, and searches."
    ]
    others = [advice for advice in inspection.advice if advice.trait != "closed form"]
    if cured := [advice.trait for advice in others if advice.change]:
        told.append(f"Changing {' or '.join(cured)} lowered what was read of some clients of other networks.")
    flags = {name: mode for mode, check in inspection.probe.checks.items() for name in degenerate(check)}
    if flags:
        told.append(f"What a client sends is degenerate ({', '.join(flags)}): an audit of these weights would mislead.")
    return " ".join(told)


def describe(inspection: Inspection, console: Console) -> None:
    """Prints the conclusion, every trait with what it means, the nearest measured networks, and the update."""
    network, traits = inspection.network, inspection.traits
    shape = "x".join(map(str, network.task.shape))
    console.print(
        f"[bold]{escape(str(network.model))}[/]  {traits.parameters:,} parameters, {shape} pictures, "
        f"{network.task.classes} classes",
        highlight=False,
    )
    console.print(f"[bold]{escape(conclusion(inspection))}[/]", highlight=False)
    console.print(f"[dim]{NATURE}[/]\n", highlight=False)
    found = Table.grid(padding=(0, 2, 0, 0))
    found.add_column(width=16, style="bold")
    found.add_column(ratio=1)
    for advice in inspection.advice:
        change = f" [cyan]{escape(advice.change)}[/]" if advice.change else ""
        found.add_row(advice.trait, escape(advice.found))
        found.add_row("", f"{escape(advice.meaning)}{change} [dim]{escape(f'[{advice.source}]')}[/]")
    console.print(found, highlight=False)
    for line in inspection.notes:
        console.print(escape(line), highlight=False)
    if inspection.predictions is not None:
        console.print("\n[bold]Predictors[/] [dim](one picture, its gradient)[/]")
        for line in map(str, inspection.predictions) if inspection.predictions else (UNPREDICTED,):
            console.print(Padding(escape(line), (0, 0, 0, 2)), highlight=False)
    _describe_probe(inspection.probe, console)


def _describe_probe(probe: Probe, console: Console) -> None:
    """What the update depends on, in each mode, and what that flags."""
    console.print("\n[bold]What the update of a client depends on[/] [dim](one gradient, built-in photographs)[/]")
    console.print(_checks(probe), highlight=False)
    for mode, check in probe.checks.items():
        for name, text in degenerate(check).items():
            console.print(Padding(f"[yellow]{name}[/] ({mode}) {escape(text)}", (0, 0, 0, 2)), highlight=False)
    if probe.note:
        console.print(Padding(escape(probe.note), (0, 0, 0, 2)), highlight=False)


def _checks(probe: Probe) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("mode", "head", "zero tensors", "tiny", "cos other", "cos noise", "cos float64", "loss"):
        found.add_column(heading)
    for mode, check in probe.checks.items():
        found.add_row(
            mode,
            _told(check.head_fraction, ".1%"),
            f"{check.zero_tensors:.0f} of {check.tensors}",
            f"{check.tiny_tensors:.0f}",
            _told(check.cos_other, ".3f"),
            _told(check.cos_noise, ".3f"),
            _told(check.cos_precise, ".4f"),
            _told(check.loss, ".3g"),
        )
    return found


def _told(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def as_dict(inspection: Inspection) -> dict[str, Any]:
    """Model, traits, advice and checks, of values that JSON can hold; numbers that are not finite become None."""
    network, probe = inspection.network, inspection.probe
    return _plain(
        {
            "model": str(network.model),
            "shape": network.task.shape,
            "classes": network.task.classes,
            "conclusion": conclusion(inspection),
            "nature": NATURE,
            "traits": asdict(inspection.traits),
            "advice": [asdict(advice) for advice in inspection.advice],
            "update": {mode: check.model_dump() | {"flags": degenerate(check)} for mode, check in probe.checks.items()},
            "note": probe.note,
            "predictions": None if inspection.predictions is None else [asdict(one) for one in inspection.predictions],
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
