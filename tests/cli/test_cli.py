"""The command line: words, exit codes, files."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

import leakmap
from leakmap.capturing.facts import as_toml
from leakmap.cli.main import command
from leakmap.inspection.text import as_dict
from leakmap.plan.tuned import read_tuned
from leakmap.result.result import Result

SMALL = ["--image-size", "16", "--victims", "3", "--workers", "0"]
QUICK = ["audit", "--model", "mlp,hidden=16", *SMALL, "--steps", "3"]
EXACT = ["audit", "--model", "mlp,hidden=16", *SMALL, "--attack", "linear"]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["leakmap", *words])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            sys.exit(command())
        shown = capsys.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    return call


def test_help_and_version(call):
    code, out, _ = call("audit", "--help")
    assert code == 0
    for word in ("Model", "Data", "Client", "What the server sees", "Attack", "Run", "Examples", "--null"):
        assert word in out
    assert "--budget" in call("tune", "--help")[1]
    assert call("--version")[1].startswith("leakmap ")


def test_an_audit_writes_its_files_and_the_same_command_does_not_run_it_again(call, tmp_path):
    code, out, err = call(*QUICK, "--out", "here")
    assert code == 0
    assert "line-up" in out
    assert "report.html" in out
    assert "%" in err
    assert {"plan.json", "result.json", "report.html"} <= {p.name for p in (tmp_path / "here").iterdir()}
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "here" / "trials").iterdir()}
    fit = r"^Fitted first to [\d,]+ simulated clients( for \d+ settings)?: at most about \d+ (s|min), \d+ MB of"
    assert re.search(fit, err, re.M)
    assert re.search(r"^3 clients, 15 runs: about \d+ s; Ctrl-C keeps what is finished\.$", err, re.M)
    code, _, again = call(*QUICK, "--out", "here")
    assert code == 0
    assert "Ctrl-C" not in again
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "here" / "trials").iterdir()}
    assert max(len(line) for line in out.splitlines() if "report.html" not in line) <= 80


def test_a_tuning_is_followed_by_the_audit_that_it_prints(call, tmp_path):
    tuning = ["tune", *QUICK[1:], "--attack", "inverting_gradients", "--budget", "2", "--rehearsals", "1"]
    tuning += ["--out", "there"]
    code, out, err = call(*tuning)
    assert code == 0
    assert "rehearsal-tuned" in out
    assert "setting 2 of 2" in err
    assert "1 client, 2 runs: at most about" in err
    assert "at most" not in call(*tuning)[2]
    assert max(len(line) for line in out.splitlines() if not line.startswith("Next: ")) <= 80
    assert call(*tuning, "--json")[1] == (tmp_path / "there" / "tuned.json").read_text()
    following = shlex.split(next(line for line in out.splitlines() if line.startswith("Next: leakmap ")))[2:]
    code, out, _ = call(*following, "--workers", "0")
    assert code == 0
    assert "2 settings × 1 public client," in " ".join(out.split())
    assert "not tuned with inverting_gradients: steps=4" in call(*following, "--steps", "4")[2]
    assert "leave --rehearsals out" in call(*tuning, "--oracle")[2]


def test_an_audit_and_a_tuning_are_each_one_call_of_a_function(call, tmp_path):
    steps = leakmap.Spec("inverting_gradients", {"steps": 3})
    plan = leakmap.Plan("mlp,hidden=16", "samples", image_size=16, victims=3, attack=steps)
    shown = Result.from_json(call(*QUICK, "--attack", "inverting_gradients", "--json", "--out", "typed")[1])
    found = leakmap.run_plan(plan, tmp_path / "called").result
    assert (found.metrics, found.line_up, found.plan) == (shown.metrics, shown.line_up, shown.plan)
    words = [*QUICK[1:], "--attack", "inverting_gradients", "--budget", "2", "--rehearsals", "1", "--out", "tuned"]
    assert call("tune", *words)[0] == 0
    assert leakmap.tune(plan, rehearsals=1, budget=2) == read_tuned(tmp_path / "tuned" / "tuned.json")


def test_a_captured_update_is_written_and_examined_by_one_call_each(call, tmp_path):
    facts = leakmap.facts_for("mlp,hidden=4", (3, 8, 8), 5)
    (tmp_path / "facts.toml").write_text(as_toml(facts))
    assert call("facts", "mlp,hidden=4", "--shape", "3,8,8", "--classes", "5")[1] == as_toml(facts)
    code, _, err = call("facts", "mlp", "--classes", "0")
    assert code == 3
    assert "'classes' of the facts" in err
    for name, seed in (("before", 0), ("after", 1)):
        torch.save(leakmap.build_network(facts.task, facts.model, seed=seed).weights, tmp_path / f"{name}.pt")
    payload = (tmp_path / "before.pt", tmp_path / "after.pt", tmp_path / "facts.toml")
    written = leakmap.capture_files(*payload, tmp_path / "called.safetensors", count=1)
    words = ["--before", "before.pt", "--after", "after.pt", "--facts", "facts.toml", "--count", "1"]
    assert call("capture", *words, "--out", "typed.safetensors")[0] == 0
    assert leakmap.read_observation(tmp_path / "typed.safetensors").digest() == written.digest()
    code, out, _ = call("doctor", "typed.safetensors", "--json")
    found = leakmap.examine(tmp_path / "called.safetensors")
    assert (code, json.loads(out)) == (int(found.wrong), found.as_dict())


def test_an_inspection_is_one_call(call):
    shown = json.loads(call("inspect", "mlp,hidden=4", "--image-size", "16", "--json")[1])
    found = as_dict(leakmap.inspect_model("mlp,hidden=4", image_size=16))
    assert shown == json.loads(json.dumps(found))
    assert shown["conclusion"].startswith("Pictures can be computed from an update without a search, by linear")
    _, out, _ = call("inspect", "convnet,width=4", "--image-size", "16")
    assert out.splitlines()[1].startswith("No closed form reads pictures out of an update")


def test_json_is_all_that_stdout_holds(call):
    code, out, _ = call(*EXACT, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["verdict"]["level"] == "exact"
    assert result["command"].startswith(
        "leakmap audit --model mlp,hidden=16 --public 316 --attack linear --image-size 16 --victims 3"
    )


def test_the_gate_decides_the_exit_code(call):
    code, _, err = call(*EXACT, "--gate", "partial", "--out", "a")
    assert code == 1
    assert "gate partial: reached (exact): 3 of 3 clients, 3 of 3 pictures exposed; 29.2% to" in err
    assert err.endswith("of such clients (95 %); exit code 1\n")
    assert call(*EXACT, "--gate", "exact", "--out", "a")[0] == 1
    code, _, err = call(*EXACT, "--null", "--out", "b", "--gate", "partial")
    assert code == 0
    assert "gate partial: not reached (none_found): 0 of 3 clients" in err
    fails = ["audit", "--model", "convnet,width=8", *SMALL, "--attack", "linear", "--gate", "partial"]
    assert call(*fails)[0] == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "resnett"], "did you mean resnet"),
        (["--model", "resnet,widht=3"], "did you mean width"),
        (["--model", "mlp", "--data", "folder:nowhere"], "no folder"),
        (["--model", "mlp", "--attack", "linear", "--steps", "3"], "no setting 'steps'"),
        (["--model", "mlp", "--batch-size", "5", "--local-steps", "4", "--share", "delta"], "--batch-size"),
        (["--model", "mlp", "--epochs", "2"], "share='delta'"),
        (["--model", "mlp", "--victims", "0"], "victims"),
        (["--model", "mlp", "--known-pixels", "1.0"], "known_pixels"),
        (["--model", "mlp", "--victims", "400"], "too few"),
        (["--model", "mlp", "--gate", "bad"], "--gate"),
        (["--model", "mlp", "--mode", "test"], "mode"),
        (["--model", "mlp", "--weights", "nothing.pt"], "no weights file"),
        (["--model", "nets.py:build"], "no such file"),
        (["--model", "mlp", "--device", "tpu9"], "cannot be used here"),
        (["--model", "resnet,stem=patch,blocks=1-1-1", "--image-size", "16"], "more than 1 value per channel"),
        (["--model", "mlp", "--nonsense"], "nonsense"),
        ([], "--model"),
    ],
)
def test_wrong_input_gives_one_sentence_and_exit_code_3(call, words, expected, tmp_path):
    code, out, err = call("audit", *words)
    assert code == 3
    assert expected in err
    assert "Traceback" not in err
    assert not out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("finished", [0, 2])
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_continues(finished, call, tmp_path):
    """At once, while a worker is still starting, and in the middle."""
    words = ["audit", "--model", "resnet,blocks=1,width=8", "--image-size", "16", "--victims", "2", "--steps", "40",
             "--attack", "inverting_gradients", "--out", str(tmp_path / "o"), "--workers"]  # fmt: skip
    running = subprocess.Popen(
        [sys.executable, "-m", "leakmap", *words, str(max(1, finished))],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    trials = tmp_path / "o" / "trials"
    for _ in range(2400):
        if (tmp_path / "o" / "control.safetensors").exists() and len(list(trials.glob("[!.]*"))) >= finished:
            break
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "the same command continues" in err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "o" / "result.json").read_text())["unfinished"] > 0
    kept = len(list(trials.iterdir()))
    assert kept >= finished
    if finished:
        assert call(*words, "0")[0] == 0
        result = json.loads((tmp_path / "o" / "result.json").read_text())
        assert result["unfinished"] == 0
        assert result["resumed_runs"] == kept


def test_ceilings_are_a_table_json_and_a_plot_with_the_shares_of_audits(call, tmp_path):
    noisy = ["--attack", "linear", "--mode", "eval", "--defence", "clip_noise,clip=0.1,noise=1.0"]
    code, out, err = call("audit", "--model", "mlp,hidden=16", *SMALL, *noisy, "--out", "here", "--gate", "exact")
    assert code == 0 or "inconclusive" in err
    assert "<= ceiling" in " ".join(out.split())
    told = ["--gallery", "24", "--plot", "c.svg", "--result", "here/result.json"]
    code, out, _ = call("ceiling", "--noise", "1.0", *told)
    assert code == 0
    assert "23.22%" in out
    assert "measured, shown the candidates" in (tmp_path / "c.svg").read_text()
    code, out, _ = call("ceiling", "--noise", "1.0", "--clip", "2", "--rounds", "4", "--summed", "4", "--json")
    found = json.loads(out)
    assert found["rows"][1]["ceiling"] == pytest.approx(0.2322, abs=1e-4)
    assert (found["deviation"], found["clip"], found["accountant"]) == (4.0, 2.0, "exact (mu-GDP)")
    assert found["epsilon"] == pytest.approx(4.377, abs=1e-3)
    code, out, _ = call("ceiling", "--defence", "clip_noise,clip=3,noise=2", "--json")
    assert json.loads(out)["deviation"] == 6
    for words, why in (
        (["--defence", "topk"], "nothing bounds what another attack may find"),
        ([], "either --noise"),
        (["--noise", "1", "--defence", "dp_sgd"], "either --noise"),
        (["--noise", "1", "--plot", "c.gif"], "ends in .svg or .png"),
        (["--noise", "0", "--plot", "c.svg"], "give --noise above 0"),
        (["--noise", "1", "--result", "here/result.json"], "--plot FILE.svg"),
        (["--noise", "1", "--clip", "-1"], "--clip is a positive norm"),
    ):
        code, _, err = call("ceiling", *words)
        assert code == 3
        assert why in " ".join(err.split())


OWN = """
from dataclasses import dataclass
from leakmap.attacker.matching.gradient_matching import GradientMatching
from leakmap.attacker.protocol import CLOSED_FORM, free_to_fit, nothing_to_fit, nothing_to_restore, trying_shows

