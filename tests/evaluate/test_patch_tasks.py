import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize
from sklearn.neighbors import KNeighborsClassifier
from support.evaluation_goldens import inputs, reference

from timm_mvhybrid.data import DataError
from timm_mvhybrid.evaluate import (
    EmbeddingOptions,
    EvaluationError,
    PatchTaskOptions,
    evaluate_classification,
    evaluate_retrieval,
    knn_probe,
    linear_probe,
    load_backbone,
    open_images,
    prototype_retrieval,
)
from timm_mvhybrid.report import result_from_json

COLOURS = {"HP": (230, 180, 200), "SSA": (90, 60, 150), "NORM": (180, 220, 90)}


@pytest.fixture(scope="module")
def golden():
    data = inputs("downstream")
    return data["X_train"], data["y_train"], data["X_test"], data["y_test"]


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("test_vit12")


def write_image(file, label, seed):
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-30, 30, (128, 128, 3))
    Image.fromarray(np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)).save(file)


def options(tmp_path, **changes):
    return PatchTaskOptions(
        embedding=EmbeddingOptions(cache=tmp_path / "cache", device="cpu", pool="avg"),
        num_neighbours=3,
        **changes,
    )


def write_folders(root, num=6, split=False):
    for label in ("HP", "SSA"):
        for index in range(num):
            part = ("train/" if index % 3 else "test/") if split else ""
            write_image(root / f"{part}{label}" / f"{index}.png", label, index)
    return root


def test_linear_probe_has_the_scores_of_unis_code(golden):
    expected = reference("ref_downstream.json")["uni_linprobe"]
    found = linear_probe(*golden)
    names = {
        "acc": "accuracy",
        "bacc": "balanced_accuracy",
        "kappa": "quadratic_kappa",
        "weighted_f1": "weighted_f1",
        "auroc": "auroc",
    }
    for key, name in names.items():
        assert getattr(found, name) == pytest.approx(expected[f"lin_{key}"], rel=1e-6), name
    np.testing.assert_allclose(found.probability.sum(axis=1), 1, rtol=1e-6)


def test_linear_probe_minimises_its_objective(golden):
    X, y = golden[0][:, :6].astype(np.float64), golden[1] % 2

    def objective(parameters):
        weight, bias = parameters[:12].reshape(2, 6), parameters[12:]
        logits = X @ weight.T + bias
        loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
        return loss.mean() + 0.5 * np.linalg.norm(weight) / 20

    start = np.random.default_rng(0).normal(size=14) * 0.1
    best = minimize(objective, start, method="BFGS", options={"gtol": 1e-7}).x
    logits = X @ best[:12].reshape(2, 6).T + best[12:]
    expected = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    found = linear_probe(X, y, X, cost=20, max_iter=5000).probability[:, 1]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.ptp(found) > 0.02


def test_prototype_retrieval_is_that_of_unis_code(golden):
    expected = reference("ref_downstream.json")["uni_protonet"]
    found = prototype_retrieval(*golden)
    assert found.accuracy == pytest.approx(expected["acc"])
    np.testing.assert_array_equal(found.prediction, expected["pred"])
    np.testing.assert_array_equal(found.ranking, expected["topk20_index"])
    for k, values in found.precision.items():
        np.testing.assert_allclose(values, expected[f"precision@{k}"])
    assert set(found.precision) == {1, 5, 10, 20}


def test_neighbours_vote_as_in_scikit_learn(golden):
    X_train, y_train, X_test, y_test = golden
    expected = KNeighborsClassifier(20, metric="cosine").fit(X_train, y_train)
    found = knn_probe(*golden)
    np.testing.assert_array_equal(found.prediction, expected.predict(X_test))
    np.testing.assert_allclose(found.probability, expected.predict_proba(X_test))
    assert found.accuracy == pytest.approx(np.mean(expected.predict(X_test) == y_test))


