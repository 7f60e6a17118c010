"""`stabilize`: any JAX function in, accurate value and derivatives out."""

from ._report import Rewrite, Rewrites, Untouched
from ._stabilize import stabilize

__all__ = ["Rewrite", "Rewrites", "Untouched", "stabilize"]
