import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from timm_mvhybrid.export.errors import ExportError
from timm_mvhybrid.predict import EncoderRecord, ExpressionPredictor, PredictorError
from timm_mvhybrid.runtime.digest import file_sha256
from timm_mvhybrid.runtime.errors import OutputError
from timm_mvhybrid.weights.hub_download import HubError

ENCODER = EncoderRecord(
    name="test_vit12",
    weights="random",
    weights_sha256="0" * 64,
    seed=0,
    transform={"input_size_px": [224, 224], "global_pool": "model"},
    patch_size_px=224,
    resolution_um_per_px=0.5,
)


def cohort():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 6)).astype(np.float32)
    y = X @ rng.normal(size=(6, 3)) + rng.normal(size=(60, 3))
    y[:, 2] = 1.5  # a gene without a correlation
    return X, y


@pytest.fixture(scope="module")
def fitted():
    X, y = cohort()
    return ExpressionPredictor().fit(
        X, y, studies=np.repeat(list("abcd"), 15), genes=["A|B", "CD3E", "É"], encoder=ENCODER
    )


@pytest.fixture
def folder(fitted, tmp_path):
    fitted.save(tmp_path / "predictor")
    return tmp_path / "predictor"


def test_what_is_loaded_is_what_was_saved(fitted, folder):
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "predictor.json",
        "predictor.safetensors",
    ]
    found = ExpressionPredictor.load(folder)
    assert found.get_params() == fitted.get_params()
    for name in (
        "genes_",
        "studies_",
        "n_features_in_",
        "alpha_",
        "num_components_",
        "far_distance_",
        "encoder_",
        "provenance_",
    ):
        assert getattr(found, name) == getattr(fitted, name)
    for name in ("r", "lower", "upper", "by_study", "predictable", "level"):
        np.testing.assert_array_equal(getattr(found.reliability_, name), getattr(fitted.reliability_, name))
    new = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    ours, theirs = fitted.predict(new), found.predict(new)
    for name in ("mean", "lower", "upper", "distance", "far"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_saving_again_gives_the_same_bytes(fitted, folder, tmp_path):
    ExpressionPredictor.load(folder).save(tmp_path / "again")
    for name in ("README.md", "predictor.json", "predictor.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_card_says_how_well_genes_are_predicted(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Predicts 3 genes" in card
    assert "Fitted on 4 studies" in card
    assert "| model | test_vit12 |" in card
    assert r"| A\|B | " in card
    assert "| É | nan | nan to nan | no |" in card
    assert 'load("hf-hub:ORGANISATION/NAME")' in card


def test_parameters_of_numpy_are_saved_as_numbers(tmp_path):
    X, y = cohort()
    predictor = ExpressionPredictor(alpha=np.float32(2), num_components=np.int64(3), seed=np.int64(1))
    predictor.fit(X, y, studies=np.repeat(list("abc"), 20)).save(tmp_path / "one")
    assert ExpressionPredictor.load(tmp_path / "one").get_params()["num_components"] == 3


def rewrite(folder, change):
    """Changes the arrays, and states their digest as whoever changes them on purpose would."""
    arrays = load_file(folder / "predictor.safetensors")
    change(arrays)
    metadata = metadata_of(folder)
    save_file(arrays, folder / "predictor.safetensors", metadata=metadata)
    state(
        folder,
        lambda stated: stated["files"].update(
            {"predictor.safetensors": file_sha256(folder / "predictor.safetensors")}
        ),
    )


def metadata_of(folder):
    from safetensors import safe_open

    with safe_open(folder / "predictor.safetensors", framework="np") as file:
        return file.metadata()


def state(folder, change):
    file = folder / "predictor.json"
    stated = json.loads(file.read_text(encoding="utf-8"))
    change(stated)
    file.write_text(json.dumps(stated), encoding="utf-8")


def cut(file):
    file.write_bytes(file.read_bytes()[:-3])


def one_byte(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "predictor.json").unlink(), r"predictor\.json: cannot be read as JSON \(No such file"),
        (lambda f: cut(f / "predictor.json"), r"predictor\.json: cannot be read as JSON"),
        (lambda f: (f / "predictor.json").write_text("[]"), "does not describe a predictor"),
        (lambda f: (f / "predictor.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        (lambda f: state(f, lambda s: s.update(format_version=2)), "has the format 2, and this version of timm-mvhybrid reads up to 1; upgrade it"),
        (lambda f: state(f, lambda s: s.update(format_version="1")), "does not describe a predictor"),
        (lambda f: state(f, lambda s: s["genes"].reverse()), "is not the description that predictor.safetensors was written with"),
        (lambda f: state(f, lambda s: s["encoder"].update(resolution_um_per_px=1.0)), "is not the description"),
        (lambda f: state(f, lambda s: s.pop("files")), "must state the file predictor.safetensors and no other"),
        (lambda f: state(f, lambda s: s.update(files={"../../secret": "0"})), "must state the file predictor.safetensors"),
        (lambda f: state(f, lambda s: s["files"].update({"/etc/passwd": "0"})), "must state the file predictor.safetensors"),
        (lambda f: (f / "predictor.safetensors").unlink(), r"predictor\.safetensors: missing"),
        (lambda f: cut(f / "predictor.safetensors"), "its sha256 is not the one that predictor.json states"),
        (lambda f: one_byte(f / "predictor.safetensors"), "its sha256 is not the one that predictor.json states"),
        (lambda f: rewrite(f, lambda a: a.update(mean=a["mean"][:-1])), r"the array 'scale' is float64 of shape \(6,\), not float64 of shape \(5,\)"),
        (lambda f: rewrite(f, lambda a: a.update(coefficients=a["coefficients"].T.copy())), r"the array 'components' is float64 of shape \(6, 6\), not float64 of shape \(3, 6\)"),
        (lambda f: rewrite(f, lambda a: a.pop("scale")), "lacks the array 'scale'"),
        (lambda f: rewrite(f, lambda a: a.pop("components")), "lacks the array 'components'"),
        (lambda f: rewrite(f, lambda a: a.update(more=np.ones(1))), "holds the array 'more'"),
        (lambda f: rewrite(f, lambda a: a.update(intercept=a["intercept"] * np.nan)), "'intercept' holds NaN or infinite values"),
        (lambda f: rewrite(f, lambda a: a.update(mean=a["mean"].astype(np.uint8))), "the array 'mean' is uint8 of shape"),
        (lambda f: rewrite(f, lambda a: a.update(mean=a["mean"][:0])), "the array 'mean' is float64 of shape"),
        (lambda f: rewrite(f, lambda a: a.update(variances=np.ones(9))), "the array 'variances' has 9 of 6 components"),
    ],
)  # fmt: skip
def test_what_was_damaged_or_changed_is_refused_in_one_sentence(folder, damage, message):
    damage(folder)
    with pytest.raises(PredictorError, match=message) as raised:
        ExpressionPredictor.load(folder)
    assert str(raised.value).startswith(str(folder))
    assert "\n" not in str(raised.value)


def test_arrays_of_another_predictor_are_refused(folder, tmp_path):
    X, y = cohort()
    other = tmp_path / "other"
    ExpressionPredictor(alpha=1.0).fit(X, y, studies=np.repeat(list("abcd"), 15)).save(other)
    shutil.copy(other / "predictor.safetensors", folder)
    state(
        folder,
        lambda s: s["files"].update({"predictor.safetensors": file_sha256(folder / "predictor.safetensors")}),
    )
    with pytest.raises(PredictorError, match="is not the description that"):
        ExpressionPredictor.load(folder)


def test_a_folder_is_not_overwritten_unasked(fitted, folder):
    before = (folder / "predictor.json").read_bytes()
    with pytest.raises(ExportError, match="exists already; replace it with `overwrite=True`"):
        fitted.save(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="holds other files"):
        fitted.save(folder, overwrite=True)
    (folder / "notes.txt").unlink()
    fitted.save(folder, overwrite=True)
    assert (folder / "predictor.json").read_bytes() == before


def test_nothing_stays_of_a_folder_that_the_disk_did_not_take(fitted, tmp_path, monkeypatch):
    import timm_mvhybrid.predict.predictor_files as files

    def fail(predictor):
        raise OutputError("the disk is full")

    monkeypatch.setattr(files, "write_card", fail)
    with pytest.raises(OutputError):
        fitted.save(tmp_path / "one")
    assert [entry.name for entry in tmp_path.iterdir() if "tmp" in entry.name or entry.is_dir()] == []


@pytest.mark.parametrize("source", ["hf-hub:name", "hf-hub:../../etc@main", "hf-hub:a/b@../x y", "hf-hub:"])
def test_names_that_are_none_of_the_hub_s(source):
    with pytest.raises((PredictorError, HubError)):
        ExpressionPredictor.load(source)


def test_folders_that_do_not_exist(tmp_path):
    with pytest.raises(PredictorError, match="no such folder; give one that 'timm-mvhybrid fit' wrote"):
        ExpressionPredictor.load(tmp_path / "missing")
