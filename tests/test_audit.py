"""The audit of the zoo: planted faults at their lines and of their kinds, and no finding in a healthy model.

One fault of each kind, and a few more; all with `--whole`. `experiments/benchmarks/zoo.py` compares with rivals.
"""

import pytest

import robustad as rad
from tests._subset import thinned
from tests.zoo import FAULTS, HEALTHY, Fault, Healthy, fault_lines

DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


FIRST = {kind: fault for fault in reversed(FAULTS) for kind in fault.kinds}.values()  # one of each kind


def named(entry: Fault | Healthy) -> str:
    return entry.name


@pytest.mark.parametrize("fault", thinned(FAULTS, 60, FIRST), ids=named)
def test_a_planted_fault_is_found(fault: Fault):
    loss, args = fault.make()
    report = rad.audit(loss)(*args)
    assert not report.ok
    assert report.dtype == DTYPES[fault.dtype]
    (finding,) = report.findings  # one finding a cause
    file, lines = fault_lines(fault)
    assert finding.file == file
    assert finding.line in lines
    assert finding.kind in fault.kinds
    assert fault.phase in (None, finding.phase)
    assert finding.reaches
    assert finding.cause
    assert finding.remedy


@pytest.mark.parametrize("healthy", thinned(HEALTHY, 13), ids=named)
def test_a_healthy_model_has_no_finding(healthy: Healthy):
    loss, args = healthy.make()
    report = rad.audit(loss)(*args)
    assert report.ok, str(report)
    assert report.findings == ()
    assert report.dtype == DTYPES[healthy.dtype]


def test_the_zoo_is_as_wide_as_it_should_be():
    assert len(FAULTS) >= 45
    assert len({fault.model for fault in FAULTS}) >= 14
    assert {fault.dtype for fault in FAULTS} == set(DTYPES)
    assert {fault.phase for fault in FAULTS} >= {"forward", "backward"}
    assert {fault.dtype for fault in FIRST} == set(DTYPES)
    assert len(HEALTHY) >= 25
