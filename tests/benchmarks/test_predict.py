import pytest
from benchmarks import predict
from benchmarks.agreement import DisagreementError
from benchmarks.settings import Settings

pytest.importorskip("anndata")


def test_a_smoke_run_reports_speed_and_memory(monkeypatch):
    def peak_bytes(folder, side_px, stride_px):
        # in this process: nothing is judged here
        return predict.prepare(folder, side_px, stride_px), predict.memory_main(folder, stride_px)

    monkeypatch.setattr(predict, "_peak_bytes", peak_bytes)
    report = predict.run(Settings(quick=True, threads=1))
    assert set(report.figures) == {goal.figure for goal in predict.GOALS}
    assert [row[0] for row in report.tables[0].rows] == [predict.EMBED, predict.PREDICT]
    assert [row[0] for row in report.tables[1].rows] == ["100", "361"]
    assert not report.judged


def test_other_predictions_stop_the_benchmark(monkeypatch, tmp_path):
    embed = predict._embed

    def spoiled(folder, source, backbone):
        embed(folder, source, backbone)
        with predict.h5py.File(folder / "embedded.h5", "r+") as file:
            file["embeddings"][0, 0] += 1

    monkeypatch.setattr(predict, "_embed", spoiled)
    source, backbone = predict._slide(tmp_path / "slide.tif", 128, 64), predict.load_backbone("test_vit12")
    predictor = predict._predictor(backbone, source, 64)
    with pytest.raises(DisagreementError, match="differ in their features"):
        predict._check_agreement(tmp_path, source, backbone, predictor)
