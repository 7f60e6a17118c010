"""Twins: the same value as a primitive or a library function has, with an accurate derivative."""
