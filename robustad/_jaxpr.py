"""The only file that knows JAX's internals.

It reads the programs of both JAX worlds (0.10, and 0.11 and later, where `Jaxpr` and `ClosedJaxpr` became one class and
`scan` lost its counts) through one small vocabulary: a `Body` of equations; a `Call`, `Scan`, `While`, `Cond` or
`ShardMap` where an equation holds further bodies; a `Location` in the user's code.

Primitives of our own are made elsewhere, of `jax.extend.core.Primitive` and `jax.interpreters`, JAX's public points for
extension.
"""

import contextlib
import dataclasses
import functools
import math
import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.core
import jax.extend  # not imported by `import jax`
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax._src import checkify, core, source_info_util
from jax._src.interpreters import partial_eval
from jax._src.lax import lax as lax_internal
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Primitive
from jax.interpreters import ad

Equation: TypeAlias = JaxprEqn
Path: TypeAlias = tuple[int, ...]
"""Where an equation stands: its index in the outermost body, then (index of the inner body, index in it), and so on."""


# ---------------------------------------------------------------------------------------------------- bodies


@dataclasses.dataclass(frozen=True, eq=False)
class Body:
    """A list of equations with its inputs, its outputs and the constants that it closes over."""

    inputs: tuple[Any, ...]
    constants: tuple[tuple[Any, Any], ...]
    equations: tuple[Equation, ...]
    outputs: tuple[Any, ...]


def body(jaxpr: Any) -> Body:
    """The `Body` of an open or closed jaxpr of any JAX version."""
    consts = tuple(getattr(jaxpr, "consts", ()))
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return Body(tuple(inner.invars), tuple(zip(inner.constvars, consts)), tuple(inner.eqns), tuple(inner.outvars))


def trace(f: Callable[..., Any], *args: Any) -> tuple[Body, Any]:
    """The program of `f(*args)` and the pytree of shapes that it returns."""
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    return body(jaxpr), shapes


def closed_over_nothing(jaxpr: Any) -> tuple[Any, list[Any]]:
    """A closed jaxpr with its constants made its first inputs, and the constants."""
    opened = partial_eval.convert_constvars_jaxpr(getattr(jaxpr, "jaxpr", jaxpr))
    return opened if hasattr(opened, "consts") else ClosedJaxpr(opened, ()), list(jaxpr.consts)


def aval(atom: Any) -> Any:
    """The shape and dtype of a variable or literal."""
    return atom.aval


def is_symbolic(shape: Sequence[Any]) -> bool:
    """Whether a shape has dimensions that are not known yet (`jax.export.symbolic_shape`), which cannot be compared."""
    return not all(isinstance(n, int) for n in shape)


def nbytes(aval: Any) -> int:
    """The bytes of an array of that shape and dtype; of a key, of its data."""
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "dtype") else 0


def is_mutable(atom: Any) -> bool:
    """Whether a variable is a reference to a mutable array (`jax.new_ref`)."""
    return "Ref" in type(aval(atom)).__name__


def is_traced(x: Any) -> bool:
    """Whether an array stands for one in a program that is being traced."""
    return isinstance(x, jax.core.Tracer)


def literal(atom: Any) -> np.ndarray | None:
    """The value of an atom that is a literal, in the dtype that the program gives it; None for a variable."""
    return np.asarray(atom.val, aval(atom).dtype) if isinstance(atom, Literal) else None


def as_weak(x: Any, aval: Any) -> Any:
    """`x` with a weak type where `aval` has one."""
    if getattr(aval, "weak_type", False) and not jax.typeof(x).weak_type:
        return lax_internal._convert_element_type(x, aval.dtype, weak_type=True)
    return x


