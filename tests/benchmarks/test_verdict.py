"""The trap that the verdict must not fall into: one client of twelve is recovered, and the others are not."""

from dataclasses import replace

from benchmarks.verdict import BRIGHT, CONDITIONS, planned
from typer.testing import CliRunner

from leakmap.auditing.perform import perform
from leakmap.cli.main import app

EXPOSED = CONDITIONS["exposed"]


def test_one_recovered_client_of_twelve_decides_the_level_and_the_exit_code(tmp_path):
    plan = planned(EXPOSED, 0)[0]
    command = [
        *("audit", "--model", plan.model, "--image-size", "16", "--victims", "12", "--mode", "eval", "--workers", "0"),
        *(
            "--labels",
            "known",
            "--public",
            "0",
            "--attack",
            str(plan.attack),
            "--gate",
            "partial",
            "--out",
            str(tmp_path),
        ),
    ]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 1, found.output
    told = " ".join(found.output.split())
    assert "exact" in told
    assert "1 of 12 clients (1 of 12 pictures)" in told


def test_a_floor_that_does_not_apply_is_an_answer_and_no_failure():
    """The closed form reads the one bright client; of its swapped picture, which is dark, it says nothing."""
    plan, prepared = planned(replace(EXPOSED, setups=((BRIGHT, "linear"),)), 0)
    found = perform(plan, prepared).result
    (row,) = found.finished
    assert found.verdict.level == "exact"
    assert row.floors["psnr"]["swapped"] is None
    assert not [failure for failure in found.failures if failure.role == "swapped"]
