"""Writes where a result comes from while the audit runs: afterwards nobody could tell."""

import hashlib
import json
import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path

from leakmap.errors import StoreError
from leakmap.files import checksum, write_text
from leakmap.models.network import Network
from leakmap.plan.plan import Plan
from leakmap.registry.user_code import user_code_digest
from leakmap.result.provenance import FILE, Provenance
from leakmap.runs.setup import Setup
from leakmap.runs.store import Store
from leakmap.version import __version__


def begun(plan: Plan, setup: Setup, store: Store, device: str, *, anything: bool) -> Provenance:
    """Writes what is known when the runs begin. An audit that continues keeps the time at which it began.

    Args:
        plan: The audit.
        setup: Its network and pictures.
        store: Its folder.
        device: Where it computes.
        anything: Whether anything is left to run; else what an earlier call wrote stays as it is.
    """
    before = _before(setup.digest, store)
    if before is not None and before.finished and not anything:
        return before
    network = setup.network
    found = Provenance(
        started=_oldest(store) if before is None else before.started,
        finished="",
        contents=setup.digest,
        architecture=architecture_of(network),
        weights=checksum(network.weights, {}),
        pictures=setup.groups.digest,
        observations=tuple(observation.digest() for observation in setup.captured),
        parameters=parameters_of(network),
        pictures_per_client=plan.batch_size,
        leakmap=__version__,
        commit=commit(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        device=device,
        packages=_packages(),
    )
    _write(found, store)
    return found


def architecture_of(network: Network) -> str:
    """SHA-256 of the specification, of the user's own code and of the names, types and shapes of the weights."""
    shapes = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in network.weights.items()}
    code = [network.code.fingerprint(), user_code_digest(network.model)]
    return hashlib.sha256(json.dumps([str(network.model), code, shapes]).encode()).hexdigest()


def parameters_of(network: Network) -> int:
    """How many numbers of a network are parameters, buffers left out."""
    return sum(parameter.numel() for parameter in network.module().parameters())


def ended(provenance: Provenance, store: Store) -> None:
    """Writes when the last run ended."""
    if not provenance.finished:
        _write(provenance.model_copy(update={"finished": now()}), store)


def now() -> str:
    """The time by this machine's clock, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(found: Provenance, store: Store) -> None:
    write_text(store.folder / FILE, found.model_dump_json(by_alias=True, indent=2) + "\n")


def _before(contents: str, store: Store) -> Provenance | None:
    """What an earlier call of this audit wrote; None where there was none."""
    with suppress(StoreError):
        found = Provenance.read(store.folder / FILE)
        return found if found.contents == contents else None
    return None


def _oldest(store: Store) -> str:
    """When the oldest run in a folder without provenance was written, or now where it holds none."""
    stamps = [path.stat().st_mtime for path in map(store.path, store.keys()) if path.is_file()]
    return datetime.fromtimestamp(min(stamps), UTC).isoformat(timespec="seconds") if stamps else now()


@lru_cache(maxsize=1)
def _packages() -> tuple[str, ...]:
    found = {f"{one.metadata['Name']}=={one.version}" for one in distributions() if one.metadata["Name"]}
    return tuple(sorted(found, key=str.lower))


@lru_cache(maxsize=1)
def commit() -> str:
    """The commit of leakmap's own source, ``+`` behind it where files differ from it.

    Empty where it does not run from a checkout, as an installed package, or there is no git.
    """
    here = Path(__file__)

    def git(*words: str) -> str:
        asked = ["git", "-C", str(here.parent), *words]
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if not git("ls-files", here.name):  # a package that is installed inside a user's checkout is not tracked there
            return ""
        return git("rev-parse", "HEAD") + ("+" if git("status", "-s", "--", "..") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
