"""``leakmap inspect``: what an architecture is made of, and what is known of that."""

import json
from pathlib import Path
from typing import Annotated

import typer

import leakmap
from leakmap.cli.terminal import Terminal, results_apart


def inspect_(
    model: Annotated[str, typer.Argument(help="NAME[,key=value…] or path/to/file.py:function.")],
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the pictures; 224 for torchvision and timm, else 32.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the pictures.")] = 3,
    classes: Annotated[int, typer.Option(help="Outputs of the model.")] = 10,
    weights: Annotated[Path | None, typer.Option(help="safetensors, or a torch checkpoint.")] = None,
    output: Annotated[str, typer.Option(help="What of the model's outputs the loss takes: a name or a position.")] = "",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure predictors that proved themselves, in a minute or more.")
    ] = False,
    data: Annotated[str, typer.Option(help="Public pictures that predictors are measured on.")] = "samples",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Read an architecture's traits and say what is known of each; attacks nothing.

    [bold]Examples[/bold]

      leakmap inspect resnet,preact=true

      leakmap inspect torchvision/vit_b_16 --weights mine.safetensors --classes 1000
    """
    from leakmap.inspection.text import as_dict, describe

    with results_apart():
        found = leakmap.inspect_model(
            model,
            image_size=image_size,
            channels=channels,
            classes=classes,
            weights=weights,
            output=output,
            measure=data if measure else None,
        )
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=2, ensure_ascii=False))
    else:
        describe(found, Terminal())
