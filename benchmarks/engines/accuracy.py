"""How true the gradient of the matching term is: every engine beside a double backward in float64."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.engines.nets import Case, build, cases, client, lacking
from benchmarks.engines.pieces import Found, Piece, Tell, agreement, said
from benchmarks.engines.works import distance
from benchmarks.markdown import table
from leakmap import LocalRule, ThreatModel, observe, simulate
from leakmap.attacker.matching.context import Guess, SearchContext
from leakmap.attacker.matching.derivatives import Derivative, Exact, Frozen
from leakmap.attacker.matching.distances import DISTANCES
from leakmap.attacker.matching.engine import Engine
from leakmap.attacker.matching.selfcheck import AGREEMENT, SelfCheck
from leakmap.client_step import arrange
from leakmap.models.adapt import freeze_running_statistics
from leakmap.models.network import Network
from leakmap.observation.observation import Observation
from leakmap.seeds import generator

SIGMA, SATURATED, FLAT = 0.5, 1e-5, 1e-9
HOWS: dict[str, Derivative] = {
    "exact": Exact(),
    "1e-4": Frozen(1e-4),
    "1e-5": Frozen(1e-5),
    "1e-6": Frozen(1e-6),
    "central 1e-4": Frozen(1e-4, central=True),
}
POINTS = {"image": f"image + {SIGMA:g}σ", "noise": "noise"}


class Probe(SelfCheck):
    """Stands in for the self-check of an engine, and keeps every gradient that could be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}
        self.failed: dict[str, str] = {}
        self.auto = ""

    def due(self) -> bool:
        """Always."""
        return True

    def choose(self, gradient: Callable[[Derivative], list[Tensor]]) -> Derivative:
        """Asks for all, and what ``auto`` would choose here."""
        for name, how in HOWS.items():
            try:
                self.found[name] = gradient(how)[0].clone()
            except Exception as error:
                self.failed[name] = said(error)
        try:
            chosen = SelfCheck().choose(gradient)
            self.auto = next((name for name, how in HOWS.items() if how == chosen), str(chosen))
        except Exception as error:
            self.auto = said(error)
        return next(HOWS[name] for name in self.found)


@contextmanager
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_default_dtype(before)


class Reference:
    """The matching term by hand, in float64."""

    def __init__(self, network: Network, rule: LocalRule, y: Tensor):
        self.module = freeze_running_statistics(arrange(network.module(), rule, dropout=False)).double()
        self.loss, self.y = network.loss(), y
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]

    def update(self, x: Tensor) -> tuple[float, list[Tensor]]:
        """The loss at ``x`` and its gradient."""
        with _float64():
            loss = self.loss(self.module(x.double()), self.y)
            return float(loss.detach()), list(torch.autograd.grad(loss, self.parameters, materialize_grads=True))

    def term(self, x: Tensor, target: list[Tensor]) -> tuple[float, Tensor]:
        """The cosine distance to ``target``, and its gradient with respect to ``x``."""
        held = x.double().requires_grad_()
        with _float64():
            loss = self.loss(self.module(held), self.y)
            found = torch.autograd.grad(loss, self.parameters, create_graph=True, materialize_grads=True)
            value = distance(list(found), [tensor.double() for tensor in target])
            return float(value.detach()), torch.autograd.grad(value, held)[0]


def _probe(observation: Observation, rule: LocalRule, y: Tensor, x: Tensor, reference: Tensor) -> dict[str, Any]:
    engine = Engine(SearchContext(observation, rule, y, 0), DISTANCES["cosine"], kind="auto")
    engine.check = probe = Probe()
    engine.value_and_grad(Guess(x, y))
    found: dict[str, Any] = {name: agreement(gradient, reference) for name, gradient in probe.found.items()}
    return found | {name: {"failure": why} for name, why in probe.failed.items()} | {"auto": probe.auto}


