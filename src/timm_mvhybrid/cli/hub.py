"""``timm-mvhybrid export`` and ``publish``: checkpoint → folder → Hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from ..export.publish import BACKBONE
from ..hub import export, publish
from ..predict.publishing import PREDICTOR
from ..training.settings import JsonObject
from .flags import spelled_once
from .messages import report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Export a checkpoint into a folder that timm loads and the Hub takes."""

    source: Annotated[Positional[Path | None], arg(metavar="[RUN|FILE]")] = None
    """The same as --checkpoint, as earlier versions have it."""
    checkpoint: Annotated[Path | None, arg(metavar="RUN|FILE", help_behavior_hint="(required)")] = None
    """Run, sharded checkpoint, exported folder, or file (ours, official MV_Hybrid, DINOv2, ...)."""
    model: Annotated[str | None, arg(metavar="NAME")] = None
    """Model of this package ('timm-mvhybrid models' lists them); that of the run by default, with its options."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder to write; complete or absent, never half."""
    overwrite: bool = False
    """Replace an earlier export."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the stored matrices; refused if bfloat16 would change the features by more than 2 %."""
    branch: Annotated[Literal["teacher", "student"], arg(name="weights")] = "teacher"
    """Whose weights to take from a training checkpoint."""
    tag: Annotated[str | None, arg(metavar="TAG")] = None
    """Name of this set of weights; the model's registered one by default."""
    model_args: JsonObject = dataclasses.field(default_factory=dict)
    """Options that the model was trained with, such as '{"ssm_depth": 6}'."""
    results: Annotated[tuple[Path, ...], arg(metavar="DIR")] = ()
    """Reports of evaluations of these weights, for the model card; those that the run keeps are there anyway."""
    run_folder: Annotated[Path | None, arg(name="run", aliases=("--run-dir",), metavar="RUN")] = None
    """Folder with config.json and metrics.jsonl for the model card, unless the checkpoint lies in it."""

    def run(self) -> None:
        """Runs the command."""
        summary = export(
            spelled_once("`checkpoint`", self.checkpoint, self.source),
            self.model,
            self.output,
            dtype=self.dtype,
            branch=self.branch,
            tag=self.tag,
            model_args=self.model_args,
            run=self.run_folder,
            results=self.results,
            overwrite=self.overwrite,
        )
        report(dataclasses.asdict(summary))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Publish:
    """Publish an exported folder or a predictor on the Hub, download it again and verify it."""

    when_interrupted: ClassVar[str] = "run it again to finish"

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """What 'timm-mvhybrid export' or 'timm-mvhybrid fit' wrote."""
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
        is_predictor = (self.folder / PREDICTOR.config_file).is_file()
        summary = publish(
            self.folder,
            self.repo,
            private=self.private,
            revision=self.revision,
            dry_run=self.dry_run,
            kind=PREDICTOR if is_predictor else BACKBONE,
        )
        report(dataclasses.asdict(summary))
