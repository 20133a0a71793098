"""The taps for Flower, on the federation of the examples and on messages made by hand."""

import copy
import logging
import os
import runpy
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from leakmap import Code, Facts, LocalRule, Observation, RuleFacts, build_network
from leakmap.capturing import flower as tapping
from leakmap.capturing.facts import read_facts
from leakmap.capturing.flower import tap, tapped
from leakmap.client.data import load_pictures
from leakmap.client_step import arrange, local_signal
from leakmap.errors import BadSetting, LeakmapError, ModelError

EXAMPLES = Path(__file__).parents[2] / "examples"
FACTS = EXAMPLES / "flower" / "facts.toml"
VARIANTS = {"plain": [], "frozen-batchnorm": ["--frozen-batchnorm"], "dp": ["--dp"]}
SMALL = Facts(model="mlp,hidden=4", shape=(1, 4, 4), classes=3, mean=(0.5,), std=(0.5,))


def refused(*args, **kwargs):
    raise AssertionError("a socket was used")


@pytest.fixture(scope="module")
def flower():
    """The modules of the example; no socket may be used with them."""
    pytest.importorskip("flwr", reason="Flower is not installed: pip install 'leakmap[flower]'")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Flower imports
        patch.syspath_prepend(EXAMPLES / "flower")
        for name in ("connect", "connect_ex", "bind", "sendto"):
            patch.setattr(socket.socket, name, refused)
        patch.setattr(socket, "getaddrinfo", refused)
        names = ("task", "client_app", "server_app", "run")
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        import client_app
        import run
        import server_app
        import task

        yield SimpleNamespace(task=task, client_app=client_app, server_app=server_app, run=run)
        for name in names:
            del sys.modules[name]


@pytest.fixture(scope="module")
def runs(flower, tmp_path_factory):
    """Every variant once, through the command line, with a tap on the server too and a record of what clients did."""
    from flwr.serverapp.strategy import FedAvg

    out = tmp_path_factory.mktemp("flower")
    found = {}
    for variant, arguments in VARIANTS.items():
        done, sent, train = [], [], flower.task.train
        facts = flower.client_app.facts(variant == "frozen-batchnorm", variant == "dp")

        class Own(FedAvg):
            """A strategy with a loop of its own, which calls its methods on itself."""

            def start(self, *, sent=sent, **settings):
                assert sent == []
                return super().start(**settings)

            def configure_train(self, server_round, arrays, config, grid, sent=sent):
                sent.append(arrays.to_torch_state_dict())
                return super().configure_train(server_round, arrays, config, grid)

        def strategy(facts=facts, variant=variant, Own=Own, **settings):
            return tapped(Own(**settings), out / "server" / variant, facts)

        def watched(net, held, *args, train=train, done=done):
            before = copy.deepcopy(net.state_dict())
            train(net, held, *args)
            number = [torch.equal(held.images, flower.task.partition(i).images) for i in (0, 1)].index(True)
            done.append((number, before, copy.deepcopy(net.state_dict())))

        np.random.seed(0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flower.server_app, "FedAvg", strategy)
            patch.setattr(flower.client_app, "train", watched)
            flower.run.main([*arguments, "--out", str(out)])
        places = [f"round-{number:04d}/client-{client}.safetensors" for number in (1, 2) for client in (0, 1)]
        found[variant] = SimpleNamespace(
            files=[out / variant / place for place in places],
            server=[out / "server" / variant / place for place in places],
            seen=[Observation.from_file(out / variant / place) for place in places],
            done=[pair for half in (done[:2], done[2:]) for _, *pair in sorted(half, key=lambda entry: entry[0])],
            sent=sent,
        )
    return SimpleNamespace(out=out, **{name.replace("-", "_"): run for name, run in found.items()})


def test_a_run_writes_one_file_for_each_client_and_round_and_nothing_else(runs):
    written = {path for path in (runs.out / "plain").rglob("*") if path.is_file()}
    assert written == set(runs.plain.files)
    assert len(runs.plain.done) == 4


@pytest.mark.parametrize("variant", ["plain", "frozen_batchnorm"])
def test_the_captured_update_is_the_clients_own_difference_to_the_bit(runs, variant):
    run = getattr(runs, variant)
    for observation, (before, after) in zip(run.seen, run.done, strict=True):
        assert observation.update.kind == "delta"
        assert set(observation.update.tensors) | set(observation.buffers) == set(after)
        for name, tensor in observation.update.tensors.items():
            assert torch.equal(tensor, after[name] - before[name])
            assert tensor.abs().max() > 0
        for name, tensor in observation.buffers.items():
            assert torch.equal(tensor, after[name])
        for name, tensor in observation.network.weights.items():
            assert torch.equal(tensor, before[name])


