import shutil

import h5py
import numpy as np
import pytest
import torch
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv
from support.evaluation_goldens import inputs, reference
from support.slide_bags import write_bags, write_follow_up, write_labels

from timm_mvhybrid.data import DataError
from timm_mvhybrid.evaluate import (
    AttentionOptions,
    EvaluationError,
    SlideTaskOptions,
    attention_mil,
    concordance_index,
    evaluate_slides,
    evaluate_survival,
    mixture_prototypes,
    slide_mixture_embedding,
)
from timm_mvhybrid.probes.cox import cox_risks, log_rank_p_value
from timm_mvhybrid.report import result_from_json
from timm_mvhybrid.report.writer import result_tables

QUICK = AttentionOptions(hidden_dim=16, num_epochs=10, learning_rate=3e-3)
# how well the outcome of 24 patients is predicted is a matter of the draw
pytestmark = pytest.mark.fixed_seed


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bags")
    slides = write_bags(folder / "model")
    write_bags(folder / "noise", signal=0.0, key="embeddings")
    write_labels(folder / "labels.csv", slides)
    write_follow_up(folder / "follow_up.csv", slides)
    return folder


@pytest.mark.parametrize(
    ("name", "iters", "tau", "eps"),
    [("L1_tau1.0_eps1.0", 1, 1.0, 1.0), ("L3_tau0.001_eps0.1", 3, 0.001, 0.1)],
)
def test_mixture_embedding_is_that_of_panthers_code(name, iters, tau, eps):
    data, expected = inputs("downstream"), reference("ref_downstream.json")["panther_em"][name]
    found = slide_mixture_embedding(data["bags"], data["prototypes"], num_iters=iters, tau=tau, eps=eps)
    assert found.shape == (12, expected["outdim"])
    np.testing.assert_allclose(found[:, :4], expected["pi"], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), expected["out_norm"], rtol=1e-6)
    np.testing.assert_allclose(
        found[0, : len(expected["out_first"])], expected["out_first"], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(
        slide_mixture_embedding(data["bags"][3], data["prototypes"], num_iters=iters, tau=tau, eps=eps),
        found[3],
    )


def test_prototypes_are_cluster_centres():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [20, 0], [0, 20]])
    bags = [centres[rng.integers(0, 3, 50)] + rng.normal(size=(50, 2)) for _ in range(4)]
    found = mixture_prototypes(bags, 3, max_patches=120)
    assert np.abs(found[np.lexsort(found.T)] - centres[np.lexsort(centres.T)]).max() < 1
    with pytest.raises(EvaluationError, match="9 prototypes of 5 patches"):
        mixture_prototypes([bags[0][:5]], 9)


def test_concordance_index_is_that_of_scikit_survival():
    data, expected = inputs("downstream"), reference("ref_downstream.json")["cindex"]
    found = concordance_index(data["event"], data["time"], data["risk"])
    assert float(found) == pytest.approx(expected["c"], rel=1e-12)
    for name in ("concordant", "discordant", "tied_risk", "tied_time"):
        assert getattr(found, name) == expected[name]


def test_concordance_without_comparable_pairs_is_nan():
    for event, time in (([False, False], [1.0, 2.0]), ([False, True], [1.0, 2.0]), ([True], [1.0])):
        found = concordance_index(event, time, np.zeros(len(time)))
        assert np.isnan(found.concordance)
        assert found.concordant == 0
    with pytest.raises(EvaluationError, match="risk: row 1, column 0 is nan"):
        concordance_index([True, False], [1.0, 2.0], [0.0, np.nan])


def test_cox_model_in_the_span_of_the_patients_is_the_full_one():
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(size=(30, 12)), rng.normal(size=(7, 12))
    time, event = rng.exponential(size=30) + 0.1, rng.random(30) < 0.7
    train_risk, risk = cox_risks(X, event, time, X_test, alpha=0.7)
    scale = X.std(axis=0) * np.sqrt(12)
    full = CoxPHSurvivalAnalysis(alpha=0.7).fit((X - X.mean(axis=0)) / scale, Surv.from_arrays(event, time))
    np.testing.assert_allclose(risk, full.predict((X_test - X.mean(axis=0)) / scale), rtol=1e-5, atol=1e-6)
    assert np.ptp(risk) > 0.1
    wide, wide_test = np.repeat(X, 20, axis=1), np.repeat(X_test, 20, axis=1)
    np.testing.assert_allclose(
        cox_risks(wide, event, time, wide_test, alpha=0.7)[1], risk, rtol=1e-5, atol=1e-6
    )
    assert np.corrcoef(train_risk, time)[0, 1] < 0


