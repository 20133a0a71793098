"""The map as ``leakmap inspect`` reads it: networks with their measured clients, and what single changes did."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.atlas_cells import BASE_WORDS, BASES, CELLS, Cell
from benchmarks.cases import Entry as Stored
from benchmarks.clients import chance_p
from leakmap.files import write_json
from leakmap.inspection.reading import read_traits
from leakmap.inspection.reference import Effect, Entry, Measured, Reference, features
from leakmap.models.network import build_network
from leakmap.problem.task import Task
from leakmap.scoring.bands import BANDS

FILE = Path("src/leakmap/inspection/reference.json")
COMMAND = "python -m benchmarks.atlas --data DIR --page"
MANY = 100
"""Clients from which on an interval is narrow enough to tell a change by."""
TRAINED = {"random": "", "brief": " (trained for 5 epochs)", "full": " (fully trained)"}


def client_in_words(cell: Cell) -> str:
    """What a client does and sends."""
    rule = cell.rule
    pictures = f"{cell.batch} picture{'s' * (cell.batch > 1)}"
    told = [
        f"{'inference' if rule.mode == 'eval' else 'training'} mode",
        f"{cell.steps} steps of {pictures}" if cell.steps > 1 else pictures,
    ]
    if cell.partial:
        last = len(rule.held_by(cell.steps - 1, cell.count))
        told[1] = f"{cell.steps - 1} steps of {pictures} and one of {last}"
    told += [rule.optimizer if rule.optimizer != "sgd" else "momentum" if rule.momentum else ""]
    told += [rule.defence if rule.defence != "none" else "", "augmented" if cell.augmented else ""]
    told += ["buffers returned" if cell.buffers else "buffers kept" if rule.mode == "train" else ""]
    return ", ".join(word for word in told if word)


def measured(cell: Cell, entry: Stored) -> Measured | None:
    """The figures of the attack that speaks; None where none applied."""
    return None if entry["speaks"] is None else _measured(cell, entry, entry["speaks"])


def over_many(cell: Cell, entry: Stored) -> Measured | None:
    """Those of the attack that rehearsed best among those that attacked many clients: all but searches."""
    found = {name: one for name, one in entry["attacks"].items() if one["clients"] >= MANY}
    best = max(found, key=lambda name: found[name]["rehearsed"]["ncc"], default=None)
    return None if best is None else _measured(cell, entry, best)


def _measured(cell: Cell, entry: Stored, speaks: str) -> Measured:
    found = entry["attacks"][speaks]
    whole = found["whole"]
    return Measured(
        cell.rule.mode,
        client_in_words(cell),
        speaks,
        found["clients"],
        tuple(whole["first"]),
        whole["chance"],
        tuple(whole["relative"]),
        chance_p(found),
        tuple(found["ncc"]),
        entry["class_mean"]["ncc"][0],
        {band: tuple(found[band]["first"]) for band in BANDS},
    )


@cache
def _features(model: str, side: int) -> dict[str, float | str]:
    network = build_network(Task((3, side, side), 10, (0.5,) * 3, (0.25,) * 3), model, seed=11)
    return features(read_traits(network))


def effects(found: Mapping[str, Stored]) -> list[Effect]:
    """What every single change around a base client did, as far as both are measured, without searches."""
    answers: list[Effect] = []
    by_content = {cell.content: key for key, cell in CELLS.items()}
    for name, base in BASES.items():
        before = over_many(base, found[own]) if (own := by_content[base.content]) in found else None
        for key, cell in CELLS.items():
            if cell.group != name or not cell.varied or key not in found or before is None:
                continue
            if (after := over_many(cell, found[key])) is not None:
                answers.append(Effect(cell.varied, cell.value, BASE_WORDS[name], before.relative, after.relative))
    # The three base clients differ in nothing but mode and buffers: that is a change, too.
    told = {n: over_many(b, found[k]) for n, b in BASES.items() if (k := by_content[b.content]) in found}
    for name, value in (("inference", "inference mode"), ("returned", "buffers returned")):
        base, changed = told.get("training"), told.get(name)
        if base and changed:
            trait = "mode" if name == "inference" else "buffers"
            answers.append(Effect(trait, value, BASE_WORDS["training"], base.relative, changed.relative))
    return answers


def _plainness(cell: Cell) -> tuple[bool, bool, int, int]:
    return cell.rule.defence != "none", cell.augmented, cell.count, cell.steps


def write_reference(found: Mapping[str, Stored], path: Path = FILE) -> None:
    """Writes what the package ships."""
    write_json(path, json.loads(TypeAdapter(Reference).dump_json(reference_of(found))))


def reference_of(found: Mapping[str, Stored]) -> Reference:
    """What the package ships."""
    networks: dict[tuple[str, str, int], list[Measured]] = {}
    # The plainest clients first: an inspection shows some of them.
    for key in sorted(found, key=lambda key: _plainness(CELLS[key])):
        cell, entry = CELLS[key], found[key]
        if (one := measured(cell, entry)) is not None:
            networks.setdefault((cell.model, cell.weights, cell.side), []).append(one)
    entries = []
    for (model, weights, side), cells in networks.items():
        name = next(c.network for c in CELLS.values() if (c.model, c.weights) == (model, weights))
        entries.append(Entry(name + TRAINED[weights], _features(model, side), tuple(cells)))
    some = list(found.values())
    date = max(entry["date"] for entry in some)
    return Reference(COMMAND, some[0]["versions"], date, tuple(entries), tuple(effects(found)))
