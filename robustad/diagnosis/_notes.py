"""Notes on what the audit could not see: where the shadow is lost, and leaves without a reference."""

from robustad import _jaxpr
from robustad.arithmetic import _shadow
from robustad.diagnosis._accuracy import Accuracy
from robustad.diagnosis._finding import Finding
from robustad.diagnosis._program import Audited


def lost(audited: Audited) -> list[Finding]:
    """A note for every statement where the shadow is lost on its way to a wanted output."""
    wanted = audited.flow.equations(audited.flow.ancestors(node for out in audited.flow.outputs for node in out))
    notes: dict[tuple[str, int, str], Finding] = {}
    for site in audited.flow.sites.values():
        if site.path not in wanted or _jaxpr.control(site.equation) or not _shadow.is_lost(site.equation):
            continue
        where, name = site.location, site.primitive
        file, line = (where.file, where.line) if where else ("<unknown>", 0)
        notes[file, line, name] = Finding(
            kind="shadow-lost",
            phase="backward" if site.transposed else "forward",
            file=file,
            line=line,
            function=where.function if where else "",
            primitive=name,
            bits_lost=None,
            reaches=(),
            cause=f"`{name}` has no shadow rule: it was evaluated plainly, and its outputs count as exact from there on.",
            remedy="errors made before this statement are not seen behind it; audit the parts on either side by themselves.",
        )
    return list(notes.values())


def unreferenced(audited: Audited, leaves: list[Accuracy]) -> list[Finding]:
    """A note where leaves have no reference."""
    named = list(zip(audited.names, leaves, audited.leaves))
    in_f64 = tuple(name for name, leaf, known in named if known.precision is None and leaf.reference is None)
    undefined = tuple(name for name, leaf, known in named if known.precision is not None and leaf.reference is None)
    notes = []
    for names, cause, remedy in (
        (
            in_f64,
            "these leaves are computed in float64 and have no exact reference, so only non-finite values are found in them: "
            "python-flint is missing, the program is too large for it, or holds a primitive without an exact rule.",
            "pip install 'robustad[exact]', audit a smaller case, or audit in float32 to see where accuracy is lost.",
        ),
        (
            undefined,
            "the float64 run is not finite for these leaves either, so they have no reference to be compared with.",
            "mend the non-finite values first, then audit again.",
        ),
    ):
        if names:
            notes.append(Finding("reference-untrusted", "backward", "<unknown>", 0, "", "", None, names, cause, remedy))
    return notes
