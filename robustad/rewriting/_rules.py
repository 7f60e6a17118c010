"""All rules over whole arrays. They register themselves; where two match a term, the one of the earlier module has it."""

from robustad.rewriting import (  # noqa: I001 (their order is their precedence)
    _softmax as _softmax,
    _log_moves as _log_moves,
    _log_products as _log_products,
    _log_rules as _log_rules,
    _scaled_loops as _scaled_loops,
    _scale_free as _scale_free,
    _norms as _norms,
    _root_mean_square as _root_mean_square,
    _angles as _angles,
    _mesh_sums as _mesh_sums,
    _moments as _moments,
    _cosines as _cosines,
    _normalised as _normalised,
    _weights as _weights,
    _exponential_divisors as _exponential_divisors,
    _inlined as _inlined,
)
