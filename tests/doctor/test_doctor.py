"""The doctor: what a capture contradicts by itself, and which fact a replay names."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from leakmap import Batch, LocalRule, Observation, Task, ThreatModel, Update, build_network, observe, simulate
from leakmap.auditing.captured import held_pictures
from leakmap.auditing.update_check import check_update, degenerate
from leakmap.doctor.checks import check
from leakmap.doctor.examine import examine
from leakmap.doctor.replay import LIMIT, replay
from leakmap.doctor.values import likely_defence, rounding
from leakmap.errors import DataError
from leakmap.inspection import advise, read_traits
from leakmap.problem.objects import GRID
from leakmap.registry.spec import Spec
from tests.conftest import batch_of

TASK = Task((3, 8, 8), 12, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMED, PLAIN = "resnet,blocks=1,width=4", "convnet,width=4,depth=2"
STEP = LocalRule("delta", lr=0.05)
EPOCHS = LocalRule("delta", lr=0.05, epochs=2, batch_size=2, momentum=0.9)
BATCH = batch_of(4, TASK)


def captured(rule=STEP, model=PLAIN, task=TASK, batch=BATCH) -> Observation:
    return observe(simulate(build_network(task, model), rule, batch), ThreatModel())


def with_tensors(o: Observation, change) -> Observation:
    return replace(o, update=Update(o.update.kind, {name: change(name, t) for name, t in o.update.tensors.items()}))


def with_task(o: Observation, **changes) -> Observation:
    return replace(o, network=replace(o.network, task=replace(o.network.task, **changes)))


def with_rule(o: Observation, **changes) -> Observation:
    assert o.rule is not None
    return replace(o, rule=replace(o.rule, **changes))


def wrong(o: Observation) -> set[str]:
    return {finding.name for finding in check(o) if finding.level == "wrong"}


def named(found) -> list[str]:
    return [change.name for change in found.explained_by]


@pytest.mark.parametrize("rule", [LocalRule(), LocalRule(mode="eval"), STEP, EPOCHS], ids=str)
@pytest.mark.parametrize("model", [NORMED, PLAIN])
def test_right_facts_give_the_update_and_contradict_nothing(rule, model):
    o = captured(rule, model)
    found = replay(o, BATCH)
    assert not wrong(o)
    assert found.exact
    assert found.distance < found.threshold < 1e-3
    assert found.explained_by == found.tried == ()
    assert found.corrected is None
    assert found.sentence.startswith("The facts are right")


def swapped(o: Observation) -> Observation:
    first, second = (name for name in o.update.tensors if name.endswith((".0.norm1.weight", ".0.norm2.weight")))
    other = {first: second, second: first}
    return with_tensors(o, lambda name, _: o.update.tensors[other.get(name, name)])


MISTAKES = {
    "mode": (EPOCHS, NORMED, lambda o: with_rule(o, mode="eval"), "mode"),
    "gradient for delta": (
        LocalRule(),
        NORMED,
        lambda o: replace(o, update=Update("delta", o.update.tensors), rule=LocalRule("delta")),
        "kind",
    ),
    "delta for gradient": (
        STEP,
        PLAIN,
        lambda o: replace(o, update=Update("gradient", o.update.tensors), rule=LocalRule()),
        "kind",
    ),
    "sign": (EPOCHS, PLAIN, lambda o: with_tensors(o, lambda _, t: -t), "scale"),
    "divided by lr": (EPOCHS, PLAIN, lambda o: with_tensors(o, lambda _, t: t / 0.05), "scale"),
    "summed gradient": (LocalRule(), PLAIN, lambda o: with_tensors(o, lambda _, t: 4 * t), "scale"),
    "weights": (STEP, PLAIN, lambda o: with_tensors(o, lambda name, t: t + o.network.weights[name]), "kind"),
    "delta as weights": (EPOCHS, PLAIN, lambda o: with_tensors(o, lambda n, t: t - o.network.weights[n]), "kind"),
    "gradient as weights": (
        LocalRule(),
        PLAIN,
        lambda o: replace(
            o,
            update=Update("delta", {n: t - o.network.weights[n] for n, t in o.update.tensors.items()}),
            rule=LocalRule("delta"),
        ),
        "kind",
    ),
    "weights as gradient": (
        LocalRule("delta"),
        PLAIN,
        lambda o: replace(
            o,
            update=Update("gradient", {n: t + o.network.weights[n] for n, t in o.update.tensors.items()}),
            rule=LocalRule(),
        ),
        "kind",
    ),
    "lr, one step": (STEP, PLAIN, lambda o: with_rule(o, lr=0.013), "lr"),
    "lr, momentum": (EPOCHS, PLAIN, lambda o: with_rule(o, lr=0.02), "lr"),
    "swapped": (STEP, NORMED, swapped, "parameter order"),
    "normalization": (EPOCHS, PLAIN, lambda o: with_task(o, mean=(0.5,) * 3, std=(0.5,) * 3), "normalization"),
    "smoothing": (
        STEP,
        PLAIN,
        lambda o: with_task(o, loss=Spec("cross_entropy", {"label_smoothing": 0.1})),
        "label smoothing",
    ),
    "decay": (replace(STEP, weight_decay=1e-4), PLAIN, lambda o: with_rule(o, weight_decay=0.0), "weight decay"),
    "FedProx": (replace(EPOCHS, proximal=0.1), PLAIN, lambda o: with_rule(o, proximal=0.0), "proximal term"),
    "FedProx, no usual mu": (
        replace(EPOCHS, proximal=0.03),
        NORMED,
        lambda o: with_rule(o, proximal=0.0),
        "proximal term",
    ),
    "clipped steps": (replace(EPOCHS, clip_norm=0.7), PLAIN, lambda o: with_rule(o, clip_norm=None), "clipping"),
    "unclipped steps": (EPOCHS, PLAIN, lambda o: with_rule(o, clip_norm=0.7), "clipping"),
    "Nesterov": (replace(EPOCHS, nesterov=True), PLAIN, lambda o: with_rule(o, nesterov=False), "nesterov"),
    "cosine": (replace(EPOCHS, schedule="cosine"), PLAIN, lambda o: with_rule(o, schedule="constant"), "schedule"),
    "no usual gamma": (
        replace(EPOCHS, schedule="exponential,gamma=0.97,per=step"),
        PLAIN,
        lambda o: with_rule(o, schedule="constant"),
        "schedule",
    ),
    "Adam": (replace(STEP, optimizer="adam"), PLAIN, lambda o: with_rule(o, optimizer="sgd"), "optimizer"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_single_mistake_is_named_and_corrected(case):
    rule, model, spoil, fact = MISTAKES[case]
    found = replay(spoil(captured(rule, model)), BATCH)
    assert named(found) == [fact], found.sentence
    assert not found.exact
    assert found.corrected is not None
    assert replay(found.corrected, BATCH).exact


@pytest.mark.parametrize(
    ("weights", "y", "says"),
    [("1/3/1/1", (0, 1, 0, 0), "in inverse proportion"), ("1/3/0.5/2", (0, 1, 2, 3), "(0: 1, 1: 3, 2: 0.5, 3: 2;")],
)
def test_class_weights_are_read_from_the_update(weights, y, says):
    loss = Spec("cross_entropy", {"class_weights": weights + "/1" * 8})
    batch = Batch(BATCH.pictures, torch.tensor(y))
    found = replay(with_task(captured(task=replace(TASK, loss=loss), batch=batch), loss=Spec("cross_entropy")), batch)
    assert named(found) == ["class weights"]
    assert says in found.sentence
    assert found.corrected is not None
    assert replay(found.corrected, batch).exact


def kept_momentum(x: torch.Tensor, module: torch.nn.Module):
    """A step of SGD whose velocity holds the gradients of an earlier round."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for p in module.parameters():
        optimizer.state[p]["momentum_buffer"] = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) / 10
    torch.nn.functional.cross_entropy(module(x), BATCH.y).backward()
    optimizer.step()


