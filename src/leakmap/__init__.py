"""leakmap: can the updates that federated clients send be turned back into their images?

Four verbs move five values::

    simulate(network, rule, batch)       -> Round           what really happened (holds the truth)
    observe(round, threat)               -> Observation     what the attacker holds
    attack(observation, how)             -> Reconstruction  what the attacker says
    score(reconstruction, batch, …)      -> Score           how much leaked

:func:`audit` does all of it for several clients, with floors, controls and a verdict; :func:`run_plan` does what
``leakmap audit`` does, and every other command is one call of a function that is here, too.
"""

from leakmap.attacker.attack import attack
from leakmap.attacker.attacks import attacks
from leakmap.attacker.labels import label_rules
from leakmap.attacker.reconstruction import Reconstruction
from leakmap.auditing.audit import audit, audit_captured, run_plan
from leakmap.auditing.demo import demonstrate
from leakmap.auditing.perform import Audit
from leakmap.auditing.tune import tune
from leakmap.capturing.capture import capture
from leakmap.capturing.facts import Facts, RuleFacts, facts_for, read_facts
from leakmap.capturing.files import capture_files
from leakmap.capturing.flower import tap, tapped
from leakmap.capturing.typed import read_observation
from leakmap.client.simulate import Batch, Round, simulate
from leakmap.defences import defences
from leakmap.doctor.attacking import Attacked, attack_file
from leakmap.doctor.examine import Examination, examine
from leakmap.doctor.watching import Watch, look
from leakmap.errors import LeakmapError
from leakmap.inspection.inspection import Inspection, inspect_model
from leakmap.local_rule import LocalRule
from leakmap.models import models
from leakmap.models.network import Code, Network, build_network
from leakmap.observation.contents import Public, Update
from leakmap.observation.observation import Observation
from leakmap.plan.plan import Plan
from leakmap.plan.tuned import Tuned, read_tuned
from leakmap.problem.task import Task
from leakmap.registry.spec import Spec
from leakmap.report.catalogue import catalogue
from leakmap.result.result import Result, read_result
from leakmap.result.schema import result_schema
from leakmap.runs.runner import Local
from leakmap.scoring.metrics import metrics
from leakmap.scoring.score import Score, score
from leakmap.study.estimate import Status, study_status
from leakmap.study.file import Study, read_study
from leakmap.study.paper import reproduce
from leakmap.study.reporting import export_study, report_study
from leakmap.study.running import merge_study, run_study
from leakmap.threat import ThreatModel, observe
from leakmap.version import __version__

__all__ = [
    "Attacked",
    "Audit",
    "Batch",
    "Code",
    "Examination",
    "Facts",
    "Inspection",
    "LeakmapError",
    "Local",
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
    "Status",
    "Study",
    "Task",
    "ThreatModel",
    "Tuned",
    "Update",
    "Watch",
    "__version__",
    "attack",
    "attack_file",
    "attacks",
    "audit",
    "audit_captured",
    "build_network",
    "capture",
    "capture_files",
    "catalogue",
    "defences",
    "demonstrate",
    "examine",
    "export_study",
    "facts_for",
    "inspect_model",
    "label_rules",
    "look",
    "merge_study",
    "metrics",
    "models",
    "observe",
    "read_facts",
    "read_observation",
    "read_result",
    "read_study",
    "read_tuned",
    "report_study",
    "reproduce",
    "result_schema",
    "run_plan",
    "run_study",
    "score",
    "simulate",
    "study_status",
    "tap",
    "tapped",
    "tune",
]
