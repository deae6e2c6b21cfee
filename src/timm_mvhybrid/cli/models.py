"""``timm-mvhybrid models`` and ``export-onnx``: models → a table, or one ONNX file."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from ..embed.model_table import describe_models, models_table
from ..models import export_onnx
from ..models.onnx_export import OnnxExportError, check_packages
from ..runtime.atomic_file import check_output_file
from .flags import spelled_once
from .messages import status
from .weights import WeightOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """List the models of this package."""

    json: bool = False
    """Print JSON instead of a table."""
    all: bool = False
    """List the tiny models for tests, too."""

    def run(self) -> None:
        """Runs the command."""
        rows = describe_models(include_test_models=self.all)
        if self.json:
            print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False))
            return
        # a pipe has no width of its own, and a table cut at 80 columns would lose names
        Console(width=None if sys.stdout.isatty() else 160).print(models_table(rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOnnx:
    """Export a model to one ONNX file, compared with the model in onnxruntime."""

    name: Annotated[Positional[str | None], arg(metavar="[NAME]")] = None
    """The same as --model, as earlier versions have it."""
    model: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(required)")] = None
    """Any timm model; 'timm-mvhybrid models' lists ours."""
    output: Annotated[Path, arg(metavar="FILE.onnx")]
    """File to write; complete and compared, or absent."""
    overwrite: bool = False
    """Replace an existing output."""

    weights: Annotated[WeightOptions, arg(name="")] = field(default_factory=WeightOptions)
    image_size_px: Annotated[Literal["auto"] | int, arg(name="image-size", metavar="auto|PX")] = "auto"
    """Height and width in px of the images that the file takes; auto is what the model was made for."""
    tokens: bool = False
    """Return every token, (batch, tokens, dim), instead of the pooled features, (batch, dim)."""
    normalize: bool = False
    """Normalise in the file: it then takes RGB from 0 to 1. Without, the caller normalises."""
    opset: Annotated[int, arg(metavar="N")] = 20
    """Version of the ONNX operators, 20 or higher."""
    skip_comparison: bool = False
    """Do not run the file in onnxruntime, where it must agree with the model to 1e-4 of the largest feature."""

    def run(self) -> None:
        """Runs the command."""
        name = spelled_once("`model`", self.model, self.name)
        check_packages(verify=not self.skip_comparison)
        check_output_file(self.output, overwrite=self.overwrite, error=OnnxExportError)
        backbone = self.weights.load(name)
        with status("tracing") as update:
            result = export_onnx(
                backbone.model,
                self.output,
                image_size_px=None if self.image_size_px == "auto" else self.image_size_px,
                tokens=self.tokens,
                normalize=self.normalize,
                opset=self.opset,
                verify=not self.skip_comparison,
                overwrite=self.overwrite,
                metadata={"weights": backbone.weights, "weights_sha256": backbone.weights_sha256},
                on_stage=update,
            )
        if not sys.stdout.isatty():
            print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
        if not sys.stderr.isatty():
            return
        height, width = result.image_size_px
        compared = (
            "not compared with the model"
            if result.largest_error is None
            else f"differs from the model by {result.largest_error:.1e} of the largest feature"
        )
        Console(stderr=True).print(
            f"{backbone.name} → {result.output}, {result.num_bytes / 1e6:.1f} MB, opset {result.opset}\n"
            f"image: batch × 3 × {height} × {width} px, {result.num_nodes} nodes, {result.seconds:.1f} s; {compared}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
