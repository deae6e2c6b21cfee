import csv
import importlib.util
import json
import random
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from support.generated_patches import random_patches, write_hest
from torch import nn

from timm_mvhybrid.cohorts.counts import Counts
from timm_mvhybrid.pretrain.expression_table import most_variable_genes, read_expression
from timm_mvhybrid.pretrain.labelled_set import open_labelled_set
from timm_mvhybrid.pretrain.online_probe import OnlineProbe, undisturbed
from timm_mvhybrid.pretrain.probe_scores import accuracies, expression_correlation, knn_predictions
from timm_mvhybrid.runtime.errors import MissingPackageError, PretrainError
from timm_mvhybrid.runtime.process_group import close_process_group

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


def test_neighbours_vote_by_their_similarity():
    angles = torch.tensor([0.0, 0.55, 0.6, 0.7, 0.8]).double()
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([1, 5, 2, 1, 9])[:, None]
    labels = torch.tensor([0, 0, 1, 1, 1])
    everyone = torch.ones(5, dtype=torch.bool)
    assert knn_predictions(features, labels, everyone, k=1).tolist() == [0, 1, 0, 1, 1]
    # the one at 0.55 outvotes the two behind it, and not the three
    votes = torch.exp(torch.cos(angles[1:]) / 0.07)
    assert votes[1:3].sum() < votes[0] < votes[1:].sum()
    assert knn_predictions(features, labels, everyone, k=3)[0] == 0
    assert knn_predictions(features, labels, everyone, k=4)[0] == 1


def test_groups_do_not_vouch_for_themselves():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    labels, everyone = torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    assert knn_predictions(features, labels, everyone, torch.tensor([0, 0, 1, 1])).tolist() == [1, 1, 0, 0]
    assert knn_predictions(features, labels, everyone, torch.zeros(4, dtype=torch.int64)).tolist() == [-1] * 4


def test_only_the_reference_votes():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.1]])
    reference = torch.tensor([True, False, False])
    assert knn_predictions(features, torch.tensor([0, 1, 1]), reference).tolist() == [-1, 0, 0]


def test_balanced_accuracy_weighs_classes_alike():
    scores = accuracies(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1]))
    assert scores == pytest.approx({"accuracy": 0.75, "balanced_accuracy": 0.5})


def test_a_folder_per_class(tmp_path):
    probe = OnlineProbe(write_classes(tmp_path), **OPTIONS)
    assert probe.labelled.classes == ("stroma", "tumour", "white")
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


def test_a_csv_with_groups(tmp_path):
    write_classes(tmp_path / "images")
    rows = [
        {"path": f"images/{name}/{index}.png", "label": name, "group": name}
        for name in COLOURS
        for index in range(7)
    ]
    probe = OnlineProbe(write_table(tmp_path / "set.csv", rows), **OPTIONS)
    assert "each group left out" in probe.protocol
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
    mp.spawn(run_rank, (2, folder, tmp_path / "rendezvous", "rank"), nprocs=2)
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
    ([{"path": "missing.png", "label": "a"}], "line 2: .*missing.png is no file"),
    ([{"path": "0.png", "label": "a"}], "holds the class 'a' only"),
    ([{"path": "0.png", "label": name, "split": "valid"} for name in "ab"], "split is 'valid'"),
    ([{"path": "0.png", "label": name, "split": "test"} for name in "ab"], "every split is 'test'"),
    ([{"path": "0.png", "label": name, "group": "p"} for name in "ab"], "there is one group only"),
]


@pytest.mark.parametrize(("rows", "message"), PROBLEMS)
def test_incomplete_sets_name_file_and_remedy(tmp_path, rows, message):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(PretrainError, match=message):
        open_labelled_set(write_table(tmp_path / "set.csv", rows))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n", "holds no row"),
        ("path,label\na.png\n", "line 2 has another number of columns"),
        ("", "holds no row"),
        (None, "cannot be read as a CSV"),
    ],
)
def test_damaged_tables_are_named(tmp_path, content, message):
    path = tmp_path / "set.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PretrainError, match=rf"set\.csv: .*{message}"):
        open_labelled_set(path)


def test_images_outside_the_classes_are_named(tmp_path):
    write_classes(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "stray.png")
    with pytest.raises(PretrainError, match=r"stray\.png: lies outside the folders of classes"):
        open_labelled_set(tmp_path)


def write_counts(path, barcodes, genes, counts):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", *genes])
        writer.writerows([name, *row] for name, row in zip(barcodes, counts.tolist(), strict=True))
    return path


