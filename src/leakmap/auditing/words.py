"""The verdict in plain words; "safe", "anonymous" and "private" are never among them."""

import statistics
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from leakmap.attacker.attacks import attacks
from leakmap.auditing.ledger import used_by
from leakmap.plan.plan import Plan
from leakmap.problem.objects import unpack
from leakmap.problem.task import Task
from leakmap.runs.trial import Outcome
from leakmap.scoring.exposure import clients_exposed, exposed
from leakmap.scoring.verdict import Client, Verdict, line_up
from leakmap.threat import letter_of

SEEN = {
    ("colour",): "an overall colour or brightness at most, nothing of what is shown",
    ("layout",): "light and dark masses at most, neither colours nor detail",
    ("colour", "layout"): "masses and colours at most, no detail",
}
"""Bands above chance, where detail is at chance, and what a person sees who has no more than these."""
RECOVERED = {"exact": "almost pixel by pixel", "visual": "so that they can be recognised"}


def statement(plan: Plan, verdict: Verdict, clients: Sequence[Client], attacked: Sequence[Outcome]) -> str:
    """What was found, on how many clients, by which attacker."""
    null = "Null audit: every update came from other pictures. " if plan.null else ""
    if plan.threat.known_pixels:
        null = f"{null}The server was given {plan.threat.known_pixels:.3g} of the true pixels. "
    if not clients:
        return f"{null}This audit does not show whether the update leaks."
    return f"{null}{_found(verdict, clients)} {_by_whom(plan, attacked)}"


def _found(verdict: Verdict, clients: Sequence[Client]) -> str:
    level, n = verdict.level, len(clients)
    if level in ("exact", "visual"):
        counted = clients_exposed(clients, "exact" if level == "exact" else "visual")
        share = counted.client_share
        return (
            f"Pictures are recovered {RECOVERED[level]} from the updates of {counted.clients} of {_clients(n)} "
            f"({counted.pictures} of {counted.of_pictures} pictures). Of all such clients, {share.low:.1%} to "
            f"{share.high:.1%} are exposed (95 % interval)."
        )
    found = line_up(clients)
    if level == "partial" and not found.many_first:
        found = line_up(clients, "any")
    first = (
        f"first in {found.hits} of {found.n} line-ups{' in any pose' if found.pose == 'any' else ''} "
        f"({found.rank_one.low:.0%} to {found.rank_one.high:.0%}, chance {found.chance:.1%})"
    )
    if level == "none_found":
        bound = clients_exposed(clients).client_share.high
        return (
            f"No picture of {_clients(n)} was recovered or singled out. With 95 % confidence this attack exposes at "
            f"most {bound:.1%} of such clients."
        )
    if verdict.rule == "ceiling":
        return f"The defence of {_clients(n)} does not hide what its noise promises to hide. {verdict.reasons[0]}"
    if verdict.rule == "floors":
        return (
            f"What the updates of {_clients(n)} give is closer to their pictures than any floor, by brightness or "
            f"blur; it does not tell pictures apart: {first}."
        )
    said = {
        "inconclusive": f"This audit of {_clients(n)} does not show whether the update leaks",
        "statistical": f"The updates of {_clients(n)} tell pictures apart better than chance: {first}",
        "partial": f"Pictures of {_clients(n)} can be picked out of a line-up from the update alone: {first}",
    }
    return f"{said[level]}."


def _clients(n: int) -> str:
    return f"{n} client{'s' if n != 1 else ''}"


def _by_whom(plan: Plan, attacked: Sequence[Outcome]) -> str:
    cost = attacks.build(plan.attack).cost
    starts = f"{cost.restarts} start{'s' if cost.restarts > 1 else ''}"
    told = [f"{cost.iterations} iterations", starts] if cost.iterations else []
    told += [f"{budget:g} seconds a client"] if (budget := plan.attack.params.get("budget")) is not None else []
    told += [f"suite {o.notes['suite']}" for o in attacked[:1] if "suite" in o.notes]
    told += [plan.column] if plan.tuned else []
    how = f" ({', '.join(told)})" if told else ""
    return f"Attack: {plan.attack.name}{how}, an attacker of kind {letter_of(used_by(attacked))}."


def worst(clients: Sequence[Client], numbers: Sequence[int]) -> str:
    """The worst picture: the first of the exposed ones, else the one with the highest PSNR among the best ranked.

    Args:
        clients: Those that finished.
        numbers: The number of each among all audited clients.
    """
    if not clients:
        return ""
    if found := exposed(clients):
        client, picture, told = found[0].client, found[0].picture, ", exposed"
    else:
        places = [(c, p) for c, one in enumerate(clients) for p in range(len(one.ranks))]
        client, picture = min(
            places, key=lambda at: (clients[at[0]].ranks[at[1]], -clients[at[0]].scores["psnr"][at[1]])
        )
        told = ", not exposed"
    one = clients[client]
    return (
        f"Worst picture: number {picture + 1} of client {numbers[client] + 1}, rank {one.ranks[picture]:g} of "
        f"{one.galleries[picture]}, {one.scores['psnr'][picture]:.1f} dB, SSIM {one.scores['ssim'][picture]:.2f}{told}."
    )


def typical(clients: Sequence[Client]) -> str:
    """The medians over all pictures."""
    if not clients:
        return ""
    psnr, ssim = (statistics.median(v for client in clients for v in client.scores[m]) for m in ("psnr", "ssim"))
    rank = line_up(clients).median_rank
    most = max(size for client in clients for size in client.galleries)
    return f"Typical picture (medians): rank {rank:g} of up to {most}, {psnr:.1f} dB, SSIM {ssim:.2f}."


def what_leaks(bands: Sequence[str]) -> str:
    """The aspects of the pictures that are above chance, and what a person would see of them, if not detail."""
    named = {"colour": "colours", "layout": "layout", "detail": "detail"}
    above, rest = [named[b] for b in bands], [word for band, word in named.items() if band not in bands]
    if not above:
        return "Neither colours, layout nor detail of the pictures, each alone, are above chance."
    tail = f", no {' and no '.join(rest)}" if rest else ""
    verb = "is" if above in (["layout"], ["detail"]) else "are"
    named_ones = ", ".join([*above[:-2], " and ".join(above[-2:])]).capitalize()
    found = f"{named_ones} of the pictures {verb} above chance{tail}."
    seen = SEEN.get(tuple(bands))
    return f"{found} A person sees {seen}." if seen else found


def told_labels(y: Tensor, task: Task, names: Sequence[str]) -> list[str]:
    """What each picture is labelled with: its class, which objects it holds (``2 person, dog``), labels or values."""
    if task.target == "multilabel":
        return [", ".join(map(str, own.nonzero()[:, 0].tolist())) for own in y]
    if task.target == "regression":
        return [", ".join(f"{value:.4g}" for value in own.tolist()) for own in y]
    if task.target == "pixels":
        return [", ".join(map(str, own.unique().tolist())) for own in y]
    if not task.objects:
        return [str(names[c]) for c in y.tolist()]
    found = []
    for own in y:
        counts = Counter(str(names[c]) for c in unpack(own[None])[1].tolist())
        found.append(", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items()))
    return found
