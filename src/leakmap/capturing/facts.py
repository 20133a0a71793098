"""What an update cannot tell about itself: a small typed manifest that people write, and that can be wrong."""

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from leakmap.errors import BadSetting
from leakmap.local_rule import COUNT_LIMIT, LocalRule, Share
from leakmap.models.network import build_network, outputs_of
from leakmap.observation.observation import Observation
from leakmap.problem import Target
from leakmap.problem.targets import Loss, target_told_by, usual_loss
from leakmap.problem.task import Task, build_loss
from leakmap.registry.declared import Entry, entries, file_model
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code

LONGEST = 2**20
Number = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(ge=1, le=65536)]
_DEEP = re.compile(r"""(?<![\w"'-])(?:(?>[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*){40}""")
"""A key of more than 40 parts: reading one takes time in the square of their number."""


class RuleFacts(file_model(LocalRule, strict=False, without=("share",))):
    """What the client does locally, by keyword, all optional: see :class:`leakmap.LocalRule`.

    How it shares is in the payload.
    """

    if TYPE_CHECKING:  # the fields are derived, so a type checker sees none

        def __init__(self, **told: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    def rule(self, share: Share) -> LocalRule:
        """The local rule of a client that shares so.

        Raises:
            BadSetting: a gradient was shared, which no optimiser has been through, or a value is impossible.
        """
        return LocalRule(share=share, **self.model_dump())


class Facts(BaseModel):
    """What the payload cannot tell.

    Args:
        model: The architecture: a specification such as ``torchvision/resnet18``, or the user's own
            ``file.py:function``, which is run only where it is typed as code, never because a file names it.
        shape: ``(C, H, W)`` of one input.
        classes: Outputs of the model; 1 where the target is ``binary``.
        mean: Per channel, of pictures in [0, 1]: inputs are ``(picture - mean) / std``.
        std: Per channel.
        loss: ``cross_entropy[,label_smoothing=E]``, ``bce``, ``mse`` or the user's own ``file.py:function``.
        objects: For detection the most objects of a picture, else 0.
        target: What the client's pictures are labelled with, see :mod:`leakmap.problem.targets`.
        output: Which part of what the model returns the loss takes, a name or a position; empty: all of it.
        count: Pictures of the client, if it says so.
        rule: What it does with them, if it says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=512)]
    shape: tuple[Side, Side, Side]
    classes: Annotated[int, Field(ge=1, le=10**7)]
    mean: Annotated[tuple[Number, ...], Field(max_length=1024)]
    std: Annotated[tuple[Number, ...], Field(max_length=1024)]
    loss: Annotated[str, Field(max_length=512)] = "cross_entropy"
    objects: Annotated[int, Field(ge=0, le=10**4)] = 0
    target: Target = "class"
    output: Annotated[str, Field(max_length=512)] = ""
    count: Annotated[int, Field(ge=1, le=COUNT_LIMIT)] | None = None
    rule: RuleFacts | None = None

    @property
    def task(self) -> Task:
        """The public facts about the problem.

        Raises:
            BadSetting: they do not fit together.
        """
        loss = Spec.parse(self.loss)
        return Task(self.shape, self.classes, self.mean, self.std, loss, self.objects, self.target, self.output)


def facts_for(
    model: str,
    shape: tuple[int, int, int],
    classes: int | None = None,
    *,
    loss: str = "",
    target: Literal["auto", Target] = "auto",
    output: str = "",
) -> Facts:
    """Facts to complete: what an update of this architecture cannot tell about itself.

    Args:
        model: Specification of the architecture, or ``file.py:function``; it is built once, to see that it fits.
        shape: ``(C, H, W)`` of one input.
        classes: Outputs of the model; None: as many as a model of the user's own gives, else 10, or 1 of ``binary``.
        loss: Its specification, or ``file.py:function``; empty: the usual one of the target.
        target: What pictures are labelled with; ``auto``: as outputs and loss tell, see
            :func:`leakmap.problem.targets.target_told_by`.
        output: Which part of what the model returns the loss takes.

    Raises:
        BadSetting: shape or classes are impossible, or one output is given and nothing tells what it is.
        ModelError: the architecture cannot be built, or does not fit the task.
    """
    channels = shape[0]
    given = None
    if is_user_code(Spec.parse(model).name) and min(shape) > 0:
        given = outputs_of(model, shape, output)
        if target == "auto" and given is not None:
            told = build_loss(Spec.parse(loss)) if loss else None
            target = _target(model, given, told)
    target = "class" if target == "auto" else target
    if classes is None:
        own = 1 if given is None or given.ndim < 2 else given.shape[1]
        classes = 1 if target == "binary" else own if given is not None else 10
    try:
        found = Facts(
            model=model,
            shape=shape,
            classes=classes,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            loss=loss or usual_loss(target, classes),
            target=target,
            output=output,
            rule=RuleFacts(),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadSetting(f"{'.'.join(map(str, first['loc']))!r} of the facts: {first['msg']}.") from None
    build_network(found.task, model, mode=found.rule.mode if found.rule else "train")
    return found


def _target(model: str, outputs: Tensor, loss: Loss | None) -> Target:
    """What a model's outputs and its loss tell about the labels, where anything does."""
    single = outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1)
    told = None if loss is None else target_told_by(outputs, loss)
    if told is None and single:
        raise BadSetting(
            f"{model} gives one output for each picture; say what it is with --target binary or --target regression."
        )
    return told or ("pixels" if outputs.ndim == 4 else "class")


