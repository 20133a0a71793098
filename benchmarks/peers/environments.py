"""Processes and environments that contestants run in."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

import leakmap
from benchmarks.machine import RETURN_PAGES

ROOT = Path(__file__).parents[2]
BREACHING = ("breaching==0.1.2",)
LEAKPRO_EXTRAS = ("federated",)
LEAKPRO_UNDECLARED = ("transformers",)
"""What LeakPro imports at once without listing it among the requirements of federated learning."""
QUIET = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HYDRA_FULL_ERROR": "1"}


class Unavailable(Exception):
    """A contestant cannot take part; the sentence says why."""


@dataclass(frozen=True)
class Place:
    """Where a kind of contestants runs.

    Args:
        kind: Of a worker.
        python: The interpreter.
        paths: On its path, besides this project.
        version: Of what is not installed there.
    """

    kind: str
    python: Path
    paths: tuple[Path, ...] = ()
    version: str = ""


def here() -> Place:
    """Where leakmap runs."""
    return Place("leakmap", Path(sys.executable))


def for_breaching(folder: Path) -> Place:
    """breaching in an environment of its own, made if need be."""
    return Place("breaching", environment(folder / "breaching", BREACHING))


def for_leakpro(folder: Path, checkout: Path) -> Place:
    """LeakPro from a checkout, with its requirements in an environment of its own.

    Raises:
        Unavailable: there is no checkout of LeakPro.
    """
    try:
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = [line for extra in LEAKPRO_EXTRAS for line in project["optional-dependencies"][extra]]
        requirements = (*project["dependencies"], *extras, *LEAKPRO_UNDECLARED)
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise Unavailable(f"the folder given is no checkout of LeakPro ({type(error).__name__})") from None
    revision = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "--short=10", "HEAD"], check=False, capture_output=True, text=True
    )
    version = f"{project['version']} ({revision.stdout.strip() or 'unknown revision'})"
    return Place("leakpro", environment(folder / "leakpro", requirements), (checkout.resolve(),), version)


def environment(folder: Path, requirements: tuple[str, ...]) -> Path:
    """The interpreter of a virtual environment with these requirements.

    It sees the packages of this interpreter behind its own: so everyone computes with the same build of torch.

    Raises:
        Unavailable: the requirements cannot be installed.
    """
    ready, wanted = folder / "ready", "\n".join((str(_shared()), *requirements))
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    (Path(own) / "shared.pth").write_text(f"{_shared()}\n", encoding="utf-8")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    done = subprocess.run(install, check=False, capture_output=True, text=True)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip failed")
        raise Unavailable(f"{', '.join(requirements)} cannot be installed: {last}")
    ready.write_text(wanted, encoding="utf-8")
    return python


def _shared() -> Path:
    return Path(torch.__file__).parents[1]


class Worker:
    """A worker process with a case.

    Args:
        place: Where it runs.
        case: Folder of the case.
        device: ``cpu`` or ``cuda``.
        log: Takes what the worker prints.
        return_pages: Whether freed memory goes back at once, which costs time.

    Raises:
        Unavailable: it does not start.
    """

    def __init__(self, place: Place, case: Path, device: str, log: Path, *, return_pages: bool = False):
        source = Path(leakmap.__file__).parents[1]
        variables = {**os.environ, **QUIET, **(RETURN_PAGES if return_pages else {})}
        variables["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, source, *place.paths)))
        if device == "cpu":
            variables["CUDA_VISIBLE_DEVICES"] = ""
        self.place, self.log = place, log
        self._nowhere = tempfile.TemporaryDirectory()
        self._log = log.open("a", encoding="utf-8")
        command = [place.python, "-m", "benchmarks.peers.worker", place.kind, case.resolve(), device]
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=variables,
            cwd=self._nowhere.name,
            text=True,
        )
        try:
            hello = self._answer()
        except Unavailable:
            self.close()
            raise
        self.versions: Mapping[str, str] = hello["versions"]
        self.contestants: list[str] = hello["contestants"]
        self.attacks: list[str] = hello["attacks"]

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
            Unavailable: it failed.
        """
        if self._process.stdin is None or self._process.poll() is not None:
            raise Unavailable(f"the process has ended; see {self.log}")
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise Unavailable(f"the process ended; see {self.log}")
        answer = json.loads(line)
        if "error" in answer:
            raise Unavailable(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._nowhere.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()
