"""``timm-mvhybrid predict``: what it writes, what it prints, and how it fails."""

import json

import pytest
from safetensors.torch import save_file
from support.generated_slides import write_slide
from support.predictors import GENES, MODEL, fitted_predictor

from timm_mvhybrid.cli import main
from timm_mvhybrid.embed.backbone import load_backbone

anndata = pytest.importorskip("anndata")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    fitted_predictor(folder).save(folder / "predictor")
    write_slide(folder / "one.tif")
    write_slide(folder / "two.tif", tissue=(128, 128, 384, 384))
    write_slide(folder / "blank.tif", tissue=None)
    write_slide(folder / "coarse.tif", um_per_px=1.0)
    return folder


@pytest.fixture
def folder(shared, tmp_path, monkeypatch):
    """A working folder with everything."""
    for path in shared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(*arguments, predictor="predictor", output="out"):
    return main([
        "predict", *arguments, "--predictor", predictor, "--output", output,
        "--cache", "cache", "--num-workers", "0", "--device", "cpu",
    ])  # fmt: skip


def test_slides_become_h5ad_and_page(folder, capsys):
    assert predict("one.tif", "two.tif", "--geojson", "--show-genes", "ERBB2", "ACTB") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1
    summary = json.loads(printed.out)
    counts = [len(anndata.read_h5ad(f"out/{name}.h5ad")) for name in ("one", "two")]
    assert summary["num_patches"] == sum(counts)
    assert {name: summary[name] for name in ("output", "num_predicted", "num_kept", "num_failed")} == {
        "output": "out",
        "num_predicted": 2,
        "num_kept": 0,
        "num_failed": 0,
    }
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        f"{name}.{kind}" for name in ("one", "two") for kind in ("geojson", "h5ad", "html")
    ]
    page = (folder / "out" / "one.html").read_text()
    assert '"name":"ERBB2"' in page
    assert '"name":"WEAK"' not in page
    assert "Random weights, never trained: test_vit12" in page
    assert list(anndata.read_h5ad("out/one.h5ad").var_names) == list(GENES)
    assert predict("one.tif", "two.tif", "--geojson", "--show-genes", "ERBB2", "ACTB") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["num_kept"], again["num_patches"]) == (2, summary["num_patches"])


def test_a_slide_that_fails_is_named_and_the_others_are_predicted(folder, capsys):
    assert predict("blank.tif", "one.tif", "coarse.tif") == 1
    printed = capsys.readouterr()
    first, second = printed.err.splitlines()
    assert first.startswith("error: blank.tif: no tissue found")
    assert second.startswith("error: coarse.tif: the slide has 1 µm/px, 100% coarser than the 0.5 µm/px")
    assert second.endswith("or accept it with --enlarge")
    summary = json.loads(printed.out)
    assert (summary["num_failed"], summary["num_predicted"]) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["one.tif", "--stride", "0"],
            "--stride is 0 px; it must be from 1 to the predictor's patch size of 64 px",
        ),
        (
            ["one.tif", "--show-genes", "TP53"],
            "--show-genes: the predictor does not predict 'TP53'; it predicts WEAK",
        ),
        (["one.tif", "one.tif"], "would both become one.h5ad"),
        (
            ["one.tif", "--predictor", "nowhere"],
            "nowhere: no such folder; give one that 'timm-mvhybrid fit' wrote",
        ),
        (["one.tif", "--output", "one.tif"], "one.tif: cannot be written"),
        (
            ["one.tif", "--checkpoint", "other.safetensors"],
            "other.safetensors: the weights of test_vit12 have the sha256",
        ),
        (["one.tif", "--device", "cuda:99"], "device 'cuda:99' is not available"),
        (["one.tif", "--level", "2"], "--level must lie between 0 and 1"),
    ],
)
def test_problems_are_one_line_and_leave_nothing(folder, capsys, arguments, message):
    save_file(load_backbone(MODEL, seed=9).model.state_dict(), "other.safetensors")
    given = {
        "--predictor": "predictor",
        "--output": "out",
        "--cache": "cache",
        "--num-workers": "0",
        "--device": "cpu",
    }
    more = [word for name, value in given.items() if name not in arguments for word in (name, value)]
    assert main(["predict", *arguments, *more]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert printed.out == ""
    assert not list(folder.glob("out/*"))
    assert not list(folder.glob("cache/*"))


def test_a_newer_format_is_refused(folder, capsys, tmp_path):
    newer = tmp_path / "newer"
    newer.mkdir()
    for file in (folder / "predictor").iterdir():
        (newer / file.name).write_bytes(file.read_bytes())
    description = json.loads((newer / "predictor.json").read_text())
    description["format_version"] += 1
    (newer / "predictor.json").write_text(json.dumps(description))
    assert predict("one.tif", predictor="newer") == 1
    assert (
        "has the format 2, and this version of timm-mvhybrid reads up to 1; upgrade it"
        in capsys.readouterr().err
    )


def test_an_interruption_keeps_what_is_done_and_says_how_to_go_on(folder, capsys, monkeypatch):
    from timm_mvhybrid.predict import slide_run

    write = slide_run.write_slide

    def interrupt(found, files, options):
        if found.name == "two":
            raise KeyboardInterrupt
        write(found, files, options)

    monkeypatch.setattr(slide_run, "write_slide", interrupt)
    assert predict("one.tif", "two.tif") == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("run it again to go on")
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["one.h5ad", "one.html"]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert predict("one.tif", "two.tif") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["num_kept"], summary["num_predicted"]) == (1, 1)


def test_help_states_units_and_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--help"])
    assert caught.value.code == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in (
        "SLIDE",
        "--predictor DIR|hf-hub:ORG/NAME@REVISION",
        "--stride PX",
        "--geojson",
        "(default: 0.5)",
    ):
        assert text in printed
