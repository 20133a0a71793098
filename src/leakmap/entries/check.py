"""Checks an entry that anybody may have written: its files, its figures, and a sample of its runs."""

import hashlib
import math
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from leakmap.auditing.prepare import Prepared, prepare
from leakmap.auditing.provenance import architecture_of, parameters_of
from leakmap.entries.entry import Entry, expected_names, read_entry, truth_digest, why_not_repeatable
from leakmap.entries.scored import Named, named_runs, rescored
from leakmap.errors import BadSetting, StoreError
from leakmap.evidence.measured import quantities, records
from leakmap.files import checksum
from leakmap.plan.plan import Plan, Progress
from leakmap.registry.spec import Spec
from leakmap.result.result import Result
from leakmap.runs.run import run, versions_of

DIGITS = 1e-6
"""Relative difference up to which a number is the same: float32 sums in another order differ from the seventh digit."""


@dataclass(frozen=True)
class Checked:
    """What checking an entry came to.

    Args:
        entry: What was checked.
        problems: What is wrong, in sentences; empty: nothing.
        notes: What limits the check, in sentences.
        rerun: Numbers of the clients that were attacked again, from 0.
        figures: How many figures and records came out the same.
    """

    entry: Entry
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    rerun: tuple[int, ...]
    figures: int


def check_entry(
    path: Path | str,
    *,
    data: str | None = None,
    weights: str | None = None,
    rerun: int = 0,
    progress: Progress = lambda what, fraction: None,
) -> Checked:
    """Scores the attached reconstructions of an entry again, and attacks some of its clients again.

    Args:
        path: The entry; its reconstructions lie beside it.
        data: Where the same pictures lie here, in place of what the entry says.
        weights: Where the same weights lie here, likewise.
        rerun: So many clients are attacked again; which, nobody can foresee.
        progress: Called with what is being done and the finished fraction.

    Raises:
        StoreError: the entry or its reconstructions cannot be read or are not what the entry says.
        UsageError: the pictures or the weights are not here, or the entry would run code of its maker's own or fetch
            something from the network.
    """
    entry = read_entry(path)
    if why := why_not_repeatable(entry.plan):
        raise StoreError(f"{path} cannot be checked, and nothing of it was run: {why}.")
    plan = _here(entry.plan, data, weights)
    pictures = attached(entry, Path(path).parent)
    prepared = prepare(plan, progress=progress)
    problems, notes = _of_setup(entry, plan, prepared)
    if entry.data != prepared.main.groups.digest:
        return Checked(entry, tuple(problems), tuple(notes), (), 0)
    progress("scoring the reconstructions", 0.0)
    problems += differences(entry, rescored(plan, prepared, entry.runs, pictures))
    again = sorted(random.SystemRandom().sample(range(plan.victims), min(rerun, plan.victims)))
    runs = {one.trial.client: one for one in named_runs(plan, prepared) if one.role == "attack"}
    for place, client in enumerate(again):
        progress(f"attacking client {client + 1} again", place / len(again))
        problems += _differs(entry, runs[client], pictures)
    return Checked(entry, tuple(problems), tuple(notes), tuple(again), len(entry.figures) + len(entry.records))


def attached(entry: Entry, folder: Path) -> dict[str, Tensor]:
    """The reconstructions of an entry: size, digest, names, types and shapes are checked before any is used.

    Args:
        entry: The entry.
        folder: Where the file lies.

    Raises:
        StoreError: the file is absent, no regular file, or not what the entry says.
    """
    told = entry.reconstructions
    path = folder / told.file
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != told.bytes:
            raise StoreError(f"{path} has {size} bytes, and the entry says {told.bytes}: it was changed.")
        if hashlib.file_digest(file, "sha256").hexdigest() != told.sha256:
            raise StoreError(f"{path} was changed: its SHA-256 is not the one in the entry.")
    try:
        with safe_open(path, "pt") as file:
            names, wanted = set(file.keys()), expected_names(entry.runs)
            if names != wanted:
                odd = sorted(names ^ wanted)[0]
                raise StoreError(f"{path} and the entry differ in the reconstruction {odd[:80]!r}; make it again.")
            for name in names:
                there = file.get_slice(name)
                kind, shape = there.get_dtype(), there.get_shape()
                if kind != "F32" or len(shape) != 4 or 0 in shape:
                    raise StoreError(f"{path}: {name} is {kind} {shape}, no float32 pictures.")
            found = {name: file.get_tensor(name).clone() for name in sorted(names)}
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"{path} is no safetensors file ({' '.join(str(error).split())[:200]}).") from None
    for name, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()) or float(tensor.min()) < 0 or float(tensor.max()) > 1:
            raise StoreError(f"{path}: {name} holds numbers outside of [0, 1]; a reconstruction has none.")
    return found


