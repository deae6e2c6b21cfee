import json

import numpy as np
import pytest
import torch
from support.measured_cohorts import GENES, write_manifest, write_spots, write_transcripts

from timm_mvhybrid.data import DataError
from timm_mvhybrid.finetune.data import CohortConfig, open_cohorts
from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.ssl.config import CropConfig

CROPS = CropConfig(global_size_px=32, local_size_px=16, num_local=1)
STUDIES = {"S0": "A", "S1": "A", "S2": "B", "S3": "C"}
COMMON = ("image", "global_crops", "local_crops", "indices")


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohorts")
    write_spots(root / "breast", STUDIES)
    other = [f"G{index:02d}" for index in range(4, 16)]
    write_spots(root / "colon", {"S7": "D", "S8": "E"}, genes=other)
    (root / "sets.gmt").write_text(
        "\n".join(["X\t\t" + "\t".join(GENES[:6]), "Y\t\t" + "\t".join(GENES[5:])]) + "\n"
    )
    write_manifest(
        root / "cohorts.json",
        {"path": "breast", "normalise": "cpm", "genes": 5},
        {"path": "colon", "normalise": "cpm", "weight": 2},
    )
    return root


def opened(spots, **options):
    config = {"sources": (str(spots / "cohorts.json"),), "num_workers": 0, "hold_out": ("C", "E"), **options}
    return open_cohorts(CohortConfig(**config))


def batches(data, **options):
    return list(data.batches(**{"crops": CROPS, "batch_size": 8, "num_steps": 6, "seed": 0, **options}))


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, values in first.items():
        if isinstance(values, torch.Tensor):
            torch.testing.assert_close(second[name], values, rtol=0, atol=0)


def test_targets_are_those_of_the_patches_that_a_batch_holds(spots):
    data = opened(spots, pathways=spots / "sets.gmt")
    assert {name: len(panel.genes) for name, panel in data.panels.items()} == {"breast": 5, "colon": 12}
    seen = set()
    for batch in batches(data):
        assert batch["global_crops"] is batch["crops"].global_crops
        assert batch["image"].shape == (8, 3, 32, 32)
        for row, index in enumerate(batch["indices"].tolist()):
            source, patch = data.patches.locate(index)
            number = data._train[source]
            name = data.samples[number].entry.panel_name
            other = {"breast": "colon", "colon": "breast"}[name]
            seen.add((number, name))
            pixels = data.samples[number].source[patch]
            np.testing.assert_array_equal(batch["image"][row].permute(1, 2, 0).numpy(), pixels)
            expected = data.targets[number].expression[patch].toarray()[0]
            np.testing.assert_array_equal(batch[f"expression/{name}"][row].numpy(), expected)
            assert batch[f"measured/{name}"][row].all()
            assert not batch[f"measured/{other}"][row].any()
            assert not batch[f"expression/{other}"][row].any()
            np.testing.assert_array_equal(batch["pathways"][row].numpy(), data.pathways.values[number][patch])
            assert batch["pathways_measured"][row].any()
    assert {number for number, _ in seen} == {0, 1, 2, 4}, "and none that is held out"


def test_weights_decide_how_often_a_cohort_is_drawn(spots):
    data = opened(spots)
    sizes = dict(zip(data.patches.names, data.patches.sizes, strict=True))
    assert sizes == {"breast/S0": 24, "breast/S1": 24, "breast/S2": 24, "colon/S7": 24}
    one_epoch = batches(data, batch_size=24, num_steps=5)
    panel = torch.cat([batch["measured/colon"].any(dim=1) for batch in one_epoch])
    assert (int(panel.sum()), len(panel)) == (48, 120)


