"""Reverse mode that fits: what a gradient needs, and functions and loops whose gradient needs less."""

from ._accumulate import accumulate_gradients
from ._attention import attention
from ._checkpoint import checkpoint
from ._compress import Compression, compress_residuals
from ._disk import DiskTier
from ._fit import Certificate, Fitted, InfeasibleBudget, fit
from ._hvp import hvp
from ._jacobian import jacobian
from ._leaks import Leak, LeakReport, leak_check
from ._offload import offload
from ._pareto import Pareto, ParetoPoint, pareto
from ._policies import all_of, any_of, not_, save_bytes, save_flops_per_byte, save_names, save_primitives
from ._report import ArgumentBytes, MemoryReport, Moment, PolicyEffect, Residual, report
from ._reversible import Drift, Reversible, reversible
from ._scan import checkpointed_scan
from ._schedule import Action, Schedule, revolve_schedule
from ._while import checkpointed_while

__all__ = [
    "Action",
    "ArgumentBytes",
    "Certificate",
    "Compression",
    "DiskTier",
    "Drift",
    "Fitted",
    "InfeasibleBudget",
    "Leak",
    "LeakReport",
    "MemoryReport",
    "Moment",
    "Pareto",
    "ParetoPoint",
    "PolicyEffect",
    "Residual",
    "Reversible",
    "Schedule",
    "accumulate_gradients",
    "all_of",
    "any_of",
    "attention",
    "checkpoint",
    "checkpointed_scan",
    "checkpointed_while",
    "compress_residuals",
    "fit",
    "hvp",
    "jacobian",
    "leak_check",
    "not_",
    "offload",
    "pareto",
    "report",
    "reversible",
    "revolve_schedule",
    "save_bytes",
    "save_flops_per_byte",
    "save_names",
    "save_primitives",
]
