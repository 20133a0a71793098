"""Pictures of the docs: what some clients held, and what was read out of what they sent.

    python -m benchmarks.pictures

Writes docs/images/NAME.png, of pictures that come with scikit-image.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from leakmap import Local, LocalRule, Plan, Spec, run_plan

FOLDER = Path("docs/images")
SIDE, GAP = 160, 6
"""Of a picture, and between two, in pixels."""
LAST = LocalRule("delta", lr=0.01, batch_size=8)
RESNET20 = "resnet,blocks=3-3-3,width=16,preact=false"
PLANS = {
    "patch-positions": Plan(
        "timm/vit_small_patch16_224,head_std=0.02",
        "samples",
        attack=Spec("patch_positions"),
        image_size=224,
        victims=4,
    ),
    "patch-subspace": Plan(
        "timm/vit_base_patch16_224,head_std=0.02",
        "samples",
        attack=Spec("patch_subspace"),
        image_size=224,
        batch_size=2,
        victims=2,
    ),
    "learned-inverse": Plan(RESNET20, "samples", attack=Spec("learned_inverse"), victims=4),
    "last-batch": Plan(RESNET20, "samples", attack=Spec("last_batch"), rule=LAST, batch_size=9, victims=4),
}


def drawn(rows: list[dict[str, Tensor]]) -> Image.Image:
    """What was held above what was read, one column a picture."""
    columns = [(row["original"][i], row["reconstruction"][i]) for row in rows for i in range(len(row["original"]))]
    sheet = torch.ones(3, 2 * SIDE + GAP, len(columns) * (SIDE + GAP) - GAP)
    for place, column in enumerate(columns):
        for line, picture in enumerate(column):
            shown = F.interpolate(picture.float().cpu().clamp(0, 1)[None], size=(SIDE, SIDE), mode="nearest-exact")[0]
            top, left = line * (SIDE + GAP), place * (SIDE + GAP)
            sheet[:, top : top + SIDE, left : left + SIDE] = shown
    return Image.fromarray((sheet.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=PLANS, default=list(PLANS))
    for name in parser.parse_args().only:
        with tempfile.TemporaryDirectory() as folder:
            audited = run_plan(PLANS[name], folder, runner=Local(0))
        print(name, audited.level, audited.result.verdict.statement)
        drawn(list(audited.rows)).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