def test_counters_that_were_averaged_as_floats_come_back_whole(runs):
    counters = [name for name in runs.plain.sent[1] if name.endswith("num_batches_tracked")]
    assert counters
    assert {runs.plain.sent[1][name].dtype for name in counters} == {torch.float64}
    for observation, before, after in zip(runs.plain.seen, (0, 0, 1, 1), (1, 1, 2, 2), strict=True):
        for name in counters:
            sent, returned = observation.network.weights[name], observation.buffers[name]
            assert (sent.dtype, int(sent)) == (torch.int64, before)
            assert (returned.dtype, int(returned)) == (torch.int64, after)


def test_the_messages_complete_the_facts(runs):
    for observation in runs.plain.seen:
        assert observation.count == 6
        assert observation.rule == LocalRule(share="delta", lr=0.05)
    assert {observation.rule.mode for observation in runs.frozen_batchnorm.seen} == {"eval"}
    assert {observation.rule.defence.partition(",")[0] for observation in runs.dp.seen} == {"clip_noise"}


def test_frozen_batchnorm_moves_no_buffer_and_training_moves_all(runs):
    def moved(observation):
        weights = observation.network.weights
        return [not torch.equal(tensor, weights[name]) for name, tensor in observation.buffers.items()]

    assert not any(any(moved(observation)) for observation in runs.frozen_batchnorm.seen)
    assert all(all(moved(observation)) for observation in runs.plain.seen)


@pytest.mark.parametrize("variant", ["plain", "frozen_batchnorm", "dp"])
def test_the_server_sees_what_the_clients_tap_saw(runs, variant):
    run = getattr(runs, variant)
    for own, server in zip(run.files, run.server, strict=True):
        assert own.read_bytes() == server.read_bytes()


def test_the_dp_variant_records_the_noised_update(runs, flower):
    for observation, (before, after) in zip(runs.dp.seen, runs.dp.done, strict=True):
        moved = {name: (after[name] - before[name]).double() for name in after}
        norm = torch.stack([tensor.norm() for tensor in moved.values()]).norm()
        factor = min(1.0, flower.client_app.CLIP / float(norm))
        noise = [tensor - factor * moved[name] for name, tensor in observation.update.tensors.items()]
        assert float(torch.cat([tensor.flatten() for tensor in noise]).std()) == pytest.approx(
            flower.client_app.NOISE, rel=0.05
        )


def test_behind_the_noise_mod_the_tap_sees_the_raw_update(flower, tmp_path):
    from flwr.clientapp.mod import LocalDpMod

    noise = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=100.0, delta=1e-5)
    results = {}
    for name in ("behind", "before"):
        record = tap(tmp_path / name, SMALL)
        mods = [noise, record] if name == "behind" else [record, noise]
        reply = through(mods, message({"arrays": state()}), client)
        file = tmp_path / name / "round-0001" / "client-7.safetensors"
        returned = reply.content["arrays"].to_torch_state_dict()
        results[name] = Observation.from_file(file).update.tensors, returned
    for name, sent in state().items():
        assert torch.equal(results["behind"][0][name], (sent + 0.25) - sent)
        assert not torch.equal(results["behind"][0][name], results["behind"][1][name] - sent)
        assert torch.equal(results["before"][0][name], results["before"][1][name] - sent)


def test_a_capture_holds_tensors_of_the_model_only_and_no_picture(runs, flower):
    for place, (file, observation) in enumerate(zip(runs.plain.files, runs.plain.seen, strict=True)):
        held = flower.task.partition(place % 2)
        names = {f"weights/{n}" for n in observation.network.weights}
        names |= {f"update/{n}" for n in observation.update.tensors} | {f"buffers/{n}" for n in observation.buffers}
        from safetensors import safe_open

        with safe_open(file, "pt") as found:
            assert set(found.keys()) == names
            shapes = {tuple(found.get_tensor(name).shape) for name in names}
        assert not any(shape[-2:] == (32, 32) for shape in shapes)
        assert observation.labels is observation.public is observation.known_pixels is observation.label_counts is None
        data = file.read_bytes()
        normalized = observation.network.task.normalize(held.images / 255)
        for pictures in (held.images, held.images / 255, normalized):
            for row in pictures[:, :, 16]:
                assert row.contiguous().numpy().tobytes()[:32] not in data


