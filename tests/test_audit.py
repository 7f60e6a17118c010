"""The audit of the zoo: every planted fault at its line and of its kind, and no finding in a healthy model."""

import pytest

import robustad as rad
from tests.zoo import FAULTS, HEALTHY, Fault, Healthy, fault_lines

DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def named(entry: Fault | Healthy) -> str:
    return entry.name


@pytest.mark.parametrize("fault", FAULTS, ids=named)
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


@pytest.mark.parametrize("healthy", HEALTHY, ids=named)
def test_a_healthy_model_has_no_finding(healthy: Healthy):
    loss, args = healthy.make()
    report = rad.audit(loss)(*args)
    assert report.ok, str(report)
    assert report.findings == ()
    assert report.dtype == DTYPES[healthy.dtype]


def test_the_zoo_is_as_wide_as_it_should_be():
    assert len(FAULTS) >= 18
    assert len({fault.model for fault in FAULTS}) >= 8
    assert {fault.dtype for fault in FAULTS} == set(DTYPES)
    assert {fault.phase for fault in FAULTS} >= {"forward", "backward"}
    assert len(HEALTHY) >= 12
