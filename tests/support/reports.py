"""Small reports of benchmarks."""

from benchmarks.goals import Goal
from benchmarks.measure import Spread
from benchmarks.provenance import Provenance
from benchmarks.report import Report, Table


def point(value):
    return Spread(median=value, low=value, high=value)


def small_report(**changes):
    goal = Goal(figure="ratio", relation="≥", bound=2)
    table = Table(title="Times", columns=["", "ms"], rows=[["ours", "1"]])
    fields = dict(
        name="scan", title="T", method="M", figures={"ratio": point(3.0)}, goals=[goal], tables=[table]
    )
    return Report(**{**fields, **changes})


def a_provenance(**changes):
    fields = dict(
        date="2026-01-02T03:04:05+00:00",
        hardware="AMD EPYC(TM) 1",
        cpu="AMD EPYC(TM) 1",
        cores=2,
        instructions=["avx2"],
        threads=2,
        python="3.11",
        packages={"torch": "2.6"},
        commit="abc",
        load_average=0.1,
        busy_cores=0.0,
    )
    return Provenance(**{**fields, **changes})
