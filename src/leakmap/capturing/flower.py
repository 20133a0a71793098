"""Taps for Flower: what a server sent and what its clients returned, as Observation files.

    app = ClientApp(mods=[tap("updates", "facts.toml")])  # every client writes its own
    strategy = tapped(FedAvg(), "updates", "facts.toml")  # the server writes those of all

Both write ``updates/round-0001/client-0.safetensors``, of training messages only, and pass on what they see as it is. A
capture that fails is said in one line of the log ``leakmap`` and disturbs nothing. Flower itself is not imported here.
"""

import copy
import logging
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import Tensor, nn

from leakmap.capturing.capture import capture, tensors_of
from leakmap.capturing.facts import Facts, RuleFacts, read_facts
from leakmap.errors import BadSetting, ModelError, ObservationError
from leakmap.local_rule import LocalRule
from leakmap.models.naming import matched, names_of
from leakmap.models.network import Code, build_network
from leakmap.registry.declared import entries
from leakmap.registry.user_code import is_user_code

log = logging.getLogger("leakmap")

Call = Callable[[Any, Any], Any]
Mod = Callable[[Any, Any, Call], Any]
"""``(message, context, call_next) -> reply``, as in ``flwr.clientapp.typing``."""
Strategy = TypeVar("Strategy")

_RULE = {key: one.name for one in entries(LocalRule) for key in one.declared.sent}
"""Key of the configuration that a server sends, with ``_`` for ``-`` -> fact of the local rule."""


def tap(folder: Path | str, facts: Facts | Path | str, *, code: Code | None = None) -> Mod:
    """A client mod that writes every training round of its client.

    Its place decides what it sees: in ``mods=[tap(...), LocalDpMod(...)]`` the noised update, which is what the server
    gets; in ``[LocalDpMod(...), tap(...)]`` the raw one.

    Args:
        folder: Where to write; a client is called by its ``partition-id``, else by its node id.
        facts: What the messages cannot tell, or the TOML file with it. What is not written there is taken from the
            messages: the count from the metric ``num-examples``, and of the local rule what the configuration names
            (``lr``, ``local-epochs``, ``batch-size``, ``momentum``, ``weight-decay``). What is written there holds.
        code: The user's own architecture and loss, where the facts name such.

    Raises:
        BadSetting: the facts are not sound.
        ModelError: the architecture cannot be built, is code that was not given, or does not fit the task.
    """
    recorder = _recorder(folder, facts, code)

    def mod(message: Any, context: Any, call_next: Call) -> Any:
        if message.metadata.message_type.partition(".")[0] != "train":
            return call_next(message, context)
        sent = copy.deepcopy(message.content)
        reply = call_next(message, context)
        if not reply.has_error():
            with _spared(context.node_id):
                partition = _whole(context.node_config.get("partition-id"))
                number = _whole(_scalars(sent.config_records).get("server_round")) or _whole(message.metadata.group_id)
                recorder.write(sent, reply.content, number, context.node_id if partition is None else partition)
        return reply

    return mod


def tapped(strategy: Strategy, folder: Path | str, facts: Facts | Path | str, *, code: Code | None = None) -> Strategy:
    """Lets a strategy write every training round of every client, as the server sees it.

    The strategy's own ``configure_train`` and ``aggregate_train`` are replaced in place, not wrapped in another object:
    ``start`` calls them on the strategy itself, also where a class of the user's overrides it.

    Args:
        strategy: Any of ``flwr.serverapp.strategy``.
        folder: Where to write; a client is called by the ``partition-id`` that it reports as a metric, else by its node
            id, which is another one in every run.
        facts: As for :func:`tap`.
        code: As for :func:`tap`.

    Returns:
        The same strategy.

    Raises:
        BadSetting: the facts are not sound, or this is no such strategy.
        ModelError: see :func:`tap`.
    """
    own: Any = strategy
    if not (hasattr(own, "configure_train") and hasattr(own, "aggregate_train")):
        raise BadSetting(
            f"A {type(strategy).__name__} has no configure_train and aggregate_train; tapped takes a strategy of "
            "flwr.serverapp. With others, put tap into the mods of the client app."
        )
    recorder = _recorder(folder, facts, code)
    configure, aggregate = own.configure_train, own.aggregate_train
    sent: dict[int, Any] = {}

    def configure_train(server_round: int, arrays: Any, config: Any, grid: Any) -> list[Any]:
        messages = list(configure(server_round, arrays, config, grid))
        sent.clear()
        sent.update({message.metadata.dst_node_id: copy.deepcopy(message.content) for message in messages})
        return messages

    def aggregate_train(server_round: int, replies: Iterable[Any]) -> Any:
        replies = list(replies)
        nodes: dict[int, int] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in sent and not reply.has_error():
                with _spared(node):
                    partition = _whole(_scalars(reply.content.metric_records).get("partition_id"))
                    if partition is None or nodes.setdefault(partition, node) != node:
                        partition = node
                    recorder.write(sent[node], reply.content, server_round, partition)
        return aggregate(server_round, replies)

    own.configure_train, own.aggregate_train = configure_train, aggregate_train
    return strategy


