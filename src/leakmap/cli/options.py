"""The options that every command about a simulated client takes, as a plan."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from leakmap.attacker.attacks import DEFAULT
from leakmap.cli.runners import RUN
from leakmap.client_step import LocalRule
from leakmap.defences import NONE
from leakmap.plan.plan import Plan, local_batch
from leakmap.registry.spec import Spec
from leakmap.threat import ThreatModel

MODEL, DATA, CLIENT = "Model", "Data", "Client"
SERVER, ATTACK, TUNING = "What the server sees", "Attack", "Tuning"
REAL = "Real updates in place of simulated clients"

Out = Annotated[Path | None, typer.Option(help="Folder for results; the same one resumes.", rich_help_panel=RUN)]


def plan_of(
    model: Annotated[
        str | None, typer.Option(help="NAME[,key=value…] or path/to/file.py:function.", rich_help_panel=MODEL)
    ] = None,
    data: Annotated[
        str, typer.Option(help="samples, npz:FILE, folder:DIR, cifar10:DIR or coco:DIR.", rich_help_panel=DATA)
    ] = "samples",
    weights: Annotated[
        str | None, typer.Option(help="safetensors, or a torch checkpoint.", rich_help_panel=MODEL)
    ] = None,
    train_epochs: Annotated[int, typer.Option(help="Train briefly first.", rich_help_panel=MODEL)] = 0,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure fresh BatchNorm statistics first.", rich_help_panel=MODEL)
    ] = False,
    loss: Annotated[
        str,
        typer.Option(help="cross_entropy[,label_smoothing=E] or file.py:function.", rich_help_panel=MODEL),
    ] = "cross_entropy",
    image_size: Annotated[int | None, typer.Option(help="Crop and resize.", rich_help_panel=DATA)] = None,
    victims: Annotated[int, typer.Option(help="Clients to audit.", rich_help_panel=DATA)] = 12,
    batch_size: Annotated[int, typer.Option(help="Pictures of each client.", rich_help_panel=DATA)] = 1,
    classes: Annotated[
        int | None, typer.Option(help="Outputs of the model, if not those of the data.", rich_help_panel=DATA)
    ] = None,
    normalization: Annotated[
        str, typer.Option(help="data, imagenet, cifar10 or MEAN/…:STD/….", rich_help_panel=DATA)
    ] = "data",
    mode: Annotated[
        Literal["train", "eval"], typer.Option(help="Of the client's network.", rich_help_panel=CLIENT)
    ] = "train",
    share: Annotated[
        Literal["gradient", "delta"], typer.Option(help="What it sends.", rich_help_panel=CLIENT)
    ] = "gradient",
    local_steps: Annotated[int, typer.Option(help="Mini-batches in an epoch.", rich_help_panel=CLIENT)] = 1,
    epochs: Annotated[int, typer.Option(help="Local epochs.", rich_help_panel=CLIENT)] = 1,
    lr: Annotated[float, typer.Option(help="Local learning rate.", rich_help_panel=CLIENT)] = 0.01,
    momentum: Annotated[float, typer.Option(help="Of SGD.", rich_help_panel=CLIENT)] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Local weight decay.", rich_help_panel=CLIENT)] = 0.0,
    optimizer: Annotated[
        Literal["sgd", "adam", "adamw"], typer.Option(help="Local optimiser.", rich_help_panel=CLIENT)
    ] = "sgd",
    dropout: Annotated[float | None, typer.Option(help="Replaces every rate.", rich_help_panel=CLIENT)] = None,
    accumulate: Annotated[int, typer.Option(help="Micro-batches of a step.", rich_help_panel=CLIENT)] = 1,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="A new order each epoch.", rich_help_panel=CLIENT)] = False,
    defence: Annotated[str, typer.Option(help="NAME[,key=value…].", rich_help_panel=CLIENT)] = NONE,
    labels: Annotated[
        Literal["unknown", "counts", "known"],
        typer.Option(help="Of the client's pictures.", rich_help_panel=SERVER),
    ] = "unknown",
    buffers: Annotated[bool, typer.Option(help="Returned BatchNorm buffers.", rich_help_panel=SERVER)] = True,
    public: Annotated[int, typer.Option(help="Public pictures it holds.", rich_help_panel=SERVER)] = 0,
    known_pixels: Annotated[
        float, typer.Option(help="Share of true pixels; study of starts.", rich_help_panel=SERVER)
    ] = 0.0,
    attack: Annotated[str, typer.Option(help="NAME[,key=value…].", rich_help_panel=ATTACK)] = DEFAULT,
    steps: Annotated[int | None, typer.Option(help="Iterations.", rich_help_panel=ATTACK)] = None,
    restarts: Annotated[int | None, typer.Option(help="Independent starts.", rich_help_panel=ATTACK)] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows.", rich_help_panel=RUN)] = 0,
) -> Plan:
    """The options that every command about a client takes, as a plan."""
    spec = Spec.parse(attack)
    chosen = {"steps": steps, "restarts": restarts}
    return Plan(
        model=model or "",
        data=data,
        rule=LocalRule(
            share=share,
            mode=mode,
            epochs=epochs,
            batch_size=local_batch(batch_size, local_steps),
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            optimizer=optimizer,
            dropout=dropout,
            accumulate=accumulate,
            shuffle=shuffle,
            defence=defence,
        ),
        threat=ThreatModel(labels, buffers=buffers, public=public, known_pixels=known_pixels),
        attack=Spec(spec.name, spec.params | {key: value for key, value in chosen.items() if value is not None}),
        weights=weights,
        train_epochs=train_epochs,
        calibrate=calibrate,
        image_size=image_size,
        victims=victims,
        batch_size=batch_size,
        classes=classes,
        normalization=normalization,
        loss=loss,
        seed=seed,
    )


def with_plan(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of :func:`plan_of` in front of its own, and hands it the plan they make."""
    shared = inspect.signature(plan_of).parameters
    own = [p for name, p in inspect.signature(function).parameters.items() if name != "plan"]

    @wraps(function)
    def called(**values: Any) -> None:
        plan = plan_of(**{name: values.pop(name) for name in shared})
        function(plan, **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared.values(), *own)]
    called.__dict__["__signature__"] = inspect.Signature(parameters)
    return called
