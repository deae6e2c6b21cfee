"""``timm-mvhybrid models`` and ``export-onnx``: models → a table, or one ONNX file."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from .messages import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """List the models of this package."""

    json: bool = False
    """Print JSON instead of a table."""
    all: bool = False
    """List the tiny models for tests, too."""

    def run(self) -> None:
        """Runs the command."""
        from rich.console import Console

        from ..evaluate import describe_models, models_table

        rows = describe_models(include_test_models=self.all)
        if self.json:
            print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False))
            return
        # a pipe has no width of its own, and a table cut at 80 columns would lose names
        Console(width=None if sys.stdout.isatty() else 160).print(models_table(rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOnnx:
    """Export a model to one ONNX file, compared with the model in onnxruntime."""

    model: Annotated[Positional[str], arg(metavar="NAME")]
    """Any timm model; 'timm-mvhybrid models' lists ours."""
    output: Annotated[Path, arg(metavar="FILE.onnx")]
    """File to write; complete and compared, or absent."""
    overwrite: bool = False
    """Replace an existing output."""

    pretrained: bool = False
    """Take the weights that timm downloads."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE")] = None
    """Take the weights of this file (safetensors, or PyTorch tensors). Excludes --pretrained."""
    seed: int = 0
    """Seed of random weights, if neither is given."""

    image_size: Annotated[Literal["auto"] | int, arg(metavar="auto|PX")] = "auto"
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
        from rich.console import Console

        from ..evaluate import load_backbone
        from ..models import export_onnx
        from ..models.onnx_export import check_output, check_packages

        check_packages(verify=not self.skip_comparison)
        check_output(self.output, overwrite=self.overwrite)
        backbone = load_backbone(
            self.model, pretrained=self.pretrained, checkpoint=self.checkpoint, seed=self.seed
        )
        if backbone.weights == "random":
            say(
                "warning: the weights are random, so the features carry no meaning; "
                "give --checkpoint FILE or --pretrained"
            )
        console = Console(stderr=True, quiet=not sys.stderr.isatty())
        with console.status("tracing") as status:
            result = export_onnx(
                backbone.model,
                self.output,
                image_size_px=None if self.image_size == "auto" else self.image_size,
                tokens=self.tokens,
                normalize=self.normalize,
                opset=self.opset,
                verify=not self.skip_comparison,
                overwrite=self.overwrite,
                metadata={"weights": backbone.weights, "weights_sha256": backbone.weights_sha256},
                on_stage=status.update,
            )
        height, width = result.image_size_px
        compared = (
            "not compared with the model"
            if result.largest_error is None
            else f"differs from the model by {result.largest_error:.1e} of the largest feature"
        )
        console.print(
            f"{backbone.name} → {result.output}, {result.num_bytes / 1e6:.1f} MB, opset {result.opset}\n"
            f"image: batch × 3 × {height} × {width} px, {result.num_nodes} nodes, {result.seconds:.1f} s; {compared}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if not sys.stdout.isatty():
            print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
