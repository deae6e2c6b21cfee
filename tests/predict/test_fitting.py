import dataclasses

import h5py
import numpy as np
import pytest
from support.hest_tasks import GENES, write_studies, write_task

from timm_mvhybrid.cohorts.cohort import read_cohort
from timm_mvhybrid.cohorts.hest_layout import open_task
from timm_mvhybrid.data import DataError
from timm_mvhybrid.evaluate import (
    EmbeddingOptions,
    EvaluationError,
    ExpressionOptions,
    ProbeOptions,
    evaluate_expression,
    load_backbone,
)
from timm_mvhybrid.predict import ExpressionPredictor, PredictorError
from timm_mvhybrid.predict.fitting import FitSummary, fit_expression
from timm_mvhybrid.predict.options import FitOptions

STUDIES = {"S0": "b", "S1": "a", "S2": "b", "S3": "c"}


@pytest.fixture
def task(tmp_path):
    write_studies(tmp_path / "studies.csv", STUDIES)
    return write_task(tmp_path, splits=False)


def options(task, **changes):
    embedding = EmbeddingOptions(cache=task.parent / "cache", device="cpu")
    given = {
        "studies": task.parent / "studies.csv",
        "num_genes": 5,
        "num_resamples": 20,
        "embedding": embedding,
    }
    return FitOptions(**{**given, **changes})


def fit(task, **changes):
    return fit_expression(task, load_backbone("test_vit12"), options(task, **changes))


def refused(task, **changes):
    """Fits without looking at a patch: whatever is wrong must be found before."""
    batches = []
    with pytest.raises((DataError, EvaluationError)) as raised:
        fit_expression(
            task,
            load_backbone("test_vit12"),
            options(task, **changes),
            on_batch=lambda source, report: batches.append(source),
        )
    assert batches == []
    return str(raised.value)


def test_reliability_is_what_evaluate_expression_says_of_left_out_studies(task):
    predictor = fit(task, alpha=3.0, num_components=10, panel="mean")
    result = evaluate_expression(
        task,
        [load_backbone("test_vit12")],
        ExpressionOptions(
            studies=task.parent / "studies.csv",
            protocols=("loso",),
            panel="mean",
            num_genes=5,
            select_on_all_samples=True,
            probe=ProbeOptions(preset="intercept", num_components=10, alpha=3.0, solver="exact"),
            embedding=EmbeddingOptions(cache=task.parent / "cache", device="cpu"),
        ),
    )
    expected = {(one.fold, one.unit): one.value for one in result.scores if one.metric == "pcc" and one.unit}
    assert predictor.studies_ == ("a", "b", "c")
    for row, study in enumerate(predictor.studies_):
        for column, gene in enumerate(predictor.genes_):
            found = predictor.reliability_.by_study[row, column]
            np.testing.assert_allclose(found, expected[study, gene], rtol=1e-6)


def test_targets_are_log1p_of_raw_counts_in_the_order_of_the_patches(task):
    """One gene, as many components as features, hardly a penalty: what is fitted is what was measured."""
    predictor = fit(task, alpha=1e-6, num_components=None)
    cohort = read_cohort(open_task(task))
    assert predictor.model_.intercept == pytest.approx(
        cohort.log_counts(predictor.genes_).mean(axis=0), rel=1e-12
    )


def test_the_predictor_knows_where_it_is_from(task):
    predictor = fit_expression(task, load_backbone("test_vit12", seed=4), options(task), weights_seed=4)
    encoder = predictor.encoder_
    assert (encoder.name, encoder.weights, encoder.seed) == ("test_vit12", "random", 4)
    assert (encoder.patch_size_px, encoder.resolution_um_per_px) == (32, 0.5)
    assert encoder.transform["input_size_px"] == [32, 32]
    provenance = predictor.provenance_
    assert sorted(provenance.data) == sorted(
        [f"{kind}/S{i}.{end}" for i in range(4) for kind, end in (("patches", "h5"), ("adata", "h5ad"))]
        + ["studies.csv"]
    )
    assert provenance.options["alpha"] == "nested"
    assert not provenance.generated
    predictor.save(task.parent / "one")
    loaded = ExpressionPredictor.load(task.parent / "one")
    assert (loaded.encoder_, loaded.provenance_) == (encoder, provenance)
    summary = FitSummary.of(loaded, task.parent / "one")
    assert (summary.num_genes, summary.num_studies, summary.model) == (5, 3, "test_vit12")
    assert str(task.parent) not in (task.parent / "one" / "predictor.json").read_text()


