"""Configurations: presets, ranges, files."""

import dataclasses
import json
from pathlib import Path

import pytest

from timm_mvhybrid.pretrain.config import (
    CropConfig,
    DataConfig,
    MaskConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
)
from timm_mvhybrid.pretrain.plan import PRESETS, paper, smoke
from timm_mvhybrid.runtime.codec import encode, update
from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.training.config_file import read_config_file
from timm_mvhybrid.training.loop import check_recipe, find_changes

DATA = DataConfig(sources=("patches.h5",))


def test_the_paper_preset_is_the_papers_recipe():
    config = paper(output=Path("run"), data=DATA)
    assert config.num_steps == 200 * 493
    assert config.batch_size == 24 * 64
    assert config.peak_learning_rate == pytest.approx(2.45e-3, rel=1e-3)
    assert config.optimizer.warmup_steps == 10 * 493
    assert config.loss.teacher_temperature_warmup_steps == 30 * 493
    assert config.optimizer.freeze_last_layer_steps == 493
    assert config.images_per_pass(24) == 64
    assert (config.head.num_prototypes, config.crops.num_local, config.crops.local_size_px) == (
        65_536,
        8,
        112,
    )
    assert (config.optimizer.teacher_momentum, config.optimizer.clip_norm) == (0.992, 3.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_survives_json_and_back(preset):
    config = PRESETS[preset](output=Path("run"), data=DATA)
    text = json.dumps(encode(config), allow_nan=False)
    assert update(smoke(output=Path("x"), data=DataConfig(sources=("y",))), json.loads(text)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nmu_steps": 1}, "there is no setting nmu_steps; did you mean num_steps"),
        ({"loss": {"centring": "x"}}, "no setting loss.centring; did you mean loss.centering"),
        ({"loss": {"centering": "x"}}, "loss.centering is 'x'; it must be one of sinkhorn_knopp, centering"),
        ({"loss": 3}, "loss is 3; it must be an object"),
        ({"free": ["data"]}, "no setting free"),
        ({"monitor": {"min_rankme": None}}, "monitor.min_rankme is None; it must be of type float"),
        ({"crops": {"global_scale": [1]}}, "crops.global_scale is"),
        ({"crops": {"rotation": 1}}, "crops.rotation is 1; it must be of type bool"),
        ({"batch_size": True}, "batch_size is True; it must be of type int"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be of type int"),
        ({"mask": {"ratio": [0.5, 0.1]}}, "`mask.ratio` is"),
        ({"num_steps": 3}, "`optimizer.warmup_steps` is 10; it must be at most `num_steps`, which is 3"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_name(values, message):
    with pytest.raises(PretrainError, match=f"^file.json: .*{message}"):
        update(smoke(output=Path("run"), data=DATA), values, "file.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "not readable as JSON"),
        ("a.json", "[1]", "holds no mapping"),
        ("a.yaml", "a: [", "not readable as YAML"),
        ("a.yml", "!!python/object/apply:os.system ['true']", "not readable as YAML"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(PretrainError, match=f"{name}: .*{message}"):
        read_config_file(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CropConfig(global_scale=(0.5, 0.2)), "crops.global_scale"),
        (lambda: CropConfig(horizontal_flip=1.5), "crops.horizontal_flip"),
        (lambda: MaskConfig(share=-0.1), "mask.share"),
        (lambda: OptimizerConfig(layer_decay=0.0), "optimizer.layer_decay"),
        (lambda: ModelConfig(pretrained=True, weights=Path("a")), "exclude each other"),
        (lambda: DataConfig(sources=()), "`data.sources` is empty"),
    ],
)
def test_values_outside_their_range_are_refused_by_name(make, message):
    with pytest.raises(PretrainError, match=message):
        make()


def test_only_what_is_learned_counts_as_a_change():
    before = encode(smoke(output=Path("a"), data=DATA))
    moved = encode(
        dataclasses.replace(
            smoke(output=Path("b"), data=dataclasses.replace(DATA, sources=("moved.h5",), num_workers=9))
        )
    )
    assert find_changes(before, moved, PretrainConfig) == []
    recipe = {**before, "batch_size": 8}
    assert find_changes(before, recipe, PretrainConfig) == ["`batch_size` was 16 and is 8"]
    assert check_recipe(before, recipe, PretrainConfig, allow_changes=True) == [
        "`batch_size` was 16 and is 8"
    ]
    with pytest.raises(PretrainError, match="another recipe"):
        check_recipe(before, recipe, PretrainConfig, allow_changes=False)
    other = {**before, "model": {**before["model"], "arguments": {"depth": 2}}}
    with pytest.raises(PretrainError, match=r"another architecture \(`model.arguments` was \{\} and is"):
        check_recipe(before, other, PretrainConfig, allow_changes=True)