def test_cox_model_without_events_is_an_error():
    with pytest.raises(EvaluationError, match="none of 3 training patients had an event"):
        cox_risks(np.eye(3), [False] * 3, [1.0, 2.0, 3.0], np.eye(3))
    with pytest.raises(EvaluationError, match="all features are constant"):
        cox_risks(np.ones((3, 2)), [True] * 3, [1.0, 2.0, 3.0], np.eye(3)[:, :2])


def test_groups_are_compared_by_the_log_rank_test():
    time = np.arange(1.0, 21.0)
    event = np.ones(20, bool)
    assert log_rank_p_value(event, time, time > 10) < 1e-3
    assert log_rank_p_value(event, time, np.arange(20) % 2 == 0) > 0.3
    assert np.isnan(log_rank_p_value(event, time, np.zeros(20, bool)))


def test_attention_finds_slides_with_a_few_telling_patches_and_is_repeatable():
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(20, 8)).astype(np.float32) for _ in range(40)]
    positive = np.arange(40) % 4 == 0
    for index in np.flatnonzero(positive):
        bags[index][:5, 0] += 4
    state = torch.random.get_rng_state()
    found = attention_mil(bags[:24], positive[:24], bags[24:], QUICK)
    assert found[positive[24:]].min() > found[~positive[24:]].max()
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(found, attention_mil(bags[:24], positive[:24], bags[24:], QUICK))
    with pytest.raises(EvaluationError, match="all 6 training slides have the same label"):
        attention_mil(bags[1:4] * 2, [False] * 6, bags[:2])


def test_slides_are_classified_on_folds_over_patients(bags):
    options = SlideTaskOptions(num_folds=3, attention=QUICK)
    found = evaluate_slides([bags / "model", bags / "noise"], bags / "labels.csv", options)
    assert found.settings == {"positive_label": "MSI", "negative_label": "MSS"}
    assert found.summary("model", "patient", "auroc").mean > 0.8
    assert abs(found.summary("noise", "patient", "auroc").mean - 0.5) < 0.3
    folds_of_patient = {}
    slides = [slide for slide in found.arrays["slides"] if slide["model"] == "model"]
    for slide in slides:
        assert slide["positive"] == (int(slide["patient"][1:]) % 2 == 0)
        folds_of_patient.setdefault(slide["patient"], set()).add(slide["fold"])
    assert len(slides) == 32
    assert all(len(folds) == 1 for folds in folds_of_patient.values())
    assert found.comparisons[0].model == "noise"
    assert result_from_json(found.to_json()).to_json() == found.to_json()


def test_clams_folder_of_features_is_taken_by_its_own_name(bags, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "pt_files").mkdir(parents=True)
        shutil.copytree(bags / "model", tmp_path / name / "h5_files")
    options = SlideTaskOptions(attention=QUICK, num_folds=3)
    expected = evaluate_slides([bags / "model"], bags / "labels.csv", options)
    # CLAM's feat_dir, and the folder within it
    found = evaluate_slides([tmp_path / "one", tmp_path / "two" / "h5_files"], bags / "labels.csv", options)
    assert [model.label for model in found.models] == ["one", "two"]
    for label in ("one", "two"):
        scores = [score._replace(model="model") for score in found.scores if score.model == label]
        assert scores == list(expected.scores)


def test_survival_is_predicted_on_folds_over_patients(bags):
    options = SlideTaskOptions(num_folds=3, num_prototypes=4, time_unit="months")
    found = evaluate_survival([bags / "model", bags / "noise"], bags / "follow_up.csv", options)
    model, noise = (found.summary(name, "patient", "concordance").mean for name in ("model", "noise"))
    assert model > 0.6
    assert model > noise
    patients = [one for one in found.arrays["patients"] if one["model"] == "model"]
    assert len(patients) == len({one["patient"] for one in patients}) == 24
    for fold in ("0", "1", "2"):
        high, low = (
            [one["risk"] for one in patients if one["fold"] == fold and one["high_risk"] == group]
            for group in (True, False)
        )
        assert min(high) > max(low)
    early = {group: [one["time"] for one in patients if one["high_risk"] == group] for group in (True, False)}
    assert np.median(early[True]) < np.median(early[False])
    table = next(table for table in result_tables(found) if table.name == "log-rank")
    assert table.rows[0][3].value < 0.05
    assert result_from_json(found.to_json()).to_json() == found.to_json()


