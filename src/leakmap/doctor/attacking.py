"""An attack from a file alone, in a process that never sees the data."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from leakmap.attacker.attack import attack, check_room, fit
from leakmap.attacker.attacks import attacks
from leakmap.attacker.protocol import checked
from leakmap.attacker.setting import setting_of
from leakmap.attacker.unlabelled import unlabelled
from leakmap.auditing.estimate import Fitting, fitting_to
from leakmap.drawing import drawn
from leakmap.errors import BadSetting, LeakmapError, UsageError, in_words
from leakmap.files import read_json, write_json, write_tensors, written
from leakmap.observation.observation import Observation
from leakmap.plan.plan import Progress
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code, user_code_digest
from leakmap.runs.runner import FITTING

GAP = 2
"""Pixels between the pictures of a sheet."""
SHOWN_SIDE = 256


@dataclass(frozen=True)
class Attacked:
    """What an attack from a file left behind.

    Args:
        folder: With ``attack.json``, ``reconstruction.safetensors`` and ``pictures.png``.
        record: The content of ``attack.json``.
        resumed: Whether it was there already.
    """

    folder: Path
    record: dict[str, Any]
    resumed: bool = False


def attack_file(
    observation: Observation,
    how: Spec,
    out: Path | str | None = None,
    *,
    seed: int = 0,
    progress: Progress = lambda what, fraction: None,
    foretold: Callable[[Fitting], None] = lambda fitting: None,
) -> Attacked:
    """Attacks an Observation and writes what the attacker says; the same attack in the same folder is not repeated.

    Args:
        observation: Read from a file.
        how: The attack.
        out: Folder to write into; None for one in ``runs`` that is named after what decides the result.
        seed: All randomness of the attack comes from it.
        progress: Called with what is being done and the finished fraction.
        foretold: Called with what fitting the attack takes, where it is fitted.

    Raises:
        NotGranted: the attack needs a fact that the file does not have.
        NotApplicable: its precondition does not hold.
        UsageError: its pictures do not fit into memory, or an attack of the user's own fails.
        BadSetting: no rule reads the labels that it needs, or the attack lacks what an attack must have.
    """
    key = _key(observation, how, seed)
    folder = Path("runs") / f"attack-{key[:8]}" if out is None else Path(out)
    known = read_json(folder / "attack.json")
    if isinstance(known, dict) and known.get("key") == key and (folder / "reconstruction.safetensors").is_file():
        return Attacked(folder, known, resumed=True)
    started = time.perf_counter()
    built = checked(attacks.build(how))
    observation.need(*sorted(built.needs))
    check_room(observation.network, observation.count)
    why, all_of_it = unlabelled(built, observation)
    if why and all_of_it:
        raise BadSetting(f"{how} cannot attack this client: {why}")
    setting = setting_of(observation)
    if (fitting := fitting_to(built, setting)) is not None:
        foretold(fitting)
    try:
        ready = fit(built, setting, seed, lambda fraction: progress(FITTING, fraction))
        found = attack(observation, ready, seed, lambda fraction: progress("attacking", fraction))
    except (Exception, SystemExit) as error:
        if not is_user_code(how.name) or isinstance(error, (LeakmapError, MemoryError)):
            raise
        raise UsageError(f"The attack {how} failed: {in_words(error)}.") from error
    record = {
        "key": key,
        "attack": str(how),
        "seed": seed,
        "pictures": len(found.pictures),
        "labels": found.y.tolist(),
        "objective": found.objective,
        "curve": list(found.curve),
        "notes": found.notes or {},
        "used": sorted(found.used),
        "granted": [fact for fact, given in observation.granted().items() if given],
        "seconds": time.perf_counter() - started,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "reconstruction.safetensors", {"pictures": found.pictures, "labels": found.y})
    _write_sheet(folder / "pictures.png", found.pictures)
    write_json(folder / "attack.json", record)
    return Attacked(folder, record)


def as_known(
    observation: Observation, *, labels: Sequence[int] | None = None, count: int | None = None, buffers: bool = True
) -> Observation:
    """The Observation of a server that knows more of a client than its file says, or less.

    Args:
        observation: Read from the file.
        labels: Class of each of the client's pictures, in their order.
        count: How many pictures it has; the labels say it too.
        buffers: False leaves the returned buffers out.

    Raises:
        ObservationError: the labels or the count do not fit.
    """
    if labels is not None:
        y = torch.tensor(labels, dtype=torch.int64, device=observation.network.device)
        observation = replace(observation, count=len(labels), labels=y)
    if count is not None:
        observation = replace(observation, count=count)
    return observation if buffers else replace(observation, buffers=None)


def _key(observation: Observation, how: Spec, seed: int) -> str:
    """SHA-256 of what decides the result, code of the user's own included."""
    network = observation.network
    code = [network.code.fingerprint(), user_code_digest(how), *map(_typed, (network.model, network.task.loss))]
    text = json.dumps([observation.digest(), str(how), seed, code])
    return hashlib.sha256(text.encode()).hexdigest()


def _typed(spec: Spec) -> str:
    """SHA-256 of the file that a specification names; empty if there is none: code may also be given in memory."""
    try:
        return user_code_digest(spec)
    except UsageError:
        return ""


def _write_sheet(path: Path, pictures: Tensor) -> None:
    """All pictures in one image, small ones enlarged without smoothing."""
    enlarged = max(1, SHOWN_SIDE // 2 // max(pictures.shape[-2:]))
    tiles = [
        drawn(picture.repeat_interleave(enlarged, 1).repeat_interleave(enlarged, 2), SHOWN_SIDE) for picture in pictures
    ]
    width, height = tiles[0].size
    columns = min(len(tiles), 8)
    rows = -(-len(tiles) // columns)
    whole = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, tile in enumerate(tiles):
        whole.paste(tile, (i % columns * (width + GAP), i // columns * (height + GAP)))
    written(path, lambda temporary: whole.save(temporary, "PNG"))
