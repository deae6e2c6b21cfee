"""The core that recipes share: class tokens alone, a student with more in it than the teacher, one forward for both."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from support.pretraining import equal, lines, small, stop_after, write_patches
from torch import nn

from timm_mvhybrid.data.manifest import open_samples
from timm_mvhybrid.ssl.distillation import SelfDistillation, Views
from timm_mvhybrid.ssl.masking import MaskedPatches
from timm_mvhybrid.ssl.student_teacher import Network, NetworkOutput
from timm_mvhybrid.training.loop import run_training
from timm_mvhybrid.training.world import can_shard_on_cpu, join_world

pytest.importorskip("lightly")
needs_cpu_sharding = pytest.mark.skipif(not can_shard_on_cpu(), reason="this torch's FSDP needs a GPU")


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches") / "patches.h5")


class Output(NamedTuple):
    class_features: torch.Tensor
    class_scores: torch.Tensor
    patch_factors: None = None
    patch_loss: None = None
    size: torch.Tensor | None = None


class Student(Network):
    """A network that also tells how bright its crops are."""

    def __init__(self, network):
        super().__init__(network.backbone, network.dino_head)
        self.brightness = nn.Linear(network.backbone.embed_dim, 1)

    def forward(self, global_crops, local_crops=None, *, plain, **options):
        found = super().forward(global_crops, local_crops, **options)
        tokens = self.backbone.forward_features(plain)
        return Output(found.class_features, found.class_scores, size=self.brightness(tokens[:, 0]))


class Brightness(SelfDistillation):
    """Class tokens alone, and a regression."""

    def __init__(self, config, world):
        samples = open_samples(config.data.sources, slides=None, edge="auto")
        super().__init__(config, world, samples, mask=None)

    def build_networks(self):
        student, teacher = super().build_networks()
        return Student(student), teacher

    def losses(self, batch, step):
        plain = batch.global_crops
        found = self.compare(batch, step, plain=plain)
        wanted = plain.mean(dim=(1, 2, 3))[:, None]
        brightness = (found.student_output.size - wanted).square().mean()
        return {
            **found.parts,
            "brightness": brightness,
            "total": found.parts["total"] + brightness,
        }


def recipe(output, patches, **changes):
    return small(output, patches, num_steps=3, head__separate_ibot_head=False, **changes)


def trained(folder):
    from timm_mvhybrid.export.training_checkpoint import read_training_checkpoint

    return {
        **{f"s.{name}": x for name, x in read_training_checkpoint(folder, "student").tensors.items()},
        **{f"t.{name}": x for name, x in read_training_checkpoint(folder, "teacher").tensors.items()},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss__centering": "centering", "parallel__accumulate": 2},
        pytest.param(
            {"parallel__sharding": "full", "checkpoint__asynchronous": False}, marks=needs_cpu_sharding
        ),
    ],
    ids=",".join,
)
def test_a_second_recipe_runs_and_resumes_bit_for_bit(patches, tmp_path, changes):
    whole = recipe(tmp_path / "whole", patches, **changes)
    result = run_training(whole, lambda world: Brightness(whole, world), show_progress=False)
    assert result.weights == tmp_path / "whole" / "teacher.safetensors"
    line = lines(tmp_path / "whole")[-1]
    assert "loss/brightness" in line
    assert "loss/ibot" not in line
    assert {"loss/dino_global", "loss/koleo", "teacher/entropy", "rankme"} <= line.keys()
    resumed = replace(whole, output=tmp_path / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        run_training(resumed, lambda world: Brightness(resumed, world), show_progress=False)
    run_training(resumed, lambda world: Brightness(resumed, world), show_progress=False)
    assert equal(trained(tmp_path / "whole"), trained(tmp_path / "resumed"))


def test_the_teacher_follows_the_part_of_the_student_that_has_its_names(patches, tmp_path):
    config = recipe(tmp_path / "run", patches, optimizer__teacher_momentum=0.75)
    with join_world(config.parallel) as world:
        objective = Brightness(config, world)
        before = {name: x.clone() for name, x in objective.teacher.state_dict().items()}
        with torch.no_grad():
            for parameter in objective.student.parameters():
                parameter.add_(torch.randn_like(parameter))
        objective.after_step(0)
        assert "brightness.weight" not in before
        assert "brightness.weight" in objective.state_dict()["student"]
        learned = objective.student.state_dict()
        for name, value in objective.teacher.state_dict().items():
            torch.testing.assert_close(value, before[name].lerp(learned[name], 0.25), msg=name)


@torch.no_grad()
def test_class_tokens_alone_are_the_same_losses_as_with_masks_that_hide_nothing(patches, tmp_path):
    config = recipe(tmp_path / "run", patches)
    with join_world(config.parallel) as world:
        objective = Brightness(config, world)
        views = objective.prepare(next(objective.batches(0)), 0)
        assert views.mask is None
        plain = {"plain": views.global_crops}
        alone = objective.compare(views, 0, **plain).parts
        network = objective.student
        objective.student = Network(network.backbone, network.dino_head).train()
        nothing = torch.zeros(
            len(views.global_crops), objective.grid[0] * objective.grid[1], dtype=torch.bool
        )
        masked = objective.compare(Views(*views[:2], nothing, last=False), 0).parts
    assert masked.pop("ibot") == 0
    assert equal(alone, masked)


@torch.no_grad()
def test_class_features_are_the_teachers(patches, tmp_path):
    config = recipe(tmp_path / "run", patches)
    with join_world(config.parallel) as world:
        objective = Brightness(config, world)
        images = torch.randn(2, 3, 64, 64)
        found = objective.class_features(images)
        nothing = MaskedPatches.of(torch.zeros(2, 16, dtype=torch.bool), world.device)
        output = objective.teacher(images, masked=nothing)
        assert isinstance(output, NetworkOutput)
        assert torch.equal(found, output.class_features)
        assert torch.equal(found, objective.teacher.backbone.forward_features(images)[:, 0])
