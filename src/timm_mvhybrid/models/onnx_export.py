"""Model → one ONNX file, compared with the model in onnxruntime before it gets its name."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.config import resolve_data_config
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..runtime.atomic_file import OutputFile, check_output_file, claimed
from ..runtime.errors import ParameterError, TimmMVHybridError
from ..version import __version__
from .hybrid_vision_transformer import HybridVisionTransformer
from .onnx_trace import trace_in_parts
from .options import check_size

MIN_OPSET = 20
TOLERANCE = 1e-4
"""Largest deviation of onnxruntime's output from the model's, in units of the largest number of the model's."""

_TRACED_BATCH = 2
_VERIFIED_BATCHES = (1, 3)
"""Other batch sizes than the traced one: a batch that was taken for a constant fails."""

_MAX_BYTES = 2**31 - 1


class OnnxExportError(TimmMVHybridError, RuntimeError):
    """A model cannot be exported, or its export is not the model; the message is one line and names the remedy."""


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """A finished export.

    Attributes:
        output: The file.
        num_bytes: Its size.
        num_nodes: Nodes of its graph.
        opset: Version of the ONNX operators.
        image_size_px: Height and width of the input.
        output_shape: Shape of the output without the batch.
        largest_error: Largest deviation from the model in units of its largest number; None if it was not compared.
        seconds: Duration of tracing, comparing and writing.
    """

    output: str
    num_bytes: int
    num_nodes: int
    opset: int
    image_size_px: tuple[int, int]
    output_shape: tuple[int, ...]
    largest_error: float | None
    seconds: float


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    image_size_px: int | tuple[int, int] | None = None,
    tokens: bool = False,
    normalize: bool = False,
    opset: int = MIN_OPSET,
    verify: bool = True,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> OnnxExport:
    """Exports a timm model for onnxruntime and other runtimes, in float32 and evaluation mode.

    The file has one input, ``image``, (batch, channels, height, width), of any batch, and one output, ``features``,
    (batch, embed_dim), or ``tokens``, (batch, tokens, embed_dim). Its metadata name the model, mean, deviation and
    image size. The model itself is left as it is.

    Args:
        model: A model of this package; any timm model whose operations torch's exporter knows.
        path: The file to write; it appears when it is complete and verified.
        image_size_px: Height and width in px, or one number for both; None for what the model was made for. The graph
            takes this size alone.
        tokens: Whether the output is that of ``model.forward_features``, not that of ``model``.
        normalize: Whether the graph normalises by the model's mean and deviation, so that ``image`` is RGB from 0
            to 1; otherwise the caller does.
        opset: Version of the ONNX operators, at least 20.
        verify: Whether onnxruntime's output is compared with the model's, to a relative 1e-4, on two batch sizes other
            than the traced one.
        overwrite: Whether an existing file may be replaced.
        metadata: What else the file says about itself.
        on_stage: Called with the name of every stage as it begins.

    Returns:
        What was written.

    Raises:
        OnnxExportError: A package is missing or too old, an argument does not fit, or the file's output differs from
            the model's. No file is left.
        OutputError: The disk does not take the file, or another process writes it.

    Examples:
        >>> import timm, timm_mvhybrid
        >>> model = timm.create_model("mvhybrid_small_patch16_256")
        >>> timm_mvhybrid.models.export_onnx(model, "mvhybrid.onnx")  # doctest: +SKIP
    """
    start = time.perf_counter()
    path = Path(path)
    check_packages(verify)
    if opset < MIN_OPSET:
        raise OnnxExportError(f"`opset` is {opset}; it must be at least {MIN_OPSET}")
    check_output_file(path, overwrite=overwrite, error=OnnxExportError)
    config = getattr(model, "pretrained_cfg", None) or {}
    data = resolve_data_config({}, model=model)
    size: tuple[int, int] = to_2tuple(image_size_px or tuple(data["input_size"][1:]))
    mean, std = data["mean"], data["std"]

    exported = _Exported(_copy_for(model, size), tokens, (mean, std) if normalize else None).eval()
    examples = _example_images(_TRACED_BATCH, data["input_size"][0], size, normalize)
    try:
        with torch.no_grad():
            output_shape = tuple(exported(examples).shape[1:])
    except (AssertionError, RuntimeError) as error:
        raise OnnxExportError(
            f"the model does not take images of {size[0]} × {size[1]} px: {error}"
        ) from error
    if _num_bytes(exported) > _MAX_BYTES:
        raise OnnxExportError("the weights take more than 2 GB, the most that one ONNX file holds")
    import onnx_ir

    on_stage("tracing")
    onnx_model = trace_in_parts(exported, exported.model, examples, opset)
    if onnx_model.opset_imports[""] != opset:
        raise OnnxExportError(
            f"torch {torch.__version__} writes ONNX operators of version {onnx_model.opset_imports['']}, not {opset}; "
            "pip install -U torch onnxscript"
        )
    (image,), (result,) = onnx_model.graph.inputs, onnx_model.graph.outputs
    image.name, result.name = "image", "tokens" if tokens else "features"
    onnx_model.producer_name, onnx_model.producer_version = "timm_mvhybrid", __version__
    onnx_model.metadata_props.update(
        {
            "model": str(config.get("architecture") or type(model).__name__),
            "timm_mvhybrid_version": __version__,
            "image_size_px": f"{size[0]} x {size[1]}",
            "mean": ", ".join(map(str, mean)),
            "std": ", ".join(map(str, std)),
            "normalization": "in the graph; image is RGB from 0 to 1" if normalize else "by the caller",
            **(metadata or {}),
        }
    )
    with claimed(path), OutputFile(path, replace=overwrite) as file:
        on_stage("writing")
        file.write(onnx_ir.to_proto(onnx_model).SerializeToString())
        file.settle()
        largest_error = None
        if verify:
            on_stage("comparing")
            largest_error = _compare(exported, file.temporary, data["input_size"][0], size, normalize)
        file.finish()
    return OnnxExport(
        output=str(path),
        num_bytes=path.stat().st_size,
        num_nodes=len(onnx_model.graph),
        opset=opset,
        image_size_px=size,
        output_shape=output_shape,
        largest_error=largest_error,
        seconds=time.perf_counter() - start,
    )