def test_rules_that_no_fact_covers_are_named_as_untried():
    o = captured(replace(STEP, momentum=0.9), PLAIN)
    module = o.network.module()
    kept_momentum(TASK.normalize(BATCH.pictures), module)
    tensors = {name: p.detach() - o.network.weights[name] for name, p in module.named_parameters()}
    found = replay(replace(o, update=Update("delta", tensors)), BATCH, limit=LIMIT // 20)
    assert not found.explained_by
    for rule in ("SCAFFOLD", "kept from earlier rounds", "mean of several clients", "GradScaler", "FedBN"):
        assert rule in found.sentence


def test_a_step_at_another_rate_may_as_well_be_scaled_which_is_said():
    found = replay(with_rule(captured(), lr=0.02), BATCH)
    assert found.equally
    assert "As well explained by" in found.sentence


def test_two_mistakes_are_named_together():
    found = replay(with_tensors(with_rule(captured(LocalRule(), NORMED), mode="eval"), lambda _, t: -t), BATCH)
    assert sorted(named(found)) == ["mode", "scale"]
    assert found.corrected is not None
    assert replay(found.corrected, BATCH).exact


def test_momentum_and_rate_are_found_together():
    found = replay(with_rule(captured(EPOCHS), momentum=0.0, lr=0.1), BATCH)
    assert sorted(named(found)) == ["lr", "momentum"]
    assert found.corrected is not None
    assert found.corrected.rule == EPOCHS


def test_what_tf32_leaves_does_not_hide_a_wrong_fact():
    random = torch.Generator().manual_seed(0)
    o = with_tensors(captured(), lambda _, t: t + 1e-3 * t.std() * torch.randn(t.shape, generator=random))
    assert "TF32" in replay(o, BATCH, limit=1).sentence
    found = replay(with_rule(o, mode="eval", lr=0.01), BATCH, limit=30)
    assert "lr" in {change.name for changes in (found.explained_by, *found.equally) for change in changes}
    assert "TF32" in found.sentence
    assert found.corrected is not None


def proximal(mu: float) -> Observation:
    """Two epochs of torch's own optimiser with FedProx's pull to the sent weights."""
    network = build_network(TASK, PLAIN)
    module, x = network.module().train(), TASK.normalize(BATCH.pictures)
    sent = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), EPOCHS.lr, EPOCHS.momentum)
    for part in (slice(0, 2), slice(2, 4)) * 2:
        optimizer.zero_grad()
        pull = sum((p - s).square().sum() for p, s in zip(module.parameters(), sent, strict=True))
        (torch.nn.functional.cross_entropy(module(x[part]), BATCH.y[part]) + mu / 2 * pull).backward()
        optimizer.step()
    moved = {n: p.detach() - s for (n, p), s in zip(module.named_parameters(), sent, strict=True)}
    return Observation(network, Update("delta", moved), 4, rule=EPOCHS)


