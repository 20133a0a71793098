"""Makes an entry of a finished audit."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from leakmap.auditing.prepare import Prepared, prepare
from leakmap.auditing.provenance import architecture_of, parameters_of
from leakmap.entries.check import differences
from leakmap.entries.entry import Attached, Claimed, Entry, RunOf, Where, truth_digest, why_not_repeatable
from leakmap.entries.scored import named_runs, rescored
from leakmap.errors import BadSetting, StoreError
from leakmap.evidence.measured import quantities, records
from leakmap.evidence.run import Run, read_run
from leakmap.files import checksum, write_tensors, write_text
from leakmap.result.provenance import Provenance
from leakmap.runs.store import Store


def make_entry(
    run: Path | str,
    out: Path | str,
    *,
    title: str = "",
    by: str = "",
    claimed: Sequence[Claimed] = (),
) -> Entry:
    """Makes an entry and the file with its reconstructions beside it.

    Pictures and network are made again from the plan, and the reconstructions scored again: what does not come to the
    figures of the run is not written.

    Args:
        run: The folder of a finished audit.
        out: The JSON file to write; the reconstructions get the same name with ``.safetensors``.
        title: What was audited; by default the architecture.
        by: Who made it.
        claimed: Figures that others stated.

    Raises:
        StoreError: the run is damaged or not finished, cannot be repeated, or something stands where the entry should.
        BadSetting: nobody else could repeat it, or a claim is about no figure.
    """
    path = Path(out)
    beside = path.with_suffix(".safetensors")
    if path.suffix != ".json":
        raise BadSetting(f"An entry is a JSON file; got --out {str(path)!r}, give a name that ends in .json.")
    for there in (path, beside):
        if there.exists():
            raise StoreError(f"{there} is there already, and an entry is not written over; give another --out.")
    found = read_run(Path(run))
    origin = _repeatable(found)
    plan = found.result.plan
    prepared = prepare(plan)
    if prepared.main.digest != origin.contents or checksum(prepared.main.network.weights, {}) != origin.weights:
        raise StoreError(
            f"The plan of {found.folder} now makes other pictures or another network than the run had; run it again."
        )
    runs, pictures = _runs_of(found, prepared)
    figures = quantities(found.result)
    for claim in claimed:
        if claim.key not in {figure.key for figure in figures}:
            raise BadSetting(
                f"There is no figure {claim.key!r}; the run has {', '.join(figure.key for figure in figures)}."
            )
    result = rescored(plan, prepared, runs, pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(beside, pictures)
    content = beside.read_bytes()
    entry = Entry(
        title=title or plan.model,
        by=by,
        where=Where(
            versions=found.result.versions,
            **{name: getattr(origin, name) for name in Where.model_fields if name != "versions"},
        ),
        architecture=architecture_of(prepared.main.network),
        weights=origin.weights,
        parameters=parameters_of(prepared.main.network),
        data=origin.pictures,
        truth=truth_digest(prepared.main),
        attacker=found.result.knowledge.attacker,
        suite=found.result.suite.version if found.result.suite else "",
        plan=plan,
        command=found.result.command,
        claimed=tuple(claimed),
        level=found.result.verdict.level,
        flags=found.result.flags,
        figures=figures,
        records=records(found.result),
        runs=tuple(runs),
        reconstructions=Attached(file=beside.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
    )
    if wrong := differences(entry, result):
        beside.unlink()
        raise StoreError(f"The stored pictures of {found.folder} do not come to its figures: {wrong[0]} Run it again.")
    write_text(path, entry.as_json())
    return entry


def _repeatable(run: Run) -> Provenance:
    """Where a run comes from, if others can repeat it.

    Raises:
        BadSetting: they cannot.
    """
    why = why_not_repeatable(run.result.plan)
    if not why and run.provenance is None:
        why = "an earlier leakmap ran it and did not write where it comes from; run it again in another folder"
    if why:
        raise BadSetting(f"{run.folder} cannot become an entry that others check: {why}.")
    assert run.provenance is not None
    if run.result.unfinished or not run.provenance.finished:
        raise StoreError(f"{run.folder} lacks {run.result.unfinished} runs; run its command again before.")
    return run.provenance


def _runs_of(run: Run, prepared: Prepared) -> tuple[list[RunOf], dict[str, Tensor]]:
    store, runs, pictures = Store(run.folder), [], {}
    for one in named_runs(run.result.plan, prepared):
        outcome = store.get(one.trial)
        if outcome is None:
            raise StoreError(f"The run {one.tensor} in {run.folder} is absent or damaged; run its command again.")
        score = outcome.score
        told = {"role": one.role, "client": one.trial.client, "used": tuple(sorted(outcome.used))}
        runs.append(RunOf(**told, last=bool(score and score.places), failure=outcome.failure))
        if score is not None and one.role != "informed":
            pictures[one.tensor] = score.pictures.float()
    return runs, pictures
