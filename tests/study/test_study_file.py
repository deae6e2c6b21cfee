"""The file of a study: its cells, what it refuses, and the studies that come with the package."""

import json
from pathlib import Path

import pytest
from support.studies import EVALUATE, SETTINGS, VARIANTS, write_study

from timm_mvhybrid.models.mvhybrid import TEST_MODEL_NAMES
from timm_mvhybrid.runtime.errors import DataError, PretrainError
from timm_mvhybrid.ssl.backbone import create_backbone
from timm_mvhybrid.study import StudyError, read_ready, read_study, ready_studies
from timm_mvhybrid.study.checking import check_study

pytest.importorskip("yaml")
pytest.importorskip("lightly")
EXAMPLE = Path(__file__).parents[2] / "examples" / "study_phantom.yaml"


def test_cells_are_every_variant_with_every_seed(tmp_path):
    study = read_study(write_study(tmp_path, seeds=[3, 5]))
    assert [cell.name for cell in study.cells] == [
        "hybrid-seed3",
        "attention-seed3",
        "hybrid-seed5",
        "attention-seed5",
    ]
    assert study.variants == ("hybrid", "attention")
    cell = study.cell("attention-seed5")
    assert (cell.seed, cell.config.seed) == (5, 5)
    assert cell.config.model.name == "test_vit12"
    # laid over the common arguments, not in their place
    assert cell.config.model.arguments == {"depth": 2}
    assert cell.config.num_steps == SETTINGS["num_steps"]
    # the preset's, which the file does not name
    assert cell.config.optimizer.teacher_momentum == 0.96


def test_relative_paths_start_at_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    study = read_study(write_study(tmp_path / "there"))
    folder = (tmp_path / "there").resolve()
    assert study.output == folder / "out"
    assert study.cells[0].config.data.sources == (str(folder / "patches.h5"),)
    assert study.cells[0].config.output == folder / "out" / "cells" / "hybrid-seed0" / "run"
    options = study.tasks[0].options("baseline:colour", cache=tmp_path)
    assert options.root == folder / "pictures"


def test_a_variant_may_have_data_of_its_own(tmp_path):
    path = write_study(
        tmp_path,
        variants={"one": {}, "other": {"data": {"sources": ["pictures"]}, "num_steps": 6}},
    )
    one, other = read_study(path).cells
    assert one.config.data.sources != other.config.data.sources
    assert other.config.data.num_workers == 0
    assert (one.config.num_steps, other.config.num_steps) == (4, 6)
    checked = check_study(read_study(path))
    assert checked.cells["one-seed0"].data_group != checked.cells["other-seed0"].data_group


