"""Numerical primitives whose value, first and second derivative are right to the last bits; sums that are exact or order-free."""

__all__: list[str] = []
