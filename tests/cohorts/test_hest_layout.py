import anndata
import h5py
import numpy as np
import pytest
from support.evaluation_goldens import unpack_hest_task
from support.hest_tasks import sample_arrays, write_studies, write_task

from timm_mvhybrid.cohorts.csv_tables import read_genes, read_studies
from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample, read_spots
from timm_mvhybrid.cohorts.hest_writer import write_sample
from timm_mvhybrid.data import DataError
from timm_mvhybrid.evaluate import EvaluationError


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path)


def edit(task, sample, change):
    file = task / "adata" / f"{sample}.h5ad"
    data = anndata.read_h5ad(file)
    data = change(data)
    data.write_h5ad(file)
    return file


def test_the_order_of_the_patches_wins(tmp_path):
    task = unpack_hest_task(tmp_path)
    found = open_task(tmp_path)
    assert found.samples == ["SYN0", "SYN1", "SYN2", "SYN3"]
    assert [(split.name, split.test) for split in found.splits] == [(str(i), (f"SYN{i}",)) for i in range(4)]
    sample = read_sample(found, "SYN2")
    with h5py.File(task / "patches" / "SYN2.h5") as file:
        barcodes = [name.decode() for name in file["barcode"][:, 0]]
    data = anndata.read_h5ad(task / "adata" / "SYN2.h5ad")
    assert sample.barcodes == barcodes
    assert barcodes != sorted(barcodes)
    assert len(barcodes) < data.n_obs
    np.testing.assert_array_equal(sample.counts.toarray(), data[barcodes].X.toarray())
    np.testing.assert_array_equal(sample.spatial, data[barcodes].obsm["spatial"])


def test_what_is_written_is_read_back(tmp_path):
    arrays = sample_arrays(5)
    write_sample(tmp_path, "A", **arrays, uns={"generated": "yes"})
    found = read_sample(open_task(tmp_path), "A")
    np.testing.assert_array_equal(found.counts.toarray(), arrays["counts"])
    np.testing.assert_array_equal(found.spatial, arrays["spatial"])
    assert (found.genes, found.barcodes, found.generated) == (arrays["genes"], arrays["barcodes"], True)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["A.h5", "A.h5ad"]


def test_a_missing_barcode_is_named_with_its_file(task):
    gone = read_sample(open_task(task), "S1").barcodes[3]
    file = edit(task, "S1", lambda data: data[[name for name in data.obs_names if name != gone]].copy())
    with pytest.raises(DataError, match=rf"{file}: barcode '{gone}' of S1.h5 is missing"):
        read_sample(open_task(task), "S1")


def test_a_barcode_that_occurs_twice_is_named_with_its_file(task):
    def repeat(data):
        names = list(data.obs_names)
        data.obs_names = [names[1], *names[1:]]
        return data

    file = edit(task, "S1", repeat)
    with pytest.raises(DataError, match=rf"{file}: barcode 'S1-.*' occurs more than once"):
        read_sample(open_task(task), "S1")
    with h5py.File(task / "patches" / "S2.h5", "r+") as stream:
        stream["barcode"][1] = stream["barcode"][0]
    with pytest.raises(DataError, match=r"S2.h5: dataset 'barcode': barcode 'S2-.*' occurs more than once"):
        read_sample(open_task(task), "S2")


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan])
def test_what_is_no_count_is_named_by_spot_and_gene(task, value):
    sample = read_sample(open_task(task), "S0")

    def spoil(data):
        data.X = data.X.toarray()
        data.X[list(data.obs_names).index(sample.barcodes[4]), 7] = value
        return data

    edit(task, "S0", spoil)
    with pytest.raises(DataError, match=rf"barcode '{sample.barcodes[4]}', gene 'G07' has the value {value}"):
        read_sample(open_task(task), "S0")


def test_a_sample_without_its_other_file_is_an_error(task):
    (task / "adata" / "S2.h5ad").unlink()
    with pytest.raises(DataError, match=r"adata/S2.h5ad: missing"):
        open_task(task)


def test_damaged_files_are_named(task):
    (task / "adata" / "S2.h5ad").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"S2.h5ad: cannot be read as an h5ad"):
        read_sample(open_task(task), "S2")