def facts_of(observation: Observation) -> Facts:
    """The facts that an Observation rests on."""
    network = observation.network
    task, rule = network.task, observation.rule
    told = None
    if rule is not None:
        told = RuleFacts(**{one.name: getattr(rule, one.name) for one in _told()})
    return Facts(
        model=str(network.model),
        shape=task.shape,
        classes=task.classes,
        mean=task.mean,
        std=task.std,
        loss=str(task.loss),
        objects=task.objects,
        target=task.target,
        output=task.output,
        count=observation.count,
        rule=told,
    )


def read_facts(path: Path | str) -> Facts:
    """Reads a manifest in TOML.

    Args:
        path: The file, as ``leakmap facts`` writes it.

    Raises:
        BadSetting: the file is absent or too large, or a line of it is missing, unknown or impossible.
    """
    path = Path(path)
    if not path.is_file():
        raise BadSetting(f"There is no file of facts {path}; leakmap facts MODEL writes one to complete.")
    if (size := path.stat().st_size) > LONGEST:
        raise BadSetting(f"{path} has {size} bytes; a file of facts has at most {LONGEST}.")
    try:
        found = Facts.model_validate(parse_toml(path.read_bytes()))
        _ = found.task
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadSetting(f"{path}: {'.'.join(map(str, first['loc']))[:80]!r}: {first['msg']}.") from None
    except ValueError as error:
        raise BadSetting(f"{path} cannot be read as TOML: {str(error).rstrip('.')}.") from None
    except BadSetting as error:
        raise BadSetting(f"{path}: {error}") from None
    return found


def parse_toml(content: bytes) -> dict[str, Any]:
    """TOML that anybody may have written, in time and depth that its size bounds.

    Raises:
        ValueError: it is not TOML, or nested too deeply.
    """
    text = content.decode("utf-8")
    if _DEEP.search(text):
        raise ValueError("a key has more than 40 parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def as_toml(facts: Facts) -> str:
    """The manifest as a file to complete, with a word on every line."""
    lines = [
        "# What an update cannot tell about itself. A wrong line here turns a leaking update into noise:",
        "# leakmap doctor FILE --replay DATA says which line is wrong.",
        "",
        _line("model", facts.model, "NAME[,key=value...], or file.py:function"),
        _line("shape", list(facts.shape), "channels, height and width of an input"),
        _line("classes", facts.classes, "outputs of the model"),
        _line("mean", list(facts.mean), "of pictures in [0, 1]; zeros where the client does not normalize"),
        _line("std", list(facts.std), "ones where it does not"),
        _line("target", facts.target, f"what a picture is labelled with: {', '.join(get_args(Target))}"),
        _line("output", facts.output, "what the loss takes of the model's outputs, a name or a position; empty: all"),
        _line("loss", facts.loss, "cross_entropy[,label_smoothing=0.1], bce, mse, or file.py:function"),
        _line("objects", facts.objects, "for detection: the most objects of a picture"),
        _line("count", facts.count, "pictures of the client; leave it out if every client says it itself"),
        "",
    ]
    rule = facts.rule or RuleFacts()
    table = ["[rule]  # leave the table out if the clients do not tell"]
    table += [_line(told.name, getattr(rule, told.name), told.note) for told in _told()]
    return "\n".join([*lines, *(table if facts.rule else [f"# {line}" for line in table])]) + "\n"


def _told() -> list[Entry]:
    return [one for one in entries(LocalRule) if one.name in RuleFacts.model_fields]


def _line(name: str, value: object, told: str) -> str:
    if value is None:
        return f"# {name} =  # {told}"
    written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"{name} = {written}  # {told}"