def test_rounding_is_named_where_it_leaves_as_much_and_a_pull_to_the_weights_is_not_called_rounding():
    assert replay(proximal(0.0), BATCH).exact
    found = replay(proximal(0.1), BATCH, limit=8)
    assert (named(found), found.exact, found.level) == ([], False, "wrong")
    assert "TF32" not in found.sentence
    assert "Mixed precision" not in found.sentence
    held = Batch((BATCH.pictures * 255).round() / 255, BATCH.y)
    found = replay(captured(STEP, "mlp,hidden=8"), held, limit=8)
    assert found.distance > 1e-3
    assert (found.exact, found.level) == (False, "notice")
    assert "rounded to 8 bits leave as much" in found.sentence


def test_pictures_finer_than_8_bits_are_replayed_as_they_are(tmp_path):
    task = Task((1, 16, 16), 4, (0.5,), (0.25,))
    random = np.random.default_rng(0)
    deep = random.integers(0, 65536, (2, 16, 16), dtype=np.uint16)
    low, high = -1024.0, 3071.0
    floats = (low + (high - low) * deep / 65535).astype(np.float64)
    for name, images in (("deep", deep), ("floats", floats), ("eight", (deep / 257).round().astype(np.uint8))):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(2))
    for label, picture in enumerate(deep):
        (tmp_path / "folder" / str(label)).mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / "folder" / str(label) / "a.png")
    held = Batch(torch.from_numpy(deep.astype(np.float32) / 65535)[:, None], torch.arange(2))
    network = build_network(task, "mlp,hidden=8")
    o = observe(simulate(network, STEP, held), ThreatModel())
    o.to_file(tmp_path / "o")
    sources = f"floats.npz,low={low},high={high}", "deep.npz"
    for source in (*(f"npz:{tmp_path / one}" for one in sources), f"folder:{tmp_path / 'folder'},channels=1"):
        assert torch.allclose(held_pictures(source, task).pictures, held.pictures, atol=1e-6)
        found = examine(tmp_path / "o", replay=source)
        assert found.replayed is not None
        assert found.replayed.exact
    found = examine(tmp_path / "o", replay=f"npz:{tmp_path / 'eight.npz'}")
    assert found.replayed is not None
    assert not found.replayed.exact
    assert "rounded to 8 bits" in found.replayed.sentence
    with pytest.raises(DataError, match="from .* to .*; expected 0 to 1"):
        held_pictures(f"npz:{tmp_path / 'floats.npz'}", task)