def test_splits_that_leak_or_name_what_is_not_there_are_errors(task):
    split = task / "splits" / "test_0.csv"
    original = split.read_text()
    split.write_text(original + "S1,patches/S1.h5,adata/S1.h5ad\n")
    with pytest.raises(DataError, match=r"'S1' is in both train_0.csv and test_0.csv"):
        open_task(task)
    split.write_text(original + "S9,patches/S9.h5,adata/S9.h5ad\n")
    with pytest.raises(DataError, match=r"test_0.csv: names patches/S9.h5, which does not exist"):
        open_task(task)
    split.write_text("sample_id,patches_path\nS0,patches/S0.h5\n")
    with pytest.raises(DataError, match=r"test_0.csv: lacks the column 'expr_path'"):
        open_task(task)
    split.unlink()
    with pytest.raises(DataError, match=r"test_0.csv: cannot be read"):
        open_task(task)


SPELLINGS = {
    "relative": lambda task, name: name,
    "dot": lambda task, name: f"./{name}",
    "up and down": lambda task, name: f"../TASK/adata/../{name}",
    "absolute": lambda task, name: str((task / name).resolve()),
    "absolute, not straight": lambda task, name: f"{task}/splits/..//{name}",
    "Windows": lambda task, name: name.replace("/", "\\"),
    "through a link": lambda task, name: str(task.parent / "link" / name),
}


