"""robustad: automatic differentiation that can be trusted on real machines."""

from robustad import diagnosis as diagnosis
from robustad.arithmetic._compensated import compensated as compensated
from robustad.diagnosis import audit as audit

__version__ = "0.1.0"
