"""Names of runs."""

import hashlib
import json
from dataclasses import asdict, replace

from leakmap.local_rule import LocalRule
from leakmap.registry.spec import Spec
from leakmap.runs.layout import SCHEMA
from leakmap.runs.trial import Trial
from leakmap.threat import ThreatModel


def test_a_key_is_the_digest_of_everything_that_decides_the_result():
    first = Trial("a" * 64, LocalRule(), ThreatModel(), Spec("linear", {"b": [1, 2], "a": "ü"}), metrics=("psnr",))
    trials = [first, *(replace(first, client=client) for client in range(3)), replace(first, code="ä", seed=2**40)]
    # Equal in Python, another text.
    trials += [replace(first, rule=LocalRule(momentum=0)), replace(first, rule=LocalRule(momentum=0.0))]
    trials += [replace(first, attack=Spec(f"{n}", {"n": n})) for n in range(200)]
    for trial in trials:
        text = json.dumps({"schema": SCHEMA, **asdict(trial)}, sort_keys=True)
        assert trial.key == hashlib.sha256(text.encode()).hexdigest()
    assert len({trial.key for trial in trials}) == len(trials) - 2  # client 0 and momentum 0.0 are what is usual
