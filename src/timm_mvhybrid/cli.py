"""Command line: arguments → calls of the library → exit code.

0 means done, 1 a problem with data, model or output (one line on stderr), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

from timm_mvhybrid.version import __version__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed the patches of a slide, a folder or an h5 file into one h5 file."""

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    """Slide, folder of images, patch h5 (HEST 'img', CLAM 'imgs') or coordinate h5 (CLAM, TRIDENT 'coords')."""
    model: Annotated[str, arg(metavar="NAME")]
    """Any timm model; 'timm-mvhybrid models' lists ours."""
    output: Annotated[Path, arg(metavar="FILE.h5")]
    """File to write; complete or absent, never half."""
    overwrite: bool = False
    """Replace an existing output."""

    pretrained: bool = False
    """Take the weights that timm downloads."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE")] = None
    """Take the weights of this file (safetensors, or PyTorch tensors). Excludes --pretrained."""
    seed: int = 0
    """Seed of random weights, if neither is given."""

    resolution: Annotated[float, arg(metavar="UM_PER_PX")] = 0.5
    """Slides: wanted resolution in µm/px."""
    patch_size: Annotated[int, arg(metavar="PX")] = 256
    """Slides: side of the patches in px at that resolution."""
    overlap: Annotated[int, arg(metavar="PX")] = 0
    """Slides: px shared by neighbouring patches."""
    min_tissue: Annotated[float, arg(metavar="SHARE")] = 0.5
    """Slides: smallest share of tissue in a patch, 0 to 1."""
    slide_resolution: Annotated[float | None, arg(metavar="UM_PER_PX")] = None
    """Resolution of the slide itself in µm/px, if it states none or a wrong one."""
    slide: Annotated[Path | None, arg(metavar="FILE")] = None
    """Coordinate h5: its slide, unless one of the same name lies beside it."""

    input_size: Annotated[Literal["auto"] | int, arg(metavar="auto|PX")] = "auto"
    """Side in px at which patches enter the model; auto keeps their own where the model takes it."""
    global_pool: Literal["model", "token", "avg", "max", "token+avg"] = "model"
    """How features become one vector; model is what the model does by itself."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type; embeddings are stored as float32."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto (CUDA if there is any, otherwise CPU), cpu, cuda, cuda:1, mps."""
    batch_size: Annotated[int, arg(metavar="N")] = 64
    """Patches per batch."""
    num_workers: Annotated[Literal["auto"] | int, arg(metavar="auto|N")] = "auto"
    """Processes that read patches; 0 reads in the main process, auto takes one per core, at most 8."""
    skip_corrupt: bool = False
    """Leave unreadable patches out, and report them, instead of stopping."""
    log: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None
    """Append start, progress and end as JSON lines."""
    log_every: Annotated[int, arg(metavar="N")] = 10
    """Batches between two progress lines of the log."""

    def run(self) -> None:
        """Runs the command."""
        from timm_mvhybrid.data import TilingOptions, open_source
        from timm_mvhybrid.evaluate import (
            BatchReport,
            RunDisplay,
            RunLog,
            check_output,
            embed,
            load_backbone,
            num_available_workers,
        )

        tiling = TilingOptions(
            resolution_um_per_px=self.resolution,
            patch_size_px=self.patch_size,
            overlap_px=self.overlap,
            min_tissue=self.min_tissue,
            slide_resolution_um_per_px=self.slide_resolution,
        )
        check_output(self.output, overwrite=self.overwrite, source=self.input)
        log = RunLog(self.log, self.log_every)
        log.write("start", version=__version__, options=dataclasses.asdict(self))
        try:
            source = open_source(self.input, tiling=tiling, slide=self.slide)
            backbone = load_backbone(
                self.model, pretrained=self.pretrained, checkpoint=self.checkpoint, seed=self.seed
            )
            if backbone.weights == "random":
                _say(
                    "warning: the weights are random, so the embeddings carry no meaning; "
                    "give --checkpoint FILE or --pretrained"
                )
            num_workers = num_available_workers() if self.num_workers == "auto" else self.num_workers
            with RunDisplay() as display:

                def report_batch(report: BatchReport) -> None:
                    display.update(report)
                    log.update(report)

                summary = embed(
                    source,
                    backbone,
                    self.output,
                    batch_size=self.batch_size,
                    device=self.device,
                    dtype=self.dtype,
                    num_workers=num_workers,
                    pool=self.global_pool,
                    input_size=self.input_size,
                    skip_corrupt=self.skip_corrupt,
                    overwrite=self.overwrite,
                    on_batch=report_batch,
                )
        except BaseException as error:
            log.write("error", error=type(error).__name__, message=str(error))
            raise
        result = dataclasses.asdict(summary)
        log.write("done", **result)
        display.summarise(summary)
        if not sys.stdout.isatty():
            print(json.dumps(result, ensure_ascii=False))


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

        from timm_mvhybrid.evaluate import load_backbone
        from timm_mvhybrid.models import export_onnx
        from timm_mvhybrid.models.onnx_export import check_output, check_packages

        check_packages(verify=not self.skip_comparison)
        check_output(self.output, overwrite=self.overwrite)
        backbone = load_backbone(
            self.model, pretrained=self.pretrained, checkpoint=self.checkpoint, seed=self.seed
        )
        if backbone.weights == "random":
            _say(
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

        from timm_mvhybrid.evaluate import describe_models, models_table

        rows = describe_models(include_test_models=self.all)
        if self.json:
            print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False))
            return
        # a pipe has no width of its own, and a table cut at 80 columns would lose names
        Console(width=None if sys.stdout.isatty() else 160).print(models_table(rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Export a checkpoint into a folder that timm loads and the Hub takes."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """Run, sharded checkpoint, exported folder, or file (ours, official MV_Hybrid, DINOv2, ...)."""
    model: Annotated[str, arg(metavar="NAME")]
    """Model of this package; 'timm-mvhybrid models' lists them."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder to write; complete or absent, never half."""
    overwrite: bool = False
    """Replace an earlier export."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored matrices; refused if bfloat16 would change the features by more than 2 %."""
    weights: Literal["teacher", "student"] = "teacher"
    """Whose weights to take from a training checkpoint."""
    tag: Annotated[str | None, arg(metavar="TAG")] = None
    """Name of this set of weights; the model's registered one by default."""
    model_args: Annotated[str, arg(metavar="JSON")] = "{}"
    """Options that the model was trained with, such as '{"ssm_depth": 6}'."""
    run_dir: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder with config.json and metrics.jsonl for the model card, unless the checkpoint lies in it."""

    def run(self) -> None:
        """Runs the command."""
        from timm_mvhybrid.hub import ExportError, export

        try:
            model_args = json.loads(self.model_args)
        except ValueError as error:
            raise ExportError(f"--model-args is no JSON ({error})") from error
        if not isinstance(model_args, dict):
            raise ExportError("--model-args must be a JSON object such as '{\"ssm_depth\": 6}'")
        summary = export(
            self.checkpoint,
            self.model,
            self.output,
            dtype=self.dtype,
            branch=self.weights,
            tag=self.tag,
            model_args=model_args,
            run=self.run_dir,
            overwrite=self.overwrite,
        )
        _report(dataclasses.asdict(summary))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publish:
    """Publish an exported folder on the Hub, download it again and verify it."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """What 'timm-mvhybrid export' wrote."""
    repo: Annotated[str, arg(metavar="ORG/NAME")]
    """The repository; it is made if there is none."""
    private: bool = False
    """Make the repository private; one that exists and is public is refused."""
    revision: Annotated[str | None, arg(metavar="TAG")] = None
    """Tag to set on the commit, for 'hf-hub:ORG/NAME@TAG'; tags are never moved."""
    dry_run: bool = False
    """Show what would be done, and do nothing."""

    def run(self) -> None:
        """Runs the command."""
        from timm_mvhybrid.hub import publish

        summary = publish(
            self.folder, self.repo, private=self.private, revision=self.revision, dry_run=self.dry_run
        )
        _report(dataclasses.asdict(summary))


def _report(summary: dict[str, Any]) -> None:
    """Prints a summary: JSON into a pipe, lines on a terminal."""
    if not sys.stdout.isatty():
        print(json.dumps(summary, ensure_ascii=False))
        return
    for name, value in summary.items():
        for line in value if isinstance(value, list | tuple) else [value]:
            print(f"{name}: {line}")


def _say(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: Arguments behind the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if arguments == ["--version"]:
        print(f"timm-mvhybrid {__version__}")
        return 0
    command = tyro.cli(
        Annotated[Embed, subcommand("embed")]
        | Annotated[ExportOnnx, subcommand("export-onnx")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Publish, subcommand("publish")]
        | Annotated[Models, subcommand("models")],
        prog="timm-mvhybrid",
        description="Pathology backbones of timm_mvhybrid. timm-mvhybrid --version prints the version.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    if isinstance(command, Embed | ExportOnnx) and command.pretrained and command.checkpoint is not None:
        _say("error: --pretrained and --checkpoint exclude each other")
        return 2
    from timm_mvhybrid.data import DataError
    from timm_mvhybrid.evaluate import EvaluationError
    from timm_mvhybrid.models import CheckpointError, OnnxExportError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command.run()
    except (DataError, EvaluationError, CheckpointError, OnnxExportError) as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        published = isinstance(command, Publish)
        _say("interrupted; run it again to finish" if published else "interrupted; no output was written")
        return 130
    return 0
