"""Running one trial: the only room where both sides meet."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from leakmap.attacker.attack import attack
from leakmap.attacker.attacks import attacks
from leakmap.attacker.protocol import Attack, Fitted
from leakmap.attacker.reconstruction import Attempt, Reconstruction, Tick
from leakmap.attacker.setting import Setting
from leakmap.client.simulate import Batch, Round, simulate
from leakmap.errors import LeakmapError, in_words
from leakmap.models.network import Network
from leakmap.observation.observation import Observation
from leakmap.runs.fitting import fitted, recipe
from leakmap.runs.informed import informed
from leakmap.runs.setup import Setup
from leakmap.runs.trial import Deranged, Outcome, Reached, Trial
from leakmap.scoring.lineup import pick_distractors
from leakmap.scoring.regions import cut, large_objects
from leakmap.scoring.regions import fitted as resized
from leakmap.scoring.score import Score, score
from leakmap.seeds import derive
from leakmap.threat import known_before, observe
from leakmap.version import __version__


def run(
    trial: Trial,
    setup: Setup,
    progress: Callable[[float], None] = lambda fraction: None,
    fitted_in: Path | None = None,
) -> Outcome:
    """Runs one trial. An error, ``sys.exit`` too, becomes a recorded failure; only an interruption gets through.

    Args:
        trial: What to run.
        setup: What it points to, on the device to use.
        progress: Called with the finished fraction; may raise KeyboardInterrupt to stop.
        fitted_in: Folder of what attacks are fitted to, see :func:`fitted_for`.

    Raises:
        ValueError: the setup is not the trial's.
    """
    if trial.setup != setup.digest:
        raise ValueError("the trial belongs to another setup")
    started = time.perf_counter()
    versions = versions_of(setup.network.device)
    if trial.scoring == "informed":
        return _informed(trial, setup, versions)
    try:
        ready = fitted_for(trial, setup, fitted_in, lambda fraction: progress(fraction / 2))
        begin = 0.5 if ready.state else 0.0
        found = attack(
            seen_by_server(trial, setup),
            ready,
            derive(trial.seed, "attack", trial.client),
            lambda fraction: progress(begin + (1 - begin) * fraction),
            fresh=True,
        )
        scored, deranged = judged(found, trial, setup)
        reached = tuple(_reached(attempt, trial, setup) for attempt in found.attempts)
    except (Exception, SystemExit) as error:
        return failed(trial, error, time.perf_counter() - started, versions)
    seconds = time.perf_counter() - started
    return Outcome(
        trial,
        scored,
        found.objective,
        found.curve,
        found.notes or {},
        found.used,
        reached=reached,
        deranged=deranged,
        seconds=seconds,
        versions=versions,
    )


def judged(found: Reconstruction, trial: Trial, setup: Setup) -> tuple[Score, Deranged | None]:
    """How a reconstruction fares against its client's pictures, and against those of the next client.

    Args:
        found: What the attacker says of the trial's client.
        trial: What was run.
        setup: What it points to.
    """
    places = places_of(found.last, trial, setup)
    truth, others = held_by(trial, setup, places), distractors_for(trial, setup, places)
    objects, plain = object_distractors_for(trial, setup, places), trial.scoring == "metrics"
    scored = score(found, truth, others, trial.metrics, objects, plain=plain)
    return replace(scored, places=places), _deranged(found, trial, setup)


def _informed(trial: Trial, setup: Setup, versions: dict[str, str]) -> Outcome:
    started = time.perf_counter()
    try:
        own, other = (seen_by_server(replace(trial, swap=trial.swap + more), setup) for more in (0, 1))
        held, line_up = held_by(trial, setup), chosen_for(trial, setup)[0]
        index = torch.tensor([int(_members(trial, setup)[trial.client, 0]), *line_up])
        device = setup.network.device
        candidates = Batch(setup.groups.pictures(index).to(device), setup.targets(index).to(device))
        scored, by_chance = informed(trial.rule, own, other, held, candidates, _client_seed(trial))
    except (Exception, SystemExit) as error:
        return failed(trial, error, time.perf_counter() - started, versions)
    return Outcome(trial, scored, deranged=by_chance, seconds=time.perf_counter() - started, versions=versions)


def failed(
    trial: Trial, error: BaseException, seconds: float = 0.0, versions: Mapping[str, str] | None = None
) -> Outcome:
    """The outcome of a trial that ended in an error."""
    foreign = isinstance(error, SystemExit) or (trial.code and not isinstance(error, LeakmapError))
    kind = type(error).__name__
    # With the line of a user's own file.
    text = in_words(error).removeprefix(f"{kind}: ") if foreign else " ".join(str(error).split())
    failure = (kind, text or "no message")
    return Outcome(trial, failure=failure, seconds=seconds, versions=dict(versions or {}))


def _reached(attempt: Attempt, trial: Trial, setup: Setup) -> Reached:
    told = (attempt.name, attempt.term, attempt.seconds, attempt.note, attempt.failed)
    if attempt.pictures is None or attempt.y is None:
        return Reached(*told)
    places = places_of(attempt.last, trial, setup)
    truth, others = held_by(trial, setup, places), distractors_for(trial, setup, places)
    scored = score(Reconstruction(attempt.pictures, attempt.y, attempt.term), truth, others, trial.metrics, plain=True)
    return Reached(*told, scored.ranks, scored.values)


def _deranged(found: Reconstruction, trial: Trial, setup: Setup) -> Deranged | None:
    """How a victim's reconstruction fares against the pictures of the next victim; no run is needed for it."""
    count = len(_members(trial, setup))
    if trial.group != "victims" or trial.scoring != "full" or count < 2:
        return None
    other = replace(trial, client=(trial.client + 1) % count)
    places = places_of(found.last, other, setup)
    scored = score(found, held_by(other, setup, places), distractors_for(other, setup, places), trial.metrics)
    return Deranged(scored.ranks, scored.galleries, scored.pose_ranks, scored.values)


