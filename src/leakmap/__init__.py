"""leakmap: can the updates that federated clients send be turned back into their images?

Four verbs move five values::

    simulate(network, rule, batch)       -> Round           what really happened (holds the truth)
    observe(round, threat)               -> Observation     what the attacker holds
    attack(observation, how)             -> Reconstruction  what the attacker says
    score(reconstruction, batch, …)      -> Score           how much leaked

:func:`audit` does all of it for several clients, with floors, controls and a verdict.
"""

from leakmap.attacker.attack import attack
from leakmap.attacker.attacks import attacks
from leakmap.attacker.labels import label_rules
from leakmap.attacker.reconstruction import Reconstruction
from leakmap.auditing.audit import audit
from leakmap.auditing.perform import Audit
from leakmap.auditing.prepare import prepare
from leakmap.auditing.tune import tune
from leakmap.capturing.capture import capture
from leakmap.capturing.facts import Facts, RuleFacts, read_facts
from leakmap.client.simulate import Batch, Round, simulate
from leakmap.client_step import LocalRule
from leakmap.defences import defences
from leakmap.errors import LeakmapError
from leakmap.models import models
from leakmap.models.network import Code, Network, build_network
from leakmap.observation.contents import Public, Update
from leakmap.observation.observation import Observation
from leakmap.plan.plan import Plan
from leakmap.plan.tuned import Tuned, read_tuned
from leakmap.problem.task import Task
from leakmap.registry.spec import Spec
from leakmap.result.result import Result, read_result
from leakmap.result.schema import result_schema
from leakmap.scoring.metrics import metrics
from leakmap.scoring.score import Score, score
from leakmap.threat import ThreatModel, observe
from leakmap.version import __version__

__all__ = [
    "Audit",
    "Batch",
    "Code",
    "Facts",
    "LeakmapError",
    "LocalRule",
    "Network",
    "Observation",
    "Plan",
    "Public",
    "Reconstruction",
    "Result",
    "Round",
    "RuleFacts",
    "Score",
    "Spec",
    "Task",
    "ThreatModel",
    "Tuned",
    "Update",
    "__version__",
    "attack",
    "attacks",
    "audit",
    "build_network",
    "capture",
    "defences",
    "label_rules",
    "metrics",
    "models",
    "observe",
    "prepare",
    "read_facts",
    "read_result",
    "read_tuned",
    "result_schema",
    "score",
    "simulate",
    "tune",
]
