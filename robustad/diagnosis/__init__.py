"""Diagnosis: where and why is a gradient wrong."""

from robustad.diagnosis._arguments import AuditError as AuditError
from robustad.diagnosis._audit import audit as audit
from robustad.diagnosis._branch_margin import branch_margin as branch_margin
from robustad.diagnosis._condition_number import condition_number as condition_number
from robustad.diagnosis._condition_report import ConditionNumber as ConditionNumber
from robustad.diagnosis._condition_report import LeafCondition as LeafCondition
from robustad.diagnosis._contribution import Contribution as Contribution
from robustad.diagnosis._device_profile import DeviceProfile as DeviceProfile
from robustad.diagnosis._device_profile import DtypeSupport as DtypeSupport
from robustad.diagnosis._device_profile import device_profile as device_profile
from robustad.diagnosis._finding import Finding as Finding
from robustad.diagnosis._grad_check import grad_check as grad_check
from robustad.diagnosis._grad_check_report import GradCheck as GradCheck
from robustad.diagnosis._grad_check_report import LeafCheck as LeafCheck
from robustad.diagnosis._margin_report import BranchMargin as BranchMargin
from robustad.diagnosis._margin_report import BranchMargins as BranchMargins
from robustad.diagnosis._measurement import Measurement as Measurement
from robustad.diagnosis._probe import Change as Change
from robustad.diagnosis._probe import Probe as Probe
from robustad.diagnosis._probe import probe as probe
from robustad.diagnosis._report import LeafSummary as LeafSummary
from robustad.diagnosis._report import Report as Report
