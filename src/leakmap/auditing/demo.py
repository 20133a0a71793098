"""The demonstration: two clients on photographs inside scikit-image, one that leaks and one that resists."""

from pathlib import Path

from leakmap.auditing.found import Audit
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.plan.plan import Plan, Progress
from leakmap.registry.spec import Spec
from leakmap.report import Section, write
from leakmap.runs.runner import HERE, Runner
from leakmap.runs.store import Store

CLIENTS = {
    "A client that leaks: shallow, wide, with shortcuts, pre-activation": "resnet,blocks=1-1-1,width=24,preact=true",
    "A client that resists: deeper, narrow, no shortcuts, post-activation": "resnet,blocks=2-2-2,width=8,skip=false",
}
INTRODUCTION = (
    "Two federated clients each send one gradient of one picture, in training mode. Their networks "
    "differ in depth, width, shortcuts and where the normalization stands. leakmap attacks both in the same way."
)


def demonstrate(
    out: Path | str, *, runner: Runner = HERE, progress: Progress = lambda what, fraction: None
) -> tuple[dict[str, Audit], Path]:
    """Audits both clients and writes one report.

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
    for i, (title, model) in enumerate(CLIENTS.items()):

        def told(what: str, fraction: float, i: int = i) -> None:
            progress(f"client {i + 1} of {len(CLIENTS)}: {what}", (i + fraction) / len(CLIENTS))

        plan = Plan(model=model, data="samples", attack=Spec("inverting_gradients"), victims=12)
        store = Store(out / ("leaks", "resists")[i])
        found[title] = perform(plan, prepare(plan, progress=told), store, runner, told)
    sections = [Section(audit.result, audit.rows, title) for title, audit in found.items()]
    return found, write(out / "report.html", sections, "leakmap: two clients, one attack", INTRODUCTION)
