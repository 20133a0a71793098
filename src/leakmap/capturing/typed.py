"""Files that name code of the user's own, which runs only where it is typed."""

from dataclasses import replace
from pathlib import Path

from leakmap.errors import ModelError
from leakmap.local_rule import Mode
from leakmap.models.network import Code, Network, build_network
from leakmap.observation.observation import Observation
from leakmap.problem.task import Task
from leakmap.registry.spec import Spec
from leakmap.registry.user_code import is_user_code


def read_observation(file: Path | str, model: str | None = None, loss: str | None = None) -> Observation:
    """Reads an Observation whose architecture or loss may be the user's own code, which only typing it permits to run.

    Args:
        file: The file.
        model: ``file.py:function`` in place of the architecture that the file names.
        loss: ``file.py:function`` in place of its loss.

    Raises:
        ObservationError: the file is not a sound Observation.
        ModelError: it names code of the user's own, and none was given; or the weights do not fit the code.
    """
    found = Observation.from_file(file)
    network = found.network
    task = network.task if loss is None else replace(network.task, loss=Spec.parse(loss))
    spec = network.model if model is None else Spec.parse(model)
    mode = "train" if found.rule is None else found.rule.mode
    code = typed_code(file, task, spec, model, loss, mode)
    return replace(found, network=Network(task, spec, network.weights, code))


def typed_code(
    file: Path | str, task: Task, spec: Spec, model: str | None, loss: str | None, mode: Mode = "train"
) -> Code:
    """The user's own architecture and loss, which run only if they were typed, not because a file names them.

    Args:
        file: What names them, for the message.
        task: With the loss.
        spec: The architecture.
        model: What was typed in its place, if anything.
        loss: What was typed in place of the loss, if anything.
        mode: Of the client, in which the architecture is tried.

    Raises:
        ModelError: the file names code of the user's own, and it was not typed.
    """
    for option, one, typed in (("--model", spec, model), ("--loss", task.loss, loss)):
        if is_user_code(one.name) and typed is None:
            raise ModelError(
                f"{file} names code of your own, {one}, which leakmap runs only where you type it: give {option} {one}."
            )
    return Code() if model is None and loss is None else build_network(task, spec, mode=mode).code
