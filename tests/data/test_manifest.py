import json

import numpy as np
import pytest
from PIL import Image
from support.generated_patches import (
    random_patches,
    trident_attributes,
    write_coordinates,
    write_hest,
    write_images,
)
from support.generated_slides import write_slide

from timm_mvhybrid.data import (
    CoordinateH5Source,
    DataError,
    FolderSource,
    PatchH5Source,
    Samples,
    SlideSource,
    manifest,
    open_samples,
    read_manifest,
    samples,
)

FIRST, SECOND = random_patches(3, size=16, seed=1), random_patches(2, size=16, seed=2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "patches").mkdir()
    write_hest(tmp_path / "patches" / "b.h5", SECOND)
    write_hest(tmp_path / "patches" / "a.h5", FIRST)
    return tmp_path


def write_manifest(path, *entries):
    path.write_text(json.dumps({"sources": list(entries)}))
    return path


def test_sources_follow_each_other(folder):
    found = open_samples([folder / "patches" / "b.h5", folder / "patches" / "a.h5"])
    assert len(found) == 5
    assert [found.locate(index) for index in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    np.testing.assert_array_equal(np.stack([found[i] for i in range(5)]), [*SECOND, *FIRST])
    assert found.name(3).startswith(f"{folder / 'patches' / 'a.h5'} patch 1")
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"sample {index} of 5"):
            found[index]


def test_a_manifest_gives_weights_and_paths_relative_to_itself(folder, monkeypatch):
    file = write_manifest(
        folder / "data.json", {"path": "patches/b.h5", "weight": 2.5, "name": "second"}, "patches/a.h5"
    )
    monkeypatch.chdir("/")
    found = open_samples(file)
    assert (found.sizes, found.weights, found.names) == (
        (2, 3),
        (2.5, 1.0),
        ("second", "a.h5"),
    )


def test_weights_of_nested_manifests_multiply(folder):
    write_manifest(folder / "patches" / "manifest.json", {"path": "a.h5", "weight": 3}, {"path": "b.h5"})
    outer = write_manifest(folder / "data.json", {"path": "patches", "weight": 0.5, "name": "store"})
    found = open_samples(outer)
    assert found.weights == (1.5, 0.5)
    assert found.names == ("store/a.h5", "store/b.h5")


def test_a_manifest_that_holds_itself(folder):
    file = write_manifest(folder / "data.json", "data.json")
    with pytest.raises(DataError, match=r"data\.json: the manifest holds itself"):
        open_samples(file)


def test_a_folder_of_patch_files_is_as_many_sources(folder):
    (folder / "patches" / "notes.txt").write_text("")
    found = open_samples(folder / "patches")
    assert [source.path.name for source in found.sources] == ["a.h5", "b.h5"]
    assert found.names == ("a.h5", "b.h5")


def test_a_folder_of_coordinate_files_finds_its_slides_in_another(tmp_path):
    for name in ("one", "two"):
        (tmp_path / "slides").mkdir(exist_ok=True)
        (tmp_path / "coords" / "patches").mkdir(exist_ok=True, parents=True)
        write_slide(tmp_path / "slides" / f"{name}.tif")
        attributes = {**trident_attributes(128), "name": name}
        write_coordinates(
            tmp_path / "coords" / "patches" / f"{name}_patches.h5", [[256, 256]], attributes=attributes
        )
    file = write_manifest(tmp_path / "data.json", {"path": "coords", "slide": "slides"})
    found = open_samples(file)
    assert [type(source) for source in found.sources] == [CoordinateH5Source] * 2
    assert [source.slide.path.name for source in found.sources] == ["one.tif", "two.tif"]
    assert found[1].size == (128, 128)
    found = open_samples(tmp_path / "coords", slides=tmp_path / "slides")
    assert [source.slide.path.name for source in found.sources] == ["one.tif", "two.tif"]
    # the manifest's own key goes before
    assert len(open_samples(file, slides=tmp_path)) == 2
    remedy = '`slides=FOLDER`, or the slide in a manifest with the key "slide"$'
    with pytest.raises(DataError, match=rf"one_patches\.h5: .*lies beside it; .*{remedy}"):
        open_samples(tmp_path / "coords")
    write_coordinates(tmp_path / "far.h5", [[4096, 0]], attributes=trident_attributes(128))
    with pytest.raises(DataError, match=rf"far\.h5: .*, so that is another slide; .*{remedy}"):
        open_samples(tmp_path / "far.h5", slides=tmp_path / "slides" / "one.tif")
    with pytest.raises(DataError, match=r"nowhere: no such folder of slides"):
        open_samples(tmp_path / "coords", slides=tmp_path / "nowhere")
    (tmp_path / "slides" / "two.tif").unlink()
    with pytest.raises(
        DataError, match=rf"two_patches\.h5: .*no slide named two .*lies in .*slides; .*{remedy}"
    ):
        open_samples(file)