def run(closed: Any, consts: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    """The outputs of a closed jaxpr with other values of its constants."""
    return jax.core.eval_jaxpr(getattr(closed, "jaxpr", closed), list(consts), *operands)


def literal_value(atom: Any) -> Any:
    """What JAX itself would compute with for an atom that is a literal; None for a variable."""
    return atom.val if isinstance(atom, Literal) else None


def last_uses(program: Body) -> list[list[Any]]:
    """For each equation, the variables that nothing after it uses."""
    used: set[Any] = {atom for atom in program.outputs if not isinstance(atom, Literal)}
    last: list[list[Any]] = []
    for eqn in reversed(program.equations):
        held = dict.fromkeys(a for a in (*eqn.invars, *eqn.outvars) if not isinstance(a, Literal))
        last.append([var for var in held if var not in used])
        used.update(held)
    return last[::-1]


def segments(program: Body, length: int, kept: frozenset[str]) -> Iterator[Body]:
    """The program in pieces of `length` equations; each takes and gives the variables that are alive around it, and gives
    the outputs of the primitives in `kept`."""
    alive: list[set[Any]] = [set() for _ in program.equations]
    needed = {atom for atom in program.outputs if not isinstance(atom, Literal)}
    for i in reversed(range(len(program.equations))):
        alive[i] = set(needed)
        needed -= set(program.equations[i].outvars)
        needed |= {atom for atom in program.equations[i].invars if not isinstance(atom, Literal)}
    for start in range(0, len(program.equations), length):
        equations = program.equations[start : start + length]
        read = dict.fromkeys(a for e in equations for a in e.invars if not isinstance(a, Literal))
        made = dict.fromkeys(var for e in equations for var in e.outvars)
        inputs = tuple(var for var in read if var not in made)
        held = alive[start + len(equations) - 1] | {v for e in equations if e.primitive.name in kept for v in e.outvars}
        yield Body(inputs, (), equations, tuple(var for var in made if var in held))


def reached(program: Body, marked: Sequence[bool]) -> list[bool]:
    """Which outputs of a program depend on the marked inputs, nested programs taken as a whole."""
    alive = {var for var, mark in zip(program.inputs, marked, strict=True) if mark}
    for eqn in program.equations:
        if any(not isinstance(atom, Literal) and atom in alive for atom in eqn.invars):
            alive.update(eqn.outvars)
    return [not isinstance(atom, Literal) and atom in alive for atom in program.outputs]


def is_inexact(atom_or_array: Any) -> bool:
    """Whether a variable, literal or array is of a floating or complex dtype."""
    dtype = getattr(atom_or_array, "aval", atom_or_array)
    dtype = getattr(dtype, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


# ------------------------------------------------------------------------------------------- nested bodies


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """`body` on the operands (on some of them: their positions in `picked`).

    `barrier`: the recomputation of a `jax.checkpoint`, which XLA must not merge away.
    """

    body: Body
    picked: tuple[int, ...] | None = None
    barrier: bool = False

    def of(self, operands: Sequence[Any]) -> list[Any]:
        """The operands that the body takes."""
        return list(operands) if self.picked is None else [operands[i] for i in self.picked]


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    body: Body
    consts: int
    carry: int
    length: int
    reverse: bool
    unroll: int | bool


@dataclasses.dataclass(frozen=True, eq=False)
class While:
    cond: Body
    body: Body
    cond_consts: int
    body_consts: int


@dataclasses.dataclass(frozen=True, eq=False)
class Cond:
    branches: tuple[Body, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class ShardMap:
    body: Body
    mesh: Any
    in_specs: tuple[Any, ...]
    out_specs: tuple[Any, ...]
    axis_names: frozenset[str]
    check_vma: bool


Control: TypeAlias = Call | Scan | While | Cond | ShardMap

_CALLS = {  # primitive: the parameter that holds its body
    "checkpointed": "jaxpr",  # memory._recomputed
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_jvp_primitive": "jaxpr",  # stability._custom_jvp
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
    "custom_partitioning": "call",
    "remat_opt": "fwd_jaxpr",
    "linear_call": "callee",
    "composite": "jaxpr",
    "eval_jaxpr": "jaxpr",
}


_OWN = frozenset({"checkpointed_loop", "checkpointed_while", "linear_map"})
"""Primitives of `memory`, whose programs are traced on demand."""


@functools.lru_cache(maxsize=256)
def _program(primitive: Primitive, params: tuple[tuple[str, Any], ...], avals: tuple[Any, ...]) -> Body | None:
    try:
        return body(jax.make_jaxpr(lambda *operands: primitive.impl(*operands, **dict(params)))(*avals))
    except NameError:  # of a mesh axis that is not there when the program is looked at
        return None


def control(eqn: Equation) -> Control | None:
    """The control flow that an equation stands for; None for a plain primitive."""
    params, name = eqn.params, eqn.primitive.name
    if name in _CALLS:
        held = params.get(_CALLS[name], params.get("jaxpr", params.get("call_jaxpr")))
        return None if held is None else Call(body(held))
    if name in _OWN:
        program = _program(eqn.primitive, tuple(params.items()), tuple(map(aval, eqn.invars)))
        return None if program is None else Call(program)
    if name in ("remat2", "checkpoint", "remat"):
        return Call(body(params["jaxpr"]), barrier=bool(params.get("differentiated") and params.get("prevent_cse")))
    if name == "custom_linear_solve":
        # The operands: the constants of matvec, vecmat, solve and transpose_solve, then the right-hand sides.
        lengths = params["const_lengths"]
        start = lengths.matvec + lengths.vecmat
        stop = start + lengths.solve
        rest = range(stop + lengths.transpose_solve, len(eqn.invars))
        return Call(body(params["jaxprs"].solve), picked=(*range(start, stop), *rest))
    if name == "scan":
        if "ft_in" in params:  # 0.11 and later
            consts, carry, _ = (len(group) for group in params["ft_in"].unpack())
        else:
            consts, carry = params["num_consts"], params["num_carry"]
        return Scan(body(params["jaxpr"]), consts, carry, params["length"], params["reverse"], params["unroll"])
    if name == "while":
        return While(
            body(params["cond_jaxpr"]), body(params["body_jaxpr"]), params["cond_nconsts"], params["body_nconsts"]
        )
    if name == "cond":
        return Cond(tuple(body(b) for b in params["branches"]))
    if name == "shard_map":
        names = frozenset(params.get("newly_manual_axes", params.get("manual_axes", ())))
        specs = tuple(params["in_specs"]), tuple(params["out_specs"])
        return ShardMap(body(params["jaxpr"]), params["mesh"], *specs, names, params.get("check_vma", True))
    return None


def of_any_platform(eqn: Equation) -> Body | None:
    """Of a computation that has another way on some platforms: the one that holds for all others."""
    platforms = eqn.params.get("branches_platforms")
    if eqn.primitive.name != "cond" or platforms is None or None not in platforms:
        return None
    return body(eqn.params["branches"][tuple(platforms).index(None)])


def bodies(inner: Control) -> tuple[Body, ...]:
    """The bodies of a control flow, in the order in which `Path` counts them."""
    match inner:
        case While():
            return (inner.cond, inner.body)
        case Cond():
            return inner.branches
        case _:
            return (inner.body,)


# ---------------------------------------------------------------------------------------------- evaluation


# A shard_map is walked unchecked (see `_interpret`): what the checked mode's own primitives mean there.
_UNCHECKED: dict[str, Callable[..., Array]] = {
    "pvary": lambda x, axes: x,
    "psum_invariant": lambda x, axes: jax.lax.psum(x, axes),
    "all_gather_invariant": lambda x, all_gather_dimension, axis_name, axis_size, tiled: jax.lax.all_gather(
        x, axis_name, axis=all_gather_dimension, tiled=tiled
    ),
}


def evaluate(eqn: Equation, operands: Sequence[Array], **changed: Any) -> list[Array]:
    """The outputs of one equation on plain arrays, with some of its parameters `changed`."""
    if unchecked := _UNCHECKED.get(eqn.primitive.name):
        return [unchecked(*operands, **eqn.params)]
    return bind(eqn, operands, **changed)


def bind(eqn: Equation, operands: Sequence[Array], **changed: Any) -> list[Array]:
    """`evaluate` as it stands, in the mode that a shard_map was written in."""
    params = eqn.primitive.get_bind_params(dict(eqn.params) | changed)
    if eqn.primitive.name == "pvary":  # an operand that has been replaced may vary already
        return [varying_over(operands[0], params["axes"])]
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*operands, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def name(eqn: Equation) -> str:
    """The name of an equation's primitive; of a sum or maximum over a `vmap`'s named axis, that over the array's axis."""
    own = eqn.primitive.name
    if own not in ("psum", "pmax", "pmin") or eqn.params.get("axis_index_groups") or len(eqn.invars) != 1:
        return own
    return f"reduce_{own[1:]}" if all(isinstance(axis, int) for axis in eqn.params["axes"]) else own


def at(eqn: Equation | None) -> contextlib.AbstractContextManager[Any]:
    """A context in which whatever is traced has the place in the user's code, and the name, of an equation."""
    if eqn is None:
        return contextlib.nullcontext()
    info = eqn.source_info
    name_stack = source_info_util.current_name_stack() + info.name_stack
    return source_info_util.user_context(info.traceback, name_stack=name_stack)


def context(eqn: Equation) -> int:
    """The switches under which an equation was written: JAX keeps one object for each combination."""
    return id(eqn.ctx)


def has_effects(eqn: Equation) -> bool:
    """Whether an equation does something that can be seen from outside: callbacks, printing, mutable arrays."""
    return bool(eqn.effects)


def visible(effects: Any) -> list[str]:
    """The names of the effects that can be seen from outside: all but the use of a mesh axis."""
    return sorted({type(effect).__name__ for effect in effects} - {"NamedAxisEffect"})


def repeated_effects(jaxpr: Any) -> list[str]:
    """What would be seen to happen twice if a program ran twice, but for prints to debug."""
    return [name for name in visible(jaxpr.effects) if name != "DebugEffect"]


def offloaded(to: str) -> Any:
    """A checkpoint policy's answer: keep the result in another memory of the device."""
    return partial_eval.Offloadable(src="device", dst=to)


def is_recomputed(eqn: Equation) -> bool:
    """Whether an equation does again, in the backward pass of a `jax.checkpoint`, what the forward pass has done."""
    return "rematted_computation" in str(eqn.source_info.name_stack)


def is_differentiable(eqn: Equation) -> bool:
    """Whether JAX has a derivative of an equation's primitive."""
    return eqn.primitive in ad.primitive_jvps


def retype(jaxpr: Any, dtype: Any) -> Any:
    """The closed jaxpr of a scalar function (the combiner of a reduction) with every inexact input in `dtype`."""
    closed = jaxpr if hasattr(jaxpr, "consts") else ClosedJaxpr(jaxpr, ())
    inner = body(closed)

    def combine(*operands: Array) -> list[Array]:
        env = dict(zip(inner.inputs, operands)) | {var: widen(jnp.asarray(c), dtype) for var, c in inner.constants}
        for eqn in inner.equations:
            ins = [env[a] if (lit := literal(a)) is None else widen(jnp.asarray(lit), dtype) for a in eqn.invars]
            env.update(zip(eqn.outvars, evaluate(eqn, ins)))
        return [env[a] if (lit := literal(a)) is None else widen(jnp.asarray(lit), dtype) for a in inner.outputs]

    avals = [jax.ShapeDtypeStruct(v.aval.shape, dtype if is_inexact(v) else v.aval.dtype) for v in inner.inputs]
    return jax.make_jaxpr(combine)(*avals)


def widen(x: Array, dtype: Any) -> Array:
    """`x` in `dtype` where it is inexact, untouched elsewhere."""
    return jax.lax.convert_element_type(x, dtype) if is_inexact(x) else x


# ------------------------------------------------------------------------------------------------ locations


@dataclasses.dataclass(frozen=True)
class Location:
    """A statement of the user's: file, line (1-based) and the name of the function around it."""

    file: str
    line: int
    function: str


_LIBRARY = tuple(
    os.path.join(sysconfig.get_paths()[kind], "") for kind in ("stdlib", "platstdlib", "purelib", "platlib")
)
_PACKAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "")
_DEMO = os.path.join(_PACKAGE, "demo", "")


@functools.cache
def is_users(file: str) -> bool:
    """Whether a file is the user's: not an installed package's, the standard library's or robustad's (its demo is)."""
    if file.startswith(_DEMO):
        return True
    installed = f"{os.sep}site-packages{os.sep}" in file or f"{os.sep}dist-packages{os.sep}" in file
    return not (installed or file.startswith((*_LIBRARY, _PACKAGE, "<frozen")))


def location(eqn: Equation) -> Location | None:
    """The innermost statement of the user's that made an equation; None where a library made it by itself.

    An equation inside a nested body carries only the frames below the call that traced the body, so None there means
    that the enclosing call's location holds.
    """
    return _innermost(eqn, is_users)


def _innermost(eqn: Equation, wanted: Callable[[str], bool]) -> Location | None:
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        if wanted(frame.file_name):
            return Location(frame.file_name, frame.line_num, frame.function_name.rsplit(".", 1)[-1])
        if frame.file_name.startswith(_PACKAGE):
            return None  # beyond is who called robustad
    return None


_JAX = os.path.join(os.path.dirname(os.path.abspath(jax.__file__)), "")


def _is_installed(file: str) -> bool:
    """Whether a file is an installed package's other than JAX: the best there is where the user's code is installed too."""
    return "site-packages" in file and not file.startswith((_JAX, _PACKAGE))


def is_transposed(eqn: Equation) -> bool:
    """Whether an equation was made by transposing a linear one, that is, carries a cotangent."""
    return "transpose(" in str(eqn.source_info.name_stack)


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """An equation of a whole program: where it stands in the program and in the user's code.

    transposed: whether it carries a cotangent (in forward mode, a tangent).
    """

    path: Path
    equation: Equation
    location: Location | None
    transposed: bool
    loops: tuple[Path, ...]

    @property
    def primitive(self) -> str:
        return self.equation.primitive.name


def sites(program: Body) -> Iterator[Site]:
    """Every equation of a program, those inside nested bodies too, in the order of the program."""
    yield from _sites(program, (), None, False, ())


def _sites(
    program: Body, path: Path, outer: Location | None, transposed: bool, loops: tuple[Path, ...]
) -> Iterator[Site]:
    for i, eqn in enumerate(program.equations):
        here = (*path, i)
        site = Site(
            here, eqn, location(eqn) or outer or _innermost(eqn, _is_installed), transposed or is_transposed(eqn), loops
        )
        yield site
        if inner := control(eqn):
            within = (*loops, here) if isinstance(inner, Scan | While) else loops
            for k, nested in enumerate(bodies(inner)):
                yield from _sites(nested, (*here, k), site.location, site.transposed, within)


def backward_rules(program: Body) -> Iterator[tuple[Location | None, Body]]:
    """(the statement that calls it, its program) of every `jax.custom_vjp` backward rule in a program not differentiated.

    JAX gives the equations that a rule makes the location of the call; traced by itself, the rule has its own. A rule
    that cannot be traced by itself is left out.
    """
    for site in sites(program):
        params = site.equation.params
        if site.primitive != "custom_vjp_call" or "out_trees" not in params:
            continue
        try:
            forward = params["fwd_jaxpr_thunk"].call_wrapped(*[False] * len(site.equation.invars))
            out_tree, residual_tree, forwarded = params["out_trees"]()
            made = iter(v.aval for v in body(forward[0]).outputs)
            avals = [site.equation.invars[i].aval if i is not None else next(made) for i in forwarded]
            residuals = residual_tree.unflatten([jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals])
            cotangents = [jax.ShapeDtypeStruct(aval(v).shape, aval(v).dtype) for v in site.equation.outvars]
            rule, _ = trace(params["bwd"].f, residuals, out_tree.unflatten(cotangents))
        except Exception:  # an internal protocol: whatever it says, the call's location remains
            continue
        yield site.location, rule


# ------------------------------------------------------------------------------------------------- types of arrays


def int32(*shape: int) -> Any:
    """The type of an array of 32-bit integers."""
    return jax.core.ShapedArray(shape, jnp.dtype("int32"))


def strong(aval: Any) -> Any:
    """The type without weakness."""
    return aval.update(weak_type=False) if getattr(aval, "weak_type", False) else aval


def stacked(aval: Any, n: int) -> Any:
    """The type of n arrays of a type, stacked along a new first axis."""
    return jax.make_jaxpr(lambda x: jnp.broadcast_to(x, (n, *x.shape)))(aval).out_avals[0]


def first_of(aval: Any) -> Any:
    """The type of one of the arrays that are stacked along the first axis."""
    return core.mapped_aval(aval.shape[0], 0, aval)


def zeros_of_tangent(x: Any) -> Array:
    """The zero tangent of an array, varying over the mesh axes over which the array does."""
    return ad.instantiate_zeros(ad.Zero(jax.typeof(x).to_tangent_aval()))


def zeros(aval: Any) -> Array:
    """An array of zeros of a type, or of keys of zeros."""
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return lax_internal.full(aval.shape, 0, aval.dtype)
    return ad.instantiate_zeros(ad.Zero(strong(aval)))


# ---------------------------------------------------------------------------------------------------- mesh axes


def varying_alike(*arrays: Array) -> list[Array]:
    """Inside `shard_map`, every array varying over the mesh axes over which one of them does, as for JAX's own operations.

    The transpose of that is a sum over these axes.
    """
    own = [jax.typeof(x).mat.varying for x in arrays]
    union = frozenset().union(*own)
    return [lax.pcast(x, tuple(sorted(union - o)), to="varying") if union - o else x for x, o in zip(arrays, own)]


def varies_over(x: Array) -> tuple[str, ...]:
    """Inside a checked `shard_map`, the mesh axes over which x varies."""
    return tuple(sorted(jax.typeof(x).mat.varying))


def varying_over(x: Array, axes: Sequence[str]) -> Array:
    """Inside a checked `shard_map`, x varying over these mesh axes."""
    missing = tuple(a for a in axes if a not in jax.typeof(x).mat.varying)
    return lax.pcast(x, missing, to="varying") if missing else x


def sharded_as(aval: Any, x: Array) -> Array:
    """On a mesh with explicit axes, x with the sharding of an array of that type."""
    sharding = getattr(aval, "sharding", None)
    if sharding is None or sharding.mesh.empty or sharding == jax.typeof(x).sharding:
        return x
    return jax.sharding.reshard(x, sharding)


def on_one_device(aval: Any) -> Any:
    """The shape and dtype alone, for a kernel that does not communicate."""
    return jax.core.ShapedArray(aval.shape, aval.dtype)


# ------------------------------------------------------------------------------------------------ other transformations


def check_for_nan(primitive: Primitive) -> None:
    """Makes `checkify` with float checks look at what a primitive of our own returns, as it does for JAX's."""
    checkify.error_checks[primitive] = functools.partial(checkify.nan_error_check, primitive)


def is_specified(sharding: Any) -> bool:
    """Whether a sharding of a `jit` call's arrays says anything."""
    return sharding is not None and type(sharding).__name__ != "UnspecifiedValue"


# ------------------------------------------------------------------------------------------------------ XLA


XLA_KEEPS_BARRIERS = jax.__version_info__ >= (0, 11)
"""Whether XLA on CPU leaves an optimization barrier in straight-line code until equal computations have been merged."""


# ------------------------------------------------------------------------------------------------ library functions


def origin(eqn: Equation) -> tuple[str, str] | None:
    """(name, file) of the function whose program a call holds; None for what is no call, or where JAX does not say."""
    params = eqn.params
    held = params.get("jaxpr", params.get("call_jaxpr"))
    if eqn.primitive.name not in ("jit", "pjit", "custom_jvp_call") or held is None:
        return None
    told = getattr(getattr(held, "jaxpr", held), "debug_info", None)
    source = getattr(told, "func_src_info", None) or ""
    name, found, place = source.partition(" at ")
    return (name, place.rpartition(":")[0]) if found else None


_TOLD_ELSEWHERE = frozenset(
    {"name", "ctx_mesh", "jvp_jaxpr_fun", "jvp", "inline", "compiler_options_kvs", "out_sharding"}
)


def same_program(a: Any, b: Any, elementwise: bool = False) -> bool:
    """Whether two bodies have the same equations, up to the names of variables and weak types.

    elementwise: up to shapes and broadcasts as well, where each element goes through the same program.
    """
    a, b = (x if isinstance(x, Body) else body(x) for x in (a, b))
    if elementwise:
        a, b = _without_broadcasts(a), _without_broadcasts(b)
    sizes = [(len(x.inputs), len(x.equations), len(x.outputs), len(x.constants)) for x in (a, b)]
    if sizes[0] != sizes[1]:
        return False
    names: dict[Any, Any] = {}

    def shaped(x: Any) -> tuple[Any, Any]:
        return () if elementwise else aval(x).shape, aval(x).dtype

    def bind_names(xs: Sequence[Any], ys: Sequence[Any]) -> bool:
        names.update(zip(xs, ys))
        return len(xs) == len(ys) and all(shaped(x) == shaped(y) for x, y in zip(xs, ys))

    def same_atom(x: Any, y: Any) -> bool:
        value, other = literal(x), literal(y)
        if value is None or other is None:
            return value is None and other is None and names.get(x) is y
        return value.dtype == other.dtype and value.tobytes() == other.tobytes()

    def same_equation(x: Equation, y: Equation) -> bool:
        return (
            x.primitive is y.primitive
            and len(x.invars) == len(y.invars)
            and all(map(same_atom, x.invars, y.invars))
            and all(
                _same_param(x.params[k], y.params.get(k), elementwise) for k in x.params if k not in _TOLD_ELSEWHERE
            )
            and bind_names(x.outvars, y.outvars)
        )

    return (
        bind_names(a.inputs, b.inputs)
        and bind_names([v for v, _ in a.constants], [v for v, _ in b.constants])
        and all(np.array_equal(x, y, equal_nan=True) for (_, x), (_, y) in zip(a.constants, b.constants))
        and all(map(same_equation, a.equations, b.equations))
        and all(map(same_atom, a.outputs, b.outputs))
    )


def _same_param(x: Any, y: Any, elementwise: bool) -> bool:
    if hasattr(x, "eqns") or hasattr(x, "jaxpr"):
        return (hasattr(y, "eqns") or hasattr(y, "jaxpr")) and same_program(x, y, elementwise)
    if isinstance(x, tuple | list):
        return type(x) is type(y) and len(x) == len(y) and all(_same_param(p, q, elementwise) for p, q in zip(x, y))
    return x is y or bool(np.all(x == y))


def _without_broadcasts(program: Body) -> Body:
    """The program with the operands of its broadcasts in place of their results."""
    stands_for: dict[Any, Any] = {}

    def source(atom: Any) -> Any:
        return atom if isinstance(atom, Literal) else stands_for.get(atom, atom)

    kept = []
    for eqn in program.equations:
        sources = [source(a) for a in eqn.invars]
        if eqn.primitive.name == "broadcast_in_dim" and len(sources) == 1:
            stands_for[eqn.outvars[0]] = sources[0]
        else:
            kept.append(eqn.replace(invars=sources))
    return Body(program.inputs, program.constants, tuple(kept), tuple(map(source, program.outputs)))
