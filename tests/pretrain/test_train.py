"""The loop in this process: what it writes, how it goes on, and what it refuses."""

import json
import warnings

import pytest
import timm
import torch
from support.pretraining import (
    NUM_STEPS,
    change,
    equal,
    lines,
    small,
    stop_after,
    student,
    teacher,
    write_patches,
)

from timm_mvhybrid.export.training_checkpoint import convert, read_training_checkpoint
from timm_mvhybrid.models import load_weights
from timm_mvhybrid.pretrain.train import train
from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.training.checkpoint import find_damage, finished_steps
from timm_mvhybrid.training.world import can_shard_on_cpu
from timm_mvhybrid.weights.position_grid import resample_position

pytest.importorskip("lightly")
needs_cpu_sharding = pytest.mark.skipif(not can_shard_on_cpu(), reason="this torch's FSDP needs a GPU")


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches") / "patches.h5")


@pytest.fixture(scope="module")
def finished(patches, tmp_path_factory):
    """An uninterrupted run."""
    config = small(tmp_path_factory.mktemp("run") / "run", patches)
    result = train(config, show_progress=False)
    assert result.step == NUM_STEPS
    assert result.stopped_by is None
    return config.output


def test_a_run_leaves_its_configuration_surroundings_log_checkpoints_and_teacher(finished):
    config = json.loads((finished / "config.json").read_text())
    assert config["model"]["name"] == "test_mvhybrid"
    assert config["resolved"]["num_samples"] == 24
    assert config["resolved"]["peak_learning_rate"] == pytest.approx(2e-3 * (4 / 1024) ** 0.5)
    assert json.loads((finished / "environment.json").read_text())
    assert sorted(finished_steps(finished / "checkpoints")) == [2, 4, 6]
    assert [line["step"] for line in lines(finished)] == list(range(1, NUM_STEPS + 1))
    assert {"loss/total", "loss/ibot", "grad_norm/backbone", "teacher/entropy", "rankme", "epoch"} <= lines(
        finished
    )[-1].keys()
    assert not list(finished.rglob("*.tmp"))


def test_teacher_and_checkpoint_of_a_long_grid_give_their_features_again(patches, tmp_path):
    """2 × 8 patches are as many as 4 × 4, so that their number does not tell."""
    arguments = {"depth": 1, "img_size": [32, 128]}
    changes = {"num_steps": 2, "model__name": "test_vit12", "model__arguments": arguments}
    train(small(tmp_path / "run", patches, **changes), show_progress=False)
    long, square = (timm.create_model("test_vit12", depth=1, img_size=size) for size in ((32, 128), (64, 64)))
    load_weights(long, tmp_path / "run" / "teacher.safetensors")
    assert equal(long.state_dict(), teacher(tmp_path / "run"))
    load_weights(square, tmp_path / "run" / "teacher.safetensors")
    expected = resample_position(long.pos_embed.detach(), [4, 4], [2, 8], 1)
    torch.testing.assert_close(square.pos_embed.data, expected)
    for branch in ("teacher", "student"):
        found = read_training_checkpoint(tmp_path / "run", branch)
        assert found.grid == (2, 8)
        wanted = teacher(tmp_path / "run") if branch == "teacher" else student(tmp_path / "run")
        state = convert(found, long)
        assert equal(state, {name: wanted[name] for name in state})
    torch.testing.assert_close(
        convert(read_training_checkpoint(tmp_path / "run"), square)["pos_embed"], expected
    )


def test_the_teacher_loads_strictly_into_timm_and_differs_from_the_student(finished):
    model = timm.create_model("test_mvhybrid", img_size=64)
    model.load_state_dict(teacher(finished), strict=True)
    learned = student(finished)
    moved = [name for name, value in teacher(finished).items() if not torch.equal(value, learned[name])]
    assert len(moved) > 50


