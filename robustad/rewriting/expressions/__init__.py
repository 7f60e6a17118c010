"""Scalar expressions, their stable forms, and the primitive that computes them. README.md is the way in."""
