import sys

import numpy as np
import pytest
from benchmarks import pathways
from benchmarks.agreement import DisagreementError
from benchmarks.settings import Settings

from timm_mvhybrid.cohorts import pathway_scores


def stand_in(method, counts, genes, sets):
    return lambda: (
        pathway_scores(counts, genes, sets, "mean_z" if method == "zscore" else method, min_genes=1).values
    )


@pytest.fixture
def peers(monkeypatch):
    found = {name: lambda *arguments, name=name: stand_in(name, *arguments) for name in pathways.PEERS}
    monkeypatch.setattr(pathways, "_peers", lambda: (found, []))
    return found


def test_a_smoke_run_reports_ours_and_the_peers(peers):
    report = pathways.run(Settings(quick=True, threads=1))
    assert set(report.figures) == {goal.figure for goal in pathways.goals((5, 10))}
    assert all(value.median > 0 for value in report.figures.values())
    names = [*(f"ours, {method}" for method in pathways.METHODS), *pathways.PEERS.values()]
    assert [[row[0] for row in table.rows] for table in report.tables] == [names] * 2
    assert not report.judged


def test_peers_that_are_not_installed_are_named(monkeypatch):
    for package in ("decoupler", "gseapy"):
        monkeypatch.setitem(sys.modules, package, None)
    report = pathways.run(Settings(quick=True, threads=1))
    assert [note.split(":")[0] for note in report.notes] == ["decoupler", "gseapy"]


def test_other_scores_stop_the_benchmark(peers):
    peers["ssgsea"] = lambda *arguments: lambda: stand_in("ssgsea", *arguments)() + np.linspace(0, 1, 4)
    with pytest.raises(DisagreementError, match="ssgsea: off by"):
        pathways.run(Settings(quick=True, threads=1))
