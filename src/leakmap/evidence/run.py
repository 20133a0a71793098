"""The folder of a finished audit, read with care: anybody may have written what lies there."""

import hashlib
import json
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from leakmap.auditing.conclude import row_of, stills
from leakmap.auditing.recipe import trials_of_clients
from leakmap.errors import LeakmapError, StoreError
from leakmap.files import DAMAGED, finite, read_json
from leakmap.result.provenance import FILE, Provenance
from leakmap.result.result import Result, read_result
from leakmap.runs.run import held_by
from leakmap.runs.setup import Setup
from leakmap.runs.store import Store
from leakmap.runs.trial import Outcome, Trial

SETUP, SETUP_LIMIT = "victims.safetensors", 2**34
Rows = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Run:
    """A finished audit.

    Args:
        folder: Where it lies.
        result: What it found.
        result_digest: SHA-256 of its ``result.json``.
        provenance: Where it comes from; None for audits of earlier versions, which did not write it.
    """

    folder: Path
    result: Result
    result_digest: str
    provenance: Provenance | None


def read_run(folder: Path) -> Run:
    """Reads the folder of an audit; nothing in it is run.

    Raises:
        StoreError: it holds no result, something in it is no regular file, or its files do not belong together.
    """
    if not folder.is_dir():
        raise StoreError(f"There is no folder {folder}; give the --out of a leakmap audit.")
    path = folder / "result.json"
    if not _there(path):
        inside = sorted(str(one.parent) for one in folder.glob("*/result.json"))[:8]
        told = f"give one of {', '.join(inside)}" if inside else "give the --out of a leakmap audit that finished"
        raise StoreError(f"{folder} holds no result.json; {told}.")
    result = read_result(path)
    plan = read_json(folder / "plan.json") if _there(folder / "plan.json") else None
    own = finite(json.loads(json.dumps(asdict(result.plan))))
    contents = plan.pop("contents", None) if isinstance(plan, dict) else None
    if plan is not None and plan != own:
        raise StoreError(f"{path} and plan.json are of different audits; run the audit again in a folder of its own.")
    provenance = Provenance.read(folder / FILE) if _there(folder / FILE) else None
    if provenance is not None and contents is not None and provenance.contents != contents:
        raise StoreError(f"{folder / FILE} and plan.json are of different audits; run the audit again.")
    return Run(folder, result, hashlib.sha256(path.read_bytes()).hexdigest(), provenance)


def pictures_of(run: Run) -> tuple[Rows, str]:
    """The named pictures of each finished client, and why there are none where there are none.

    Network, pictures and runs are read as data; code of the user's own is not needed and not run.

    Raises:
        StoreError: the stored runs are not those of the result.
    """
    path = run.folder / SETUP
    if not _there(path):
        return [], f"the run keeps no pictures ({SETUP} is absent, as after --workers 0)"
    if path.stat().st_size > SETUP_LIMIT:
        return [], f"{SETUP} is larger than {SETUP_LIMIT} bytes"
    try:
        setup = Setup.load(path)
        if run.provenance is not None and setup.digest != run.provenance.contents:
            return [], f"{SETUP} is of another audit"
        planned = trials_of_clients(run.result.plan, setup.digest)
        return [_row(run, setup, planned, client.client) for client in run.result.finished], ""
    except StoreError:
        raise
    except LeakmapError as error:
        return [], str(error).rstrip(".")
    except DAMAGED as error:
        return [], f"{SETUP} does not fit the result ({type(error).__name__})"


def _row(run: Run, setup: Setup, planned: dict[str, list[Trial]], v: int) -> dict[str, Tensor]:
    found = {role: _outcome(run, planned[role][v]) for role in ("attack", "swapped", "prior_only")}
    own = found["attack"] and found["attack"].score
    told = next(client for client in run.result.finished if client.client == v)
    if own is None or own.ranks != told.ranks:
        raise StoreError(
            f"The stored runs of client {v + 1} in {run.folder} are absent, damaged or another audit's; run the same "
            "command again, or leave pictures out with --no-pictures."
        )
    prior, swapped = (one and one.score for one in (found["prior_only"], found["swapped"]))
    truth = held_by(planned["attack"][v], setup, own.places).pictures
    return row_of(truth, own, prior, swapped, stills(setup.groups, v, own.places))


def _outcome(run: Run, trial: Trial) -> Outcome | None:
    store = Store(run.folder)
    return store.get(trial) if _there(store.path(trial.key)) else None


def _there(path: Path) -> bool:
    """Whether there is a file.

    Raises:
        StoreError: something else stands there, such as a link to elsewhere or a pipe.
    """
    try:
        found: Any = path.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path} is no regular file; a run's folder holds no links, pipes or devices.")
    return True
