"""The clients of the map: which are measured, and how each differs from the one that it is compared with.

Not every combination: three base clients hold one picture and run the same small network, in inference mode, in
training mode with the buffers kept, and in training mode with the buffers returned. Around each of them one thing is
varied at a time. Where published claims are about several things at once, these are crossed: depth, width and
placement; skip connections, placement and normalization; weights and batch. Then come clients as they are in
production, and named networks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.clients import RESNETS
from leakmap.local_rule import LocalRule

Weights = Literal["random", "brief", "full"]
SMALL = "resnet,blocks=1-1-1,width=16,preact=false"
"""The network of the base clients."""
FILES = {
    f"{RESNETS}:resnet{depth}": f"cifar10_resnet{depth}-{digest}.th"
    for depth, digest in ((20, "12fca82f"), (32, "d509ac18"), (44, "014dd654"), (56, "4bfd9763"))
}
"""Fully trained networks -> their weights."""
R20 = f"{RESNETS}:resnet20"
LARGE = 80
"""Side of the pictures of named networks: at 32 pixels their last features would be of one pixel."""


@dataclass(frozen=True)
class Cell:
    """One kind of client.

    Args:
        group: A base client, ``crossed``, ``production`` or ``named``.
        varied: What differs from the base client; empty for it itself.
        value: How.
        model: Specification of the network.
        weights: Drawn at random, trained for five epochs, or published ones.
        rule: The local rule.
        count: Pictures of a client.
        buffers: Whether they come back.
        augmented: Whether the client mirrors and shifts its pictures.
        side: Of the pictures, in pixels.
    """

    group: str
    varied: str = ""
    value: str = ""
    model: str = SMALL
    weights: Weights = "random"
    rule: LocalRule = field(default_factory=LocalRule)
    count: int = 1
    buffers: bool = False
    augmented: bool = False
    side: int = 32

    @property
    def content(self) -> tuple[Any, ...]:
        """What is measured, whatever it is compared with."""
        return tuple(v for n, v in vars(self).items() if n not in ("group", "varied", "value"))

    @property
    def network(self) -> str:
        """The network in words."""
        return self.model.replace(f"{RESNETS}:resnet", "ResNet-") if self.weights == "full" else self.model

    @property
    def batch(self) -> int:
        """Pictures of a local step."""
        return min(self.count, self.rule.batch_size or self.count)

    @property
    def steps(self) -> int:
        """Local steps."""
        return self.rule.steps(self.count)

    @property
    def partial(self) -> bool:
        """Whether the last step holds fewer pictures than those before."""
        return self.steps > 1 and len(self.rule.held_by(self.steps - 1, self.count)) < self.batch


BASES = {
    "inference": Cell("inference", rule=LocalRule(mode="eval")),
    "training": Cell("training"),
    "returned": Cell("returned", buffers=True),
}
BASE_WORDS = {
    "inference": "inference mode",
    "training": "training mode, buffers kept",
    "returned": "training mode, buffers returned",
}


def _small(**settings: Any) -> str:
    known = {"blocks": "1-1-1", "width": "16", "preact": "false"} | {n: str(v) for n, v in settings.items()}
    return "resnet," + ",".join(f"{name}={value}" for name, value in known.items())


NETWORKS: Mapping[str, Mapping[str, str]] = {
    "depth": {b: _small(blocks=b) for b in ("1-1", "2-2-2", "3-3-3")},
    "width": {w: _small(width=w) for w in ("8", "24", "32")},
    "skip": {"none": _small(skip="false")},
    "placement": {"pre-activation": _small(preact="true")},
    "activation": {a: _small(activation=a) for a in ("gelu", "tanh")},
    "stem": {s: _small(stem=s) for s in ("patch", "imagenet")},
    "family": {"convnet with BatchNorm": "convnet,width=16,norm=batch"},
}
UNMOVED: Mapping[str, Mapping[str, str]] = {
    "norm": {n: _small(norm=n) for n in ("group", "layer", "instance", "none")},
    "family": {
        "convnet": "convnet,width=16",
        "convnet, 2 deep": "convnet,depth=2,width=16",
        "convnet, 6 deep": "convnet,depth=6,width=16",
        "convnet, mean pooled": "convnet,width=16,head=pool",
        "mlp": "mlp,hidden=128",
        "vit": "vit,dim=96",
    },
}
"""Networks that compute the same in both modes and return no statistics: measured once, in inference mode."""
RULES: Mapping[str, Mapping[str, tuple[dict[str, Any], int]]] = {
    "batch": {str(size): ({}, size) for size in (2, 4, 8, 16, 32)},
    "steps": {
        "4 of 1 picture": ({"share": "delta", "batch_size": 1}, 4),
        "16 of 1 picture": ({"share": "delta", "batch_size": 1}, 16),
        "4 of 4 pictures": ({"share": "delta", "batch_size": 4}, 16),
    },
    "optimiser": {
        "Adam, 1 step": ({"share": "delta", "optimizer": "adam", "lr": 0.001}, 1),
        "Adam, 4 steps": ({"share": "delta", "optimizer": "adam", "lr": 0.001, "batch_size": 1}, 4),
        "momentum, 4 steps": ({"share": "delta", "momentum": 0.9, "batch_size": 1}, 4),
    },
}
DEFENCES = (
    "sign",
    "topk,keep=0.1",
    "topk,keep=0.01",
    "quantise,bits=8",
    "quantise,bits=4",
    "clip_noise,clip=1,noise=0.0001",
    "clip_noise,clip=1,noise=0.001",
    "clip_noise,clip=1,noise=0.01",
    "percentile",
)
NAMED_BATCH = (
    *(
        f"torchvision/{name}"
        for name in (
            "resnet18",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "shufflenet_v2_x0_5",
            "efficientnet_b0",
            "regnet_y_400mf",
            "regnet_x_400mf",
            "densenet121",
        )
    ),
    *(
        f"timm/{name}"
        for name in (
            "resnet10t",
            "ghostnet_050",
            "lcnet_050",
            "tinynet_e",
            "mobilevit_xxs",
            "mobilevitv2_050",
            "hardcorenas_a",
            "semnasnet_075",
            "efficientnet_lite0",
            "xcit_nano_12_p16_224",
        )
    ),
)
"""Named networks with BatchNorm."""
NAMED_OTHER = (
    "torchvision/squeezenet1_1",
    "timm/convnext_atto",
    "timm/edgenext_xx_small",
    "timm/poolformer_s12",
    "timm/pvt_v2_b0",
    "timm/vit_tiny_patch16_224,head_std=0.02",
    "timm/deit_tiny_patch16_224,head_std=0.02",
)
"""Named networks without; of them SqueezeNet alone, which has dropout, computes another thing in training mode."""


def _around(base: Cell) -> Iterator[Cell]:
    yield base
    for varied, values in NETWORKS.items():
        for value, model in values.items():
            yield replace(base, varied=varied, value=value, model=model)
    if base.group == "inference":
        for varied, values in UNMOVED.items():
            for value, model in values.items():
                yield replace(base, varied=varied, value=value, model=model)
    yield replace(base, varied="weights", value="trained for 5 epochs", weights="brief")
    for model in FILES:
        # The base networks are drawn at random; what is trained in full is another network, published with its weights.
        if base.group == "inference" or model.endswith(("20", "56")):
            value = f"fully trained ResNet-{model.rpartition('resnet')[2]}"
            yield replace(base, varied="weights", value=value, model=model, weights="full")
    for varied, rules in RULES.items():
        for value, (settings, count) in rules.items():
            yield replace(base, varied=varied, value=value, rule=replace(base.rule, **settings), count=count)
    # No defence here touches buffers: of what returns them two are measured, to show it.
    for defence in DEFENCES if base.group != "returned" else ("sign", "clip_noise,clip=1,noise=0.01"):
        yield replace(base, varied="defence", value=defence, rule=replace(base.rule, defence=defence))
    if base.group == "inference":
        defence = "dp_sgd,clip=1,noise=0.01"
        rule = replace(base.rule, defence=defence)
        yield replace(base, varied="defence", value=f"GroupNorm, {defence}", model=_small(norm="group"), rule=rule)


def _crossed() -> Iterator[Cell]:
    for name, base in BASES.items():
        cross = replace(base, group="crossed")
        place = BASE_WORDS[name]
        for blocks in ("1-1-1", "3-3-3"):
            for width in (8, 32):
                for preact in ("true", "false"):
                    model = _small(blocks=blocks, width=width, preact=preact)
                    yield replace(cross, varied="depth, width, placement", value=place, model=model)
        no_skip = _small(preact="true", skip="false")
        yield replace(cross, varied="skip, placement", value=place, model=no_skip)
        for weights, model in (("brief", SMALL), ("full", R20)):
            for count in (4, 16):
                what = replace(cross, varied="weights, batch", value=place, model=model, weights=weights, count=count)
                yield what
        yield replace(cross, varied="weights, placement", value=place, model=_small(preact="true"), weights="brief")
    still = replace(BASES["inference"], group="crossed", value=BASE_WORDS["inference"])
    for norm in ("group", "none"):
        for preact in ("true", "false"):
            model = _small(preact=preact, skip="false", norm=norm)
            yield replace(still, varied="norm, skip, placement", model=model)
        yield replace(still, varied="norm, skip, placement", model=_small(preact="true", norm=norm))
        for count in (4, 16):
            yield replace(still, varied="norm, batch", model=_small(norm=norm), count=count)
    for depth in (2, 6):
        for width in (8, 32):
            yield replace(still, varied="convnet: depth, width", model=f"convnet,depth={depth},width={width}")
    for count in (4, 16):
        yield replace(still, varied="family, batch", model="convnet,width=16", count=count)
        yield replace(still, varied="family, batch", model="mlp,hidden=128", count=count)
    for hidden in ("32", "512", "256-256"):
        yield replace(still, varied="mlp: width, depth", model=f"mlp,hidden={hidden}")
    yield replace(still, varied="family, weights", model="mlp,hidden=128", weights="brief")
    yield replace(still, varied="family, weights", model="convnet,width=16", weights="brief")
    yield replace(still, varied="family, weights", model="vit,dim=96", weights="brief")
    for model in ("vit,dim=48", "vit,dim=96,depth=4", "vit,dim=96,prenorm=false,skip=false"):
        yield replace(still, varied="vit: width, depth, norm", model=model)
    for count in (2, 4):
        yield replace(still, varied="family, batch", model="vit,dim=96", count=count)
    local = {"share": "delta", "batch_size": 1}
    yield replace(still, varied="family, steps", model="vit,dim=96", rule=replace(still.rule, **local), count=4)


def _production() -> Iterator[Cell]:
    momentum: dict[str, Any] = {"momentum": 0.9}
    adam: dict[str, Any] = {"optimizer": "adam", "lr": 0.001}
    plain = Cell("production", weights="brief", rule=LocalRule("delta", batch_size=16), count=32, buffers=True)
    for weights, model in (("brief", SMALL), ("full", R20)):
        own = replace(plain, weights=weights, model=model)
        for varied, changes, settings in (
            ("2 steps of 16, SGD", {}, {}),
            ("2 steps of 16, momentum", {}, momentum),
            ("2 steps of 16, Adam", {}, adam),
            ("2 steps of 16, momentum, augmented", {"augmented": True}, momentum),
            ("2 steps of 16, momentum, buffers kept", {"buffers": False}, momentum),
            ("4 steps of 16, momentum", {"count": 64}, momentum),
            ("2 steps of 32, momentum", {"count": 64}, momentum | {"batch_size": 32}),
            ("2 steps of 16 and one of 1, momentum", {"count": 33}, momentum),
            ("2 steps of 16 and one of 1, momentum, augmented", {"count": 33, "augmented": True}, momentum),
            ("2 steps of 16 and one of 1, Adam", {"count": 33}, adam),
            ("2 steps of 32 and one of 1, momentum", {"count": 65}, momentum | {"batch_size": 32}),
        ):
            if weights == "full" and ("SGD" in varied or "64" in str(changes)):
                continue
            yield replace(own, varied=varied, **changes, rule=replace(own.rule, **settings))


def _named() -> Iterator[Cell]:
    still = replace(BASES["inference"], group="named", side=LARGE)
    returned = replace(BASES["returned"], group="named", side=LARGE)
    for model in (*NAMED_BATCH, *NAMED_OTHER):
        yield replace(still, varied="inference", value=model, model=model)
        if model in NAMED_BATCH or "squeezenet" in model:
            yield replace(returned, varied="returned", value=model, model=model)


def _key(cell: Cell) -> str:
    """A short name of a cell, that a file can have."""
    rule = cell.rule
    parts = [cell.group, cell.network, cell.weights if cell.weights == "brief" else "", rule.mode]
    parts += ["returned" if cell.buffers else "", f"b{cell.batch}"]
    parts += [f"k{cell.steps}" if cell.steps > 1 else "", "last" if cell.partial else ""]
    parts += ["adam" if rule.optimizer == "adam" else "", "momentum" if rule.momentum else ""]
    parts += [rule.defence if rule.defence != "none" else "", "augmented" if cell.augmented else ""]
    written = "-".join(part for part in parts if part)
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in written)


def _every() -> Iterator[Cell]:
    for base in BASES.values():
        yield from _around(base)
    yield from _crossed()
    yield from _production()
    yield from _named()


def _cells() -> dict[str, Cell]:
    """All of them by name; one that another group holds already is not measured twice."""
    found: dict[tuple[Any, ...], Cell] = {}
    for cell in _every():
        found.setdefault(cell.content, cell)
    named = {_key(cell): cell for cell in found.values()}
    assert len(named) == len(found)
    return named


CELLS = _cells()
