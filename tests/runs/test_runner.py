"""Where jobs are computed: one that dies takes no other with it, and what lives in this process stays here."""

import multiprocessing
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leakmap import Spec, ThreatModel
from leakmap.auditing.perform import perform
from leakmap.auditing.prepare import prepare
from leakmap.errors import WorkerDied
from leakmap.models.network import IN_MEMORY
from leakmap.plan.plan import Plan
from leakmap.runs import pool
from leakmap.runs import runner as room
from leakmap.runs.runner import HERE, Local, run_jobs
from leakmap.runs.store import Store


@dataclass(frozen=True)
class Threads:
    """The job of saying in how many threads torch computes."""

    key: str

    def __call__(self, device, told):
        return torch.get_num_threads()


@pytest.mark.parametrize("named", [True, False])
def test_jobs_that_end_their_process_are_given_up_and_all_others_run_once(named):
    jobs, made = [Threads(str(i)) for i in range(6)], {}

    def runner(jobs, done, report):
        for job in jobs:
            if job.key in "25":
                raise WorkerDied(frozenset({job.key}) if named else frozenset())
            HERE([job], done, report)

    def done(key, what):
        assert key not in made
        made[key] = what

    run_jobs(runner, jobs, done, lambda key, fraction: None, lambda job, error: "dead")
    assert {key for key, what in made.items() if what == "dead"} == {"2", "5"}
    assert len(made) == len(jobs)


def test_results_depend_on_no_number_of_threads_unless_asked():
    made, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for runner in (HERE, Local(0, threads=None)):
            runner([Threads("a")], lambda key, count: made.append(count), lambda key, fraction: None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert made == [1, 2]


@dataclass(frozen=True)
class Ticks:
    """The job of reporting progress, more of it than a pipe holds."""

    key: str = "a" * 64

    def __call__(self, device, told):
        for _ in range(10**4):
            told(0.5)


def _as_worker(queue, stop):
    pool._start("cpu", queue, stop)
    pool._run(Ticks())


def test_a_worker_ends_though_nobody_reads_its_progress_as_after_an_interruption():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_as_worker, args=(queue, context.Event()))
    worker.start()
    worker.join(10)
    code = worker.exitcode
    worker.kill()
    assert code == 0


@pytest.mark.parametrize("own", ["module", "loss"])
def test_what_only_lives_in_this_process_is_computed_here(own, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "run_in_pool", None)
    attack = Spec("inverting_gradients", {"steps": 1})
    plan = Plan("mlp,hidden=4", "samples", image_size=16, victims=1, threat=ThreatModel("known"), attack=attack)
    if own == "module":
        plan = replace(plan, model=IN_MEMORY)
        prepared = prepare(plan, module=nn.Sequential(nn.Flatten(), nn.Linear(768, 8)))
    else:
        prepared = prepare(plan, loss=lambda outputs, y: 2 * F.cross_entropy(outputs, y))
    found = perform(plan, prepared, Store(tmp_path), Local(2))
    assert not found.result.failures
    assert not found.result.unfinished
