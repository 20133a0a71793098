"""Results made up from a few clients, whole and typed, without an audit."""

from leakmap import Plan, ThreatModel
from leakmap.result.clients import FinishedClient
from leakmap.result.evidence import CopiesResult, GainResult, LineUpResult, LineUps, VerdictResult
from leakmap.result.method import ClosedForms, Knowledge, LabelsResult, Settings, UpdateCheck
from leakmap.result.part import Estimate, Rate
from leakmap.result.result import Result


def finished(client, ranks, galleries, scores=None, floors=None, **changes):
    """A client, of whom only what is given matters."""
    usual = {
        "classes": ("cat",) * len(ranks), "pose_ranks": ranks, "band_ranks": {}, "swapped_ranks": ranks,
        "object_ranks": (), "object_galleries": (),
        "labels_right": 1.0, "objective": 0.1, "curve": (1.0, 0.1), "seconds": 3.0, "used": ("rule",), "notes": {},
    }  # fmt: skip
    scores = {"psnr": (20.0,) * len(ranks), "ssim": (0.5,) * len(ranks)} | (scores or {})
    floors = {name: {} for name in scores} | (floors or {})
    own = {"client": client, "ranks": ranks, "galleries": galleries, "scores": scores, "floors": floors}
    return FinishedClient(**usual | own | changes)


def line_up(p=1e-6):
    """A line-up of six pictures, all of which are first, whose test says ``p``."""
    share = Rate(value=1.0, low=0.5, high=1.0)
    return LineUpResult(
        hits=6, n=6, rank_one=share, chance=0.01, median_rank=1.0, p=p, p_rank_one=0.5, above_chance=p < 0.03
    )


def gain(best_floor, floors=None):
    """A metric, of which only its floors matter."""
    nothing = Estimate(value=0.0, low=0.0, high=0.0)
    floors = floors or {best_floor: 0.0}
    return GainResult(value=nothing, floors=floors, best_floor=best_floor, gain=nothing, above_every_floor=False)


def verdict(level, rule, reasons=(), statement="Made up."):
    """A verdict with this level."""
    return VerdictResult(
        level=level, rule=rule, reasons=reasons, statement=statement, worst="Worst picture.", typical="Typical picture."
    )


def made_up(*clients, **changes):
    """A result with these clients, in which nothing was found unless ``changes`` say so."""
    plan = changes.get("plan", Plan("resnet", "samples", threat=ThreatModel(public=0)))
    usual = {
        "verdict": verdict("none_found", "nothing"),
        "exposure": None,
        "line_up": LineUps(gallery=None, attack=None, any_pose=None, swapped=None, deranged=None, control=None),
        "bands": None,
        "objects": None,
        "metrics": {},
        "settings": Settings(column="default", statement="default"),
        "defence": None,
        "suite": None,
        "labels": LabelsResult(
            source="inferred", rule="idlg", confidence=1.0, right=1.0, statement="inferred by idlg"
        ),
        "flags": {},
        "update_check": UpdateCheck(
            norm=1.0, head_fraction=0.5, zero_below=False, zero_tensors=0.0, tiny_tensors=0.0, tensors=4,
            cos_other=0.5, cos_noise=0.1, cos_precise=1.0, loss=2.0,
        ),
        "closed_forms": ClosedForms(qualify=(), reasons=()),
        "knowledge": Knowledge(
            attacker=plan.threat.letter, attacker_used="C", granted=plan.threat, public="no public pictures",
            used=("rule",),
        ),
        "clients": clients,
        "failures": (),
        "unfinished": 0,
        "pictures": {"victims": len(clients)},
        "copies": CopiesResult(families=0, left_out=0),
        "accuracy": 0.2,
        "plan": plan,
        "command": "leakmap audit --model resnet",
        "control_model": "convnet",
        "seconds": 40.0,
        "seconds_of_runs": 36.0,
        "resumed_runs": 0,
        "versions": {"leakmap": "0.1.0", "torch": "2.14", "device": "cpu"},
    }  # fmt: skip
    return Result(**usual | changes)
