"""What do the gradients of LoRA adapters tell about a picture?

    python -m benchmarks.adapters [--only CASE …] [--out FOLDER] [--page]

Clients train adapters of rank 8 on queries, keys and values of each block of a frozen vision transformer of timm, and
the head, and send their gradient: one picture, training mode, labels granted. A case is an audit, with floors and
line-ups, and takes minutes of one core. Each is stored when it is finished, and the same command continues. With
``--page`` what is measured so far is written to docs/results/adapters.md.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import leakmap
from benchmarks.cases import Entry, run_cases
from benchmarks.markdown import table, versions
from leakmap import Plan, ThreatModel
from leakmap.errors import BadSetting
from leakmap.plan.plan import Progress
from leakmap.registry.spec import Spec

PAGE = Path("docs/results/adapters.md")
RANK, VICTIMS, SIDE = 8, 24, 32
ATTACKS = {
    "linear": "linear",
    "april": "april",
    "positions": "patch_positions",
    "search": "inverting_gradients,steps=300",
    "learned": "learned_inverse",
}
"""Members of the suite ``strongest``, each alone, so that a choice among them hides nothing."""


class Adapted(nn.Module):
    """A frozen linear layer with an adapter: ``W x + B A x`` times ``alpha / rank`` (Hu et al. 2021, arXiv:2106.09685).

    Args:
        base: The layer.
        later: Whether B is no longer 0, as after the first round.
    """

    def __init__(self, base: nn.Linear, later: bool):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), 2.0
        self.lora_A = nn.Linear(base.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.normal_(self.lora_B.weight, std=0.02 if later else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output and the adapter's."""
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))


def _transformer() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(SIDE, 8, num_classes=12, embed_dim=64, depth=2, num_heads=2)


def whole() -> nn.Module:
    """All weights are trained."""
    return _transformer()


def first() -> nn.Module:
    """Adapters as they are initialised, with B = 0, and the head."""
    return _adapted(later=False, head=True)


def later() -> nn.Module:
    """Adapters with a B that is not 0, and the head."""
    return _adapted(later=True, head=True)


def alone() -> nn.Module:
    """The same without the head: adapters are all that is trained."""
    return _adapted(later=True, head=False)


def embedded() -> nn.Module:
    """Adapters, the head and the positions, as ``modules_to_save`` of peft leaves them trained."""
    model = _adapted(later=True, head=True)
    assert model.pos_embed is not None
    model.pos_embed.requires_grad_(True)
    return model


def _adapted(*, later: bool, head: bool) -> VisionTransformer:
    model = _transformer().requires_grad_(False)
    for block in model.blocks.children():
        attention = block.attn
        attention.qkv = Adapted(attention.qkv, later)  # type: ignore[union-attr,arg-type]
    model.head.requires_grad_(head)
    return model


@dataclass(frozen=True)
class Client:
    """What clients train.

    Args:
        title: In the table.
        build: The function that makes the network.
    """

    title: str
    build: str


CLIENTS = {
    "whole": Client("everything", "whole"),
    "first": Client("adapters, B = 0, and head", "first"),
    "later": Client("adapters, B not 0, and head", "later"),
    "alone": Client("adapters, B not 0, alone", "alone"),
    "embedded": Client("adapters, head and positions", "embedded"),
}
CASES = {f"{client}-{attack}": (client, attack) for client in CLIENTS for attack in ATTACKS}


def measured(case: str, options: argparse.Namespace, told: Progress) -> Entry:
    """One audit."""
    client, attack = CASES[case]
    plan = Plan(
        f"benchmarks/{Path(__file__).name}:{CLIENTS[client].build}",
        attack=Spec.parse(ATTACKS[attack]),
        threat=ThreatModel(labels="known", public="auto" if attack == "learned" else 0),
        image_size=SIDE,
        victims=VICTIMS,
        classes=12,
    )
    try:
        found = leakmap.run_plan(plan, options.out / case, progress=told).result
    except BadSetting as error:
        return {"refused": str(error)}
    ups, exposure, ssim = found.line_up.attack, found.exposure, found.metrics.get("ssim")
    told_first = None if ups is None else [ups.hits, ups.n, ups.chance]
    return {
        "level": found.verdict.level,
        "first": told_first,
        "p": None if ups is None else ups.p,
        "exposed": None if exposure is None else [exposure.clients, exposure.of_clients],
        "ssim": None if ssim is None else [ssim.value.value, ssim.floors[ssim.best_floor], ssim.best_floor],
        "failure": found.failures[0].message if found.failures else None,
        "seconds": found.seconds,
    }


def page(found: dict[str, Entry]) -> str:
    """Markdown."""
    rows = []
    for case, entry in found.items():
        client, attack = CASES[case]
        row = [CLIENTS[client].title, f"`{ATTACKS[attack]}`"]
        if entry.get("first") is None:
            rows.append([*row, *5 * ["–"], entry.get("refused") or entry.get("failure") or "no client finished"])
            continue
        first, cases, chance = entry["first"]
        value, floor, name = entry["ssim"]
        exposed, clients = entry["exposed"]
        scores = [f"{first} of {cases}", f"{chance:.1%}", f"{entry['p']:.2g}", f"{exposed} of {clients}"]
        rows.append([*row, *scores, f"{value:.3f} ({floor:.3f}, {name})", entry["level"]])
    missing = [case for case in CASES if case not in found]
    columns = ["trained and sent", "attack", "first in line-up", "chance", "p", "exposed", "SSIM (best floor)", "level"]
    lines = [
        "# What adapters give away",
        "",
        "    python -m benchmarks.adapters --page",
        "",
        f"Clients train adapters of rank {RANK} (LoRA) on queries, keys and values of each block of a frozen vision "
        "transformer of timm (2 blocks, 64 wide, patches of 8 px, random weights), in training mode, on one picture, "
        f"and send the gradient. {VICTIMS} clients with tiles of `samples` at {SIDE} px, labels granted. `learned` "
        "gets public pictures. B is the factor of an adapter that is 0 at first: then only its own gradient is not 0, "
        "the sum over tokens of the layer's output gradient times `(A x)^T`, of rank 8 at most. Each line took minutes "
        "of one core.",
        "",
        *table(columns, rows),
        *([f"Not measured: {', '.join(f'`{case}`' for case in missing)}.", ""] if missing else []),
        versions(),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    run_cases(parser, list(CASES), PAGE, measured, page)