@dataclass(frozen=True)
class _Recorder:
    folder: Path
    facts: Facts
    module: nn.Module
    code: Code
    said: set[str] = field(default_factory=set)

    def write(self, sent: Any, returned: Any, number: int | None, client: int) -> None:
        """Writes the Observation of one client's round, from the contents of the two messages."""
        if not number:
            raise ObservationError(
                "The message tells no round, so its file has no name; send 'server-round' in its configuration."
            )
        key, before = self._arrays(sent.array_records, "arrays")
        _, after = self._arrays(returned.array_records, key)
        metrics, config = _scalars(returned.metric_records), _scalars(sent.config_records)
        told = {_RULE[name]: value for name, value in config.items() if name in _RULE}
        facts = self._completed(_whole(metrics.get("num_examples")), RuleFacts.model_validate(told))
        file = self.folder / f"round-{number:04d}" / f"client-{client}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        capture(before, after, facts, code=self.code, file=file)

    def _completed(self, count: int | None, told: RuleFacts) -> Facts:
        """The facts, and where they leave something open what the messages tell."""
        own, rule = self.facts.count, self.facts.rule or RuleFacts()
        wrote = {name: getattr(rule, name) for name in rule.model_fields_set}
        found = {name: getattr(told, name) for name in told.model_fields_set}
        for name, value in {"count": own, **wrote}.items():
            other = {"count": count, **found}.get(name, value)
            if None not in (value, other) and value != other:
                self._warn(f"The facts say {name} = {value}, the messages say {other}; the facts hold.")
        both = None if self.facts.rule is None and not found else RuleFacts(**{**found, **wrote})
        return self.facts.model_copy(update={"count": count if own is None else own, "rule": both})

    def _warn(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.add(sentence)
            log.warning(sentence)

    def _arrays(self, records: Mapping[str, Any], first: str) -> tuple[str, dict[str, Tensor]]:
        """The first record with names of the model, beginning with that of the key ``first``; and its key."""
        own = names_of(self.module)
        for key in sorted(records, key=lambda key: key != first):
            try:
                tensors = matched(tensors_of(records[key].to_torch_state_dict()), own, None, f"The record {key!r}")
            except ModelError:
                continue  # a list that is of something else
            if not tensors.keys().isdisjoint(own.shapes):
                return key, tensors
        raise ObservationError(
            f"None of the arrays {', '.join(map(repr, records)) or '(there are none)'} has a name of the model, such "
            f"as {next(iter(own.shapes))!r}."
        )


def _recorder(folder: Path | str, facts: Facts | Path | str, code: Code | None) -> _Recorder:
    facts, code = facts if isinstance(facts, Facts) else read_facts(facts), code or Code()
    for name, given, what in ((facts.model, code.model, "model"), (facts.loss, code.loss, "loss")):
        if is_user_code(name.partition(",")[0]) and given is None:
            raise ModelError(
                f"The facts name the {what} {name}, which is code of your own and is not run from there: pass it as "
                f"code=Code({what}=...)."
            )
    if facts.rule is not None:
        facts.rule.rule("delta")
    mode = "train" if facts.rule is None else facts.rule.mode
    module = build_network(facts.task, code.model or facts.model, loss=code.loss, mode=mode).module()
    return _Recorder(Path(folder).absolute(), facts, module, Code(module, code.loss))


@contextmanager
def _spared(node: int) -> Iterator[None]:
    """Says in the log what goes wrong, as recording must not end a federation."""
    try:
        yield
    except Exception as error:
        reason = _wrong(error) if isinstance(error, ValidationError) else (str(error).splitlines() or [""])[0]
        reason = reason or type(error).__name__
        log.warning("A round of the Flower node %s was not recorded: %s", node, reason)


def _wrong(error: ValidationError) -> str:
    """The first field of what a server sent that is no rule, its value, and why."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"the configuration says {field} = {reprlib.repr(first['input'])}: {first['msg']}."


def _scalars(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the records hold, by name with ``_`` for ``-``."""
    return {key.lower().replace("-", "_"): value for record in records.values() for key, value in record.items()}


def _whole(value: Any) -> int | None:
    """A number of at least 0, of what a message claims to be one."""
    try:
        return int(value) if int(value) == float(value) >= 0 else None
    except (TypeError, ValueError, OverflowError):
        return None