@pytest.mark.parametrize("words", [("True", "False"), ("TRUE", "false"), ("1.0", "0.0")])
def test_events_may_be_written_as_booleans(bags, tmp_path, words):
    text = (bags / "follow_up.csv").read_text()
    for digit, word in zip(("1", "0"), words, strict=True):
        text = text.replace(f",{digit}\n", f",{word}\n")
    (tmp_path / "follow_up.csv").write_text(text)
    options = SlideTaskOptions(num_folds=3, num_prototypes=2)
    found, expected = (
        evaluate_survival([bags / "model"], folder / "follow_up.csv", options) for folder in (tmp_path, bags)
    )
    assert found.scores == expected.scores


def test_a_fold_with_one_class_has_no_auroc_and_says_so(tmp_path):
    slides = write_bags(tmp_path / "model", num_patients=9)
    lines = ["slide_id,patient,label"]
    lines += [
        f"{slide},{owner},{'MSI' if owner in ('P00', 'P02') else 'MSS'}" for slide, owner, _, _ in slides
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    quick = AttentionOptions(hidden_dim=4, num_epochs=1)
    found = evaluate_slides(
        [tmp_path / "model"], tmp_path / "labels.csv", SlideTaskOptions(num_folds=4, attention=quick)
    )
    auroc = list(found.fold_values("model", "patient", "auroc").values())
    assert np.isnan(auroc).sum() == 2
    assert len(found.notes) == 2
    assert "has no AUROC" in found.notes[0]
    assert np.isnan(found.summary("model", "patient", "auroc").mean)
    lines = [line.replace("P02,MSI", "P02,MSS") for line in lines]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    with pytest.raises(
        EvaluationError,
        match=r"fold \d: all \d+ training slides have the same label; .* use fewer folds, `num_folds`",
    ):
        evaluate_slides(
            [tmp_path / "model"], tmp_path / "labels.csv", SlideTaskOptions(num_folds=4, attention=quick)
        )


def test_broken_bags_and_tables_are_named(tmp_path):
    slides = write_bags(tmp_path / "model", num_patients=4)
    labels = write_labels(tmp_path / "labels.csv", slides)
    first = tmp_path / "model" / "P00-0.h5"
    with h5py.File(first, "r+") as file:
        file["features"][3, 2] = np.nan
    with pytest.raises(DataError, match=rf"{first}: patch 3 holds NaN"):
        evaluate_slides([tmp_path / "model"], labels, SlideTaskOptions(num_folds=2))
    first.unlink()
    with pytest.raises(DataError, match=rf"{first}: missing"):
        evaluate_slides([tmp_path / "model"], labels, SlideTaskOptions(num_folds=2))
    with h5py.File(first, "w") as file:
        file["coords"] = np.zeros((3, 2))
    with pytest.raises(DataError, match="has neither 'features' nor 'embeddings'"):
        evaluate_slides([tmp_path / "model"], labels, SlideTaskOptions(num_folds=2))
    with pytest.raises(DataError, match="no such folder"):
        evaluate_slides([tmp_path / "nowhere"], labels, SlideTaskOptions(num_folds=2))
    labels.write_text("slide_id,patient,label\nP00-0,P00,MSI\n")
    with pytest.raises(DataError, match="has the labels MSI; there must be two"):
        evaluate_slides([tmp_path / "model"], labels, SlideTaskOptions(num_folds=2))
    labels.write_text("slide_id,patient,time,event\nP01-0,P01,ten,1\n")
    with pytest.raises(DataError, match="slide 'P01-0' has time 'ten' and event '1'"):
        evaluate_survival([tmp_path / "model"], labels)
    for code in ("2", "-1", "dead", "yes", "1.5", "NA"):
        labels.write_text(f"slide_id,patient,time,event\nP01-0,P01,1,{code}\n")
        with pytest.raises(DataError, match=rf"slide 'P01-0' has time '1' and event '{code}'; .*other codes"):
            evaluate_survival([tmp_path / "model"], labels)
    for column, row in (
        ("time", "P01-0,P01,nan,1"),
        ("event", "P01-0,P01,1,NaN"),
        ("event", "P01-0,P01,1,<NA>"),
    ):
        labels.write_text(f"slide_id,patient,time,event\n{row}\n")
        with pytest.raises(DataError, match=f"line 2 has no '{column}'"):
            evaluate_survival([tmp_path / "model"], labels)
    labels.write_text("slide_id,patient,label\nP00-0,P00,MSI\nP01-0,P01,nan\n")
    with pytest.raises(DataError, match="line 3 has no 'label'"):
        evaluate_slides([tmp_path / "model"], labels)
    labels.write_text("slide_id,patient,time,event\nP01-0,P01,1,1\nP02-0,P01,2,1\n")
    with pytest.raises(DataError, match="slides of patient 'P01' differ in time or event"):
        evaluate_survival([tmp_path / "model"], labels)