@needs_sklearn
def test_genes_are_scaled_logarithmised_and_chosen_by_variance(tmp_path):
    counts = np.array([[1, 9, 10], [1, 29, 10], [0, 0, 0]])
    table = read_expression(write_counts(tmp_path / "a.csv", "xyz", ["weak", "rich", "even"], counts))
    genes, values = most_variable_genes([table], 2)
    # median of the totals 20 and 40 is 30; a spot without counts stays 0
    logs = np.log1p(counts * np.array([[30 / 20], [30 / 40], [0]]))
    order = np.argsort(-logs.var(axis=0), kind="stable")[:2]
    assert set(genes) == {np.array(["weak", "rich", "even"])[index] for index in order}
    columns = [["weak", "rich", "even"].index(gene) for gene in genes]
    np.testing.assert_allclose(values, logs[:, columns], rtol=1e-6)
    assert np.all(np.diff(values.var(axis=0)) <= 1e-9)


@needs_sklearn
@pytest.mark.parametrize("num_tables", [1, 3])
def test_genes_of_half_a_million_spots_are_told_from_rounding(num_tables):
    """Sums of float32 would give the constant genes a variance, and cancel that of the weak one."""
    sparse = pytest.importorskip("scipy.sparse")
    num_spots = 510_000 // num_tables
    # every spot has 1,000 counts, so that nothing is scaled
    spots = np.arange(num_spots) % 100 < 50
    columns = np.stack([np.full(num_spots, 600), 300 + spots, np.zeros(num_spots), 100 - spots], axis=1)
    tables = [
        Counts(
            path=Path(f"{index}.h5ad"),
            barcodes=(),
            genes=("high", "weak", "absent", "low"),
            values=sparse.csr_matrix(columns.astype(np.float64)),
        )
        for index in range(num_tables)
    ]
    genes, values = most_variable_genes(tables, 4)
    assert genes == ("low", "weak")
    assert values.shape == (num_spots * num_tables, 2)


@needs_sklearn
def test_only_genes_of_all_samples_are_predicted(tmp_path):
    counts = np.array([[1, 9], [9, 1]])
    tables = [
        read_expression(write_counts(tmp_path / f"{name}.csv", "xy", genes, counts))
        for name, genes in (("a", ["g1", "g2"]), ("b", ["g2", "g3"]))
    ]
    genes, values = most_variable_genes(tables, 50)
    assert genes == ("g2",)
    assert values.shape == (4, 1)
    np.testing.assert_allclose(values[:2, 0], values[:2, 0][::1])
    assert values[0, 0] > values[1, 0]
    assert values[2, 0] < values[3, 0]


@needs_sklearn
def test_correlation_tells_features_that_predict_from_noise():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(120, 16)).astype(np.float32)
    expression = (features @ generator.normal(size=(16, 5))).astype(np.float32)
    groups = np.repeat(np.arange(4), 30)
    assert expression_correlation(features, expression, groups)["pearson"] > 0.95
    noise = generator.normal(size=(120, 16)).astype(np.float32)
    assert abs(expression_correlation(noise, expression, groups)["pearson"]) < 0.2
    constant = np.ones_like(features)
    assert expression_correlation(constant, expression, groups)["pearson"] == 0


@needs_sklearn
def test_correlation_does_not_see_a_shift_of_the_expression():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(2000, 8)).astype(np.float32)
    expression = features @ generator.normal(size=(8, 3)) + 4 * generator.normal(size=(2000, 3))
    # to be exact in float32 with and without the shift
    expression = (np.round(expression * 256) / 256).astype(np.float32)
    groups = np.repeat(np.arange(4), 500)
    found, shifted = (
        expression_correlation(features, expression + shift, groups)["pearson"]
        for shift in (np.float32(0), np.float32(16_384))
    )
    assert found > 0.3
    # sums of 1,500 spots in float64, of values up to 16,384 where the deviation is 5
    assert abs(shifted - found) < 1500 * 2**-53 * 16_384


