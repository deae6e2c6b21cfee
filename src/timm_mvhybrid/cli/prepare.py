"""``timm-mvhybrid prepare``: what a platform wrote + its slide image → samples of a task in the HEST layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg, subcommand

from ..cohorts.prepare import PreparedSample
from ..cohorts.space_ranger import VisiumFolder
from ..cohorts.spot_sample import SpotSource
from ..cohorts.st_layout import write_st_task
from ..cohorts.visium_hd import VisiumHDFolder
from .messages import report, status
from .sample_command import SampleCommand, TaskOptions, say_what_matters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visium(SampleCommand):
    """Prepare a Visium sample from Space Ranger's output: each spot becomes a patch with the spot's counts."""

    source: Annotated[VisiumFolder, arg(name="")]

    def spot_source(self) -> SpotSource:
        """Says where spots and counts are."""
        return self.source


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisiumHD(SampleCommand):
    """Prepare a Visium HD sample: its bins are added up to squares of a patch's size."""

    source: Annotated[VisiumHDFolder, arg(name="")]

    def spot_source(self) -> SpotSource:
        """Says where bins and counts are."""
        return self.source


@dataclasses.dataclass(frozen=True, kw_only=True)
class ST(TaskOptions):
    """Prepare sections of Spatial Transcriptomics, laid out as HER2ST is: images/, counts/, spots/, sections.json."""

    when_interrupted: ClassVar[str] = "sections that were finished are kept; run it again to go on"

    root: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Folder of images/ID.jpg, counts/ID.tsv.gz, spots/ID_selection.tsv and, if patients are known, sections.json."""
    sections: Annotated[tuple[str, ...] | None, arg(name="sample", metavar="ID...")] = None
    """Sections to prepare; all by default."""
    leave_out: Literal["patient", "section"] = "patient"
    """What each split of the task leaves out."""

    def run(self) -> None:
        """Runs the command."""
        done: list[PreparedSample] = []
        with status("preparing sections") as update:

            def show(prepared: PreparedSample) -> None:
                done.append(prepared)
                update(f"preparing sections: {len(done)} done, {prepared.sample_id} the last")

            write_st_task(
                self.root,
                self.output,
                study=self.study,
                sections=self.sections,
                leave_out=self.leave_out,
                patch_size_px=self.patches.patch_size_px,
                resolution_um_per_px=self.patches.resolution_um_per_px,
                overwrite=self.overwrite,
                on_section=show,
            )
        for prepared in done:
            say_what_matters(prepared)
        report(
            {
                "task": str(self.output),
                "samples": [prepared.sample_id for prepared in done],
                "num_prepared": sum(prepared.status == "prepared" for prepared in done),
                "num_kept": sum(prepared.status == "kept" for prepared in done),
                "num_spots": sum(prepared.num_spots for prepared in done),
                "num_over_edge": sum(prepared.num_over_edge for prepared in done),
                "left_out": done[-1].left_out,
                "num_splits": done[-1].num_splits,
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Write your own samples in the HEST layout, which evaluation and fine-tuning read."""

    command: Annotated[
        Annotated[Visium, subcommand("visium")]
        | Annotated[VisiumHD, subcommand("visium-hd")]
        | Annotated[ST, subcommand("st")],
        arg(name=""),
    ]

    @property
    def when_interrupted(self) -> str:
        """What an interruption leaves."""
        return self.command.when_interrupted

    def run(self) -> None:
        """Runs the command."""
        self.command.run()
