"""A zoo of small models: planted numerical faults, and healthy models that look as if they had one."""

from tests.zoo import (  # noqa: F401  # noqa: F401
    _entry,
    faults_branches,
    faults_likelihood,
    faults_lowprec,
    faults_smooth,
    healthy,
    healthy_library,
)
from tests.zoo._entry import FAULT_MARK, Fault, Healthy, fault_lines

FAULTS: tuple[Fault, ...] = tuple(_entry.faults)
HEALTHY: tuple[Healthy, ...] = tuple(_entry.healthies)

__all__ = ["FAULTS", "FAULT_MARK", "HEALTHY", "Fault", "Healthy", "fault_lines"]