def mine(*, steps: int = 3) -> GradientMatching:
    return GradientMatching(distance="squared", steps=steps)

def fails(): raise ValueError("no")

@dataclass(frozen=True)
class Peeks:
    needs = frozenset({"count"})
    leaky_model, cost, fits, why_not = "mlp", CLOSED_FORM, "", trying_shows
    fit_cost, fit, restored = free_to_fit, nothing_to_fit, nothing_to_restore
    def blind(self): return self
    def __call__(self, observation, seed, tick):
        return observation.truth
"""


def test_an_attack_of_ones_own_is_audited_and_its_mistakes_are_one_sentence_with_its_line(call, tmp_path):
    """It gets the Observation that every attack gets, in which there is no truth."""
    (tmp_path / "own.py").write_text(OWN)
    code, out, err = call("audit", "--model", "mlp,hidden=16", *SMALL, "--attack", "own.py:mine,steps=2", "--json",
                          "--quiet", "--out", "a")  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(out)["plan"]["attack"] == {"name": "own.py:mine", "params": {"steps": 2}}
    for attack, words in {
        "own.py:mine,stepz=2": "has no setting 'stepz'; did you mean steps",
        "own.py:fails": "failed when it was built: ValueError: no (own.py, line 9)",
        "own.py:nothing": "has no function 'nothing'",
        "own.py:dataclass": "has no needs, leaky_model",
    }.items():
        code, _, err = call("audit", "--model", "mlp,hidden=16", *SMALL, "--attack", attack)
        assert (code, words in err, "Traceback" in err) == (3, True, False), err
    line = "no attribute 'truth' (own.py, line 18)"
    _, out, _ = call("audit", "--model", "mlp,hidden=16", *SMALL, "--attack", "own.py:Peeks", "--json", "--out", "b")
    assert line in json.loads(out)["failures"][0]["message"]
    network = leakmap.build_network(leakmap.Task((3, 8, 8), 4, (0.5,) * 3, (0.25,) * 3), "mlp,hidden=4")
    batch = leakmap.Batch(torch.rand(1, 3, 8, 8), torch.tensor([1]))
    sent = leakmap.simulate(network, leakmap.LocalRule(), batch)
    leakmap.observe(sent, leakmap.ThreatModel()).to_file(tmp_path / "client.safetensors")
    code, _, err = call("attack", "client.safetensors", "--attack", "own.py:Peeks")
    assert (code, line in err, "Traceback" in err) == (3, True, False), err


def test_what_there_is_can_be_listed_by_kind_and_searched(call):
    code, out, _ = call("list", "--kind", "metrics")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines() if line.startswith(("metric", "attack", "model"))} == {
        "metric"
    }
    assert "psnr" in out
    assert "inverting_gradients" in call("list", "INVERTING*")[1]
    code, out, err = call("list", "zzz", "--kind", "metrics")
    assert (code, out) == (3, "")
    assert "among the metrics; leakmap list shows all" in err
