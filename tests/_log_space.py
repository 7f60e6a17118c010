"""Rows of logits, and their logsumexp, softmax and derivatives to 60 digits."""

import mpmath
import numpy as np

INF = float("inf")


def rows(dtype, seed: int = 0, length: int = 6, count: int = 12) -> list[np.ndarray]:
    """At every scale: random, nearly one-hot, normalised (logsumexp near 0), tied, masked."""
    rng = np.random.default_rng(seed)
    made = []
    for scale in (1e-3, 0.3, 3.0, 20.0, 100.0, 1e4):
        for _ in range(count):
            x = rng.normal(size=length) * scale + rng.normal() * scale
            made += [x, x - np.log(np.sum(np.exp(x - x.max()))) - x.max()]
            made += [np.where(np.arange(length) == 1, x.max() + rng.uniform(0, 45), x)]
            made += [np.where(rng.random(length) < 0.4, -INF, x)]
    made += [
        np.zeros(length),
        np.full(length, 7.5),
        np.r_[0.0, np.full(length - 1, -INF)],
        np.r_[0.0, -40.0, -60.0, -1e4],
    ]
    made += [
        np.array(x) for x in ([1e4, -1e4], [37.43, 0.0], [0.0, 17.0], [1000.0, 0.0], [-0.0, 0.0], [64.0, 64.5, -20.0])
    ]
    made = [np.r_[x, np.full(length - len(x), -INF)] for x in made]  # one length: one compilation
    return [x.astype(dtype) for x in made if np.any(x > -INF)]


class Exact:
    """The functions of one row, as mpmath numbers."""

    def __init__(self, x: np.ndarray):
        with mpmath.workprec(1200):  # exp(-800) beside 1
            self.a = [mpmath.mpf(float(v)) for v in x]
            self.m = max(self.a)
            e = [mpmath.exp(v - self.m) for v in self.a]
            total = mpmath.fsum(e)
            self.p = [v / total for v in e]
            self.q = [1 - v for v in self.p]
            self.logsumexp = self.m + mpmath.log(total)
            self.log_softmax = [v - self.logsumexp for v in self.a]

    def covariance(self) -> list:
        """pᵢ (δᵢⱼ - pⱼ)."""
        p, q = self.p, self.q
        return [[p[i] * q[i] if i == j else -p[i] * p[j] for j in range(len(p))] for i in range(len(p))]


def words(exact) -> tuple[np.ndarray, np.ndarray]:
    """mpmath numbers as float64 and the float64 of what that leaves."""
    flat = np.array(exact, dtype=object)
    high = np.vectorize(float, otypes=[np.float64])(flat)

    def left(v, h):
        return float(v - mpmath.mpf(h)) if np.isfinite(h) else 0.0

    return high, np.vectorize(left, otypes=[np.float64])(flat, high)
