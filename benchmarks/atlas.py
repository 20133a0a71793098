"""Which clients give their pictures away to any attack tried here, and what decides it?

    python -m benchmarks.atlas --data DIR [--only CELL ...] [--out FOLDER] [--page]

DIR holds ``cifar10/cifar10_subset.npz`` and ``weights``. A cell takes one to six minutes of one
core. Each is stored when it is finished, and the same command continues. With ``--page`` what is measured so far is
written to docs/results/atlas.md, its heat map, and src/leakmap/inspection/reference.json, which ``leakmap inspect``
shows.

Victims are CIFAR-10 test pictures; public pictures are training pictures, of which networks that are trained here saw
none. An inverse is fitted to 1,000 simulated clients, down to 300 where one takes long, as those with many pictures do,
of which more would be read with more; it reads 100 clients or more. The closed forms attack the same clients where they
apply. Where a client holds at most four pictures of 32 pixels, two searches of 100 iterations attack three simulated
clients, and the better one four to six real ones. Each attack rehearses on public pictures that nothing was fitted to;
the one with the highest NCC there speaks for the cell. The truth chooses nothing.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.atlas_cells import CELLS, FILES, Cell
from benchmarks.atlas_page import PAGE, PICTURE, heat_map, page
from benchmarks.atlas_reference import write_reference
from benchmarks.cases import Entry, run_cases
from benchmarks.clients import IMAGENET, Pool, attacked, class_mean, figures, neutral, pool_of
from benchmarks.markdown import versions
from leakmap.attacker.attack import fit
from leakmap.attacker.attacks import attacks
from leakmap.attacker.learned.rehearsal import READ
from leakmap.attacker.protocol import Fitted
from leakmap.attacker.suite import CLOSED_FORMS
from leakmap.client.training import accuracy, train
from leakmap.errors import LeakmapError, NotApplicable
from leakmap.models.network import Network, build_network
from leakmap.observation.contents import Public
from leakmap.plan.plan import Progress
from leakmap.problem.task import Task
from leakmap.report.charts import write
from leakmap.scoring.lineup import cross_correlation
from leakmap.scoring.match import matched
from leakmap.seeds import generator
from leakmap.threat import ThreatModel, known_before

EPOCHS = 5
"""Of networks that are briefly trained."""
CLIENTS, MORE = 100, 150
"""Clients that are attacked without a search; the latter where they hold at most four pictures."""
REHEARSED, SEARCH_REHEARSED = 20, 3
"""Simulated clients that an attack rehearses on at most, and that a search does."""
SEARCHED, SEARCHABLE = 6, 4
"""Clients that the better search attacks where they hold one picture, and the most pictures of a client it attacks."""
SEARCHES = ("inverting_gradients,steps=100", "even_steps,steps=100")
MANY = 64
"""Pictures of a client up to which an inverse reads all of them."""
SIMULATED = ((12.0, 1000), (24.0, 600), (36.0, 400), (math.inf, 300))
"""Most work of a client, in passes of the base network over one picture -> clients that an inverse is fitted to."""
LONG = 5.0
"""Seconds of a core that a client takes on which a closed form is no longer tried on all of them."""
PADDING = 4
"""Pixels by which an augmented picture is shifted at most, of 32."""


@dataclass(frozen=True)
class Sides:
    """What a cell is measured with; no picture is on two sides.

    Args:
        network: What the server sends.
        pool: The victims, and the public pictures that attacks are fitted to.
        tried: The same, with public pictures that nothing is fitted to in the place of victims.
    """

    network: Network
    pool: Pool
    tried: Pool


@cache
def _network(data: Path, model: str, weights: str, side: int) -> Network:
    pool = pool_of(data, "cifar-halved")
    if weights == "full":
        return build_network(Task((3, 32, 32), 10, *IMAGENET), model, weights=str(data / "weights" / FILES[model]))
    shown = pool.public.transpose(0, 1).flatten(1)
    task = Task((3, side, side), pool.classes, tuple(shown.mean(1).tolist()), tuple(shown.std(1).tolist()))
    network = build_network(task, model, seed=11)
    return train(network, pool.training, pool.training_y, EPOCHS, 11) if weights == "brief" else network


def sides_of(cell: Cell, data: Path) -> Sides:
    """The network and the pictures of a cell."""
    pool = pool_of(data, "cifar-halved")
    if cell.side != pool.victims.shape[-1]:
        larger = lambda x: F.interpolate(x, (cell.side, cell.side), mode="bicubic", antialias=True).clamp(0, 1)  # noqa: E731
        pool = replace(pool, victims=larger(pool.victims), public=larger(pool.public))
    tried = min(REHEARSED, max(SEARCH_REHEARSED, len(pool.public) // 4 // cell.count)) * cell.count
    apart = replace(pool, victims=pool.public[:tried], y=pool.public_y[:tried])
    left = {"public": pool.public[tried:], "public_y": pool.public_y[tried:]}
    pool, apart = replace(pool, **left), replace(apart, **left)
    if cell.augmented:
        pool, apart = (replace(each, victims=augmented(each.victims, 5)) for each in (pool, apart))
    return Sides(_network(data, cell.model, cell.weights, cell.side), pool, apart)


def augmented(pictures: Tensor, seed: int) -> Tensor:
    """Every picture once as a training pipeline varies it: mirrored or not, padded with black, and cropped."""
    source = generator(seed, "augmented")
    side = pictures.shape[-1]
    padded = F.pad(pictures, (PADDING,) * 4)
    rows: list[Tensor] = []
    for picture in padded:
        down, right, mirrored = (int(torch.randint(most, (1,), generator=source)) for most in (9, 9, 2))
        cropped = picture[:, down : down + side, right : right + side]
        rows.append(cropped.flip(-1) if mirrored else cropped)
    return torch.stack(rows)


def holdings(pictures: int, count: int, clients: int) -> Tensor:
    """``(clients, count)`` places of what each holds: no two hold the same picture, where there are enough."""
    if clients * count <= pictures:
        return torch.arange(clients * count).view(clients, count)
    source = generator(17, "holdings")
    return torch.stack([torch.randperm(pictures, generator=source)[:count] for _ in range(clients)])


def simulated(cell: Cell) -> int:
    """Clients that an inverse is fitted to: fewer where one of them takes long."""
    # Of returned buffers alone one forward pass is simulated; a gradient takes three times that.
    passes = 1 if cell.buffers and cell.rule.mode == "train" and cell.steps == 1 else 3
    size = 5.0 if cell.side > 32 else 2.5 if cell.weights == "full" else 1.0
    work = size * passes * cell.count
    return next(clients for most, clients in SIMULATED if work <= most)


def measured(key: str, data: Path, told: Callable[[float], None]) -> Entry:
    """Fits, rehearses, attacks, and says what was reached."""
    cell = CELLS[key]
    began = time.process_time()
    sides = sides_of(cell, data)
    pool = sides.pool
    most = MORE if cell.count <= SEARCHABLE else CLIENTS
    index = holdings(len(pool.y), cell.count, most)
    written = asdict(cell) | {"model": cell.network}
    answer: Entry = {"cell": written, "class_mean": class_mean(pool, pool.public, pool.public_y, _small(index))}
    if cell.weights == "brief":
        answer["accuracy"] = accuracy(sides.network, (pool.victims * 255).to(torch.uint8), pool.y)
    found: dict[str, Entry] = {}
    refused: dict[str, str] = {}

    def tried(name: str, how: Fitted | str, clients: Tensor, rehearsals: int, begun: float) -> bool:
        """Has an attack rehearse, and attack these clients; whether it applies."""
        try:
            rehearsed = _rehearsed(cell, sides, how, rehearsals)
            begun = begun or time.process_time()
            found[name] = _figures(cell, sides, how, clients) | {"rehearsed": rehearsed}
        except LeakmapError as error:
            refused[name] = neutral(error)
            return False
        found[name]["seconds"] = time.process_time() - begun
        return True

    for name in CLOSED_FORMS:
        tried(name, name, index, REHEARSED, 0.0)
    for name in _fitted_attacks(cell):
        begun = time.process_time()
        try:
            # Of the last step one forward pass is simulated, whatever came before.
            number = simulated(cell) if name == "learned_inverse" else SIMULATED[0][1]
            fitted = _fit(cell, sides, f"{name},clients={number}", lambda f: told(0.1 + 0.5 * f))
        except LeakmapError as error:
            refused[name] = neutral(error)
            continue
        if not tried(name, fitted, index, REHEARSED, begun):
            continue
        held_out = {n: float(v) for n, v in fitted.state.items() if n.startswith("ncc/")}
        found[name] |= {"held_out": held_out, "simulated": int(fitted.state["clients"])}
    if cell.count <= SEARCHABLE and cell.side == 32 and all(one["rehearsed"]["ncc"] < READ for one in found.values()):
        begun = time.process_time()
        by_search = {name: _rehearsed(cell, sides, name, SEARCH_REHEARSED) for name in SEARCHES}
        best = max(by_search, key=lambda name: by_search[name]["ncc"])
        answer["searches"] = {name: one["ncc"] for name, one in by_search.items()}
        told(0.8)
        tried(best, best, index[: max(4, SEARCHED // cell.count)], SEARCH_REHEARSED, begun)
    answer["attacks"], answer["refused"] = found, refused
    answer["speaks"] = max(found, key=lambda name: found[name]["rehearsed"]["ncc"], default=None)
    return answer | {
        "public": len(pool.public_y),
        "seconds": time.process_time() - began,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": versions(),
    }


def _small(index: Tensor) -> Tensor:
    """The floor needs no more pictures than these."""
    return index.flatten()[:MORE][:, None]


def _fitted_attacks(cell: Cell) -> list[str]:
    """Those that can answer; of an epoch with a partial last batch only the last step is read."""
    last = cell.steps > 1 and cell.buffers and cell.rule.mode == "train"
    whole = cell.count <= MANY and not cell.partial
    return [*(["learned_inverse"] if whole else []), *(["last_batch"] if last else [])]


def _fit(cell: Cell, sides: Sides, spec: str, told: Callable[[float], None]) -> Fitted:
    pool = sides.pool
    threat = ThreatModel("known", buffers=cell.buffers, public=len(pool.public_y))
    public = Public(pool.public, pool.public_y)
    return fit(attacks.build(spec), known_before(sides.network, cell.rule, cell.count, threat, public), 3, told)


def _read(
    cell: Cell, network: Network, pool: Pool, how: Fitted | str, index: Tensor
) -> tuple[list[Tensor], Tensor, int]:
    """Reconstructions of every client, the places of the pictures that they are of, and for how many there is none.

    Raises:
        NotApplicable: the attack applies to none of the first clients, or is a closed form that takes too long.
    """
    found: list[Tensor] = []
    refusals = 0
    began = time.process_time()
    for client, own in enumerate(index):
        try:
            found.append(attacked(cell, network, pool, own, how, client))
        except NotApplicable:
            refusals += 1
            if refusals == client + 1 >= min(SEARCH_REHEARSED, len(index)):
                raise
            # A closed form that solves some clients and not others has nothing to say of these: a grey picture.
            found.append(torch.full_like(pool.victims[own], 0.5))
        if how in CLOSED_FORMS and client < REHEARSED and time.process_time() - began > LONG * REHEARSED:
            raise NotApplicable(
                f"its first {client + 1} clients took more than {LONG * REHEARSED:g} seconds of a core."
            )
    if len(found[0]) == cell.count:
        return found, index, refusals
    # An attack on the last local step answers for its pictures alone.
    held = cell.rule.held_by(cell.steps - 1, cell.count)
    return found, index[:, held], refusals


def _rehearsed(cell: Cell, sides: Sides, how: Fitted | str, clients: int) -> Entry:
    """NCC on simulated clients."""
    index = torch.arange(len(sides.tried.y)).view(-1, cell.count)[:clients]
    found, index, _ = _read(cell, sides.network, sides.tried, how, index)
    values = []
    for each, own in zip(found, index, strict=True):
        truth = sides.tried.victims[own]
        values.append(float(cross_correlation(matched(each, truth), truth).diagonal().mean()))
    return {"ncc": sum(values) / len(values), "clients": len(values)}


def _figures(cell: Cell, sides: Sides, how: Fitted | str, index: Tensor) -> Entry:
    found, own, unanswered = _read(cell, sides.network, sides.pool, how, index)
    return figures(sides.pool, own, found, index) | {"unanswered": unanswered}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)

    def one(key: str, options: argparse.Namespace, told: Progress) -> Entry:
        return measured(key, options.data, partial(told, key))

    about = (__doc__ or "").split("\n\n", 2)[2]
    run_cases(parser, list(CELLS), PAGE, one, partial(page, about), _beside)


def _beside(found: dict[str, Entry]) -> None:
    write(heat_map(found), PICTURE)
    write_reference(found)


if __name__ == "__main__":
    main()