def test_what_a_caller_gives_stands_before_the_file(tmp_path, monkeypatch):
    path = write_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    study = read_study(
        path,
        output="elsewhere",
        sources=["other.h5"],
        roots={"pictures": "others"},
        settings={"pretrain.num_steps": 8, "seeds": [7], "variants.hybrid.model.arguments.depth": 3},
    )
    config = study.cells[0].config
    assert study.output == tmp_path.resolve() / "elsewhere"
    assert (config.num_steps, config.seed, config.model.arguments) == (8, 7, {"depth": 3})
    assert config.data.sources == (str(tmp_path.resolve() / "other.h5"),)
    assert study.tasks[0].options("baseline:colour", cache=tmp_path).root == tmp_path.resolve() / "others"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"seed": [1]}, StudyError, "no key 'seed'; there are study, output"),
        ({"seeds": [1, 1]}, StudyError, "name each seed once"),
        ({"seeds": ["a"]}, StudyError, "whole numbers"),
        ({"seeds": [-1]}, StudyError, "`seed` is -1"),
        ({"seeds": None}, StudyError, "needs seeds"),
        ({"output": None}, StudyError, "needs output"),
        ({"evaluate": None}, StudyError, "write {} for none"),
        ({"preset": "huge"}, StudyError, "preset is 'huge'; it must be one of paper"),
        ({"variants": {}}, StudyError, "variants is empty"),
        ({"variants": ["a"]}, StudyError, "must be a mapping"),
        ({"variants": {"a/b": {}}}, StudyError, "variant a/b: names folders"),
        ({"variants": {"a": {}, "A": {}}}, StudyError, "variant A: has the name of another"),
        ({"variants": {"a": {}, "b": {}}}, StudyError, "variants a and b learn the same"),
        ({"variants": {"a": {"seed": 1}}}, StudyError, "variant a: seed is the study's"),
        (
            {"variants": {"a": {"num_step": 1}}},
            PretrainError,
            "variant a: there is no setting num_step; did you mean num_steps",
        ),
        ({"variants": {"a": {"num_steps": 0}}}, PretrainError, "variant a: .*num_steps"),
        ({"pretrain": {}}, StudyError, "data.sources is missing"),
        ({"evaluate": {"x": {"kind": "guess"}}}, StudyError, "no evaluation 'guess'; kind is one of"),
        ({"evaluate": {"classification": {}}}, StudyError, "classification: needs root"),
        (
            {"evaluate": {"classification": {"root": "pictures", "num_fold": 2}}},
            StudyError,
            "no option num_fold; did you mean num_folds",
        ),
        (
            {"evaluate": {"classification": {"root": "pictures", "model": "x"}}},
            StudyError,
            "model is what the study says",
        ),
        (
            {"evaluate": {"classification": {"root": "pictures", "num_folds": "x"}}},
            StudyError,
            "num_folds is 'x'; it must be of type int",
        ),
        (
            {"evaluate": {"classification": {"root": "pictures", "baselines": "grey"}}},
            StudyError,
            "baselines has 'grey'",
        ),
        ({"evaluate": {"slides": {"labels": "patches.h5"}}}, StudyError, "slides needs patches"),
    ],
)
def test_mistakes_are_named_with_file_key_and_remedy(tmp_path, changes, error, words):
    path = write_study(tmp_path, **changes)
    with pytest.raises(error, match=words) as raised:
        read_study(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = write_study(tmp_path)
    path.write_text("seeds: [0]\nvariants:\n  a: {num_steps: 1}\n  a: {num_steps: 2}\n")
    with pytest.raises(StudyError, match="'a' stands twice in the mapping from line 3 on"):
        read_study(path)


def test_yaml_makes_no_objects(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("study: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(StudyError, match="not readable as YAML"):
        read_study(path)
    with pytest.raises(StudyError, match="cannot be read"):
        read_study(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"variants": {"a": {"model": {"arguments": {"ssm_depth": 99}}}}},
            StudyError,
            "variant a: test_mvhybrid cannot be made with .*ssm_depth",
        ),
        (
            {"variants": {"a": {"model": {"arguments": {"ssm_deep": 1}}}}},
            StudyError,
            "variant a: test_mvhybrid cannot be made .*ssm_deep",
        ),
        ({"variants": {"a": {"model": {"name": "vit_tiny_patch16_224"}}}}, StudyError, "exports its cells"),
        ({"variants": {"a": {"data": {"sources": ["absent.h5"]}}}}, DataError, "absent.h5"),
        (
            {"evaluate": {"pictures": {**EVALUATE["pictures"], "root": "absent"}}},
            StudyError,
            "absent, which root",
        ),
        ({"variants": {"a": {"model": {"weights": "absent.safetensors"}}}}, StudyError, "no such file"),
    ],
)
def test_what_cannot_run_is_found_before_anything_runs(tmp_path, changes, error, words):
    study = read_study(write_study(tmp_path, **changes))
    with pytest.raises(error, match=words):
        check_study(study)
    assert not study.output.exists()


def test_a_batch_that_the_processes_do_not_divide_names_its_variant(tmp_path):
    study = read_study(write_study(tmp_path))
    with pytest.raises(PretrainError, match=r"variant hybrid.*3 processes"):
        check_study(study, world_size=3)


LAYOUTS = {
    "channel-mixers": {
        "einfft": "12 × MambaVision + EinFFT, 12 × attention + MLP",
        "mlp": "12 × MambaVision + MLP, 12 × attention + MLP",
        "none": "12 × MambaVision, 12 × attention + MLP",
    },
    "first-or-last": {
        "first": "12 × MambaVision + EinFFT, 12 × attention + MLP",
        "last": "12 × attention + MLP, 12 × MambaVision + EinFFT",
    },
    "real-or-complex": {
        "real": "12 × MambaVision + EinFFT, 12 × attention + MLP",
        "complex": "12 × MambaVision + EinFFT, 12 × attention + MLP",
        "attention": "24 × attention + MLP",
    },
    "six-backbones": {
        "mvhybrid": "12 × MambaVision + EinFFT, 12 × attention + MLP",
        "hydra_hybrid": "12 × Hydra + EinFFT, 12 × attention + MLP",
        "vim_einfft": "24 × Vim + EinFFT",
        "hydra_einfft": "24 × Hydra + EinFFT",
        "vit12": "12 × attention + MLP",
        "vit24": "24 × attention + MLP",
    },
    "splits": {
        "12-of-24": "12 × MambaVision + EinFFT, 12 × attention + MLP",
        "6-of-24": "6 × MambaVision + EinFFT, 18 × attention + MLP",
        "18-of-24": "18 × MambaVision + EinFFT, 6 × attention + MLP",
    },
}


