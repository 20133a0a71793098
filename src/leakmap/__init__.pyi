from .attacker.attack import attack
from .attacker.attacks import attacks
from .attacker.labels import label_rules
from .attacker.reconstruction import Reconstruction
from .auditing.audit import audit, audit_captured, run_plan
from .auditing.demo import demonstrate
from .auditing.found import Audit
from .auditing.tune import tune
from .capturing.capture import capture
from .capturing.facts import Facts, RuleFacts, facts_for, read_facts
from .capturing.files import capture_files
from .capturing.flower import tap, tapped
from .capturing.typed import read_observation
from .client.simulate import Batch, Round, simulate
from .defences import defences
from .doctor.attacking import Attacked, attack_file
from .doctor.examine import Examination, examine
from .doctor.watching import Watch, look
from .entries.check import Checked, check_entry
from .entries.entry import Entry, entry_schema, read_entry
from .entries.make import make_entry
from .errors import LeakmapError
from .evidence.bundle import Bundle, make_bundle
from .evidence.evidence import evidence_schema
from .evidence.profile import Profile, read_profile
from .evidence.verify import Verified, verify_bundle
from .inspection.inspection import Inspection, inspect_model
from .local_rule import LocalRule
from .models import models
from .models.network import Code, Network, build_network
from .observation.contents import Public, Update
from .observation.observation import Observation
from .plan.plan import Plan
from .plan.tuned import Tuned, read_tuned
from .problem.task import Task
from .registry.spec import Spec
from .report.catalogue import catalogue
from .result.compare import Comparison, compare
from .result.result import Result, read_result
from .result.schema import result_schema
from .runs.runner import Local
from .scoring.metrics import metrics
from .scoring.score import Score, score
from .study.estimate import study_status
from .study.file import Study, read_study
from .study.index import Status, recorded_status
from .study.paper import reproduce
from .study.reporting import export_study, report_study
from .study.running import merge_study, run_study
from .study.shipped import studies
from .threat import ThreatModel, observe
from .version import __version__

__all__ = [
    "Attacked",
    "Audit",
    "Batch",
    "Bundle",
    "Checked",
    "Code",
    "Comparison",
    "Entry",
    "Examination",
    "Facts",
    "Inspection",
    "LeakmapError",
    "Local",
    "LocalRule",
    "Network",
    "Observation",
    "Plan",
    "Profile",
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
    "Verified",
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
    "check_entry",
    "compare",
    "defences",
    "demonstrate",
    "entry_schema",
    "evidence_schema",
    "examine",
    "export_study",
    "facts_for",
    "inspect_model",
    "label_rules",
    "look",
    "make_bundle",
    "make_entry",
    "merge_study",
    "metrics",
    "models",
    "observe",
    "read_entry",
    "read_facts",
    "read_observation",
    "read_profile",
    "read_result",
    "read_study",
    "read_tuned",
    "recorded_status",
    "report_study",
    "reproduce",
    "result_schema",
    "run_plan",
    "run_study",
    "score",
    "simulate",
    "studies",
    "study_status",
    "tap",
    "tapped",
    "tune",
    "verify_bundle",
]