def write_spelt(task, number, train, test, spell):
    for part, samples in (("train", train), ("test", test)):
        lines = ["sample_id,patches_path,expr_path"]
        lines += [
            f"{one},{spell(task, f'patches/{one}.h5')},{spell(task, f'adata/{one}.h5ad')}" for one in samples
        ]
        (task / "splits" / f"{part}_{number}.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_is_the_same_however_a_split_spells_it(task, spelling, monkeypatch):
    (task.parent / "link").symlink_to(task, target_is_directory=True)
    # the second split keeps the usual spelling: both are of one task
    write_spelt(task, 0, ["S1", "S2", "S3"], ["S0"], SPELLINGS[spelling])
    for root in (task, task.resolve()):
        found = open_task(root)
        assert found.samples == ["S0", "S1", "S2", "S3"]
        assert found.splits[0].test == ("S0",)
        assert found.splits[1].test == ("S1",)
    monkeypatch.chdir(task.parent)
    assert open_task("TASK").splits[0].train == ("S1", "S2", "S3")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_sample_outside_the_folders_is_the_same_in_all_splits(task, spelling):
    (task.parent / "link").symlink_to(task, target_is_directory=True)
    for folder, suffix in (("patches", ".h5"), ("adata", ".h5ad")):
        (task / "elsewhere" / folder).mkdir(parents=True)
        (task / folder / f"S0{suffix}").rename(task / "elsewhere" / folder / f"S0{suffix}")
    write_spelt(task, 0, ["S1"], ["S2"], lambda _, name: name)
    for number, spell in ((1, SPELLINGS["relative"]), (2, SPELLINGS[spelling])):
        write_spelt(
            task,
            number,
            ["S0"],
            ["S1"],
            lambda task, name, spell=spell: spell(task, f"elsewhere/{name}" if "S0" in name else name),
        )
    write_spelt(task, 3, ["S1"], ["S2"], lambda _, name: name)
    found = open_task(task)
    assert found.samples == ["S0", "S1", "S2", "S3"]
    assert read_sample(found, "S0").barcodes[0].startswith("S0-")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("/somewhere/else/patches/S0.h5", "names /somewhere/else/patches/S0.h5, which does not exist, for sample 'S0'"),
        (r"C:\data\TASK\patches\S0.h5", r"names C:\\data\\TASK\\patches\\S0.h5, which does not exist"),
        ("../patches/S0.h5", "names ../patches/S0.h5, which does not exist"),
        ("patches/S0.h5/S0.h5", "names patches/S0.h5/S0.h5, which does not exist"),
        ("patches", "names patches, which is not a file"),
        ("x" * 300, r"names x+, which cannot be reached \(File name too long\)"),
        ("patches/S1.h5", "sample 'S0' has the file .*patches/S1.h5, and .*patches/S0.h5 in the rest of the task"),
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere_or_elsewhere_are_named_with_their_table(task, named, message):
    (task / "splits" / "test_0.csv").write_text(
        f"sample_id,patches_path,expr_path\nS0,{named},adata/S0.h5ad\n"
    )
    with pytest.raises(DataError, match=rf"test_0\.csv: {message}"):
        open_task(task)


def test_one_file_is_not_two_samples(task):
    (task / "splits" / "test_0.csv").write_text(
        "sample_id,patches_path,expr_path\nS0.h5,patches/S0.h5,adata/S0.h5ad\n"
    )
    with pytest.raises(
        DataError, match=r"test_0\.csv: sample 'S0\.h5' has a file of sample 'S0'.* by one name"
    ):
        open_task(task)


def test_counts_are_taken_from_a_layer(task):
    def move(data):
        data.layers["counts"] = data.X.copy()
        del data.X
        return data

    expected = read_sample(open_task(task), "S1")
    edit(task, "S1", move)
    with pytest.raises(DataError, match=r"S1\.h5ad: has no X, .*: take them by `counts_layer='counts'`"):
        read_sample(open_task(task), "S1")
    found = read_sample(open_task(task), "S1", "counts")
    np.testing.assert_array_equal(found.counts.toarray(), expected.counts.toarray())
    assert found.barcodes == expected.barcodes


def test_one_of_several_tasks_has_to_be_named(tmp_path, task):
    write_task(tmp_path / "more", num_samples=2)
    (tmp_path / "more" / "TASK").rename(tmp_path / "OTHER")
    with pytest.raises(DataError, match="has the tasks OTHER, TASK; choose one with `task`"):
        open_task(tmp_path)
    assert open_task(tmp_path, "OTHER").samples == ["S0", "S1"]
    with pytest.raises(DataError, match="has no task 'X'; it has OTHER, TASK"):
        open_task(tmp_path, "X")
    with pytest.raises(DataError, match="no such folder"):
        open_task(tmp_path / "nowhere")


def test_studies_are_read_and_checked(tmp_path):
    file = write_studies(
        tmp_path / "s.csv", {"S0": "a", "S1": "b", "S9": "c"}, {"S0": "p", "S1": "q", "S9": "q"}
    )
    assert read_studies(file, ["S0", "S1"]) == ({"S0": "a", "S1": "b"}, {"S0": "p", "S1": "q"})
    with pytest.raises(DataError, match="lacks the sample 'S2'"):
        read_studies(file, ["S0", "S2"])
    with pytest.raises(DataError, match="patient 'q' has samples in the studies 'b' and 'c'"):
        read_studies(file, ["S1", "S9"])
    file.write_text("sample_id,study\nS0,a\nS0,b\n")
    with pytest.raises(DataError, match="sample 'S0' occurs more than once"):
        read_studies(file, ["S0"])
    file.write_text("sample_id,study\nS0,\n")
    with pytest.raises(DataError, match="line 2 has no 'study'"):
        read_studies(file, ["S0"])


def test_gene_lists_are_checked(tmp_path):
    file = tmp_path / "genes.json"
    file.write_text('{"genes": ["B", "A"]}')
    assert read_genes(file) == ["B", "A"]
    for text, message in (
        ("[1]", "must hold"),
        ("{", "cannot be read as JSON"),
        ('{"genes": ["A", "A"]}', "gene 'A' occurs"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_genes(file)


def test_arrays_that_do_not_fit_are_not_written(tmp_path):
    arrays = sample_arrays(0)
    with pytest.raises(EvaluationError, match="sample 'A'"):
        write_sample(tmp_path, "A", **{**arrays, "barcodes": arrays["barcodes"][1:]})
    assert not list(tmp_path.iterdir())


def test_patches_without_counts_are_left_out_where_that_is_asked_for(task):
    files = open_task(task).files["S1"]
    whole = read_spots("S1", *files)
    assert whole.rows.tolist() == list(range(len(whole.barcodes)))
    gone = whole.barcodes[3]
    edit(task, "S1", lambda data: data[[name for name in data.obs_names if name != gone]].copy())
    with pytest.raises(DataError, match=f"barcode '{gone}'"):
        read_spots("S1", *files)
    fewer = read_spots("S1", *files, leave_out_unmeasured=True)
    kept = [row for row in range(len(whole.barcodes)) if row != 3]
    assert fewer.rows.tolist() == kept
    assert fewer.barcodes == [whole.barcodes[row] for row in kept]
    np.testing.assert_array_equal(fewer.counts.toarray(), whole.counts[kept].toarray())
    np.testing.assert_array_equal(fewer.spatial, whole.spatial[kept])
