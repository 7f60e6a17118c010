"""Makes robustad/stability/_coefficients.py: Chebyshev fits, as polynomials in t, for the tail of the normal distribution.

    python experiments/coefficients.py > robustad/stability/_coefficients.py

With Mills' ratio m(y) = Q(y)/φ(y), y ≥ 0, and w(y) = 1/m(y) - y, both fall as 1/y; so (y + 1) m(y) and (y + 1) w(y) are
smooth in t = (y - C)/(y + C), which maps [0, ∞] to [-1, 1] (Shepherd and Laframboise, Math. Comp. 36, 1981).
"""

import mpmath

mpmath.mp.prec = 400  # pyright: ignore[reportAttributeAccessIssue]
C = 4


def mills(y):
    return mpmath.sqrt(mpmath.pi / 2) * mpmath.erfc(y / mpmath.sqrt(2)) * mpmath.exp(y * y / 2)


def hazard_excess(y):
    return 1 / mills(y) - y


def in_t(function):
    return lambda t: (C * (1 + t) / (1 - t) + 1) * function(C * (1 + t) / (1 - t))


def chebyshev(function, degree):
    """Coefficients of the interpolant at the Chebyshev nodes of the first kind."""
    n = degree + 1
    angles = [mpmath.pi * (2 * k + 1) / (2 * n) for k in range(n)]
    values = [function(mpmath.cos(a)) for a in angles]
    return [
        (2 - (j == 0)) / mpmath.mpf(n) * sum(v * mpmath.cos(j * a) for v, a in zip(values, angles)) for j in range(n)
    ]


def monomials(series):
    """The same polynomial in powers of t."""
    total = [mpmath.mpf(0)] * len(series)
    previous, current = [mpmath.mpf(1)], [mpmath.mpf(0), mpmath.mpf(1)]
    for j, c in enumerate(series):
        term = previous if j == 0 else current
        for i, a in enumerate(term):
            total[i] += c * a
        if j > 0:
            following = [mpmath.mpf(0), *(2 * a for a in current)]
            for i, a in enumerate(previous):
                following[i] -= a
            previous, current = current, following
    return total


def fit(function, tolerance):
    long = chebyshev(in_t(function), 80)
    degree = next(d for d in range(80) if mpmath.fsum(long[d + 1 :], absolute=True) < tolerance * mpmath.mpf("0.6"))
    return monomials(chebyshev(in_t(function), degree))


def main():
    print(
        '"""Made by experiments/coefficients.py, which says what they are. Powers of t, the constant term first."""\n'
    )
    print("# ruff: noqa: E501\n")
    print(f"CENTRE = {float(C)!r}")
    for name, function in (("MILLS", mills), ("HAZARD_EXCESS", hazard_excess)):
        for bits, tolerance in ((32, mpmath.mpf(2) ** -27), (64, mpmath.mpf(2) ** -57)):
            print(f"{name}_{bits} = (")
            for c in fit(function, tolerance):
                print(f"    {float(c)!r},")
            print(")")


if __name__ == "__main__":
    main()