def test_all_ready_studies_are_named():
    assert set(ready_studies()) == set(LAYOUTS)
    assert all(question.endswith("?") for question in ready_studies().values())
    with pytest.raises(StudyError, match="no such study; there are channel-mixers"):
        read_study("ready:nothing")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_ready_study_asks_what_it_says(name, tmp_path):
    write_study(tmp_path)
    (tmp_path / "task").mkdir()
    study = read_study(
        f"ready:{name}",
        output=tmp_path / "out",
        sources=[tmp_path / "patches.h5"],
        roots={"expression": tmp_path / "task"},
    )
    checked = check_study(study)
    assert len(study.cells) == 3 * len(LAYOUTS[name])
    found = {}
    for cell in study.cells[: len(LAYOUTS[name])]:
        model = cell.config.model
        backbone = create_backbone(model.name, {**model.arguments, "device": "meta"})
        found[cell.variant] = backbone.layout()
        complex_pairs = any(key.endswith("A_imag") for key, _ in backbone.named_parameters())
        assert complex_pairs == (cell.variant == "complex")
    assert found == LAYOUTS[name]
    # cells of a seed are comparable
    groups = {(one.cell.seed, one.data_group) for one in checked.cells.values()}
    assert len(groups) == 3
    if name == "real-or-complex":
        sizes = {one.cell.variant: one.num_parameters for one in checked.cells.values()}
        assert sizes["real"] == sizes["complex"]


def test_a_ready_study_is_a_file_to_begin_from(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(read_ready("splits"))
    study = read_study(path, sources=[tmp_path], roots={"expression": tmp_path})
    assert study.name == "splits"
    with pytest.raises(StudyError, match="sources is missing"):
        read_study(path)


def test_the_example_has_three_tiny_cells():
    study = read_study(EXAMPLE)
    assert [cell.name for cell in study.cells] == ["real-seed0", "complex-seed0", "attention-seed0"]
    assert {cell.config.model.name for cell in study.cells} <= set(TEST_MODEL_NAMES)
    assert study.output == EXAMPLE.parents[1].resolve() / "outputs" / "study_phantom"


def test_definitions_follow_what_is_learned_and_not_where_or_how_fast(tmp_path):
    def definition(**changes):
        return read_study(write_study(tmp_path, **changes)).cells[0].definition("data")

    same = {"data": {"sources": ["pictures"], "num_workers": 2}, "checkpoint": {"every_steps": 1}}
    assert definition() == definition(pretrain={**SETTINGS, **same}, output="other")
    assert definition() != definition(pretrain={**SETTINGS, "num_steps": 5})
    assert definition() != definition(variants={"hybrid": VARIANTS["attention"]})
    task = read_study(write_study(tmp_path)).tasks[0].definition()
    faster = {"pictures": {**EVALUATE["pictures"], "batch_size": 3, "num_workers": 0, "cache": "here"}}
    assert read_study(write_study(tmp_path, evaluate=faster)).tasks[0].definition() == task
    other = {"pictures": {**EVALUATE["pictures"], "num_folds": 4}}
    assert read_study(write_study(tmp_path, evaluate=other)).tasks[0].definition() != task
    assert json.dumps(task)


def test_options_are_named_and_spelled_as_flags(tmp_path):
    (tmp_path / "studies.csv").write_text("")
    given = {
        "root": "pictures",
        "studies": "studies.csv",
        "protocols": ["random", "loso"],
        "panel": "hmhvg",
        "num-components": "none",
        "alpha": 0.5,
        "map_genes": 2,
        "global-pool": "avg",
        "batch_size": 7,
    }
    (task,) = read_study(write_study(tmp_path, evaluate={"expression": given})).tasks
    options = task.options("local-dir:x", cache=tmp_path / "cache")
    assert options.models.model == ("local-dir:x",)
    assert options.models.pretrained
    assert options.options.protocols == ("random", "loso")
    assert options.options.panel == "hmhvg"
    assert options.options.studies == tmp_path.resolve() / "studies.csv"
    probe, embedding = options.options.probe, options.options.embedding
    assert (probe.num_components, probe.alpha, probe.num_map_genes) == (None, 0.5, 2)
    assert (embedding.pool, embedding.batch_size, embedding.num_workers) == ("avg", 7, "auto")
    assert embedding.cache == tmp_path / "cache"