@pytest.mark.parametrize("variant", ["plain", "frozen_batchnorm"])
def test_leakmaps_own_client_step_on_the_pictures_gives_the_update(runs, variant):
    for place, observation in enumerate(getattr(runs, variant).seen):
        truth = load_pictures(f"npz:{runs.out / 'truth' / f'client-{place % 2}.npz'}")
        network = observation.network
        module = arrange(network.module(), observation.rule)
        x = network.task.normalize(truth.images / 255)
        again = local_signal(module, network.weights, x, truth.labels, observation.rule, network.loss()).tensors
        flat, own = (torch.cat([t[n].flatten() for n in again]) for t in (again, observation.update.tensors))
        assert float((flat - own).norm() / own.norm()) < 1e-4


def test_the_auditors_pictures_are_apart(runs):
    pictures = [load_pictures(f"npz:{runs.out / name}") for name in ("truth/client-0.npz", "truth/client-1.npz")]
    others = load_pictures(f"npz:{runs.out / 'others.npz'}")
    assert [len(held) for held in pictures] == [6, 6]
    assert len(others) >= 60
    everything = torch.cat([held.images for held in (*pictures, others)]).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything)


def test_a_capture_that_fails_breaks_no_round(flower, tmp_path, caplog):
    other = read_facts(FACTS).model_copy(update={"model": "resnet,blocks=1-1,width=8"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower.client_app, "facts", lambda *_: other)
        flower.run.main(["--out", str(tmp_path)])
    assert not list(tmp_path.rglob("*.safetensors"))
    said = [record.getMessage() for record in caplog.records if record.name == "leakmap"]
    assert len(said) == 4
    assert all("was not recorded" in line and "do not fit the architecture" in line for line in said)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "resnett"}, "did you mean"),
        ({"mean": (0.5, 0.5)}, "values of mean"),
        ({"std": (0.0, 1.0, 1.0)}, "positive"),
        ({"loss": "cross_entropi"}, "no loss"),
        ({"shape": (1, 32, 32), "mean": (0.5,), "std": (1.0,), "model": "torchvision/resnet18"}, "takes 3 channels"),
        ({"rule": RuleFacts(momentum=0.9, optimizer="adam")}, "momentum"),
        ({"rule": RuleFacts(defence="clip_nois")}, "defence"),
        ({"model": "nets.py:build"}, "code of your own"),
        ({"loss": "nets.py:loss"}, "code of your own"),
    ],
)
def test_facts_that_cannot_be_right_are_refused_when_the_tap_is_made(changed, sentence, tmp_path):
    facts = read_facts(FACTS).model_copy(update=changed)
    strategy = SimpleNamespace(configure_train=None, aggregate_train=None)
    for make in (lambda: tap(tmp_path, facts), lambda: tapped(strategy, tmp_path, facts)):
        with pytest.raises(LeakmapError, match=sentence):
            make()


def test_facts_that_cannot_be_read_are_refused_when_the_tap_is_made(tmp_path):
    (tmp_path / "facts.toml").write_text('model = "resnet"\n')
    with pytest.raises(BadSetting, match="shape"):
        tap(tmp_path, tmp_path / "facts.toml")
    with pytest.raises(BadSetting, match=r"no file of facts"):
        tap(tmp_path, "absent.toml")


def test_what_is_no_strategy_is_refused(tmp_path):
    with pytest.raises(BadSetting, match="dict has no configure_train"):
        tapped({}, tmp_path, FACTS)


def state():
    return {name: tensor.clone() for name, tensor in build_network(SMALL.task, SMALL.model).weights.items()}


def record_of(tensors):
    from flwr.app import ArrayRecord

    return ArrayRecord(tensors if isinstance(tensors, list) else {name: t.clone() for name, t in tensors.items()})


def message(arrays, config=None, kind="train", group=None):
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 0
    records = {name: record_of(tensors) for name, tensors in arrays.items()}
    records["config"] = ConfigRecord({"server-round": 1} if config is None else config)
    return Message(RecordDict(records), dst_node_id=9, message_type=kind, group_id=group)


