"""What a workload is, and what is said of one that makes no sense."""

from __future__ import annotations

import pytest

from snapfit.core.errors import UsageError
from snapfit.core.workload import DEFAULT_WORKLOAD, Phase, Workload


def test_phases_and_weights() -> None:
    workload = Workload.parse("prefill:1x1024, decode:8x2048*0.5")
    assert workload.phases == (
        Phase(kind="prefill", batch=1, tokens=1024),
        Phase(kind="decode", batch=8, tokens=2048, weight=0.5),
    )
    assert [phase.rows for phase in workload.phases] == [1024, 8]
    assert [phase.query for phase in workload.phases] == [1024, 1]
    assert str(workload) == "prefill:1x1024,decode:8x2048*0.5"
    assert Workload.parse(str(workload)) == workload
    assert len(Workload.parse(DEFAULT_WORKLOAD).phases) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no phase of a workload; one looks like prefill:1x1024"),
        ("prefill:1024", "no phase"),
        ("prefill:1x1024@2", "no phase"),
        ("prefil:1x1024", "a phase is prefill or decode, found 'prefil'"),
        ("prefill:0x1024", "from 1 to"),
        ("decode:1x99999999", "from 1 to"),
        ("decode:1x" + "9" * 5000, "no phase"),
        ("decode:1x8*0", "weight must be a number above 0, found '0'"),
        ("decode:1x8*1e999", "weight must be"),
        ("decode:1x8*1e", "weight must be"),
        ("decode:1x8,decode:1x8*2", "twice; give it once, with a weight"),
    ],
)
def test_errors_say_which_phase(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Workload.parse(text)
    assert message in str(error.value)