def test_a_run_that_stopped_goes_on_to_the_same_weights_bit_for_bit(patches, finished, tmp_path):
    config = small(tmp_path / "run", patches)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(3, patch)
        stopped = train(config, show_progress=False)
    assert stopped.step == 3
    assert stopped.stopped_by == "SIGTERM"
    assert stopped.teacher is None
    assert train(config, show_progress=False).step == NUM_STEPS
    assert equal(teacher(tmp_path / "run"), teacher(finished))
    assert equal(student(tmp_path / "run"), student(finished))
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, NUM_STEPS + 1))
    assert [line["loss/total"] for line in lines(tmp_path / "run")] == [
        line["loss/total"] for line in lines(finished)
    ]


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "no sums"])
def test_a_damaged_newest_checkpoint_falls_back_loudly_to_the_one_before(
    patches, finished, tmp_path, damage, capsys
):
    config = small(tmp_path / "run", patches, num_steps=4)
    train(config, show_progress=False)
    (tmp_path / "run" / "teacher.safetensors").unlink()
    newest = tmp_path / "run" / "checkpoints" / "step_00000004"
    shard = next(newest.glob("*.distcp"))
    content = shard.read_bytes()
    if damage == "cut":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        shard.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    elif damage == "missing":
        shard.unlink()
    else:
        (newest / "files.json").unlink()
    assert "damaged" in find_damage(newest)
    train(config)
    errors = capsys.readouterr().err
    assert "damaged" in errors
    assert str(newest) in errors
    assert "resumed after step 2" in errors
    assert find_damage(newest) is None
    assert (newest.parent / "damaged_step_00000004").is_dir()


def test_where_no_checkpoint_is_whole_the_run_refuses_to_start_anew(patches, tmp_path):
    config = small(tmp_path / "run", patches, num_steps=2)
    train(config, show_progress=False)
    next((tmp_path / "run/checkpoints/step_00000002").glob("*.distcp")).unlink()
    with pytest.raises(PretrainError, match="no checkpoint is whole"):
        train(config, show_progress=False)


def test_a_finished_run_is_left_as_it_is(patches, finished):
    before = teacher(finished)
    assert train(small(finished, patches), show_progress=False).step == NUM_STEPS
    assert equal(teacher(finished), before)


def test_another_recipe_is_refused_unless_allowed_and_another_architecture_always(
    patches, finished, tmp_path
):
    config = small(tmp_path / "run", patches, num_steps=2)
    train(config, show_progress=False)
    changed = change(config, num_steps=3, optimizer__weight_decay=0.1)
    with pytest.raises(
        PretrainError, match=r"`optimizer\.weight_decay` was 0\.04 and is 0\.1.*allow_changes=True"
    ):
        train(changed, show_progress=False)
    assert train(changed, allow_changes=True, show_progress=False).step == 3
    with pytest.raises(PretrainError, match=r"another architecture \(`head\.num_prototypes"):
        train(change(config, head__num_prototypes=64), allow_changes=True, show_progress=False)
    with pytest.raises(PretrainError, match="holds a run already"):
        train(config, resume="never", show_progress=False)
    with pytest.raises(PretrainError, match="holds no run to resume"):
        train(change(config, output=tmp_path / "none"), resume="must", show_progress=False)
    # what only changes speed goes on
    assert (
        train(change(changed, data__num_workers=1, monitor__log_every_steps=2), show_progress=False).step == 3
    )


def test_other_patches_are_another_recipe(patches, tmp_path):
    config = small(tmp_path / "run", patches, num_steps=2)
    train(config, show_progress=False)
    other = write_patches(tmp_path / "other.h5", num_patches=9)
    with pytest.raises(PretrainError, match="num_samples` was 24 and is 9"):
        train(change(config, data__sources=(str(other),)), show_progress=False)


