import csv
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from leakmap.errors import BadSetting, DataError, StoreError, UsageError
from leakmap.plan.plan import Plan
from leakmap.runs.ray import Ray
from leakmap.runs.runner import HERE
from leakmap.runs.store import Store
from leakmap.study import results
from leakmap.study.file import parse_study, read_study
from leakmap.study.planning import of_shard, only, planned
from leakmap.study.results import cell_rows, conclusions, score_rows, write_table
from leakmap.study.running import merge_study, run_study
from leakmap.study.shipped import studies
from leakmap.study.standing import standing
from leakmap.units import duration
from tests.conftest import Deadly

TINY = """
title = "Tiny"
[data]
source = "samples"
image_size = 16
victims = 1
[model]
name = "mlp"
[client]
mode = ["train", "eval"]
[threat]
labels = "known"
[attack]
name = "inverting_gradients"
steps = 2
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def study_of(**content):
    return parse_study({"model": "mlp", **content})


def scores(study, folder):
    return list(score_rows(planned(study), Store(folder)))


def test_a_list_is_an_axis_and_the_cells_are_the_product():
    study = study_of(model={"name": "resnet", "width": [8, 16]}, client={"mode": ["train", "eval"]}, seed=[0, 1, 2])
    assert len(study.cells) == 12
    assert study.axes == {"model.width": [8, 16], "client.mode": ["train", "eval"], "seed": [0, 1, 2]}
    assert study.cells[0].plan.model == "resnet,width=8"
    assert {cell.plan.rule.mode for cell in study.cells} == {"train", "eval"}
    assert {cell.plan.seed for cell in study.cells} == {0, 1, 2}


def test_alternatives_have_axes_of_their_own():
    study = study_of(
        model=["small-resnet", {"name": "convnet", "width": [8, 16]}, {"name": "mlp", "label": "perceptron"}]
    )
    assert [dict(cell.axes) for cell in study.cells] == [
        {"model": "small-resnet"},
        {"model": "convnet", "model.width": 8},
        {"model": "convnet", "model.width": 16},
        {"model": "perceptron"},
    ]
    assert study.cells[0].plan.model == "resnet,blocks=1-1-1,width=16"


def test_presets_of_the_file_come_before_the_shipped_ones():
    study = study_of(threat=["upper-bound", "mine"], presets={"threat": {"mine": {"labels": "counts"}}})
    assert [cell.plan.threat.labels for cell in study.cells] == ["known", "counts"]


def test_every_shipped_preset_makes_a_plan():
    from leakmap.study.file import _shipped

    for kind, presets in _shipped().items():
        for name in presets:
            assert isinstance(study_of(**{kind: name}).cells[0].plan, Plan)


def test_cells_can_be_excluded():
    study = study_of(
        client={"mode": ["train", "eval"]},
        threat={"buffers": [True, False]},
        exclude=[{"client.mode": "eval", "threat.buffers": [True]}],
    )
    assert [tuple(cell.axes.values()) for cell in study.cells] == [("train", True), ("train", False), ("eval", False)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": {"width": 3}}, "lacks 'name'"),
        ({"modle": "mlp"}, "did you mean model"),
        ({"client": {"mdoe": "train"}}, "did you mean mode"),
        ({"client": {"mode": "training"}}, "'mode'"),
        ({"client": {"mode": []}}, "empty list"),
        ({"client": {"mode": ["eval", "eval"]}}, "twice"),
        ({"client": "fedprox"}, "no preset 'fedprox'"),
        ({"model": ["mlp", "mlp"]}, "label of its own"),
        ({"seed": "one"}, "'seed'"),
        ({"seed": list(range(100_001))}, "more than 100000 cells"),
        ({"exclude": [{"client.mode": "eval"}]}, "no axis"),
        ({"client": {"mode": ["eval", "train"]}, "exclude": [{"client.mode": ["eval", "train"]}]}, "Every cell"),
        ({"client": {"share": "delta", "local_steps": 3}}, "cannot be split into 3"),
        ({"presets": {"modes": {"x": {}}}}, "no table 'modes'"),
        ({"model": [{"name": ["mlp", "convnet"]}]}, "give it a label"),
        ({"client": {name: [0.1 * i for i in range(60)] for name in ("lr", "momentum", "weight_decay")}}, "100000"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_a_sentence(content, expected):
    with pytest.raises(BadSetting, match=expected):
        study_of(**content)


def test_a_study_needs_a_model():
    with pytest.raises(BadSetting, match="needs a model"):
        parse_study({})


def test_studies_that_come_with_leakmap_have_names():
    asked = studies()
    assert asked["first-look"] == "Does the mode matter more than the width?"
    assert all(read_study(name).title == title for name, title in asked.items() if "/" not in name)
    with pytest.raises(BadSetting, match=r"neither a file nor a study 'frist-look'; did you mean first-look\?"):
        read_study("frist-look")


def test_a_file_that_is_no_toml_is_named(tmp_path):
    path = tmp_path / "a.toml"
    with pytest.raises(BadSetting, match=r"a\.toml cannot be read"):
        read_study(path)
    path.write_bytes(b"\xff\xfe= [")
    with pytest.raises(BadSetting, match="is not TOML"):
        read_study(path)
    path.write_text("model = 3")
    with pytest.raises(BadSetting, match=r"a\.toml: model is a table"):
        read_study(path)


def test_a_cell_that_cannot_run_is_named_before_anything_runs(tmp_path):
    study = study_of(data={"victims": [1, 100_000]})
    with pytest.raises(DataError, match="data.victims=100000: .*too few"):
        run_study(study, tmp_path, HERE)
    assert not list(tmp_path.glob("trials/*"))


def test_keys_are_the_same_in_every_process(tiny):
    code = (
        "import sys; from leakmap.study.file import read_study; from leakmap.study.planning import planned\n"
        "print(*(t.key for one in planned(read_study(sys.argv[1])) for t in one.all()))"
    )
    command = [sys.executable, "-c", code, str(tiny)]
    other = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert other.stdout.split() == [t.key for one in planned(read_study(tiny)) for t in one.all()]


def test_equal_runs_of_several_cells_are_made_once(tiny):
    study = read_study(tiny)
    first, second = planned(study)
    assert [t.key for t in first.trials["control"]] == [t.key for t in second.trials["control"]]
    assert not {t.key for t in first.trials["attack"]} & {t.key for t in second.trials["attack"]}


def test_with_and_without_public_pictures_is_an_axis_whose_runs_hold_the_number():
    data, threat = {"source": "samples", "image_size": 16, "victims": 2}, {"public": ["auto", 0, 5]}
    found = planned(parse_study({"model": "mlp,hidden=4", "data": data, "threat": threat, "attack": "linear"}))
    assert [one.cell.axes["threat.public"] for one in found] == ["auto", 0, 5]
    numbers = [{trial.threat.public for trial in one.all() if trial.group == "victims"} for one in found]
    assert numbers[1:] == [{0}, {5}]
    assert numbers[0] == {found[0].cell.plan.threat.public}
    assert found[0].cell.plan.threat.public > 300


def test_the_same_command_continues_and_repeats_nothing(tiny, tmp_path):
    study, folder = read_study(tiny), tmp_path / "out"
    first = run_study(study, folder, HERE, limit=5)
    assert (len(first.seconds), len(first.missing)) == (5, len(first.keys) - 5)
    written = {path: path.stat().st_mtime_ns for path in (folder / "trials").iterdir()}
    second = run_study(study, folder, HERE)
    assert not second.missing
    assert not second.failed
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    assert {path.stem for path in (folder / "trials").iterdir()} == set(second.keys)


def test_a_damaged_run_is_run_again(tiny, tmp_path):
    study = read_study(tiny)
    run_study(study, tmp_path, HERE, limit=2)
    first = next((tmp_path / "trials").iterdir())
    first.write_bytes(first.read_bytes()[:40])
    assert len(standing(study, tmp_path).seconds) == 1
    assert len(run_study(study, tmp_path, HERE, limit=1).seconds) == 2


def test_shards_share_out_every_run_and_merge_to_the_same_scores(tiny, tmp_path):
    study = read_study(tiny)
    run_study(study, tmp_path / "whole", HERE)
    parts = [tmp_path / f"part{i}" for i in (1, 2, 3)]
    for i, part in enumerate(parts, 1):
        run_study(study, part, HERE, shard=f"{i}/3")
    held = [{path.stem for path in (part / "trials").iterdir()} for part in parts]
    assert sum(map(len, held)) == len(set.union(*held)) == len(standing(study, tmp_path / "whole").keys)
    taken = merge_study(tmp_path / "merged", parts)
    assert list(taken.values()) == list(map(len, held))
    assert scores(study, tmp_path / "merged") == scores(study, tmp_path / "whole")
    assert merge_study(tmp_path / "merged", parts) == dict.fromkeys(taken, 0)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_shard_is_i_of_n(shard):
    with pytest.raises(BadSetting, match="i/n"):
        list(of_shard(["ab"], shard))


def test_only_what_exists_can_be_merged(tmp_path):
    with pytest.raises(StoreError, match="holds no runs"):
        merge_study(tmp_path / "all", [tmp_path / "nothing"])


def test_filters_choose_cells(tiny):
    cells = planned(read_study(tiny))
    assert [one.cell.axes["client.mode"] for one in only(cells, ["client.mode=eval"])] == ["eval"]
    assert len(only(cells, ["client.mode=eval", "client.mode=train"])) == 2
    with pytest.raises(BadSetting, match="no axis 'mode'; did you mean client.mode"):
        only(cells, ["mode=eval"])
    with pytest.raises(BadSetting, match="no value 'evil'"):
        only(cells, ["client.mode=evil"])


def test_failures_are_kept_listed_and_retried_only_when_asked(tmp_path):
    study = study_of(
        data={"image_size": 16, "victims": 1},
        model={"name": "resnet", "stem": "patch", "blocks": "1-1-1"},
        attack={"name": "inverting_gradients", "steps": 2},
    )
    found = run_study(study, tmp_path, HERE)
    assert found.failed
    assert not found.missing
    assert any("more than 1 value per channel" in text for _, text in found.failed.values())
    path = Store(tmp_path).path(next(iter(found.failed)))
    before = path.stat().st_mtime_ns
    run_study(study, tmp_path, HERE)
    assert path.stat().st_mtime_ns == before
    run_study(study, tmp_path, HERE, retry_failed=True)
    assert path.stat().st_mtime_ns > before


def test_a_run_that_ends_its_process_even_alone_is_a_failure_and_the_rest_goes_on(tiny, tmp_path):
    study = read_study(tiny)
    deadly = planned(study)[0].trials["attack"][0].key
    runner = Deadly(dies=lambda trial: trial.key == deadly)
    found = run_study(study, tmp_path, runner)
    assert set(found.failed) == {deadly}
    assert not found.missing
    assert found.failed[deadly][0] == "WorkerDied"
    assert runner.tried[-1] == 1


def test_a_network_that_cannot_be_built_does_not_spoil_the_control_of_others(tmp_path):
    study = study_of(
        data={"image_size": 16, "victims": 1},
        model=[{"name": "resnet", "stem": "patch", "blocks": "1-1-1"}, "mlp"],
        attack={"name": "inverting_gradients", "steps": 1},
    )
    found = run_study(study, tmp_path, HERE)
    assert set(found.failed).isdisjoint(trial.key for trial in found.planned[1].all())
    assert set(found.failed)


def test_a_damaged_network_is_trained_again(tmp_path):
    weights = {"train_epochs": 1}
    study = study_of(data={"image_size": 16, "victims": 1}, weights=weights, attack="inverting_gradients,steps=1")
    run_study(study, tmp_path, HERE, limit=1)
    (network,) = (tmp_path / "networks").iterdir()
    network.write_bytes(network.read_bytes()[:100])
    assert not run_study(study, tmp_path, HERE).failed


def test_a_network_is_trained_once_and_read_afterwards(tmp_path):
    study = study_of(
        data={"image_size": 16, "victims": 1},
        model={"name": "mlp"},
        weights={"train_epochs": [0, 1]},
        client={"mode": ["train", "eval"]},
        attack={"name": "inverting_gradients", "steps": 1},
    )
    found = run_study(study, tmp_path, HERE)
    (network,) = (tmp_path / "networks").iterdir()
    assert network.stem == found.planned[-1].names.network
    assert not found.missing
    before = network.stat().st_mtime_ns
    cells, why = conclusions(found.planned, tmp_path, HERE)
    assert len(cells) == 4
    assert not why
    assert network.stat().st_mtime_ns == before


def test_tables_hold_a_row_for_each_picture_and_each_cell(tiny, tmp_path):
    study = read_study(tiny)
    found = run_study(study, tmp_path, HERE)
    rows = scores(study, tmp_path)
    assert len(rows) == sum(len(one.all()) for one in found.planned)
    assert {row["role"] for row in rows} == {"attack", "swapped", "prior_only", "control"}
    cells, _ = conclusions(found.planned, tmp_path, HERE)
    table = list(cell_rows(cells))
    assert [row["client.mode"] for row in table] == ["train", "eval"]
    assert all(row["n"] == 1 and row["unfinished"] == 0 for row in table)
    write_table(tmp_path / "cells.csv", table, "csv")
    with (tmp_path / "cells.csv").open() as file:
        assert [row["level"] for row in csv.DictReader(file)] == [row["level"] for row in table]
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write_table(tmp_path / "cells.parquet", table, "parquet")
    assert parquet.read_table(tmp_path / "cells.parquet").column("level").to_pylist() == [r["level"] for r in table]


def test_a_conclusion_is_drawn_anew_only_when_runs_or_rules_were_changed(tiny, tmp_path, monkeypatch):
    study = read_study(tiny)
    run_study(study, tmp_path, HERE, filters=["client.mode=train"], limit=3)
    cells, _ = conclusions(planned(study), tmp_path, HERE)
    assert [cell.result.unfinished > 0 for cell in cells] == [True]
    run_study(study, tmp_path, HERE)
    cells, _ = conclusions(planned(study), tmp_path, HERE)
    assert [cell.result.unfinished for cell in cells] == [0, 0]

    def nobody(jobs, done, report):
        raise AssertionError("something is left to conclude")

    again, _ = conclusions(planned(study), tmp_path, nobody)
    assert [cell.result for cell in again] == [cell.result for cell in cells]
    for rules in ("JUDGED", "RESULT_SCHEMA"):
        with monkeypatch.context() as changed:
            changed.setattr(results, rules, 99)
            with pytest.raises(AssertionError, match="left to conclude"):
                conclusions(planned(study), tmp_path, nobody)
    # A run with another score, as of an attack that was corrected.
    store, trial = Store(tmp_path), planned(study)[0].all()[0]
    old = store.get(trial)
    store.put(replace(old, score=replace(old.score, ranks=tuple(rank + 1 for rank in old.score.ranks))))
    with pytest.raises(AssertionError, match="left to conclude"):
        conclusions(planned(study), tmp_path, nobody)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # Ray's own
def test_a_ray_cluster_gives_the_same_scores(tiny, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    study = read_study(tiny)
    run_study(study, tmp_path / "here", HERE)
    found = run_study(study, tmp_path / "cluster", Ray("local"))
    assert not found.missing
    assert scores(study, tmp_path / "cluster") == scores(study, tmp_path / "here")
    with pytest.raises(UsageError, match="0 GPUs; lower --gpus"):
        run_study(study, tmp_path / "gpus", Ray("local", gpus=1))


def test_the_resolved_file_holds_what_was_left_out(tiny):
    text = read_study(tiny).resolved()
    assert text.startswith(TINY.rstrip())
    assert "# rule.lr = 0.01" in text
    assert "# gallery = 100" in text


def test_a_folder_may_hold_more_than_the_study(tiny, tmp_path):
    study = read_study(tiny)
    run_study(study, tmp_path, HERE)
    less = replace(study, cells=study.cells[:1])
    assert not standing(less, tmp_path).missing


@pytest.mark.parametrize(("seconds", "said"), [(20, "20 s"), (600, "10 min"), (10_000, "2.8 h")])
def test_durations_are_said_in_fitting_units(seconds, said):
    assert duration(seconds) == said


def test_the_commands_say_where_a_study_stands(tiny, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from leakmap.cli.main import app

    monkeypatch.chdir(tmp_path)

    def call(*words):
        found = CliRunner().invoke(app, ["study", *words])
        assert found.exit_code == 0, found.output
        said.append(found.stderr)
        return found.stdout

    said: list[str] = []
    assert "2 cells, 12 runs, 0 finished, 0 failed, 12 missing" in call("run", str(tiny), "--dry-run")
    assert "computing left" in call("status", str(tiny))
    assert "study report" in call("run", str(tiny), "--workers", "0")
    assert re.search(r"^2 cells, 12 runs: about \d+ s with 1 process; Ctrl-C keeps what is finished\.$", said[-1], re.M)
    call("run", str(tiny), "--workers", "0")
    assert "Ctrl-C" not in said[-1]
    call("report", str(tiny), "--workers", "0")
    assert "Tiny" in Path("runs/tiny/report.html").read_text()
    call("export", str(tiny), "--to", "tables", "--workers", "0")
    assert {path.name for path in Path("tables").iterdir()} == {"scores.csv", "cells.csv"}
    assert '"missing": 0' in call("status", str(tiny), "--json")


def test_the_study_of_the_documentation_is_the_one_that_can_be_run():
    root = Path(__file__).parents[2]
    assert read_study("first-look") == read_study(root / "studies" / "first-look.toml")
    shown = (root / "docs" / "study.md").read_text().split("```toml\n# studies/first-look.toml\n")[1].split("```")[0]
    assert shown == (root / "studies" / "first-look.toml").read_text()
    assert len(read_study(root / "studies" / "first-look.toml").cells) == 8