def fitted_for(trial: Trial, setup: Setup, folder: Path | None = None, tick: Tick = lambda fraction: None) -> Fitted:
    """The attack of a trial, fitted to what the server knows before any client answers.

    Args:
        trial: Names the attack, and the clients that it is fitted to.
        setup: What the trial points to.
        folder: Where what was fitted is kept; None keeps it in this process.
        tick: Called with the finished fraction of the fit.
    """
    how = attacks.build(trial.attack)
    return fitted(how, setting_for(trial, setup), recipe_for(trial, setup, how), trial.seed, folder, tick)


def setting_for(trial: Trial, setup: Setup) -> Setting:
    """What the server knows before a trial's client answers."""
    count = _members(trial, setup).shape[1]
    return known_before(network_of(trial, setup), trial.rule, count, trial.threat, setup.public)


def recipe_for(trial: Trial, setup: Setup, how: Attack) -> str:
    """Names what a trial's attack is fitted to, see :func:`leakmap.runs.fitting.recipe`.

    Args:
        trial: One that waits for it.
        setup: What the trial points to.
        how: Its attack.
    """
    own = ""
    if how.fits and _captured(trial, setup) is not None:
        own = replace(setup, network=network_of(trial, setup)).network_digest
    return recipe(trial, how, own)


def seen_by_server(trial: Trial, setup: Setup) -> Observation:
    """The Observation of a trial: its client's update, or that of swapped pictures, and what is granted besides."""
    truth, groups = held_by(trial, setup), setup.groups
    captured, network = _captured(trial, setup), network_of(trial, setup)
    shared = truth
    if trial.swap:
        other = groups.pictures(groups.swaps[trial.swap - 1, trial.client])
        shared = Batch(other.to(truth.pictures), truth.y, truth.areas)
    if captured is not None and not trial.swap:
        round = Round(network, trial.rule, truth, captured.update, captured.buffers or {})
    else:
        round = simulate(network, trial.rule, shared, _client_seed(trial))
    return observe(
        round,
        trial.threat,
        setup.public,
        scored=truth.pictures,
        seed=derive(trial.seed, "observe", trial.client),
    )


def network_of(trial: Trial, setup: Setup) -> Network:
    """The network that a trial's client got."""
    captured = _captured(trial, setup)
    return setup.network if captured is None else captured.network


def _captured(trial: Trial, setup: Setup) -> Observation | None:
    return setup.captured[trial.client] if setup.captured and trial.group == "victims" else None


def places_of(last: bool, trial: Trial, setup: Setup) -> tuple[int, ...]:
    """Which pictures of a trial's client a reconstruction speaks of, by their places; empty: of all.

    Args:
        last: Whether it speaks of the last local step alone. Of a captured client the true pictures are taken to be in
            the order of its last epoch.
        trial: Names the client.
        setup: What the trial points to.
    """
    if not last:
        return ()
    count = _members(trial, setup).shape[1]
    own = None if _captured(trial, setup) is not None else derive(_client_seed(trial), "order")
    return tuple(trial.rule.held_by(trial.rule.steps(count) - 1, count, own).tolist())