def test_labels_may_be_words_and_may_be_unknown(golden):
    X_train, y_train, X_test, _ = golden
    words = np.array([f"class {label}" for label in y_train])
    for probe in (linear_probe, knn_probe):
        named, numbered = probe(X_train, words, X_test), probe(X_train, y_train, X_test)
        assert named.prediction.tolist() == [f"class {label}" for label in numbered.prediction]
        assert np.isnan(named.accuracy)


def test_a_class_that_is_not_tested_leaves_the_auroc_open(golden):
    X_train, y_train, X_test, y_test = golden
    kept = y_test != 3
    found = linear_probe(X_train, y_train, X_test[kept], y_test[kept])
    assert np.isnan(found.auroc)
    assert found.accuracy > 0.8


def test_one_class_to_train_on_is_an_error(golden):
    X_train, y_train, X_test, y_test = golden
    rows = y_train == 2
    for call in (linear_probe, prototype_retrieval):
        with pytest.raises(EvaluationError, match="the class '2' only"):
            call(X_train[rows], y_train[rows], X_test, y_test)


def test_wrong_numbers_are_errors(golden):
    X_train, y_train, X_test, y_test = golden
    with pytest.raises(EvaluationError, match="k = 999 neighbours of 270"):
        knn_probe(X_train, y_train, X_test, k=999)
    with pytest.raises(EvaluationError, match="row 1 is zero"):
        knn_probe(X_train, y_train, X_test * (np.arange(180) != 1)[:, None])
    with pytest.raises(EvaluationError, match="number of queries, 180"):
        prototype_retrieval(X_train, y_train, X_test, y_test, k=181)
    with pytest.raises(EvaluationError, match="48 features, X_test 47"):
        linear_probe(X_train, y_train, X_test[:, 1:])


