import csv
import importlib.util
import json
import random
import sys

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from support.forked import spawn
from support.generated_patches import random_patches, write_hest
from torch import nn

from timm_mvhybrid.evaluate import expression_metrics, ridge_probe
from timm_mvhybrid.pretrain.probe_targets import OnlineProbe, open_targets, undisturbed
from timm_mvhybrid.runtime.errors import DataError, EvaluationError, MissingPackageError, PretrainError
from timm_mvhybrid.runtime.ranks import close_process_group

COLOURS = {"stroma": (220, 120, 180), "tumour": (110, 60, 160), "white": (250, 250, 250)}
OPTIONS = {"image_size_px": 16, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "batch_size": 4}

needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="the expression probe needs scikit-learn"
)


class MeanColour(nn.Module):
    """Features that tell the classes apart, of a module that behaves differently while it trains."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.Dropout(0.5).eval()

    def forward(self, images):
        return self.frozen(self.norm(self.dropout(images))).mean(dim=(2, 3))


def write_classes(folder, num=7):
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(num):
            pixels = np.clip(np.array(colour) + generator.normal(0, 5, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def write_table(path, rows):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_folder_per_class(tmp_path):
    probe = OnlineProbe(write_classes(tmp_path), **OPTIONS)
    assert probe.targets.images.classes == ["stroma", "tumour", "white"]
    assert "each image left out, 21 images" in probe.protocol
    assert probe(MeanColour()) == {"knn_accuracy": 1.0, "knn_balanced_accuracy": 1.0}
    collapsed = probe(MeanColour(), lambda images: torch.ones(len(images), 4))
    # leaving one out makes its own class the rarer one among equals
    assert collapsed["knn_accuracy"] < 0.34


def test_a_csv_with_splits_asks_only_the_test_images(tmp_path):
    write_classes(tmp_path / "images")
    rows = [
        {"path": f"images/{name}/{index}.png", "label": name, "split": "test" if index < 2 else "train"}
        for name in COLOURS
        for index in range(7)
    ]
    # a wrong label among the test images can be right in no prediction, one among the training images is outvoted
    rows[0]["label"], rows[6]["label"] = "tumour", "white"
    scores = OnlineProbe(write_table(tmp_path / "set.csv", rows), **OPTIONS)(MeanColour())
    assert scores["knn_accuracy"] == pytest.approx(5 / 6)
    assert scores["knn_balanced_accuracy"] == pytest.approx((1 + 2 / 3 + 1) / 3)


@pytest.mark.parametrize("column", ["patient", "group"])
def test_a_csv_with_patients(tmp_path, column):
    write_classes(tmp_path / "images")
    rows = [
        {"path": f"images/{name}/{index}.png", "label": name, column: name}
        for name in COLOURS
        for index in range(7)
    ]
    probe = OnlineProbe(write_table(tmp_path / "set.csv", rows), **OPTIONS)
    assert "each patient left out" in probe.protocol
    assert probe(MeanColour())["knn_accuracy"] == 0


def test_pixels_are_scaled_cropped_and_normalised(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image = Image.new("RGB", (64, 32), (255, 0, 0))
        image.paste((0, 255, 0), (16, 0, 48, 32))
        image.save(tmp_path / name / "0.png")
    seen = []
    OnlineProbe(tmp_path, **OPTIONS)(nn.Identity(), lambda images: seen.append(images) or images.mean((2, 3)))
    assert seen[0].shape == (2, 3, 16, 16)
    centre = seen[0][0, :, 4:12, 4:12]
    torch.testing.assert_close(centre.mean(dim=(1, 2)), torch.tensor([-2.0, 2.0, -2.0]), atol=0.1, rtol=0)


def test_training_goes_on_as_if_nothing_had_happened(tmp_path):
    probe = OnlineProbe(write_classes(tmp_path), **OPTIONS)
    model = MeanColour().train()
    model.frozen.eval()

    def draws_everything(images):
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(3), np.random.rand(3), random.random()
        return model(images)

    def draw():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    def seed():
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    seed()
    expected = draw()
    seed()
    probe(model, draws_everything)
    assert draw() == expected
    assert model.training
    assert model.dropout.training
    assert not model.frozen.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_modes_come_back_after_a_failure():
    model = MeanColour().train()
    with pytest.raises(ZeroDivisionError), undisturbed(model):
        raise ZeroDivisionError
    assert model.training
    assert model.norm.training


def test_an_unreadable_image_is_named(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "tumour" / "3.png").write_bytes(b"no image")
    with pytest.raises(PretrainError, match=r"tumour/3\.png: not a readable image"):
        OnlineProbe(tmp_path, **OPTIONS)(MeanColour())


def test_features_that_are_not_finite_are_no_result(tmp_path):
    probe = OnlineProbe(write_classes(tmp_path), **OPTIONS)
    with pytest.raises(PretrainError, match="NaN or infinite"):
        probe(nn.Identity(), lambda images: torch.full((len(images), 2), torch.nan))


def run_rank(rank, world_size, folder, rendezvous, output):
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)
    calls = []

    def features(images):
        # as FSDP would: every rank has to take part in every forward pass
        dist.all_reduce(torch.ones(1))
        calls.append(len(images))
        return torch.nn.functional.avg_pool2d(images, 8).flatten(1)

    probe = OnlineProbe(folder, **OPTIONS)
    embedded = probe._embed(features)
    scores = probe(nn.Identity(), features)
    (folder.parent / f"{output}{rank}.json").write_text(
        json.dumps({"scores": scores, "features": embedded.tolist(), "calls": calls})
    )
    close_process_group()


@pytest.mark.distributed
def test_two_processes_measure_what_one_does(tmp_path):
    folder = write_classes(tmp_path / "classes")
    spawn(run_rank, (2, folder, tmp_path / "rendezvous", "rank"))
    probe = OnlineProbe(folder, **OPTIONS)

    def features(images):
        return torch.nn.functional.avg_pool2d(images, 8).flatten(1)

    expected = probe._embed(features)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["calls"] == ranks[1]["calls"] == [4, 4, 3, 4, 4, 3]
    for rank in ranks:
        torch.testing.assert_close(torch.tensor(rank["features"]), expected)
        assert rank["scores"] == probe(nn.Identity(), features)


PROBLEMS = [
    ([{"path": "a.png"}], "set.csv: has the columns path; it must have 'path' and 'label'"),
    ([{"path": "missing.png", "label": "a"}], "missing.png: no such image"),
    ([{"path": "0.png", "label": "a"}], "all images are of the class 'a'"),
    ([{"path": f"{name}.png", "label": name, "split": "valid"} for name in "ab"], "the splits are 'valid'"),
    ([{"path": f"{name}.png", "label": name, "split": "test"} for name in "ab"], "the splits are 'test'"),
    (
        [{"path": f"{name}.png", "label": name, "group": "p"} for name in "ab"],
        "every image is of patient 'p'",
    ),
    (
        [{"path": f"{name}.png", "label": name, "patient": owner} for name, owner in ("ap", ("b", ""))],
        "image 'b.png' has no patient, others have",
    ),
]


@pytest.mark.parametrize(("rows", "message"), PROBLEMS)
def test_incomplete_sets_name_file_and_remedy(tmp_path, rows, message):
    for name in "0ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=message):
        open_targets(write_table(tmp_path / "set.csv", rows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n", "holds no row"),
        ("path,label\na.png\n", "line 2 has no 'label'"),
        ("path,label\na.png,x,y\n", "line 2 has more cells than the header"),
        ("", "holds no row"),
        (None, "cannot be read as a CSV"),
    ],
)
def test_damaged_tables_are_named(tmp_path, content, message):
    path = tmp_path / "set.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=rf"set\.csv: .*{message}"):
        open_targets(path)


def test_images_outside_the_classes_are_named(tmp_path):
    write_classes(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png: must lie in a folder named after its class"):
        open_targets(tmp_path)


def write_counts(path, barcodes, genes, counts):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", *genes])
        writer.writerows([name, *row] for name, row in zip(barcodes, counts.tolist(), strict=True))
    return path


@needs_sklearn
@pytest.mark.parametrize("suffix", [".csv", ".h5ad"])
def test_expression_of_spots_matched_by_barcode(tmp_path, suffix):
    rows = []
    generator = np.random.default_rng(0)
    for sample in ("a", "b"):
        num = 24
        levels = generator.integers(20, 230, num)
        patches = np.broadcast_to(levels[:, None, None, None], (num, 16, 16, 3)).astype(np.uint8)
        barcodes = [f"{sample}{index}" for index in range(num)]
        write_hest(tmp_path / f"{sample}.h5", patches, barcodes)
        counts = np.stack([levels, 255 - levels, np.full(num, 100)], axis=1)
        # another order, and one spot that has no patch
        order = generator.permutation(num)
        names, counts = [*np.array(barcodes)[order], "nowhere"], np.concatenate([counts[order], [[1, 1, 1]]])
        file = tmp_path / f"{sample}{suffix}"
        if suffix == ".csv":
            write_counts(file, names, ["bright", "dark", "flat"], counts)
        else:
            write_h5ad(file, names, ["bright", "dark", "flat"], counts)
        rows.append({"patches": f"{sample}.h5", "expression": file.name})
    probe = OnlineProbe(write_table(tmp_path / "set.csv", rows), num_genes=3, **OPTIONS)
    assert len(probe.targets) == 48
    assert probe.targets.genes == ["bright", "dark"]
    scores = probe(MeanColour())
    assert scores["expression_pearson"] > 0.9
    assert "2 genes, patients held out, 48 spots" in probe.protocol


def write_expression_set(folder, num_samples=3, num_spots=40, num_genes=4):
    """Samples with counts of several genes, without positions; returns the table and the log counts, row by row."""
    generator = np.random.default_rng(0)
    rows, logs = [], []
    for sample in range(num_samples):
        barcodes = [f"{sample}-{index}" for index in range(num_spots)]
        write_hest(folder / f"{sample}.h5", random_patches(num_spots), barcodes)
        counts = generator.poisson(generator.gamma(2, 20, (num_spots, num_genes)))
        write_counts(folder / f"{sample}.csv", barcodes, [f"g{index}" for index in range(num_genes)], counts)
        rows.append({"patches": f"{sample}.h5", "expression": f"{sample}.csv"})
        logs.append(np.log1p(counts))
    return write_table(folder / "set.csv", rows), np.concatenate(logs)


@needs_sklearn
def test_expression_is_scored_by_the_recipe_of_evaluation(tmp_path):
    """Log counts as they are; PCA and ridge, patients held out."""
    table, logs = write_expression_set(tmp_path)
    targets = open_targets(table)
    np.testing.assert_array_equal(targets.expression, logs)
    generator = np.random.default_rng(1)
    features = (logs @ generator.normal(size=(4, 6)) + 0.5 * generator.normal(size=(120, 6))).astype(
        np.float32
    )
    samples = np.repeat(np.arange(3), 40)
    correlations = []
    for sample in range(3):
        train, test = samples != sample, samples == sample
        predicted = ridge_probe(features[train], logs[train], features[test], num_components=6)
        correlations.append(expression_metrics(logs[test], predicted).pcc)
    found = targets.score(features)
    assert found["expression_pearson"] > 0.5
    # both stop LSQR at a relative residual of 1e-4
    assert found["expression_pearson"] == pytest.approx(np.mean(correlations), abs=1e-4)


@needs_sklearn
def test_expression_tells_features_that_predict_from_noise_and_collapse(tmp_path):
    table, logs = write_expression_set(tmp_path)
    targets = open_targets(table)
    generator = np.random.default_rng(0)
    wide = (logs @ generator.normal(size=(4, 300))).astype(np.float32)
    # 256 components of 80 spots cannot be had, and are lowered
    assert targets.score(wide)["expression_pearson"] > 0.95
    assert abs(targets.score(generator.normal(size=(120, 16)).astype(np.float32))["expression_pearson"]) < 0.3
    assert targets.score(np.ones((120, 16), np.float32)) == {"expression_pearson": 0.0}


@needs_sklearn
def test_a_single_slide_is_held_out_in_stripes(tmp_path):
    table, _ = write_expression_set(tmp_path, num_samples=1)
    with h5py.File(tmp_path / "0.h5", "a") as file:
        del file["coords"]
    with pytest.raises(
        EvaluationError, match=r"set\.csv: .*all spots are at one place.* second patient, or patches"
    ):
        open_targets(table)
    with h5py.File(tmp_path / "0.h5", "a") as file:
        file["coords"] = np.stack([np.arange(40) * 16, np.zeros(40, np.int64)], axis=1)
    targets = open_targets(table)
    assert "stripes of one patient held out, 40 spots" in targets.protocol
    # one-hot places predict neighbours, and nothing across stripes
    place = np.eye(20, dtype=np.float32)[np.arange(40) // 2]
    assert abs(targets.score(place)["expression_pearson"]) < 0.3


@needs_sklearn
@pytest.mark.parametrize("column", ["patient", "group"])
def test_samples_of_one_patient_are_held_out_together(tmp_path, column):
    table, _ = write_expression_set(tmp_path)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    for row, owner in zip(rows, "ppq", strict=True):
        row[column] = owner
    targets = open_targets(write_table(table, rows))
    assert sorted(fold.test.tolist() for fold in targets._folds) == [list(range(80)), list(range(80, 120))]


@needs_sklearn
def test_counts_of_the_probe_are_taken_from_a_layer(tmp_path):
    anndata = pytest.importorskip("anndata")
    names = [f"x{index}" for index in range(8)]
    write_hest(tmp_path / "a.h5", random_patches(8), names)
    counts = np.stack([np.arange(8) + 1, 9 - np.arange(8)], axis=1)
    write_h5ad(tmp_path / "a.h5ad", names, ["g", "h"], counts, spatial=np.arange(16).reshape(8, 2))
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    data.layers["umi"], data.X = data.X, data.X / 2
    data.write_h5ad(tmp_path / "a.h5ad")
    table = write_table(tmp_path / "set.csv", [{"patches": "a.h5", "expression": "a.h5ad"}])
    with pytest.raises(
        DataError, match=r"a\.h5ad: .* has the value 0\.5 in X.* by `monitor\.probe_counts_layer='umi'`"
    ):
        OnlineProbe(table, **OPTIONS)
    probe = OnlineProbe(table, counts_layer="umi", **OPTIONS)
    assert probe.targets.genes == ["g", "h"]
    np.testing.assert_array_equal(probe.targets.expression, np.log1p(counts))


def write_h5ad(path, barcodes, genes, counts, spatial=None):
    anndata = pytest.importorskip("anndata")
    import pandas as pd
    from scipy.sparse import csr_matrix

    data = anndata.AnnData(
        csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(index=pd.Index(barcodes, dtype=object)),
        var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
        obsm={} if spatial is None else {"spatial": spatial},
    )
    data.write_h5ad(path)


@needs_sklearn
@pytest.mark.parametrize(
    ("barcodes", "counts", "message"),
    [
        (["SPOT-X", "SPOT-Y"], [[1], [2]], "share no barcode"),
        (["SPOT-000-ä", "SPOT-000-ä"], [[1], [2]], "barcode 'SPOT-000-ä' occurs more than once"),
        (["SPOT-000-ä", "x"], [[-1], [2]], "has the value -1.0 in the table, which is not a count"),
        (["SPOT-000-ä", "SPOT-001-ä"], [[3], [3]], "no gene is present .* and varies between spots"),
    ],
)
def test_unusable_expression_is_named(tmp_path, barcodes, counts, message):
    write_hest(tmp_path / "a.h5", random_patches(2))
    write_counts(tmp_path / "a.csv", barcodes, ["gene"], np.array(counts))
    table = write_table(tmp_path / "set.csv", [{"patches": "a.h5", "expression": "a.csv"}])
    with pytest.raises((DataError, EvaluationError), match=message):
        open_targets(table)


@needs_sklearn
def test_patches_without_barcodes_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["imgs"] = random_patches(2)
    write_counts(tmp_path / "a.csv", ["x"], ["gene"], np.array([[1]]))
    table = write_table(tmp_path / "set.csv", [{"patches": "a.h5", "expression": "a.csv"}])
    with pytest.raises(DataError, match=r"a\.h5: no dataset 'barcode'"):
        open_targets(table)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    write_hest(tmp_path / "a.h5", random_patches(2))
    write_counts(tmp_path / "a.csv", ["x"], ["gene"], np.array([[1]]))
    table = write_table(tmp_path / "set.csv", [{"patches": "a.h5", "expression": "a.csv"}])
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(
        MissingPackageError, match=r"scipy.sparse is not installed; pip install 'timm-mvhybrid\[evaluate\]'"
    ):
        open_targets(table)