def _client_seed(trial: Trial) -> int:
    return derive(trial.seed, "client", trial.client)


def held_by(trial: Trial, setup: Setup, places: Sequence[int] = ()) -> Batch:
    """The true batch of a trial's client, or of it what stands in these places."""
    index = _members(trial, setup)[trial.client]
    index = index[list(places)] if places else index
    device = setup.network.device
    areas = setup.groups.areas[index] if setup.groups.areas.numel() else None
    return Batch(setup.groups.pictures(index).to(device), setup.targets(index).to(device), areas)


def _members(trial: Trial, setup: Setup) -> Tensor:
    """``(clients, count)`` indices of the pictures of a trial's clients."""
    groups = setup.groups
    return {"victims": groups.victims, "controls": groups.controls, "rehearsals": groups.rehearsals}[trial.group]


def distractors_for(trial: Trial, setup: Setup, places: Sequence[int] = ()) -> list[Tensor]:
    """For each true picture, or each in these places, the other candidates, ``(G - 1, C, h, w)`` in [0, 1].

    Of letterboxed pictures ``h`` and ``w`` are what lies between the bars of the true one, which the others are brought
    to: the shape of the bars identifies nobody.
    """
    groups = setup.groups
    found = []
    members, every = _members(trial, setup)[trial.client].tolist(), chosen_for(trial, setup)
    for place in places or range(len(members)):
        index, chosen = members[place], every[place]
        candidates = groups.pictures(torch.tensor(chosen))
        if groups.areas.numel():
            truth = cut(groups.pictures(torch.tensor(index)), groups.areas[index])
            pairs = zip(candidates, groups.areas[list(chosen)], strict=True)
            candidates = torch.stack([resized(picture, area, truth) for picture, area in pairs])
        found.append(candidates)
    return found


def chosen_for(trial: Trial, setup: Setup, places: Sequence[int] = ()) -> tuple[tuple[int, ...], ...]:
    """For each true picture, or each in these places, which pictures are the other candidates of its line-up.

    Pictures of one class take turns through the distractors of that class, so that line-ups share none while there are
    enough: shared ones make ranks depend on each other, see :func:`leakmap.scoring.statistics.spread`.
    """
    groups, members = setup.groups, _members(trial, setup)
    before = groups.labels[members[: trial.client].flatten()].tolist()
    found: list[tuple[int, ...]] = []
    for label in groups.labels[members[trial.client]].tolist():
        turn, count = before.count(label), trial.gallery - 1
        indices = pick_distractors(groups.labels, label, groups.distractors, count, trial.seed, turn)
        found.append(tuple(indices.tolist()))
        before.append(label)
    return tuple(found[place] for place in places) if places else tuple(found)


def object_distractors_for(trial: Trial, setup: Setup, places: Sequence[int]) -> list[list[Tensor]]:
    """For each true picture in these places, and each large object, the other candidates, ``(G - 1, C, h, w)``."""
    groups = setup.groups
    kinds, candidates = setup.spare_objects if setup.network.task.objects else (torch.tensor([]), [])
    if not candidates:
        return []
    pool, seed = torch.arange(len(kinds)), derive(trial.seed, "object line-up", trial.client)
    before: list[int] = []
    found: list[list[Tensor]] = []
    for index in _members(trial, setup)[trial.client]:
        picture = groups.pictures(index)
        classes, boxes = large_objects(groups.objects[index], *picture.shape[-2:])
        line_ups = []
        for label, (top, left, bottom, right) in zip(classes.tolist(), boxes.tolist(), strict=True):
            truth = picture[:, top:bottom, left:right]
            chosen = pick_distractors(kinds, label, pool, trial.gallery - 1, seed, turn=before.count(label))
            before.append(label)
            line_ups.append(torch.stack([resized(candidates[i], None, truth) for i in chosen.tolist()]))
        found.append(line_ups)
    return [found[place] for place in places] if places else found


def versions_of(device: torch.device) -> dict[str, str]:
    """What a result depends on besides its trial."""
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"
    return {
        "leakmap": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("torchvision", "timm") if find_spec(name)},
        "device": device_name,
    }
