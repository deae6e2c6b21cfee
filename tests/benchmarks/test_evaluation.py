import numpy as np
import pytest
from benchmarks import evaluation
from benchmarks.agreement import DisagreementError
from benchmarks.settings import Settings


def test_a_smoke_run_reports_the_recipe_and_both_of_ours():
    report = evaluation.run(Settings(quick=True, threads=1))
    assert set(report.figures) == {goal.figure for goal in evaluation.GOALS}
    assert [row[0] for row in report.tables[0].rows] == list(evaluation.SOLVERS)
    assert not report.judged


def test_other_correlations_stop_the_benchmark(monkeypatch):
    predict = evaluation._predict

    def spoiled(name, problem):
        found = predict(name, problem)
        if name == evaluation.OURS:
            found[0].prediction[:, 3] += np.linspace(0, 1, len(found[0].prediction))
        return found

    monkeypatch.setattr(evaluation, "_predict", spoiled)
    with pytest.raises(DisagreementError, match="correlation is off by"):
        evaluation.run(Settings(quick=True, threads=1))
