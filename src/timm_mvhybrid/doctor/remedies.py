"""Complaints that users of such models and of their pipelines have, and what to do about each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """A complaint and what to do.

    Attributes:
        complaint: What users see.
        remedy: What to do.
        fatal: Whether it makes our models fail, in an installation where it was found.
    """

    complaint: str
    remedy: str
    fatal: bool = False


COMPLAINTS = (
    Remedy(
        complaint="mamba-ssm does not build: it needs nvcc and the CUDA toolkit",
        remedy="do not install it: everything here runs in plain torch on a CPU, and by Triton on CUDA",
    ),
    Remedy(
        complaint="undefined symbol when mamba-ssm or causal-conv1d is imported",
        remedy="it was built for another torch: pip uninstall mamba-ssm causal-conv1d, or build both for this one: "
        "pip install --no-cache-dir --no-build-isolation --force-reinstall --no-deps causal-conv1d mamba-ssm",
    ),
    Remedy(
        complaint="no mamba-ssm wheel for this torch or Python",
        remedy="do without; its kernels are only one of the implementations (timm_mvhybrid.ops.implementation_status())",
    ),
    Remedy(
        complaint="Vim's own mamba_ssm is installed, and other code wants the original",
        remedy="keep Vim in an environment of its own; this package needs neither",
    ),
    Remedy(
        complaint="state-space models do not run on a CPU",
        remedy="these do; slow only on many images, for which more processes and a larger batch of 'timm-mvhybrid embed' help",
    ),
    Remedy(
        complaint="NaN under mixed precision",
        remedy="scans, decay rates and EinFFT stay in float32 here; prefer bfloat16 to float16, and look for NaN in the "
        "weights: a file of ours that holds any is refused when it is loaded",
    ),
    Remedy(
        complaint="images are not 256 px",
        remedy="any multiple of 16 px works, square or not; keep the resolution near 0.5 µm/px, which matters more",
    ),
    Remedy(
        complaint="export to ONNX or torch.export fails on custom operators",
        remedy="'timm-mvhybrid export-onnx --model NAME --output FILE.onnx'; torch.export and torch.jit.trace work as they are",
    ),
    Remedy(
        complaint="a pipeline does not know a new encoder",
        remedy="timm_mvhybrid.integrations has one module for each pipeline, whose docstring is the recipe",
    ),
    Remedy(
        complaint="a pipeline expects another number of features",
        remedy="our backbones give 384 (CLAM: --embed_dim 384), or 768 where class token and mean are joined",
    ),
    Remedy(
        complaint="features differ between pipelines: class token, or class token and mean",
        remedy="ours give the class token; global_pool='avg' gives the mean of the patch tokens. LightlyTrain gives the "
        "mean, 'timm-mvhybrid embed --global-pool token+avg' both",
    ),
    Remedy(
        complaint="features differ between pipelines: normalisation",
        remedy="take mean and std of model.pretrained_cfg (H&E, not ImageNet): timm.data.resolve_data_config; "
        "tiatoolbox and LightlyTrain must be told them, see timm_mvhybrid.integrations",
    ),
    Remedy(
        complaint="a pipeline pins another timm",
        remedy="install this package after the pipeline: pip takes a timm that suits it, and names the pin it breaks; "
        "'tests/pipelines' of the repository lists the versions that were tried",
    ),
)