def test_what_is_embedded_is_not_embedded_again(task):
    seen = []
    for _ in range(2):
        fit_expression(
            task,
            load_backbone("test_vit12"),
            options(task),
            on_batch=lambda source, report: seen.append(source),
        )
    assert seen == ["S0", "S1", "S2", "S3"]


@pytest.mark.parametrize(
    ("name", "text"), [("genes.txt", "G03\n\n G01 \r\n"), ("genes.json", '{"genes": ["G03", "G01"]}')]
)
def test_genes_of_a_list(task, name, text):
    (task.parent / name).write_text(text)
    assert fit(task, genes=task.parent / name, panel="hmhvg").genes_ == ("G03", "G01")


def test_genes_of_the_task(task):
    (task / "var_2genes.json").write_text('{"genes": ["G05", "G02"]}')
    assert fit(task, panel="task").genes_ == ("G05", "G02")
    assert set(fit(task).genes_) <= set(GENES)


def test_what_cannot_be_is_refused_before_a_patch_is_embedded(task):
    studies = task.parent / "studies.csv"
    (task.parent / "genes.txt").write_text("G03\nMISSING\n")
    assert "S0.h5ad: lacks the gene 'MISSING' of genes.txt" in refused(task, genes=task.parent / "genes.txt")
    (task.parent / "genes.txt").write_text("G03\nG03\n")
    assert "gene 'G03' occurs more than once" in refused(task, genes=task.parent / "genes.txt")
    (task.parent / "genes.txt").write_text("\n")
    assert "as .txt one gene in each line" in refused(task, genes=task.parent / "genes.txt")
    assert "has 0 files var_<k>genes.json" in refused(task, panel="task")
    assert "13 genes wanted" in refused(task, num_genes=13)
    assert "`num_components` is 65" in refused(task, num_components=65)
    assert "`level` must lie between 0 and 1" in refused(task, level=80)
    assert "`alpha` is -1.0" in refused(task, alpha=-1.0)
    write_studies(studies, dict.fromkeys(STUDIES, "a"))
    assert "at least two studies, and there is 'a' only" in refused(task)
    write_studies(studies, {**dict.fromkeys(STUDIES, "a"), "S1": "b"})
    assert "`alpha='nested'` needs at least three studies" in refused(task)
    assert fit(task, alpha=1.0).studies_ == ("a", "b")
    write_studies(studies, {"S0": "a"})
    assert "lacks the sample 'S1'" in refused(task)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pixel_size": 0.3},
            r"S2.h5: states a resolution of 0.6 µm/px, and S0.h5 0.5; they may differ by 2%",
        ),
        ({"pixel_size": None}, r"S2.h5: states a resolution of None µm/px, and S0.h5 0.5"),
    ],
)
def test_samples_of_another_resolution_are_refused(task, change, message):
    with h5py.File(task / "patches" / "S2.h5", "r+") as file:
        for holder in (file, *file.values()):
            for name, value in change.items():
                if name in holder.attrs:
                    del holder.attrs[name]
                    if value is not None:
                        holder.attrs[name] = value
    assert message in refused(task)


def test_patches_of_another_size_are_refused(task):
    with h5py.File(task / "patches" / "S3.h5", "r+") as file:
        images = file["img"][:, :16, :16]
        attributes = dict(file["img"].attrs)
        del file["img"]
        file["img"] = images
        file["img"].attrs.update(attributes)
    assert "S3.h5: has patches of 16 px, and S0.h5 of 32 px; cut all at one size" in refused(task)


def test_a_patient_in_two_studies_is_refused(task):
    write_studies(task.parent / "studies.csv", STUDIES, dict.fromkeys(STUDIES, "p"))
    assert "patient 'p' has samples in the studies" in refused(task)


def test_a_summary_needs_to_know_the_model(task):
    X = np.random.default_rng(0).normal(size=(30, 3))
    predictor = ExpressionPredictor(alpha=1.0).fit(X, X[:, :1], studies=np.arange(30) % 3)
    with pytest.raises(EvaluationError, match="does not know its model"):
        FitSummary.of(predictor, task)
    assert dataclasses.is_dataclass(FitSummary)
    assert issubclass(PredictorError, EvaluationError)


@pytest.mark.parametrize("name", ["baseline:mean", "baseline:position"])
def test_what_sees_no_image_cannot_predict_a_slide(task, name):
    with pytest.raises(
        EvaluationError, match=f"^{name} sees no image, and so predicts nothing of a slide; name"
    ):
        fit_expression(task, load_backbone(name), options(task))