def test_buffers_in_half_precision_are_not_called_another_momentum():
    o = captured(STEP, NORMED)
    halved = {n: t.half().to(t.dtype) for n, t in (o.buffers or {}).items()}
    found = replay(replace(o, buffers=halved), BATCH)
    assert found.exact
    assert "momentum" not in found.sentence


def test_colours_the_other_way_round_are_named_and_change_no_fact_of_the_file():
    found = replay(captured(batch=Batch(BATCH.pictures.flip(1), BATCH.y)), BATCH)
    assert named(found) == ["pictures"]
    assert found.corrected is None


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (Batch(BATCH.pictures, BATCH.y[[1, 2, 3, 0]]), "shifted by one picture"),
        (Batch(BATCH.pictures, BATCH.y[[2, 0, 1, 3]]), "classes are numbered otherwise: 0 is 2, 1 is 0, 2 is 1"),
        (Batch(BATCH.pictures, torch.tensor([7, 5, 7, 3])), "3 of 4 labels are others; the head shows 7, 5, 7, 3"),
        (Batch(BATCH.pictures, torch.tensor([0, 1, 4, 5])), "in alphabetical order (0, 1, 10, 2)"),
    ],
)
def test_labels_are_read_from_the_head(held, says):
    found = replay(captured(batch=held), BATCH)
    assert named(found) == ["labels"]
    assert says in found.sentence


def test_a_dropped_last_mini_batch_is_named():
    rule = replace(EPOCHS, batch_size=3)
    o = replace(captured(rule, batch=Batch(BATCH.pictures[:3], BATCH.y[:3])), count=4)
    found = replay(o, BATCH)
    assert "mini-batches" in named(found)
    assert found.corrected is not None
    assert found.corrected.count == 3


def test_without_a_rule_the_search_starts_from_one_plain_step_and_gives_the_rule():
    rule = LocalRule("delta", epochs=2, batch_size=2)
    o = captured(rule)
    found = replay(replace(o, rule=None), BATCH)
    assert named(found) == ["passes"]
    assert found.corrected is not None
    assert found.corrected.rule == rule
    assert {"rule"} <= {finding.name for finding in check(replace(o, rule=None, count=None))}
    plain = replay(replace(captured(LocalRule()), rule=None), BATCH)
    assert plain.exact
    assert "No rule is given" in plain.sentence


@pytest.mark.parametrize(
    ("rule", "model", "why"),
    [
        (replace(STEP, defence="clip_noise,clip=1,noise=0.05"), PLAIN, "the noise of clip_noise"),
        (LocalRule("delta", dropout=0.5), f"{PLAIN},dropout=0.5", "dropout"),
        (replace(EPOCHS, shuffle=True, lr=0.5), PLAIN, "the shuffled order"),
    ],
)
def test_a_random_client_cannot_be_replayed_exactly_which_is_said(rule, model, why):
    o = observe(simulate(build_network(TASK, model), rule, BATCH, 7), ThreatModel())
    found = replay(o, BATCH)
    assert found.spread > 1e-3
    assert "cannot be exact" in found.sentence
    assert why in found.sentence