def check_packages(verify: bool = True) -> None:
    """Checks that the packages that the export needs are installed.

    Raises:
        OnnxExportError: One is missing or too old; the message has the command that installs it.
    """
    needed = ["onnx", "onnxscript", *(["onnxruntime"] if verify else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise OnnxExportError(
            f"the export needs {' and '.join(missing)}; install with pip install 'timm-mvhybrid[onnx]'"
        )
    if not hasattr(torch.onnx, "ops"):
        raise OnnxExportError(
            f"the export needs torch 2.8 or newer, this is {torch.__version__}; pip install -U torch"
        )


class _Exported(nn.Module):
    """What the graph computes.

    Args:
        model: The model.
        tokens: Whether it returns the tokens.
        normalization: Mean and deviation of every channel, or None.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        tokens: bool,
        normalization: tuple[tuple[float, ...], tuple[float, ...]] | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokens = tokens
        self.normalize = normalization is not None
        mean, std = normalization or ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Computes the output for images (batch, channels, height, width)."""
        if self.normalize:
            image = (image - self.mean) / self.std
        model: Any = self.model
        result: Tensor = model.forward_features(image) if self.tokens else model(image)
        return result


def _copy_for(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Copies a model to the CPU and float32, for images of one size."""
    copied: Any = copy.deepcopy(model).float().cpu().eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(False)
    if isinstance(copied, HybridVisionTransformer) and size != tuple(copied.patch_embed.img_size):
        try:
            check_size(size, copied.patch_embed.patch_size, dynamic_pad=False, name="image_size_px")
        except ParameterError as error:
            raise OnnxExportError(str(error)) from error
        # resamples a position embedding once and for all, and not in the graph
        copied.set_input_size(img_size=size)
    return copied


def _example_images(batch: int, channels: int, size: tuple[int, int], normalize: bool) -> Tensor:
    """Draws images in the range that the graph expects."""
    shape = (batch, channels, *size)
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(shape, generator=generator) if normalize else torch.randn(shape, generator=generator)


def _num_bytes(module: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))


def _compare(exported: _Exported, path: Path, channels: int, size: tuple[int, int], normalize: bool) -> float:
    """Returns the largest deviation of onnxruntime's output from the model's, relative to the largest number."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch in _VERIFIED_BATCHES:
        images = _example_images(batch, channels, size, normalize)
        with torch.no_grad():
            expected = exported(images)
        (actual,) = session.run(None, {"image": images.numpy()})
        if actual.shape != tuple(expected.shape):
            raise OnnxExportError(
                f"onnxruntime returns {actual.shape} for a batch of {batch}, the model {tuple(expected.shape)}"
            )
        error = ((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max()).item()
        # not "greater than", because NaN must fail
        if not error <= TOLERANCE:
            raise OnnxExportError(
                f"onnxruntime differs from the model by {error:.1e} of the largest output at a batch of {batch}; at "
                f"most {TOLERANCE:.0e} is allowed, so no file was written"
            )
        largest = max(largest, error)
    return largest
