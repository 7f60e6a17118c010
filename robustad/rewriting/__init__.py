"""Rewriting of programs: unstable shapes become their stable twins, value and derivative rule together."""