def client(message, context, metrics=None, kept=True):
    """Adds 0.25 to everything that it is sent."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    records = {}
    for key, arrays in list(message.content.array_records.items()):
        listed = list(arrays) == [str(place) for place in range(len(arrays))]
        moved = {name: tensor + 0.25 for name, tensor in arrays.to_torch_state_dict(keep_input=kept).items()}
        records[key] = ArrayRecord([tensor.numpy() for tensor in moved.values()] if listed else moved)
    records["metrics"] = MetricRecord({"num-examples": 5, "partition-id": 3} if metrics is None else metrics)
    return Message(RecordDict(records), reply_to=message)


def through(mods, message, function, place=7):
    """What a client app with these mods replies."""
    from flwr.app import Context, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp(mods=mods)
    app.train()(function)
    app.evaluate()(function)
    node_config = {} if place is None else {"partition-id": place}
    return app(message, Context(1, 9, node_config, RecordDict(), {}))


def test_what_the_user_wrote_holds_and_a_contradiction_is_said_once(flower, tmp_path, caplog):
    facts = SMALL.model_copy(update={"count": 4, "rule": RuleFacts(lr=0.5, momentum=0.9)})
    record = tap(tmp_path, facts)
    for number in (1, 2):
        config = {"server-round": number, "learning-rate": 0.1, "local-epochs": 3, "batch-size": 2, "momentum": 0.9}
        through([record], message({"arrays": state()}, config), client)
        observation = Observation.from_file(tmp_path / f"round-000{number}" / "client-7.safetensors")
        assert observation.count == 4
        assert observation.rule == LocalRule(share="delta", lr=0.5, momentum=0.9, epochs=3, batch_size=2)
    said = [entry.getMessage() for entry in caplog.records if entry.name == "leakmap"]
    assert said == [
        "The facts say count = 4, the messages say 5; the facts hold.",
        "The facts say lr = 0.5, the messages say 0.1; the facts hold.",
    ]


def test_without_a_word_about_the_local_rule_there_is_none(flower, tmp_path):
    record = tap(tmp_path, SMALL)
    through([record], message({"arrays": state()}), client)
    through([record], message({"arrays": state()}, {"server-round": 2, "lr": 0.1}), client)
    first, second = (Observation.from_file(file) for file in sorted(tmp_path.rglob("*.safetensors")))
    assert first.rule is None
    assert second.rule == LocalRule(share="delta", lr=0.1)
    assert first.count == second.count == 5


def test_messages_pass_unchanged_and_the_random_stream_too(flower, tmp_path):
    def greedy(message, context):
        return client(message, context, kept=False)

    replies, drawn = [], []
    for mods in ([], [tap(tmp_path, SMALL)]):
        torch.manual_seed(0)
        one = message({"arrays": state()})
        content = one.content
        replies.append(through(mods, one, greedy).content)
        assert one.content is content
        assert not one.content["arrays"]
        drawn.append(torch.rand(1))
    assert replies[0].array_records == replies[1].array_records
    assert replies[0].metric_records == replies[1].metric_records
    assert torch.equal(*drawn)
    observation = Observation.from_file(tmp_path / "round-0001" / "client-7.safetensors")
    assert all(torch.equal(tensor, state()[name]) for name, tensor in observation.network.weights.items())


def test_evaluation_and_replies_that_are_errors_are_left_alone(flower, tmp_path, caplog):
    from flwr.app import Error, Message

    record = tap(tmp_path, SMALL)
    through([record], message({"arrays": state()}, kind="evaluate"), client)
    reply = through([record], message({"arrays": state()}), lambda m, _: Message(Error(1, "no"), reply_to=m))
    assert reply.has_error()
    assert not list(tmp_path.iterdir())
    assert not [entry for entry in caplog.records if entry.name == "leakmap"]


@pytest.mark.parametrize("reverse", [False, True])
def test_of_several_records_the_one_with_the_model_is_taken(flower, tmp_path, reverse):
    control = {name: tensor + 7 for name, tensor in state().items()}
    arrays = {"additive": control, "other": {"step": torch.ones(2)}, "arrays": state()}
    arrays = dict(reversed(arrays.items())) if reverse else arrays
    through([tap(tmp_path / "named", SMALL)], message(arrays), client)
    through([tap(tmp_path / "only", SMALL)], message({"other": {"x": torch.ones(2)}, "w": state()}), client)
    for file in tmp_path.rglob("*.safetensors"):
        weights = Observation.from_file(file).network.weights
        assert all(torch.equal(weights[name], tensor) for name, tensor in state().items())
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_a_list_of_arrays_is_taken_in_the_order_of_the_state_and_an_own_net_as_code(flower, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    facts = SMALL.model_copy(update={"model": "nets.py:build"})
    record = tap(tmp_path, facts, code=Code(model=net))
    through([record], message({"arrays": [t.numpy() for t in net.state_dict().values()]}), client, place=None)
    observation = Observation.from_file(tmp_path / "round-0001" / "client-9.safetensors")
    assert list(observation.network.weights) == list(net.state_dict())
    for name, tensor in observation.update.tensors.items():
        assert torch.equal(tensor, (net.state_dict()[name] + 0.25) - net.state_dict()[name])
    assert torch.equal(observation.buffers["2.running_var"], torch.full((6,), 1.25))


def test_a_round_without_a_number_takes_that_of_the_group_or_is_not_recorded(flower, tmp_path, caplog):
    record = tap(tmp_path, SMALL)
    through([record], message({"arrays": state()}, {}, group="12"), client)
    through([record], message({"arrays": state()}, {}), client)
    assert [file.parent.name for file in tmp_path.rglob("*.safetensors")] == ["round-0012"]
    assert "server-round" in caplog.text


def test_two_nodes_that_claim_one_partition_do_not_overwrite_each_other(flower, tmp_path, caplog):
    strategy = SimpleNamespace(
        configure_train=lambda *_: iter(messages), aggregate_train=lambda number, replies: (number, len(list(replies)))
    )
    messages = [message({"arrays": state()}) for _ in range(4)]
    replies = []
    metrics = [{"partition-id": 3}, {"partition-id": 3.0}, {"partition-id": -1}, {"partition-id": [1.0, 2.0]}]
    for place, (one, claimed) in enumerate(zip(messages, metrics, strict=True)):
        one.metadata.__dict__["_dst_node_id"] = 100 + place
        replies.append(client(copy.deepcopy(one), None, claimed))
    recorded = tapped(strategy, tmp_path, SMALL)
    assert recorded is strategy
    assert len(recorded.configure_train(5, None, None, None)) == 4
    assert recorded.aggregate_train(5, iter(replies)) == (5, 4)
    names = sorted(file.stem for file in (tmp_path / "round-0005").iterdir())
    assert names == ["client-101", "client-102", "client-103", "client-3"]
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING and entry.name == "leakmap"]


def test_a_plain_loop_is_captured_in_thirty_lines(tmp_path):
    file = EXAMPLES / "pytorch" / "loop.py"
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.strip().startswith('"""')]
    assert len(lines) <= 30
    loop = runpy.run_path(str(file))
    loop["main"](tmp_path)
    observation = Observation.from_file(tmp_path / "client.safetensors", code=Code(model=loop["build"]()))
    network = observation.network
    pictures = load_pictures("samples", 32)
    x, y = network.task.normalize(pictures.images[::60][:6] / 255), pictures.labels[::60][:6]
    module = arrange(network.module(), observation.rule)
    again = local_signal(module, network.weights, x, y, observation.rule, network.loss()).tensors
    flat, own = (torch.cat([t[n].flatten() for n in again]) for t in (again, observation.update.tensors))
    assert float((flat - own).norm() / own.norm()) < 1e-4


