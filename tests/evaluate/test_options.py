import pytest

from timm_mvhybrid.evaluate import (
    BackboneOptions,
    EvaluationError,
    PatchTaskOptions,
    ProbeOptions,
    SlideTaskOptions,
    evaluate_classification,
    load_backbone,
)
from timm_mvhybrid.runtime.errors import ParameterError


@pytest.mark.parametrize("options", [PatchTaskOptions, ProbeOptions, SlideTaskOptions])
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_every_task_refuses_a_seed_that_cannot_be_used(options, seed):
    with pytest.raises(ParameterError, match=rf"`seed` is {seed}; it must be from 0 to 4294967295"):
        options(seed=seed)
    assert options(seed=2**32 - 1).seed == 2**32 - 1


def test_models_of_a_task_of_one_s_own_refuse_it_too():
    with pytest.raises(ParameterError, match="`seed` is -1"):
        BackboneOptions(model=("test_vit12",)).load(-1)


def test_as_many_files_as_models():
    with pytest.raises(EvaluationError, match="`checkpoint` names 1 files for 2 models"):
        BackboneOptions(model=("test_vit12", "test_hydra_hybrid"), checkpoint=("a",)).load()


def test_an_unknown_probe_is_refused_before_the_images_are_opened(tmp_path):
    with pytest.raises(EvaluationError, match="unknown probe 'tree'; choose linear or knn"):
        evaluate_classification(
            tmp_path / "missing", [load_backbone("test_vit12")], PatchTaskOptions(probes=("tree",))
        )
