"""What attacks are fitted to before any client answers: fitted once, kept, shared by all trials of one setting."""

import hashlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from leakmap.attacker.attack import fit
from leakmap.attacker.protocol import Attack, Fitted
from leakmap.attacker.reconstruction import Tick
from leakmap.attacker.setting import Setting
from leakmap.files import DAMAGED
from leakmap.runs.trial import SCHEMA, Trial

FOLDER = "fitted"
"""Where what was fitted lies in a folder of results."""
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


def fitted(attack: Attack, setting: Setting, key: str, seed: int, folder: Path | None, tick: Tick) -> Fitted:
    """An attack that is fitted to a setting: restored from what is kept, else fitted and kept.

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
    if key not in _held:
        _held[key] = _kept(attack, setting, key, seed, folder, tick)
        while len(_held) > STATES_HELD:
            _held.popitem(last=False)
    _held.move_to_end(key)
    # Restored even where it has just been fitted: so the first trial works with what all others will read.
    return attack.restored(setting.copied(), {n: t.to(setting.device, copy=True) for n, t in _held[key].items()})


def forget_fitted() -> None:
    """Lets go of what this process keeps at hand."""
    _held.clear()


def _kept(attack: Attack, setting: Setting, key: str, seed: int, folder: Path | None, tick: Tick) -> dict[str, Tensor]:
    found = None if folder is None else _read(path_of(folder, key), key)
    if found is None:
        state = fit(attack, setting, seed, tick).state
        found = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
        if folder is not None:
            _write(path_of(folder, key), key, found)
    return found


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    """What was kept; None where there is nothing that can be read."""
    if not path.is_file() or path.stat().st_size > STATE_LIMIT:
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata()["fitted"] != key:
                return None
            names = list(file.keys())
            return {name: file.get_tensor(name).clone() for name in names}  # aligned, as rounding depends on it
    except DAMAGED:
        return None


def _write(path: Path, key: str, state: Mapping[str, Tensor]) -> None:
    """Under a temporary name of its own, as others may be at the same work, and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{key}.{uuid.uuid4().hex}.part")
    save_file(dict(state), temporary, metadata={"fitted": key})
    temporary.replace(path)