def test_code_that_the_facts_do_not_name_fits_too(tmp_path):
    with pytest.raises(ModelError, match="does not take inputs"):
        tap(tmp_path, SMALL, code=Code(model=nn.Linear(5, 3)))


SIMULATION = """
import sys
from pathlib import Path
from flwr.simulation import run_simulation
from client_app import client
from server_app import app
clients = {"num_cpus": 1, "num_gpus": 0.0}
backend = {"client_resources": clients, "init_args": {"num_cpus": 2, "include_dashboard": False}}
run_simulation(app, client(Path(sys.argv[1])), num_supernodes=2, backend_config=backend)
"""


@pytest.mark.slow
def test_the_real_simulation_writes_what_the_run_in_process_writes(runs, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'flwr[simulation]'")
    (tmp_path / "simulate.py").write_text(SIMULATION)
    path = os.pathsep.join(entry for entry in (str(EXAMPLES / "flower"), os.environ.get("PYTHONPATH")) if entry)
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    own = {"HOME": str(tmp_path), "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **quiet}
    command = [sys.executable, str(tmp_path / "simulate.py"), str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    for file, observation in zip(runs.plain.files, runs.plain.seen, strict=True):
        found = Observation.from_file(tmp_path / "out" / file.relative_to(runs.out / "plain"))
        assert (found.count, found.rule) == (observation.count, observation.rule)
        for name, tensor in observation.update.tensors.items():
            assert torch.allclose(found.update.tensors[name], tensor, rtol=1e-3, atol=1e-6)


def test_the_log_names_the_field_and_the_value_that_are_wrong(caplog):
    with tapping._spared(3):
        RuleFacts.model_validate({"lr": -0.5})
    assert "the configuration says lr = -0.5: Input should be greater than 0." in caplog.text
