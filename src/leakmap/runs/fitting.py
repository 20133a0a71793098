"""What attacks are fitted to before any client answers: fitted once, kept, shared by all trials of one setting."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from leakmap.attacker.attack import fit
from leakmap.attacker.protocol import Attack, Fitted, Kept
from leakmap.attacker.reconstruction import Tick
from leakmap.attacker.setting import Setting
from leakmap.errors import StoreError
from leakmap.files import DAMAGED, read_tensors, write_tensors
from leakmap.runs.layout import SCHEMA
from leakmap.runs.trial import Trial

FOLDER = "fitted"
"""Where what was fitted lies in a folder of results."""
PART = ".part.safetensors"
"""End of the name of a file with a part of a fit that is not finished."""
STATE_LIMIT = 2**33
"""Bytes of a file beyond which it is not read."""
STATES_HELD = 4
"""States that a process keeps at hand."""


def recipe(trial: Trial, attack: Attack, network: str = "") -> str:
    """SHA-256 of all that decides what is fitted: its name, before any network exists.

    The setup's name covers network, task, code and public pictures; the client and its swapped pictures do not matter.

    Args:
        trial: One that waits for it.
        attack: Its attack, or floor.
        network: Digest of the network that this client got, where captured clients each have their own.
    """
    own = {
        "schema": SCHEMA,
        "fits": attack.fits,
        "setup": trial.setup,
        "group": trial.group,
        "network": network,
        "rule": asdict(trial.rule),
        "threat": asdict(trial.threat),
        "code": trial.code,
        "seed": trial.seed,
    }
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def path_of(folder: Path, key: str) -> Path:
    """Where what was fitted by a recipe lies."""
    return folder / f"{key}.safetensors"


_held: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
_ready: dict[str, list[tuple[Attack, Fitted]]] = {}
_failed: dict[str, Exception] = {}


def fitted(attack: Attack, setting: Setting, key: str, seed: int, folder: Path | None, tick: Tick) -> Fitted:
    """An attack that is fitted to a setting: restored from what is kept, else fitted and kept.

    A process restores it once, and attacks client after client with it.

    Args:
        attack: The attack, or a floor.
        setting: What the server knows before any client answers.
        key: Of the recipe.
        seed: All randomness of the fit comes from it.
        folder: Of files, for all processes that share it; None keeps it in this process only.
        tick: Called with the finished fraction of the fit.
    """
    if not attack.fits:
        return fit(attack, setting, seed, tick)
    if key in _failed:
        raise _failed[key]
    if key not in _held:
        try:
            _held[key] = _kept(attack, setting, key, seed, folder, tick)
        except Exception as error:
            # Every trial that waits for it ends in the same error, and none repeats minutes of work to get there.
            _failed[key] = error
            raise
        while len(_held) > STATES_HELD:
            _ready.pop(_held.popitem(last=False)[0], None)
    _held.move_to_end(key)
    for other, ready in _ready.setdefault(key, []):
        if other == attack:
            return ready
    # Restored even where it has just been fitted: so the first trial works with what all others will read.
    state = {name: tensor.to(setting.device, copy=True) for name, tensor in _held[key].items()}
    ready = attack.restored(setting.copied(), state)
    _ready[key].append((attack, ready))
    return ready


def forget_fitted() -> None:
    """Lets go of what this process keeps at hand."""
    _held.clear()
    _ready.clear()
    _failed.clear()


def _kept(attack: Attack, setting: Setting, key: str, seed: int, folder: Path | None, tick: Tick) -> dict[str, Tensor]:
    if folder is None:
        return _own(fit(attack, setting, seed, tick).state)
    folder.mkdir(parents=True, exist_ok=True)
    found = _read(path_of(folder, key), key)
    if found is None:
        found = _own(fit(attack, setting, seed, tick, _parts(folder, key)).state)
        write_tensors(path_of(folder, key), found, {"fitted": key})
        for part in folder.glob(f"{key}.*{PART}"):
            part.unlink(missing_ok=True)
    return found


def _own(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _parts(folder: Path, key: str) -> Kept:
    """Keeps parts of a fit beside where it will lie, until it is finished."""

    def kept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path, own = folder / f"{key}.{name}{PART}", f"{key} {name}"
        found = _read(path, own)
        if found is None:
            write_tensors(path, _own(make()), {"fitted": own})
            found = _read(path, own)
        if found is None:
            raise StoreError(f"{path} was written and cannot be read; look at the disk, then run again.")
        return found

    return kept


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    """What was kept; None where there is nothing that can be read."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_tensors(path, STATE_LIMIT)
        return tensors if metadata["fitted"] == key else None
    except DAMAGED:
        return None