@pytest.mark.parametrize("keep", [1, 2])
def test_only_the_newest_checkpoints_are_kept(patches, tmp_path, keep):
    train(small(tmp_path / "run", patches, checkpoint__keep=keep), show_progress=False)
    assert sorted(finished_steps(tmp_path / "run/checkpoints")) == [2, 4, 6][-keep:]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_led_to_it(patches, tmp_path, monkeypatch):
    from timm_mvhybrid.ssl import distillation

    original = distillation.compute_losses
    calls = []

    def poisoned(*arguments, **keywords):
        losses = original(*arguments, **keywords)
        calls.append(1)
        if len(calls) == 3:
            losses.parts["total"] = losses.parts["total"] * float("nan")
        return losses

    monkeypatch.setattr(distillation, "compute_losses", poisoned)
    config = small(tmp_path / "run", patches)
    with pytest.raises(
        PretrainError, match=r"step 2: total = nan.*the state before it and its batches are in"
    ):
        train(config, show_progress=False)
    (failure,) = (tmp_path / "run/failures").iterdir()
    assert find_damage(failure / "step_00000002") is None
    from safetensors.torch import load_file

    assert load_file(failure / "batches_rank0.safetensors")["0.global_crops"].shape == (8, 3, 64, 64)
    # weights from before the step go on
    monkeypatch.setattr(distillation, "compute_losses", original)
    assert train(config, show_progress=False).step == NUM_STEPS


@pytest.mark.parametrize(
    "changes",
    [
        {"loss__centering": "centering", "loss__regularizer": "kde"},
        {"parallel__accumulate": 2},
        {"parallel__precision": "bf16", "head__separate_ibot_head": False},
        {"parallel__activation_checkpointing": True, "model__drop_path_rate": 0.2},
        {"model__name": "test_vim_einfft", "crops__num_local": 0, "head__ibot_chunk_rows": 0},
        {"model__name": "test_hydra_hybrid", "crops__hed_jitter": 0.05, "crops__rotation": True},
        {"model__name": "vit_tiny_patch16_224", "model__arguments": {"depth": 2}},
        {"crops__augmentation": "paper_pil", "mask__share": 0.0},
        pytest.param(
            {"parallel__sharding": "full", "checkpoint__asynchronous": False}, marks=needs_cpu_sharding
        ),
    ],
    ids=",".join,
)
def test_every_option_resumes_bit_for_bit(patches, tmp_path, changes):
    whole = small(tmp_path / "whole", patches, num_steps=3, **changes)
    train(whole, show_progress=False)
    resumed = change(whole, output=tmp_path / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        assert train(resumed, show_progress=False).step == 1
    train(resumed, show_progress=False)
    assert equal(teacher(tmp_path / "whole"), teacher(tmp_path / "resumed"))
    assert equal(student(tmp_path / "whole"), student(tmp_path / "resumed"))
    assert all(value.isfinite().all() for value in teacher(tmp_path / "whole").values())


def test_recomputed_activations_change_nothing(patches, finished, tmp_path):
    config = small(tmp_path / "run", patches, parallel__activation_checkpointing=True)
    train(config, show_progress=False)
    assert equal(student(tmp_path / "run"), student(finished))


def test_passes_that_are_accumulated_see_the_same_images(patches, finished, tmp_path):
    """A centre that stays, and no regulariser, make the sum over passes the whole batch's gradient."""
    changes = {"loss__centering": "centering", "loss__regularizer": "none", "num_steps": 2}
    one, two = (tmp_path / name for name in ("one", "two"))
    train(small(one, patches, loss__center_momentum=1.0, **changes), show_progress=False)
    train(
        small(two, patches, loss__center_momentum=1.0, parallel__accumulate=2, **changes), show_progress=False
    )
    first, second = student(one), student(two)
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-6


def test_the_probe_runs_and_its_best_checkpoint_outlives_the_newest(patches, finished, tmp_path):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for label in ("a", "b"):
        (tmp_path / "labelled" / label).mkdir(parents=True)
        for number in range(12):
            pixels = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / "labelled" / label / f"{number}.png")
    config = small(
        tmp_path / "run",
        patches,
        monitor__probe=tmp_path / "labelled",
        monitor__probe_every_steps=1,
        checkpoint__keep=1,
    )
    train(config, show_progress=False)
    probes = [line for line in lines(tmp_path / "run") if "probe/knn_accuracy" in line]
    assert [line["step"] for line in probes] == list(range(1, NUM_STEPS + 1))
    best = json.loads((tmp_path / "run/checkpoints/best.json").read_text())
    scores = {line["step"]: line["probe/knn_accuracy"] for line in probes}
    assert best["score"] == max(scores.values())
    assert scores[best["step"]] == best["score"]
    assert set(finished_steps(tmp_path / "run/checkpoints")) == {best["step"], NUM_STEPS}
    # looking does not change what is learned
    assert equal(student(tmp_path / "run"), student(finished))
    assert json.loads((tmp_path / "run/evaluations.json").read_text())[0]["metric"] == "knn_accuracy"


