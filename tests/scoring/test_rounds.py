"""Evidence over rounds."""

import numpy as np
import pytest

from leakmap.errors import BadSetting
from leakmap.scoring.rounds import ERROR, pooled


def test_evidence_alarms_on_leaks_and_rarely_where_there_are_none_however_often_one_looks() -> None:
    assert pooled([]).evidence == 1.0
    assert pooled([]).alarm is None
    plain = pooled([0.5] * 15)
    assert plain.alarm is not None
    assert plain.p <= ERROR
    assert plain.evidence == pytest.approx(1 / plain.p)
    later = pooled([0.5] * 15 + [-0.9] * 50)
    assert later == pooled([0.5] * 15 + [-0.9] * 50), "what was said stays, in any process"
    assert (later.alarm, later.evidence) == (plain.alarm, plain.evidence)
    source = np.random.default_rng(0)
    # Pictures that are always easy or always hard give two ranks alike; first and last in turn is what bets fear most.
    alike = np.clip(source.beta(0.3, 0.3, size=(1000, 1, 1)) + source.normal(0, 0.2, size=(1000, 50, 2)), 0, 1)
    for ranks in (alike, source.uniform(size=(1000, 50, 2)), source.integers(0, 2, size=(1000, 50, 2))):
        alarms = sum(pooled((one[:, 1] - one[:, 0]).tolist()).alarm is not None for one in ranks)
        assert alarms <= ERROR * 1000
    assert alarms > 0, "the last kind comes near the bound"
    with pytest.raises(BadSetting, match="lie in"):
        pooled([1.5])