def test_slides_beside_coordinate_files_are_not_cut_again(tmp_path):
    write_slide(tmp_path / "slide.svs")
    write_coordinates(tmp_path / "slide.h5", [[256, 256]], attributes=trident_attributes(128))
    assert [type(source) for source in open_samples(tmp_path).sources] == [CoordinateH5Source]
    (tmp_path / "slide.h5").unlink()
    assert [type(source) for source in open_samples(tmp_path).sources] == [SlideSource]


def test_tiff_files_are_slides_if_they_are_large(tmp_path, monkeypatch):
    write_slide(tmp_path / "b.tif")
    write_slide(tmp_path / "a.tif")
    assert [type(source) for source in open_samples(tmp_path).sources] == [FolderSource]
    monkeypatch.setattr(manifest, "_LARGEST_PATCH_PX", 1000)
    assert [source.path.name for source in open_samples(tmp_path).sources] == ["a.tif", "b.tif"]
    monkeypatch.setattr(manifest, "_LARGEST_PATCH_PX", 2000)
    # Pillow warns of files so large, and refuses twice that
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1024 * 768 - 1)
    assert [type(source) for source in open_samples(tmp_path).sources] == [FolderSource]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1024 * 768 // 2 - 1)
    assert [type(source) for source in open_samples(tmp_path).sources] == [SlideSource] * 2


def test_a_folder_of_images_and_other_sources_leaves_open_what_is_meant(folder):
    write_images(folder / "patches" / "pictures", 1)
    with pytest.raises(DataError, match=r"patches: the folder holds h5 files and images, such as .*00\.jpg"):
        open_samples(folder / "patches")
    assert len(open_samples(folder / "patches" / "pictures")) == 1
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty: the folder holds no h5 file, tar, slide or image"):
        open_samples(folder / "empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", 'a list "sources"'),
        ('{"sources": []}', 'a list "sources" of at least one'),
        ('{"sources": [3]}', "entry 0 must be a path"),
        ('{"sources": [{"weight": 1}]}', "entry 0 must be a path"),
        (
            '{"sources": ["a", {"path": "b", "wight": 1}]}',
            "entry 1 has the unknown key 'wight'; known are path, weight",
        ),
        ('{"sources": [{"path": "a", "weight": 0}]}', "entry 0: .*weight must be a number above 0, not 0"),
        ('{"sources": [{"path": "a", "weight": "2"}]}', "weight must be a number above 0, not '2'"),
        ('{"sources": [{"path": "a", "weight": NaN}]}', "weight must be a number above 0, not nan"),
        ('{"sources": [{"path": "a", "slide": 3}]}', "entry 0: 'slide' must be text, not 3"),
    ],
)
def test_mistakes_in_a_manifest_are_named(tmp_path, content, message):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DataError, match=rf"data\.json: .*{message}"):
        read_manifest(tmp_path / "data.json")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json: No such file"):
        open_samples(tmp_path / "nowhere.json")
    write_manifest(tmp_path / "data.json", "nowhere.h5")
    with pytest.raises(DataError, match=r"nowhere\.h5: No such file"):
        open_samples(tmp_path / "data.json")


def test_only_so_many_files_stay_open(folder, monkeypatch):
    monkeypatch.setattr(samples, "_MAX_OPEN_FILES", 2)
    for index in range(4):
        write_hest(folder / "patches" / f"c{index}.h5", FIRST)
    found = open_samples(folder / "patches")

    def opened():
        return [number for number, source in enumerate(found.sources) if source._file._handle is not None]

    for index, expected in ((0, [0]), (3, [0, 1]), (1, [0, 1]), (5, [0, 2]), (8, [2, 3]), (0, [0, 3])):
        found[index]
        assert opened() == expected
    found.close()
    assert opened() == []
    np.testing.assert_array_equal(found[1], FIRST[1])


def test_the_fingerprint_survives_a_move_and_tells_changes(folder):
    file = write_manifest(folder / "data.json", "patches/a.h5", "patches/b.h5")
    before = open_samples(file).fingerprint()
    assert open_samples(folder / "patches").fingerprint() == before
    folder.rename(folder.parent / "moved")
    folder = folder.parent / "moved"
    assert open_samples(folder / "data.json").fingerprint() == before
    others = [open_samples(write_manifest(folder / "data.json", "patches/b.h5", "patches/a.h5"))]
    others.append(
        open_samples(
            write_manifest(folder / "data.json", "patches/a.h5", {"path": "patches/b.h5", "weight": 2})
        )
    )
    write_manifest(folder / "data.json", "patches/a.h5", "patches/b.h5")
    write_hest(folder / "patches" / "b.h5", SECOND, barcodes=["x", "y"])
    others.append(open_samples(folder / "data.json"))
    assert len({before, *(other.fingerprint() for other in others)}) == 4


def test_samples_need_sources_and_fitting_weights(folder):
    source = PatchH5Source(folder / "patches" / "a.h5")
    with pytest.raises(DataError, match="no source"):
        Samples([])
    with pytest.raises(DataError, match="1 sources need as many weights and names, not 2 and 1"):
        Samples([source], weights=[1, 2])
    with pytest.raises(DataError, match=r"a\.h5: the weight must be a number above 0, not -1"):
        Samples([source], weights=[-1])
