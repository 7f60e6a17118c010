"""Reverse mode that fits: what a gradient needs, and functions whose gradient needs less."""

from ._checkpoint import checkpoint
from ._fit import Certificate, Fitted, InfeasibleBudget, fit
from ._pareto import Pareto, ParetoPoint, pareto
from ._policies import all_of, any_of, not_, save_bytes, save_flops_per_byte, save_names, save_primitives
from ._report import ArgumentBytes, MemoryReport, Moment, PolicyEffect, Residual, report

__all__ = [
    "ArgumentBytes",
    "Certificate",
    "Fitted",
    "InfeasibleBudget",
    "MemoryReport",
    "Moment",
    "Pareto",
    "ParetoPoint",
    "PolicyEffect",
    "Residual",
    "all_of",
    "any_of",
    "checkpoint",
    "fit",
    "not_",
    "pareto",
    "report",
    "save_bytes",
    "save_flops_per_byte",
    "save_names",
    "save_primitives",
]