def test_corrupt_patches_are_replaced_up_to_the_limit_and_logged_by_name(tmp_path, capsys):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        Image.effect_noise((64, 64), 60 + number).convert("RGB").save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    config = small(tmp_path / "run", folder, num_steps=3, data__max_corrupt=1)
    train(config)
    assert "broken.png" in capsys.readouterr().err
    assert next(line["name"] for line in lines(tmp_path / "run") if line.get("event") == "corrupt").endswith(
        "broken.png"
    )
    with pytest.raises(ValueError, match=r"broken\.png"):
        train(small(tmp_path / "strict", folder, num_steps=3), show_progress=False)


def test_a_collapse_is_reported_and_stops_the_run_if_asked(patches, tmp_path):
    config = small(
        tmp_path / "run", patches, monitor__min_rankme=1e9, monitor__collapse_checks=2, num_steps=3
    )
    train(config, show_progress=False)
    assert [line["step"] for line in lines(tmp_path / "run") if line.get("event") == "collapse"] == [2]
    with pytest.raises(PretrainError, match="collapsed"):
        train(
            change(config, output=tmp_path / "stopped", monitor__stop_on_collapse=True), show_progress=False
        )


def test_starting_from_a_runs_teacher_starts_from_its_weights(patches, finished, tmp_path):
    with warnings.catch_warnings():
        config = small(
            tmp_path / "run",
            patches,
            num_steps=1,
            optimizer__warmup_steps=1,
            model__weights=finished / "teacher.safetensors",
        )
        train(config, show_progress=False)
    # the first step of the warm-up has a learning rate of zero
    assert equal(
        {name: value for name, value in student(tmp_path / "run").items() if name != "mask_token"},
        teacher(finished),
    )


@pytest.mark.parametrize("std", [0.0, 0.02])
def test_norms_by_kind_are_logged_without_a_trace_and_a_mask_token_that_stays_zero_is_warned_of(
    patches, tmp_path, std
):
    arguments = {"channel_mixer": "mlp", "mask_token_std": std, "depth": 2, "ssm_depth": 2}
    recipe = {"num_steps": 2, "model__arguments": arguments, "checkpoint__every_steps": 2}
    train(small(tmp_path / "watched", patches, **recipe, monitor__by_kind=True), show_progress=False)
    logged = lines(tmp_path / "watched")
    warnings_of_start = [line["message"] for line in logged if line.get("event") == "warning"]
    assert len(warnings_of_start) == (std == 0.0)
    assert all("mask_token_std" in message for message in warnings_of_start)
    first, last = logged[-2:]
    assert {
        f"grad_norm_by_kind/{kind}" for kind in ("mask_token", "in_proj", "A_log", "channel_mixer", "heads")
    } <= last.keys()
    # whole and before clipping, as the norms of the parts are
    parts = [value for name, value in first.items() if name.startswith("grad_norm_by_kind/")]
    whole = [value for name, value in first.items() if name.startswith("grad_norm/")]
    assert sum(x * x for x in parts) == pytest.approx(sum(x * x for x in whole), rel=1e-4)
    assert last["block_rms/01"] > 0
    assert last["delta/max"] >= last["delta/min"] > 0
    train(small(tmp_path / "plain", patches, **recipe), show_progress=False)
    assert not [name for name in lines(tmp_path / "plain")[-1] if "by_kind" in name]
    assert equal(teacher(tmp_path / "watched"), teacher(tmp_path / "plain"))
