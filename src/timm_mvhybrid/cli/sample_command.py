"""What every ``timm-mvhybrid prepare`` of one sample shares: where it goes, whose it is, how patches are cut."""

from __future__ import annotations

import dataclasses
import sys
from abc import ABC, abstractmethod
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import arg

from ..cohorts.prepare import PreparedSample, prepare_sample
from ..cohorts.spot_sample import PatchOptions, SpotSource
from ..runtime.codec import encode
from .messages import report, say
from .progress import RunDisplay


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where samples go, and how patches are cut."""

    output: Annotated[Path, arg(metavar="ROOT/TASK")]
    """Folder of the task in the HEST layout; samples are added to what it has."""
    patches: Annotated[PatchOptions, arg(name="")] = field(default_factory=PatchOptions)
    overwrite: bool = False
    """Replace what was prepared otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions(OutputOptions):
    """Where samples go, and whose they are."""

    study: Annotated[str, arg(metavar="NAME")]
    """Study that it is of: samples of one study share laboratory, stain and scanner."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneSample(OutputOptions, ABC):
    """Fields of a command that prepares one sample; its subclasses say what is read, and where the rest is known from."""

    when_interrupted: ClassVar[str] = "nothing of this sample was written; run it again"

    sample_id: Annotated[str, arg(name="sample", metavar="ID")]
    """Name of the sample, which its files get."""
    patient: Annotated[str | None, arg(metavar="NAME")] = None
    """Patient that it is of; given for all samples of a task or for none."""
    slide_resolution_um_per_px: Annotated[float | None, arg(name="slide-resolution", metavar="UM_PER_PX")] = (
        None
    )
    """Size of a px of the image in µm where image and spots contradict each other or neither says; by default what the
    spots give, or else what the image states."""
    leave_out: Literal["auto", "study", "patient", "sample"] = "auto"
    """What each split of the task leaves out; auto: studies if there are two, else patients, else samples."""

    @abstractmethod
    def spot_source(self) -> SpotSource:
        """Says where spots and counts are."""

    @abstractmethod
    def slide_image(self) -> Path:
        """Says which image the spots lie on."""

    @abstractmethod
    def origin(self) -> tuple[str, str | None]:
        """Says which study and patient the sample is of."""

    def after(self, prepared: PreparedSample) -> dict[str, Any]:
        """Writes what belongs to the sample besides, and returns facts about it."""
        return {}

    def run(self) -> None:
        """Runs the command."""
        study, patient = self.origin()
        with RunDisplay(description=f"reading {self.sample_id}") as display:
            prepared = prepare_sample(
                self.spot_source(),
                self.slide_image(),
                self.output,
                sample_id=self.sample_id,
                study=study,
                patient=patient,
                patches=self.patches,
                slide_resolution_um_per_px=self.slide_resolution_um_per_px,
                leave_out=self.leave_out,
                overwrite=self.overwrite,
                on_patches=lambda done, total: display.show(f"cutting {self.sample_id}", done, total),
            )
            more = self.after(prepared)
        say_what_matters(prepared)
        facts = {**as_facts(prepared), **more}
        if sys.stdout.isatty():
            # the record has them, for whoever wants them all
            del facts["notes"]
        report(facts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCommand(OneSample, TaskOptions):
    """Fields of a command that prepares one sample of a slide and a study that the user names."""

    slide: Annotated[Path, arg(metavar="IMAGE")]
    """Slide image of the sample at full resolution: a whole slide, or a JPEG, PNG or other image."""

    def slide_image(self) -> Path:
        """Says which image the spots lie on."""
        return self.slide

    def origin(self) -> tuple[str, str | None]:
        """Says which study and patient the sample is of."""
        return self.study, self.patient


def as_facts(prepared: PreparedSample) -> dict[str, Any]:
    """Turns the outcome into what ``report`` prints."""
    return dict(encode(prepared))


def say_what_matters(prepared: PreparedSample) -> None:
    """Says on stderr what the user should know of a sample that succeeded."""
    if prepared.status == "kept":
        say(
            f"{prepared.sample_id}: kept, because it was prepared with the same options from the same files; prepare it "
            "again with `overwrite=True`"
        )
    elif prepared.num_over_edge:
        say(
            f"{prepared.sample_id}: {prepared.num_over_edge} of {prepared.num_spots} patches reach beyond the image, and are "
            "white there"
        )