def test_layouts_are_told_apart_and_read(tmp_path):
    folders = open_images(write_folders(tmp_path / "folders"))
    assert (folders.layout, folders.classes, folders.parts[0]) == ("folders", ["HP", "SSA"], "")
    split = open_images(write_folders(tmp_path / "split", split=True))
    assert (split.layout, split.classes) == ("folders", ["HP", "SSA"])
    assert sorted(set(split.parts)) == ["test", "train"]

    table = tmp_path / "folders" / "labels.csv"
    table.write_text(
        "path,label,split,patient\nHP/0.png,HP,train,p\nSSA/0.png,SSA,train,q\nHP/1.png,HP,test,r\n"
    )
    listed = open_images(table)
    assert (listed.layout, listed.source.paths, listed.patients.tolist()) == (
        "csv",
        ["HP/0.png", "SSA/0.png", "HP/1.png"],
        ["p", "q", "r"],
    )

    mhist = tmp_path / "mhist"
    header = "Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"
    rows = [
        ("MHIST_aaa.png", "SSA", 6, "train"),
        ("MHIST_aab.png", "HP", 0, "test"),
        ("MHIST_aac.png", "HP", 1, "train"),
    ]
    for index, (name, label, _, _) in enumerate(rows):
        write_image(mhist / "images" / name, label, index)
    (mhist / "annotations.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
    found = open_images(mhist)
    assert (found.layout, found.labels.tolist(), found.parts.tolist()) == (
        "mhist",
        ["SSA", "HP", "HP"],
        ["train", "test", "train"],
    )

    polyps = tmp_path / "800"
    for part, names in (("train", ["a", "b"]), ("test", ["c"])):
        lines = ["image_id,type,grade,wsi,top_label,top_label_name"]
        for index, name in enumerate(names):
            label = ("NORM", "HP")[index]
            write_image(polyps / label / f"{name}.png", label, index)
            lines.append(f"{name}.png,norm,0,slide.ndpi,{index},{label}")
        (polyps / f"{part}.csv").write_text("\n".join(lines))
    found = open_images(polyps)
    assert (found.layout, found.source.paths) == ("unitopatho", ["NORM/a.png", "HP/b.png", "NORM/c.png"])
    fold = found.folds(5, 0)[0]
    assert (fold.name, fold.train.tolist(), fold.test.tolist()) == ("test", [0, 1], [2])


def test_broken_tables_are_named(tmp_path):
    write_folders(tmp_path)
    table = tmp_path / "labels.csv"
    for rows, message in (
        ("HP/0.png,HP,train,p\nSSA/0.png,SSA,test,p", "patient 'p' has images in both train and test"),
        ("HP/0.png,HP,train,p\nSSA/0.png,SSA,,q", "the splits are '', 'train'"),
        ("HP/0.png,HP,train,p\nSSA/9.png,SSA,test,q", "SSA/9.png: no such image"),
        ("HP/0.png,HP,train,p\nHP/0.png,SSA,test,q", "'HP/0.png' occurs more than once"),
        ("HP/0.png,HP,train,p\n./SSA/../HP/0.png,SSA,test,q", "'HP/0.png' occurs more than once"),
        (f"HP/0.png,HP,train,p\n{tmp_path}/HP/0.png,SSA,test,q", "'HP/0.png' occurs more than once"),
        ("HP/0.png,HP,train,p\nHP/1.png,HP,test,q", "all images are of the class 'HP'"),
        ("HP/0.png,HP,train,p\nSSA/0.png,,test,q", "line 3 has no 'label'"),
        ("HP/0.png,HP,train,p\nSSA/0.png,SSA,test,", "'SSA/0.png' has no patient"),
    ):
        table.write_text(f"path,label,split,patient\n{rows}\n")
        with pytest.raises(DataError, match=message):
            open_images(table)
    write_image(tmp_path / "loose.png", "HP", 0)
    with pytest.raises(DataError, match="must lie in a folder named after its class"):
        open_images(tmp_path)


def test_classification_of_colours_by_both_probes(tmp_path, backbone):
    root = write_folders(tmp_path / "images", num=6)
    found = evaluate_classification(root, [backbone], options(tmp_path, num_folds=3))
    assert found.protocols == ("linear", "knn")
    for probe in found.protocols:
        assert found.summary("test_vit12", probe, "accuracy").mean == 1
        assert found.summary("test_vit12", probe, "accuracy").num_folds == 3
    assert [one["counts"] for one in found.arrays["confusion"]] == [[[6, 0], [0, 6]]] * 2
    assert "may be optimistic" in found.notes[0]
    assert result_from_json(found.to_json()) == found


def test_folds_of_a_probe_are_compared_between_models(tmp_path, backbone):
    root = write_folders(tmp_path / "images", num=6)
    other = load_backbone("test_mvhybrid")
    found = evaluate_classification(root, [backbone, other], options(tmp_path, num_folds=3, probes=("knn",)))
    assert {(one.model, one.baseline, one.num_folds) for one in found.comparisons} == {
        ("test_mvhybrid", "test_vit12", 3)
    }


def test_retrieval_of_colours(tmp_path, backbone):
    root = write_folders(tmp_path / "images", split=True)
    found = evaluate_retrieval(root, [backbone], options(tmp_path, depths=(1, 2, 4)))
    assert {one.metric: one.mean for one in found.summaries} == {
        "accuracy": 1,
        "precision@1": 1,
        "precision@2": 1,
        "precision@4": 0.5,
    }
    assert found.summary("test_vit12", "prototypes", "accuracy").interval.over == "queries"
    assert [tuple(one.values()) for one in found.arrays["classes"]] == [("HP", 4, 2), ("SSA", 4, 2)]
    assert found.unit_values("test_vit12", "prototypes", "precision@1") == {"test": {"HP": 1, "SSA": 1}}
    assert found.task == "retrieval"
    assert found.notes == ()


def test_a_fold_that_cannot_be_fitted_is_named(tmp_path, backbone):
    root = tmp_path / "images"
    for index, label in enumerate(("HP", "HP", "HP", "SSA")):
        write_image(root / label / f"{index}.png", label, index)
    with pytest.raises(EvaluationError, match=r"fold \d, linear probe: y_train holds the class 'HP' only"):
        evaluate_classification(root, [backbone], options(tmp_path, num_folds=4))
