"""Diagnosis: where and why is a gradient wrong."""

from robustad.diagnosis._arguments import AuditError as AuditError
from robustad.diagnosis._audit import audit as audit
from robustad.diagnosis._grad_check import grad_check as grad_check
from robustad.diagnosis._grad_check_report import GradCheck as GradCheck
from robustad.diagnosis._grad_check_report import LeafCheck as LeafCheck
from robustad.diagnosis._contribution import Contribution as Contribution
from robustad.diagnosis._finding import Finding as Finding
from robustad.diagnosis._replay import save_arguments as save_arguments
from robustad.diagnosis._report import LeafSummary as LeafSummary
from robustad.diagnosis._report import Report as Report
