"""The options that say where a command computes, and the runner that they make."""

from typing import TYPE_CHECKING, Annotated

import typer

from leakmap.errors import BadSetting
from leakmap.plan.plan import check_device
from leakmap.runs.workers import default_workers

if TYPE_CHECKING:
    from leakmap.runs.runner import Runner

RUN = "Run"

Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.", rich_help_panel=RUN)]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes; 0: this one.", rich_help_panel=RUN)]
Address = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="A Ray cluster, auto, or local.", rich_help_panel=RUN)
]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of each run, with --ray.", rich_help_panel=RUN)]


def runner_of(workers: int | None, device: str = "cpu", ray: str | None = None, gpus: float = 0.0) -> "Runner":
    """Where a command computes.

    Args:
        workers: Processes of this machine; None for one on each core, 0 for this process.
        device: On which they compute.
        ray: Address of a Ray cluster that computes instead.
        gpus: What each run asks of it.

    Raises:
        BadSetting: there is no such device, or GPUs are asked of no cluster.
    """
    from leakmap.runs.ray import Ray
    from leakmap.runs.runner import Local

    if gpus and ray is None:
        raise BadSetting("--gpus is what each run asks of a Ray cluster; give --ray too, or --device cuda.")
    check_device(device)
    return Ray(ray, gpus) if ray is not None else Local(default_workers(device) if workers is None else workers, device)


def workers_of(workers: int | None, device: str = "cpu") -> int:
    """Processes that share the work: by how many an estimated time is divided."""
    return default_workers(device) if workers is None else max(1, workers)
