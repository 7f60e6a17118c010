"""What `robustad doctor` finds on a machine: profile, probe and verdicts, and how they look on a terminal."""

import dataclasses
import json
import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustad.diagnosis._device_profile import DeviceProfile, device_profile
from robustad.diagnosis._probe import Change, Probe, probe
from robustad.diagnosis._screen import WIDTH, Line
from robustad.diagnosis._verdicts import Verdict, verdicts

log = logging.getLogger("robustad")

_STYLES = {"danger": "bold red", "note": "yellow", "unknown": "dim", "fine": "green"}


@dataclasses.dataclass(frozen=True)
class Examination:
    """changes: against a stored probe, or None."""

    profile: DeviceProfile
    probe: Probe
    verdicts: tuple[Verdict, ...]
    changes: tuple[Change, ...] | None

    @property
    def ok(self) -> bool:
        return all(v.level != "danger" for v in self.verdicts)

    def to_json(self, **options: Any) -> str:
        held = {
            "ok": self.ok,
            "profile": json.loads(self.profile.to_json()),
            "probe": json.loads(self.probe.to_json()),
            "verdicts": [dataclasses.asdict(v) for v in self.verdicts],
        }
        if self.changes is not None:
            held["changes"] = [str(c) for c in self.changes]
        return json.dumps(held, allow_nan=False, **options)


def examine(device: str | None, against: Path | None) -> Examination:
    """Profile and probe of a device.

    Raises:
        ValueError: no such device; `against` holds no probe.
        OSError: `against` cannot be read.
        RuntimeError: JAX finds no device.
    """
    before = None if against is None else _stored(against)
    log.info("asking the device what it is")
    profile = device_profile(device)
    log.info("measuring its arithmetic")
    found = probe(device)
    return Examination(profile, found, verdicts(profile, found), None if before is None else before.changes(found))


def _stored(file: Path) -> Probe:
    try:
        return Probe.from_json(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"`against`: {file} does not hold a probe ({error.__cause__ or error}); write one by "
            f"`robustad doctor --json > {file}`."
        ) from error


def screen(examined: Examination) -> Iterator[Line]:
    notes = sum(v.level == "note" for v in examined.verdicts)
    for i, text in enumerate(str(examined.profile).splitlines()):
        yield Line(text, "bold" if i == 0 else "")
    yield Line("")
    for v in examined.verdicts:
        yield Line(f"{v.level.upper() if v.level == 'danger' else v.level:<9}{v.subject}", _STYLES[v.level])
        for text in (v.found, v.meaning, f"fix: {v.remedy}" if v.remedy else ""):
            yield from (Line(" " * 9 + part) for part in textwrap.wrap(text, WIDTH - 9))
    if examined.changes is not None:
        yield Line("")
        yield Line(f"{len(examined.changes)} measurements differ" if examined.changes else "no measurement differs")
        for change in examined.changes:
            yield Line(f"  {change}")
    counted = f"{notes} note{'s' * (notes != 1)}, measured in {examined.probe.seconds:.1f} s"
    yield Line("")
    if not examined.ok:
        yield Line(f"DANGEROUS: gradients cannot be trusted here ({counted})", "bold red")
    else:
        yield Line(f"nothing dangerous ({counted})", "bold green")
