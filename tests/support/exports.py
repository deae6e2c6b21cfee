"""Exported folders to try things on, with weights that are none of the initial ones."""

import timm
import torch
from safetensors.torch import save_file

import timm_mvhybrid  # noqa: F401
from timm_mvhybrid.hub import export


def perturbed(name, seed=1, **options):
    """A model whose every parameter differs from its initial value."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=0, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def exported(folder, name="test_mvhybrid", seed=1, model_args=None, **options):
    """Exports such a model into folder/name and returns that folder and the model."""
    model = perturbed(name, seed, **(model_args or {}))
    folder.mkdir(exist_ok=True, parents=True)
    checkpoint = folder / f"{name}.checkpoint.safetensors"
    save_file(model.state_dict(), checkpoint)
    export(checkpoint, name, folder / name, model_args=model_args, **options)
    return folder / name, model
