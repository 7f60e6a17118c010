"""Diagnosis: where and why is a gradient wrong."""

from robustad.diagnosis._adjoint_test import AdjointTest as AdjointTest
from robustad.diagnosis._adjoint_test import adjoint_test as adjoint_test
from robustad.diagnosis._arguments import AuditError as AuditError
from robustad.diagnosis._audit import audit as audit
from robustad.diagnosis._finding import Finding as Finding
from robustad.diagnosis._grad_check import grad_check as grad_check
from robustad.diagnosis._grad_check_report import GradCheck as GradCheck
from robustad.diagnosis._grad_check_report import LeafCheck as LeafCheck
from robustad.diagnosis._recompute_check import RecomputeCheck as RecomputeCheck
from robustad.diagnosis._recompute_check import RecomputedLeaf as RecomputedLeaf
from robustad.diagnosis._recompute_check import recompute_check as recompute_check
from robustad.diagnosis._report import LeafSummary as LeafSummary
from robustad.diagnosis._report import Report as Report
from robustad.diagnosis._taylor_test import TaylorTest as TaylorTest
from robustad.diagnosis._taylor_test import taylor_test as taylor_test
