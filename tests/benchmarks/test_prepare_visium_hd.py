import h5py
import numpy as np
import pytest
from benchmarks import bin_contenders, prepare_visium_hd
from benchmarks.agreement import DisagreementError
from benchmarks.generated_bins import write_bins
from benchmarks.settings import Settings

from timm_mvhybrid.cohorts import PatchOptions, VisiumHDFolder


def test_a_smoke_run_reports_all_ways(monkeypatch):
    def in_this_process(name, outs, outcomes, threads):
        sums = bin_contenders.CONTENDERS[name](outs)
        outcomes.append(
            {"seconds": 1.0, "cpu_seconds": 1.0, "peak_bytes": 100, "digest": bin_contenders.digest(sums)}
        )

    # a process of its own takes seconds for its imports
    monkeypatch.setattr(prepare_visium_hd, "_in_a_process", in_this_process)
    report = prepare_visium_hd.run(Settings(quick=True, threads=1), 2.0, 0.1, 50)
    assert set(report.figures) == {goal.figure for goal in prepare_visium_hd.GOALS}
    assert all(value.median > 0 for value in report.figures.values())
    assert [row[0] for row in report.tables[0].rows] == list(bin_contenders.CONTENDERS)
    assert "50,176 bins × 50 genes, 250,880 values" in report.title
    assert not report.judged


def test_pandas_is_left_out_where_it_does_not_fit_and_other_sums_stop_it(monkeypatch):
    def in_a_process(name, outs, outcomes, threads):
        digest = "other" if name == wrong else "same"
        outcomes.append({"seconds": 1.0, "cpu_seconds": 1.0, "peak_bytes": 100, "digest": digest})

    monkeypatch.setattr(prepare_visium_hd, "_free_bytes", lambda: 1000)
    monkeypatch.setattr(prepare_visium_hd, "_in_a_process", in_a_process)
    wrong = prepare_visium_hd.PANDAS
    report = prepare_visium_hd.run(Settings(quick=True), 2.0, 0.1, 50)
    assert wrong not in [row[0] for row in report.tables[0].rows]
    assert report.notes[0].startswith("pandas group-by: left out")
    wrong = prepare_visium_hd.BANDS
    with pytest.raises(DisagreementError, match="other sums"):
        prepare_visium_hd.run(Settings(quick=True), 2.0, 0.1, 50)


def test_contenders_add_up_what_the_file_holds(tmp_path):
    num_values = write_bins(tmp_path / "outs", side_mm=0.15, num_genes=30, filled=0.1)
    assert num_values == 75 * 75 * 3
    (path,) = tmp_path.rglob("*.h5")
    with h5py.File(path) as file:
        data, indices = file["matrix/data"][()], file["matrix/indices"][()]
    assert (np.diff(indices.reshape(-1, 3), axis=1) > 0).all()
    expected = np.zeros((2, 2, 30), dtype=np.int64)
    rows, cols = np.divmod(np.repeat(np.arange(75 * 75), 3), 75)
    np.add.at(expected, (rows // 56, cols // 56, indices), data)
    for name, contender in bin_contenders.CONTENDERS.items():
        sums = contender(tmp_path / "outs")
        np.testing.assert_array_equal(sums.toarray(), expected.reshape(4, 30), err_msg=name)
    outcomes = []
    prepare_visium_hd._in_a_process(prepare_visium_hd.OURS, tmp_path / "outs", outcomes, 1)
    assert outcomes[0]["digest"] == bin_contenders.digest(expected.reshape(4, 30))
    assert min(outcomes[0][name] for name in ("seconds", "cpu_seconds", "peak_bytes")) > 0
    sample = VisiumHDFolder(folder=tmp_path / "outs").read("S", PatchOptions())
    assert sample.um_per_px == pytest.approx(0.25)
