"""An inspection in one call: a network's traits, what they mean, and what its update depends on."""

from dataclasses import dataclass, replace
from pathlib import Path

from leakmap.inspection.advice import Advice, advise
from leakmap.inspection.flow import drawn
from leakmap.inspection.predicted import Prediction, predict
from leakmap.inspection.probe import Probe, probe_update, task_of
from leakmap.inspection.reading import read_traits
from leakmap.inspection.reference import notes
from leakmap.inspection.traits import Traits
from leakmap.models.network import Network, build_network


@dataclass(frozen=True)
class Inspection:
    """What was read off an architecture. Nothing here is a verdict.

    Args:
        network: The network, with its task.
        traits: What it is made of.
        advice: What is known of each trait's effect on leakage.
        probe: What the update of a client depends on.
        notes: The measured networks that are nearest, in words.
        predictions: What predictors that proved themselves say; None where they were not asked.
    """

    network: Network
    traits: Traits
    advice: tuple[Advice, ...]
    probe: Probe
    notes: tuple[str, ...]
    predictions: tuple[Prediction, ...] | None = None


def inspect_model(
    model: str,
    *,
    image_size: int | None = None,
    channels: int = 3,
    classes: int = 10,
    weights: Path | str | None = None,
    output: str = "",
    measure: str | None = None,
) -> Inspection:
    """Reads an architecture's traits and looks at one client's update; attacks nothing.

    Args:
        model: Specification of the architecture, or ``file.py:function``.
        image_size: Side of the pictures; None for 224 of torchvision's and timm's networks, else 32.
        channels: Channels of the pictures.
        classes: Outputs of the model.
        weights: File with weights; None draws them.
        output: What of several outputs the loss takes, a name or a position; empty: all of it.
        measure: Public pictures that predictors are measured on, as a data source; None measures none.

    Raises:
        UsageError: the architecture cannot be built, does not fit the pictures, or has no client step.
    """
    size = image_size or (224 if model.startswith(("torchvision/", "timm/")) else 32)
    task = replace(task_of(channels, size, classes), output=output)
    network = drawn(build_network(task, model, weights=weights))
    traits = read_traits(network)
    predictions = None if measure is None else predict(network, traits, measure)
    return Inspection(network, traits, tuple(advise(traits)), probe_update(network), tuple(notes(traits)), predictions)
