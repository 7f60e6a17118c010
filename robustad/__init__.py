"""robustad: automatic differentiation that can be trusted on real machines."""

from robustad import diagnosis as diagnosis
from robustad import memory as memory
from robustad.arithmetic._compensated import compensated as compensated
from robustad.diagnosis import audit as audit
from robustad.rewriting import stabilize as stabilize

__version__ = "0.1.0"