def test_an_update_of_other_weights_is_explained_by_nothing_and_the_search_ends():
    found = replay(replace(captured(EPOCHS), network=build_network(TASK, PLAIN, seed=3)), BATCH, limit=LIMIT // 20)
    assert not found.explained_by
    assert found.corrected is None
    assert found.sentence.startswith("No fact tried explains")
    assert found.as_dict()["exact"] is False


def test_returned_statistics_that_the_update_contradicts_are_told():
    o = captured(STEP, NORMED)
    moved = {n: o.network.weights[n] + 3 * (t - o.network.weights[n]) for n, t in (o.buffers or {}).items()}
    found = replay(replace(o, buffers=moved), BATCH)
    assert found.exact
    assert "by the factor 3:" in found.sentence


def test_pictures_that_do_not_fit_are_refused_in_a_sentence():
    with pytest.raises(DataError, match=r"\(N, 3, 8, 8\)"):
        replay(captured(), Batch(BATCH.pictures[..., :4], BATCH.y))
    with pytest.raises(DataError, match="outside 0..11"):
        replay(captured(), Batch(BATCH.pictures, BATCH.y + 10))


class Boxes(torch.nn.Module):
    """Computes its own loss from one box for a picture, as detectors do from many."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8), torch.nn.Tanh())
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x, y):
        return (self.head(self.body(x)) - y[:, 0] / GRID).square().mean()


def test_objects_are_replayed_too():
    task = Task((3, 8, 8), 3, (0.0,) * 3, (1.0,) * 3, objects=2)
    batch = batch_of(3, task)
    batch.y[:, 0, 1] += torch.tensor([0, 9000, 20000])
    network = build_network(task, Boxes())
    for held, named_facts in ((batch, []), (Batch(batch.pictures, batch.y.flip(0)), ["labels"])):
        o = observe(simulate(network, STEP, held), ThreatModel())
        assert not wrong(o)
        found = replay(o, batch)
        assert named(found) == named_facts
        assert found.exact is (not named_facts)


CONTRADICTIONS = {
    "weights": (lambda o: with_tensors(o, lambda n, t: t + o.network.weights[n]), "kind"),
    "subtracted": (lambda o: with_tensors(o, lambda n, t: t - o.network.weights[n]), "kind"),
    "int8": (lambda o: with_tensors(o, lambda _, t: (t / t.abs().max() * 127).round()), "precision"),
    "nothing": (lambda o: with_tensors(o, lambda _, t: 0 * t), "zero tensors"),
    "sign": (lambda o: with_tensors(o, lambda _, t: -t), "sign"),
    "divided by lr": (lambda o: with_tensors(o, lambda _, t: t / 0.05), "scale"),
    "signs": (lambda o: with_tensors(o, lambda _, t: t.sign()), "defence"),
    "mode": (lambda o: with_rule(o, mode="eval"), "mode"),
    "steps": (lambda o: with_rule(o, epochs=3), "steps"),
    "frozen": (lambda o: replace(o, update=Update("delta", dict([*o.update.tensors.items()][:-1]))), "architecture"),
    "model": (lambda o: replace(o, network=replace(o.network, model=Spec("mlp"))), "architecture"),
    "half weights": (
        lambda o: with_tensors(o, lambda n, t: (o.network.weights[n] + t).bfloat16().float() - o.network.weights[n]),
        "precision",
    ),
    "momentum": (
        lambda o: replace(o, buffers={n: t if "var" not in n else t * 0.5 for n, t in (o.buffers or {}).items()}),
        "BatchNorm momentum",
    ),
    "negative variance": (
        lambda o: replace(o, buffers={n: t if "var" not in n else -t for n, t in (o.buffers or {}).items()}),
        "buffers",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_facts_that_the_update_contradicts_are_found_without_pictures(case):
    spoil, name = CONTRADICTIONS[case]
    o = captured(STEP, NORMED)
    assert name not in wrong(o)
    assert name in wrong(spoil(o))


@pytest.mark.parametrize("defence", ["sign", "topk,keep=0.1", "quantise,bits=4", "clip_noise,clip=0.02,noise=0"])
def test_a_defence_is_seen_in_the_values_and_a_replay_proves_it(defence):
    o = with_rule(captured(replace(STEP, defence=defence), "convnet,width=12,depth=2"), defence="none")
    assert likely_defence(o) == defence
    found = replay(o, BATCH)
    assert named(found) == ["defence"]
    assert found.corrected is not None
    assert found.corrected.rule == replace(STEP, defence=defence)


def test_no_defence_is_seen_where_there_is_none():
    assert likely_defence(captured()) is None
    assert likely_defence(captured(EPOCHS, NORMED)) is None


def head_only() -> torch.nn.Sequential:
    """A frozen body behind whose ReLU many features are 0, and a head."""
    torch.manual_seed(3)
    layers = torch.nn.Linear(192, 32), torch.nn.ReLU(), torch.nn.Linear(32, TASK.classes)
    module = torch.nn.Sequential(torch.nn.Flatten(), *layers)
    module[1].requires_grad_(False).bias.sub_(0.5)
    return module


def test_a_client_that_trains_the_head_alone_is_known_as_such_and_raises_no_alarm():
    network = build_network(TASK, head_only())
    o = observe(simulate(network, STEP, BATCH), ThreatModel())
    assert float((o.update.tensors["3.weight"] == 0).double().mean()) > 0.2  # dead features
    assert likely_defence(o) is None
    assert not wrong(o)
    assert "only the layer '3' is trained" in check(o)[0].sentence
    probed = check_update([network], STEP, [BATCH], [Batch(BATCH.pictures.flip(2), BATCH.y)])
    assert probed.head_fraction == pytest.approx(1)
    assert not probed.zero_below
    assert "degenerate_update" not in degenerate(probed)
    traits = read_traits(network)
    assert traits.only_head
    assert any("only the head is trained" in advice.found for advice in advise(traits))
    assert not read_traits(build_network(TASK, PLAIN)).only_head


def test_a_replay_that_gives_the_update_overrules_the_checks_of_the_file(tmp_path):
    """A head of zeros leaves most tensors zero, which looks wrong and is what this client sends."""
    task = Task((3, 16, 16), 4, (0.5,) * 3, (0.25,) * 3)
    module = torch.nn.Sequential(torch.nn.Flatten(), *(torch.nn.Linear(a, b) for a, b in ((768, 8), (8, 8), (8, 4))))
    torch.nn.init.zeros_(module[3].weight)
    pictures = (batch_of(2, task).pictures * 255).round().byte()
    np.savez(tmp_path / "held.npz", images=pictures.permute(0, 2, 3, 1).numpy(), labels=np.arange(2))
    layers = "nn.Flatten(), nn.Linear(768, 8), nn.Linear(8, 8), nn.Linear(8, 4)"
    (tmp_path / "nets.py").write_text(f"from torch import nn\ndef build(): return nn.Sequential({layers})")
    round = simulate(build_network(task, module), STEP, Batch(pictures.float() / 255, torch.arange(2)))
    code = f"{tmp_path / 'nets.py'}:build"
    o = observe(round, ThreatModel())
    o = replace(o, network=replace(o.network, model=Spec(code)))
    for told, file, right in ((o, "right", True), (with_rule(o, lr=0.01), "wrong", False)):
        told.to_file(tmp_path / file)
        alone = examine(tmp_path / file, model=code)
        assert "zero tensors" in {finding.name for finding in alone.findings if finding.level == "wrong"}
        assert alone.wrong
        found = examine(tmp_path / file, model=code, replay=f"npz:{tmp_path / 'held.npz'}")
        assert found.wrong is not right
        told_so = [finding for finding in found.findings if "The replay overrules this" in finding.sentence]
        assert [finding.name for finding in told_so] == (["zero tensors"] if right else [])


def test_a_small_delta_is_known_to_be_rounded():
    o = captured(replace(STEP, lr=1e-6))
    assert rounding(o)[1] > 0.001
    assert replay(o, BATCH).threshold > 0.002


def test_whatever_is_not_given_is_said_with_what_it_costs():
    o = captured(STEP, NORMED)
    found = {f.name: f for f in check(replace(o, rule=None, count=None, buffers=None))}
    assert all(found[name].level == "notice" for name in ("rule", "count", "buffers"))


def test_a_partial_last_step_is_named_with_its_share_of_the_buffers():
    """Of two passes with momentum .1, the latter makes .1 of .19."""
    rule = LocalRule("delta", batch_size=3, lr=0.05)
    findings = [f for f in check(captured(rule, NORMED)) if f.name == "last_batch"]
    assert [f.level for f in findings] == ["notice"]
    assert "1 of 4 pictures" in findings[0].sentence
    assert "53%" in findings[0].sentence
    for cured in (replace(rule, drop_last=True), replace(rule, batch_size=2)):
        assert not [f for f in check(captured(cured, NORMED)) if f.name == "last_batch"]
