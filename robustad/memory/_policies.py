"""What a checkpoint keeps: policies beside those of `jax.checkpoint_policies`, and how any of them are combined.

A policy is asked about each equation of the forward pass, `policy(primitive, *avals, **params)`, and says whether its result
is kept until the backward pass. Policies compare by value, so that equal ones share what has been traced.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from robustad import _jaxpr
from robustad.memory._flops import primitive_flops

Policy: TypeAlias = Callable[..., Any]


def checked(policy: Any, name: str = "policy") -> Policy:
    """`policy`, if it can be one."""
    if not callable(policy) or isinstance(policy, type):
        raise TypeError(
            f"`{name}` is {policy!r} of type {type(policy).__name__}; expected a function (primitive, *avals, **params) -> "
            "bool: one of jax.checkpoint_policies, or of robustad.memory, as `save_names('attention')`. A name or a size "
            "alone is no policy: write `save_names(name)` or `save_bytes(at_most=size)`."
        )
    if policy in _MAKERS:
        raise TypeError(f"`{name}` is `{policy.__name__}`, which makes policies. Call it: `{policy.__name__}(...)`.")
    return policy


def save_bytes(*, at_least: int = 0, at_most: float = math.inf) -> Policy:
    """Keeps results by their size: from `at_least` to `at_most` bytes.

    Raises:
        ValueError: the sizes are negative, or there is none between them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustad.memory import checkpoint, save_bytes
        >>> f = checkpoint(lambda x: jnp.sum(jnp.sin(x)) ** 2, policy=save_bytes(at_most=64))
        >>> jax.grad(f)(jnp.zeros(3))
        Array([0., 0., 0.], dtype=float32)
    """
    for name, size in (("at_least", at_least), ("at_most", at_most)):
        if not isinstance(size, numbers.Real) or isinstance(size, bool) or not size >= 0:
            raise ValueError(f"`{name}` is {size!r}; expected a number of bytes, 0 or more.")
    if at_least > at_most:
        raise ValueError(f"`at_least` is {at_least} and `at_most` {at_most}: no size is in between. Exchange them.")
    return _Bytes(at_least, at_most)


def save_names(*names: str) -> Policy:
    """Keeps what the user has named: `jax.ad_checkpoint.checkpoint_name(x, name)`.

    Raises:
        TypeError: a name is no string.
    """
    return _Names(_strings(names, "names"))


def save_primitives(*names: Any) -> Policy:
    """Keeps the results of primitives: by name, as `jax.make_jaxpr` prints them ("dot_general"), or as primitives.

    Raises:
        TypeError: a name is neither a string nor a primitive.
    """
    return _Primitives(_strings([getattr(name, "name", name) for name in names], "primitives"))


def save_flops_per_byte(at_least: float) -> Policy:
    """Keeps what is dear to compute for its size: `at_least` so many operations for a byte of result.

    A matrix product over k terms in float32 does k/2 operations a byte, elementwise arithmetic 1/4. The operations are
    counted from the shapes: two for a multiplication and addition, one for any other element.

    Raises:
        ValueError: `at_least` is negative or no number.
    """
    if not isinstance(at_least, numbers.Real) or isinstance(at_least, bool) or not at_least >= 0:
        raise ValueError(f"`at_least` is {at_least!r}; expected a number of operations for a byte, 0 or more.")
    return _FlopsPerByte(float(at_least))


def any_of(*policies: Policy) -> Policy:
    """Keeps what one of the policies keeps; with none of them, nothing."""
    return _Any(tuple(checked(p, f"policies[{i}]") for i, p in enumerate(policies)))


def all_of(*policies: Policy) -> Policy:
    """Keeps what every policy keeps; with none of them, everything."""
    return _All(tuple(checked(p, f"policies[{i}]") for i, p in enumerate(policies)))


def not_(policy: Policy) -> Policy:
    """Keeps what the policy does not keep."""
    return _Not(checked(policy))


_MAKERS = (save_bytes, save_names, save_primitives, save_flops_per_byte, any_of, all_of, not_)


# -------------------------------------------------------------------------------------------- what they are


def _strings(names: Any, argument: str) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"`{argument}` holds {name!r} of type {type(name).__name__}; expected strings.")
    return tuple(names)


def _results(primitive: Any, avals: Any, params: dict[str, Any]) -> list[Any]:
    return jax.tree.leaves(jax.eval_shape(lambda *xs: primitive.bind(*xs, **params), *avals))


def keeps(answer: Any) -> bool:
    """Whether a policy's answer is a yes: JAX knows True, `Saveable` and `Offloadable(...)`, False and `Recompute`."""
    return bool(answer) and type(answer).__name__ != "RecomputeType"


@dataclasses.dataclass(frozen=True)
class _Bytes:
    at_least: float
    at_most: float

    def __call__(self, primitive: Any, *avals: Any, **params: Any) -> bool:
        size = sum(_jaxpr.nbytes(x) for x in _results(primitive, avals, params))
        return self.at_least <= size <= self.at_most


@dataclasses.dataclass(frozen=True)
class _Names:
    names: tuple[str, ...]

    def __call__(self, primitive: Any, *_: Any, **params: Any) -> bool:
        return primitive.name == "name" and params["name"] in self.names


@dataclasses.dataclass(frozen=True)
class _Primitives:
    names: tuple[str, ...]

    def __call__(self, primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name in self.names


@dataclasses.dataclass(frozen=True)
class _FlopsPerByte:
    at_least: float

    def __call__(self, primitive: Any, *avals: Any, **params: Any) -> bool:
        results = _results(primitive, avals, params)
        flops = primitive_flops(primitive.name, [x.shape for x in avals], [x.shape for x in results], params)
        return flops >= self.at_least * sum(map(_jaxpr.nbytes, results))


@dataclasses.dataclass(frozen=True)
class _Any:
    policies: tuple[Policy, ...]

    def __call__(self, primitive: Any, *avals: Any, **params: Any) -> Any:
        answers = (policy(primitive, *avals, **params) for policy in self.policies)
        return next((answer for answer in answers if keeps(answer)), False)


@dataclasses.dataclass(frozen=True)
class _All:
    policies: tuple[Policy, ...]

    def __call__(self, primitive: Any, *avals: Any, **params: Any) -> Any:
        answers = [policy(primitive, *avals, **params) for policy in self.policies]
        return all(map(keeps, answers)) and next((a for a in answers if a is not True), True)


@dataclasses.dataclass(frozen=True)
class _Not:
    policy: Policy

    def __call__(self, primitive: Any, *avals: Any, **params: Any) -> bool:
        return not keeps(self.policy(primitive, *avals, **params))