def _opened(path: Path) -> Any:
    try:
        # A link is not followed, and a pipe is not waited for.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}); it belongs beside the entry.") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise StoreError(f"{path} is no regular file; the reconstructions of an entry are one.")
    return os.fdopen(number, "rb")


def _here(plan: Plan, data: str | None, weights: str | None) -> Plan:
    if weights is not None and plan.weights is None:
        raise BadSetting("The entry's weights are drawn from its seed; leave --weights out.")
    if data is None and Spec.parse(plan.data).params.get("download"):
        raise BadSetting(f"The entry would fetch its pictures, {plan.data}; give --data with where they lie here.")
    return replace(plan, data=data or plan.data, weights=weights or plan.weights)


def _of_setup(entry: Entry, plan: Plan, prepared: Prepared) -> tuple[list[str], list[str]]:
    """What is wrong with the pictures and the network that the plan makes here, and what may differ."""
    network, problems, notes = prepared.main.network, [], []
    if entry.data != prepared.main.groups.digest:
        problems.append(
            f"{plan.data} holds other pictures here than the entry was made with: SHA-256 "
            f"{prepared.main.groups.digest[:16]}…, and {entry.data[:16]}… in the entry. See leakmap data recipe."
        )
    elif entry.truth != truth_digest(prepared.main):
        problems.append("The SHA-256 of the victims' pictures is not the one in the entry.")
    if entry.architecture != architecture_of(network) or entry.parameters != parameters_of(network):
        problems.append("The plan makes another architecture than the entry names.")
    if entry.weights != checksum(network.weights, {}):
        same = entry.where.versions == versions_of(network.device)
        if plan.weights is not None or (same and not plan.train_epochs):
            problems.append("The SHA-256 of the weights is not the one in the entry.")
        else:
            notes.append("The weights differ in their last digits, as training and other versions of torch do.")
    return problems, notes


def differences(entry: Entry, result: Result) -> list[str]:
    """In what an entry differs from what its reconstructions come to, in sentences.

    Args:
        entry: What is claimed to be measured.
        result: What the reconstructions come to.
    """
    told = {"level": entry.level, "attacker": entry.attacker}
    found: dict[str, Any] = {"level": result.verdict.level, "attacker": result.knowledge.attacker}
    told |= {f"figure {one.key}": asdict(one) for one in entry.figures}
    found |= {f"figure {one.key}": asdict(one) for one in quantities(result)}
    told |= {f"picture {one.picture} of client {one.client}": asdict(one) for one in entry.records}
    found |= {f"picture {one.picture} of client {one.client}": asdict(one) for one in records(result)}
    problems = [
        f"{place[0].upper() + place[1:]}: the entry says {_said(own)}, and its reconstructions come to {_said(other)}."
        for name in dict.fromkeys([*told, *found])
        for place, own, other in _unequal(name, told.get(name), found.get(name))
    ]
    left_out = sorted(result.flags.keys() - entry.flags.keys())
    return problems + [f"The entry leaves out the flag {name}: {result.flags[name]}" for name in left_out]


def _unequal(place: str, own: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(own, dict) and isinstance(other, dict):
        for key in own:
            yield from _unequal(f"{place}, {key}", own[key], other[key])
    elif isinstance(own, float) and isinstance(other, float):
        if not math.isclose(own, other, rel_tol=DIGITS, abs_tol=DIGITS):
            yield place, own, other
    elif own != other:
        yield place, own, other


def _said(value: Any) -> str:
    return "none" if value is None else f"{value:.8g}" if isinstance(value, float) else str(value)


def _differs(entry: Entry, one: Named, pictures: dict[str, Tensor]) -> list[str]:
    """What is wrong with the reconstruction of a client, beside that of the same attack run again."""
    client, told = one.trial.client, pictures.get(one.tensor)
    found = run(one.trial, one.setup)
    if found.score is None or told is None:
        if (found.score is None) == (told is None):
            return []
        why = ": ".join(found.failure) if found.failure else "it came to a reconstruction"
        return [f"Client {client + 1} did not repeat: the entry says otherwise, and the attack here: {why}."]
    own = [record.rank for record in entry.records if record.client == client + 1]
    far = float((found.score.pictures.cpu() - told).abs().max())
    if list(found.score.ranks) == own and far <= 1e-4:
        return []
    return [
        f"Client {client + 1} did not repeat: ranks {list(found.score.ranks)} here and {own} in the entry, pictures "
        f"that differ by up to {far:.2g}. A search on another processor or version may go another way: compare there."
    ]