def test_a_run_that_goes_on_and_two_ranks_see_the_same(spots):
    data = opened(spots, pathways=spots / "sets.gmt")
    whole = batches(data)
    for first, second in zip(whole[4:], batches(data, start_step=4), strict=True):
        assert_equal(first, second)
    workers = opened(spots, pathways=spots / "sets.gmt", num_workers=1)
    for first, second in zip(whole, batches(workers), strict=True):
        assert_equal(first, second)
    ranks = [batches(data, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    for one, *parts in zip(whole, *ranks, strict=True):
        for name in ("image", "indices", "expression/breast", "measured/colon", "pathways"):
            torch.testing.assert_close(torch.cat([part[name] for part in parts]), one[name], rtol=0, atol=0)


def test_validation_holds_what_training_does_not(spots):
    data = opened(spots)
    assert data.num_validation_patches == 48
    assert {data.samples[number].study for number in data.validation} == {"C", "E"}


def test_statistics_know_nothing_of_what_is_held_out(spots, tmp_path):
    data = opened(spots)
    for study in ("A", "B"):
        other = opened(spots, hold_out=(study, "E"))
        assert not np.array_equal(other.panels["breast"].mean, data.panels["breast"].mean)
    everything = opened(spots, split="none", hold_out=())
    assert not everything.validation
    assert len(everything.patches) == 6 * 24
    number = everything.targets[0]
    mean = np.mean([part.expression.toarray().mean(axis=0) for part in everything.targets[:4]], axis=0)
    np.testing.assert_allclose(number.panel.mean, mean, rtol=1e-5)


def test_the_fingerprint_knows_counts_sets_and_split(spots, tmp_path):
    sets = tmp_path / "sets.gmt"
    sets.write_text((spots / "sets.gmt").read_text().replace("G00", "G01"))
    changes = (
        {},
        {"hold_out": ("B", "E")},
        {"min_genes": 7},
        {"pathways": sets},
        {"pathways": None},
        {"pathway_method": "ssgsea"},
    )
    options = {"pathways": spots / "sets.gmt"}
    found = {opened(spots, **{**options, **change}).fingerprint() for change in changes}
    assert len(found) == len(changes)
    data = opened(spots, **options)
    assert data.fingerprint() in found
    data.samples[0].counts.data[0] += 1
    assert data.fingerprint() not in found


def test_patches_without_counts_are_seen_and_not_measured(spots, tmp_path):
    import anndata

    root = write_spots(tmp_path / "holes", {"S0": "A", "S1": "B"})
    file = root / "adata" / "S0.h5ad"
    table = anndata.read_h5ad(file)
    counts = table.X.tolil()
    counts[0] = 0  # measured, without a single count
    table.X = counts.tocsr()
    table[:20].copy().write_h5ad(file)
    manifest = write_manifest(tmp_path / "m.json", {"path": "holes", "normalise": "cpm"})
    data = open_cohorts(CohortConfig(sources=(str(manifest),), hold_out=("B",), num_workers=0))
    assert data.panels["holes"].num_training_patches == 19
    assert len(data.patches) == 24
    (note,) = data.notes
    assert note.endswith("S0.h5: 5 of 24 patches have no counts")
    measured = torch.cat([batch["measured/holes"].any(dim=1) for batch in batches(data, num_steps=3)])
    assert int(measured.sum()) == 19


def test_transcripts_and_spots_in_one_run(tmp_path):
    pytest.importorskip("pyarrow")
    write_transcripts(tmp_path / "lung", {"X0": "L", "X1": "M"})
    write_spots(tmp_path / "breast", {"S0": "A", "S1": "B"})
    manifest = write_manifest(tmp_path / "m.json", "lung", {"path": "breast", "spot_area_um2": 2375.0})
    config = CohortConfig(
        sources=(str(manifest),),
        hold_out=("M", "B"),
        num_workers=0,
        token_grid=4,
        token_pool=2,
        split="study",
    )
    data = open_cohorts(config)
    lung = data.panels["lung"]
    assert (lung.platform, lung.normalise, lung.grid, lung.genes) == ("transcripts", "area", 2, tuple(GENES))
    assert all("transcripts of 12 genes count; left out are" in note for note in data.notes)
    assert "of controls (blank " in data.notes[0]
    sample = data.samples[0]
    assert sample.area_um2 == 16.0**2
    assert sample.counts.sum() == sample.tokens.sum() > 500
    (batch,) = batches(data, batch_size=30, num_steps=1)
    assert batch["token_expression/lung"].shape == (30, 4, 12)
    assert "token_expression/breast" not in batch
    measured = batch["token_measured/lung"].flatten(1).all(dim=1)
    assert measured.tolist() == (~batch["measured/breast"].any(dim=1)).tolist()
    assert int(measured.sum()) == 6
    # four cells of a quarter of the patch's area each: their means per area are that of the patch
    cells = torch.expm1(batch["token_expression/lung"][measured]).mean(dim=1)
    torch.testing.assert_close(cells, torch.expm1(batch["expression/lung"][measured]), rtol=1e-5, atol=1e-4)


def test_the_size_of_a_pixel_is_the_manifests_then_the_metadatas(tmp_path):
    pytest.importorskip("pyarrow")
    write_transcripts(tmp_path / "lung", {"X0": "L"}, metadata={"pixel_size_um_estimated": 0.5})
    options = {"split": "none", "num_workers": 0}
    data = open_cohorts(CohortConfig(sources=(str(tmp_path / "lung"),), **options))
    assert data.samples[0].area_um2 == 32.0**2
    manifest = write_manifest(tmp_path / "m.json", {"path": "lung", "um_per_px": 1})
    assert open_cohorts(CohortConfig(sources=(str(manifest),), **options)).samples[0].area_um2 == 64.0**2
    (tmp_path / "lung" / "metadata" / "X0.json").write_text("[]")
    with pytest.raises(DataError, match=r"X0\.json: cannot be read as metadata"):
        open_cohorts(CohortConfig(sources=(str(tmp_path / "lung"),), **options))


def test_transcripts_of_another_image_are_noticed(tmp_path):
    pytest.importorskip("pyarrow")
    import h5py

    root = write_transcripts(tmp_path / "lung", {"X0": "L"})
    with h5py.File(root / "patches" / "X0.h5", "r+") as file:
        file["coords"][:] += 10_000
    with pytest.raises(
        DataError, match=r"no transcript lies in a patch of .*X0\.h5 .x: transcripts 90 to 310, patches 10100"
    ):
        open_cohorts(CohortConfig(sources=(str(root),), split="none"))
    with h5py.File(root / "patches" / "X0.h5", "r+") as file:
        del file["coords"]
    with pytest.raises(DataError, match="has no dataset 'coords'"):
        open_cohorts(CohortConfig(sources=(str(root),), split="none"))
    (root / "patches" / "X0.h5").unlink()
    with pytest.raises(DataError, match=r"X0\.h5: missing, and .*X0\.parquet exists"):
        open_cohorts(CohortConfig(sources=(str(root),), split="none"))


def test_cohorts_that_cannot_be_used(spots, tmp_path):
    with pytest.raises(DataError, match="needs the area of a spot: give `spot_area_um2`"):
        open_cohorts(CohortConfig(sources=(str(spots / "breast"),)))
    root = write_spots(tmp_path / "alone", {"S0": "A", "S1": "A"})
    file = write_manifest(tmp_path / "m.json", {"path": "alone", "normalise": "cpm"})
    with pytest.raises(
        DataError, match=r"studies\.csv: the column study has 'A' only, and there is no column patient"
    ):
        open_cohorts(CohortConfig(sources=(str(file),)))
    (root / "studies.csv").unlink()
    with pytest.raises(
        DataError, match=r"studies\.csv: missing, so which samples are of one patient is unknown"
    ):
        open_cohorts(CohortConfig(sources=(str(file),)))
    (root / "transcripts").mkdir()
    with pytest.raises(DataError, match="has both adata/ and transcripts/; choose by `platform='spots'`"):
        open_cohorts(CohortConfig(sources=(str(file),), split="none"))
    file.write_text(json.dumps({"cohorts": [{"path": "alone", "platform": "transcripts"}]}))
    with pytest.raises(DataError, match=r"has no transcripts/\*\.parquet"):
        open_cohorts(CohortConfig(sources=(str(file),), split="none"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ()}, "`data.sources` is empty"),
        ({"token_pool": 3}, "`data.token_pool` is 3; it must be a divisor of `?data.token_grid=16"),
        ({"num_genes": 0}, "`data.num_genes` is 0"),
    ],
)
def test_settings_outside_their_range(change, message):
    with pytest.raises(PretrainError, match=message):
        CohortConfig(**{"sources": ("a",), **change})


def test_genes_that_cannot_be_predicted_are_noted(tmp_path):
    import anndata

    root = write_spots(tmp_path / "flat", {"S0": "A", "S1": "B"})
    file = root / "adata" / "S0.h5ad"
    table = anndata.read_h5ad(file)
    counts = table.X.tolil()
    counts[:, 3] = 0
    table.X = counts.tocsr()
    table.write_h5ad(file)
    (tmp_path / "genes.json").write_text(json.dumps({"genes": GENES[:4]}))
    manifest = write_manifest(
        tmp_path / "m.json", {"path": "flat", "normalise": "cpm", "genes": "genes.json"}
    )
    data = open_cohorts(CohortConfig(sources=(str(manifest),), hold_out=("B",), num_workers=0))
    assert data.notes == [
        "panel flat: 1 of 4 genes do not vary among training patches and are not predicted ('G03' …)"
    ]
    (number,) = data.validation
    targets = data.targets_of([(number, patch) for patch in range(24)])
    assert targets["measured/flat"].any(dim=0).tolist() == [True, True, True, False]