def measure(case: Case, options: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """Every draw of a case, at both points."""
    network, draws = build(case.subject, options), []
    for draw in range(options.draws):
        tell(f"draw {draw + 1} of {options.draws}")
        batch = client(case, draw, options)
        round = simulate(network, case.rule, batch)
        observation = observe(round, ThreatModel("known", buffers=False))
        target = list(observation.update.tensors.values())
        truth, y = network.task.normalize(batch.pictures), batch.y
        reference = Reference(network, case.rule, y)
        loss, update = reference.update(truth)
        noise = torch.randn(truth.shape, generator=generator(draw, "guess"))
        points = {}
        for point, x in (("image", truth + SIGMA * noise), ("noise", noise)):
            term, gradient = reference.term(x, target)
            points[point] = {"term": term, **_probe(observation, case.rule, y, x, gradient)}
        flat = [torch.cat([t.double().flatten() for t in tensors]) for tensors in (target, update)]
        draws.append({"loss": loss, "update": agreement(*flat), "points": points})
    return {"draws": draws}


def pieces(options: argparse.Namespace) -> Iterator[Piece]:
    """One for each case."""
    for case in cases():
        facts = {"data": options.data, "draws": options.draws}
        if case.subject.weights == "trained":
            facts |= {name: getattr(options, name) for name in ("weights", "resnet20", "weights56", "resnet56")}

        def run(tell: Tell, case: Case = case) -> dict[str, Any]:
            return measure(case, options, tell)

        heavy = (case.subject.size / 32) ** 2 / 4 * case.batch
        cost, lacks = options.draws * (2 + heavy), lacking(case.subject, options)
        yield Piece(f"accuracy-{case.slug}", run, facts, cost, lacks, optional=case.subject.model.startswith("yolo:"))


def page(found: Found, options: argparse.Namespace) -> list[str]:
    """Its section."""
    rows, low, broken = [], [], []
    for case in cases():
        draws = found.get(f"accuracy-{case.slug}", {}).get("draws", [])
        for kind in ("", "saturated"):
            of = [draw for draw in draws if (draw["loss"] < SATURATED) == bool(kind)]
            for point in POINTS if of else ():
                rows.append(_row(case, kind, of, point))
                low += _low(case, of, point)
                broken += _broken(case, of, point)
    if not rows:
        return []
    return [
        "## Accuracy",
        "",
        "    python -m benchmarks.engines --only accuracy --data npz:cifar10_subset.npz --weights cifar10_resnet20.th "
        "--weights56 cifar10_resnet56.th",
        "    PYTHONPATH=src ENVIRONMENT/bin/python -m benchmarks.engines --only 'accuracy yolo' "
        "--data npz:cifar10_subset.npz  # an environment with ultralytics",
        "",
        "The gradient of the cosine distance with respect to the pictures, in float32, beside a double backward "
        "written by hand in float64, of the same objective (the update that the client sent, in float32). Cosine, and "
        f"relative error in brackets: the worst of {options.draws} clients, pictures of CIFAR-10 scaled to the size. "
        "Columns: double backward; one-sided differences, switches frozen, by relative step; central ones; and "
        f"what `auto` chose at its first check. Bold: below {AGREEMENT}. *perturbed*: random weights and noise of a "
        "tenth of the deviation of each tensor, with the statistics of pictures in BatchNorm; *random*: as drawn, with "
        "the running statistics of a fresh network. Dropout and stochastic depth are off. *update*: cosine between the "
        f"client's update and the same in float64. A client whose loss is below {SATURATED:g} is *saturated*: its "
        "update is mostly rounding, and it has rows of its own. *term*: the matching term, in float64, lowest; below "
        f"{FLAT:g} the guess gives nearly the same update, and the gradient is rounding in every engine.",
        "",
        *table(["network", "weights", "mode", "B", "point", "update", "term", *HOWS, "auto"], rows),
        *_listed(f"The choice of `auto` is below a cosine of {AGREEMENT} with float64:", low),
        *_listed("Could not be evaluated:", [f"{why} ({count})" for why, count in Counter(broken).items()]),
    ]


def _listed(title: str, lines: list[str]) -> list[str]:
    return [title, "", *(f"* {line}" for line in lines), ""] if lines else [f"{title} none.", ""]


def _row(case: Case, kind: str, draws: list[Any], point: str) -> list[object]:
    update = min(draw["update"]["cosine"] for draw in draws)
    chosen = [draw["points"][point]["auto"] for draw in draws]
    counted = {name: chosen.count(name) for name in dict.fromkeys(chosen)}
    auto = ", ".join(_short(name) if len(counted) == 1 else f"{_short(name)} ×{n}" for name, n in counted.items())
    where = f"{POINTS[point]}{f', **{kind}** ({len(draws)})' if kind else ''}"
    cells = [_cell([draw["points"][point][how] for draw in draws]) for how in HOWS]
    terms = [draw["points"][point]["term"] for draw in draws]
    finite = [term for term in terms if term is not None]
    term = f"{min(finite):.0e}" if finite else "not finite"
    return [case.subject.title, case.subject.weights, case.mode, case.batch, where, f"{update:.4f}", term, *cells, auto]


def _short(name: str) -> str:
    return name if name in HOWS else name.partition(":")[0]


def _cell(found: list[Any]) -> str:
    if any("failure" in one for one in found):
        return "fails"
    if any(None in one.values() for one in found):
        return "**not finite**"
    cosine, error = min(one["cosine"] for one in found), max(one["error"] for one in found)
    text = f"{cosine:.6f}" if cosine >= AGREEMENT else f"**{cosine:.4f}**"
    return f"{text} ({error:.0e})"


def _low(case: Case, draws: list[Any], point: str) -> list[str]:
    found = []
    for number, draw in enumerate(draws):
        here = draw["points"][point]
        cosine = here.get(here["auto"], {}).get("cosine")
        if cosine is not None and cosine < AGREEMENT:
            exact = here["exact"].get("cosine")
            beside = "" if exact is None else f", exact {exact:.4f}"
            kinds = [
                draw["loss"] < SATURATED and "saturated",
                here["term"] is not None and here["term"] < FLAT and "the term is rounding",
            ]
            beside += "".join(f", {kind}" for kind in kinds if kind)
            found.append(f"{case}, {POINTS[point]}, client {number}: {here['auto']} {cosine:.4f}{beside}")
    return found


def _broken(case: Case, draws: list[Any], point: str) -> list[str]:
    found = []
    for draw in draws:
        here = draw["points"][point]
        found += [f"{case.subject.title}: {how}: {here[how]['failure']}" for how in HOWS if "failure" in here[how]]
        found += [] if here["auto"] in HOWS else [f"{case.subject.title}: auto: {here['auto']}"]
    return found
