"""The demonstration: four clients on photographs inside scikit-image, of which each tells a story of its own."""

from dataclasses import dataclass
from pathlib import Path

from leakmap.auditing.found import Audit
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.local_rule import LocalRule
from leakmap.plan.plan import Plan, Progress
from leakmap.registry.spec import Spec
from leakmap.report import Section, write
from leakmap.runs.runner import HERE, Runner
from leakmap.runs.store import Store

RESISTING = "resnet,blocks=2-2-2,width=16,skip=false"


@dataclass(frozen=True)
class Shown:
    """An audit of the demonstration.

    Args:
        folder: Where its runs are kept.
        title: What is audited, in the report.
        plan: The audit.
        seconds: Of one core that it took when it was chosen: its share of the bar.
    """

    folder: str
    title: str
    plan: Plan
    seconds: float


def _plan(model: str, attack: Spec, *, victims: int = 12, image_size: int | None = None, defence: str = "none") -> Plan:
    rule = LocalRule(defence=defence)
    return Plan(model, "samples", rule, attack=attack, victims=victims, image_size=image_size)


AUDITS = (
    Shown(
        "exact",
        "A vision transformer at 224 pixels: one equation is solved",
        _plan("vit,patch=16,dim=384,depth=6,heads=6,mlp_ratio=4", Spec("patch_positions"), image_size=224),
        75,
    ),
    Shown(
        "picked-out",
        "A shallow, wide network with shortcuts: a search",
        _plan("resnet,blocks=1-1-1,width=24,preact=true", Spec("inverting_gradients", {"steps": 200})),
        80,
    ),
    Shown(
        "searched",
        "A deeper network without shortcuts: the same search",
        _plan(RESISTING, Spec("inverting_gradients", {"steps": 200}), victims=24),
        140,
    ),
    Shown(
        "read",
        "The same clients: an attack that was fitted before they answered",
        _plan(RESISTING, Spec("learned_inverse", {"clients": 3000}), victims=24),
        150,
    ),
    Shown(
        "noise",
        "A client that adds calibrated noise: a search",
        _plan("convnet,width=16", Spec("inverting_gradients", {"steps": 200}), defence="clip_noise,clip=1.0,noise=1.0"),
        30,
    ),
)
INTRODUCTION = (
    "Four federated clients, of which each sends one gradient of one photograph, in training mode and with untrained "
    "weights. leakmap takes the part of a server that is honest but curious, and attacks all of them."
)


def demonstrate(
    out: Path | str, *, runner: Runner = HERE, progress: Progress = lambda what, fraction: None
) -> tuple[dict[str, Audit], Path]:
    """Audits the clients and writes one report.

    Args:
        out: Folder; what is finished there is not run again.
        runner: Where to run.
        progress: Called with what is being done and the finished fraction.

    Returns:
        The audits by title, and the path of ``report.html``.

    Raises:
        StoreError: the folder holds something else, or results of another schema.
        KeyboardInterrupt: after storing what is finished.
    """
    out = Path(out)
    found: dict[str, Audit] = {}
    whole, before = sum(one.seconds for one in AUDITS), 0.0
    for i, shown in enumerate(AUDITS):

        def told(what: str, fraction: float, i: int = i, shown: Shown = shown, before: float = before) -> None:
            progress(f"audit {i + 1} of {len(AUDITS)}: {what}", (before + shown.seconds * fraction) / whole)

        found[shown.title] = perform(
            shown.plan, prepare(shown.plan, progress=told), Store(out / shown.folder), runner, told
        )
        before += shown.seconds
    sections = [Section(audit.result, audit.rows, title) for title, audit in found.items()]
    return found, write(out / "report.html", sections, "leakmap: what four clients give away", INTRODUCTION)