@needs_sklearn
def test_a_single_slide_is_held_out_in_stripes():
    generator = np.random.default_rng(0)
    coords = np.stack([np.arange(80) * 10, generator.integers(0, 50, 80)], axis=1)
    # one-hot places predict neighbours, and nothing across stripes
    place = np.eye(40, dtype=np.float32)[np.arange(80) // 2]
    expression = np.repeat(generator.normal(size=(40, 3)), 2, axis=0).astype(np.float32)
    one = np.zeros(80, dtype=np.int64)
    assert expression_correlation(place, expression, one, coords)["pearson"] < 0.3
    alternating = np.arange(80) % 2
    assert expression_correlation(place, expression, alternating, coords)["pearson"] > 0.8
    with pytest.raises(PretrainError, match="one group without coordinates"):
        expression_correlation(place, expression, one)
    with pytest.raises(PretrainError, match="3 spots, too few"):
        expression_correlation(place[:3], expression[:3], one[:3], coords[:3])


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
    probe = OnlineProbe(write_table(tmp_path / "set.csv", rows), num_genes=2, **OPTIONS)
    assert len(probe.labelled) == 48
    assert probe.labelled.genes in (("bright", "dark"), ("dark", "bright"))
    scores = probe(MeanColour())
    assert scores["expression_pearson"] > 0.9
    assert "2 genes, groups held out, 48 spots" in probe.protocol


@needs_sklearn
def test_counts_of_the_probe_are_taken_from_a_layer(tmp_path):
    anndata = pytest.importorskip("anndata")
    write_hest(tmp_path / "a.h5", random_patches(3), ["x", "y", "z"])
    write_h5ad(tmp_path / "a.h5ad", ["x", "y", "z"], ["g", "h"], np.array([[1, 9], [5, 5], [9, 1]]))
    data = anndata.read_h5ad(tmp_path / "a.h5ad")
    data.layers["umi"], data.X = data.X, data.X / 2
    data.write_h5ad(tmp_path / "a.h5ad")
    table = write_table(tmp_path / "set.csv", [{"patches": "a.h5", "expression": "a.h5ad"}])
    with pytest.raises(
        PretrainError, match=r"a\.h5ad: .* has the value 0\.5 in X.* by --monitor\.probe-counts-layer umi"
    ):
        OnlineProbe(table, **OPTIONS)
    probe = OnlineProbe(table, counts_layer="umi", **OPTIONS)
    assert probe.labelled.genes == ("g", "h")
    # every spot has the median total, 10
    np.testing.assert_allclose(probe.labelled.expression[:, 0], np.log1p([1, 5, 9]), rtol=1e-6)


def write_h5ad(path, barcodes, genes, counts):
    anndata = pytest.importorskip("anndata")
    import pandas as pd
    from scipy.sparse import csr_matrix

    data = anndata.AnnData(
        csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(index=pd.Index(barcodes, dtype=object)),
        var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
    )
    data.write_h5ad(path)


@needs_sklearn
@pytest.mark.parametrize(
    ("barcodes", "counts", "message"),
    [
        (["SPOT-X", "SPOT-Y"], [[1], [2]], "share no barcode"),
        (["SPOT-000-ä", "SPOT-000-ä"], [[1], [2]], "barcode 'SPOT-000-ä' occurs more than once"),
        (["SPOT-000-ä", "x"], [[-1], [2]], "has the value -1.0 in the table, which is not a count"),
        (["SPOT-000-ä", "SPOT-001-ä"], [[3], [3]], "no gene varies"),
    ],
)
def test_unusable_expression_is_named(tmp_path, barcodes, counts, message):
    write_hest(tmp_path / "a.h5", random_patches(2))
    write_counts(tmp_path / "a.csv", barcodes, ["gene"], np.array(counts))
    table = write_table(tmp_path / "set.csv", [{"patches": "a.h5", "expression": "a.csv"}])
    with pytest.raises(PretrainError, match=message):
        open_labelled_set(table)


@needs_sklearn
def test_patches_without_barcodes_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["imgs"] = random_patches(2)
    write_counts(tmp_path / "a.csv", ["x"], ["gene"], np.array([[1]]))
    table = write_table(tmp_path / "set.csv", [{"patches": "a.h5", "expression": "a.csv"}])
    with pytest.raises(PretrainError, match=r"line 2: .*a\.h5 has no barcodes"):
        open_labelled_set(table)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    write_counts(tmp_path / "a.csv", ["x"], ["gene"], np.array([[1]]))
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(
        MissingPackageError, match=r"scipy.sparse is not installed; pip install 'timm-mvhybrid\[evaluate\]'"
    ):
        read_expression(tmp_path / "a.csv")
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(PretrainError, match=r"needs scikit-learn .*pip install 'timm-mvhybrid\[evaluate\]'"):
        expression_correlation(np.ones((4, 2)), np.ones((4, 1)), np.arange(4))
