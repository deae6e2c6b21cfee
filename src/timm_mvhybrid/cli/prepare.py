"""``timm-mvhybrid prepare``: what a platform wrote + its slide image → samples of a task in the HEST layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg, subcommand

from ..cohorts.hest_sample import HestFolder
from ..cohorts.image_element import write_image_element
from ..cohorts.placed_transcripts import write_placed_transcripts
from ..cohorts.prepare import PreparedSample
from ..cohorts.space_ranger import VisiumFolder
from ..cohorts.spatialdata_store import SpatialDataStore
from ..cohorts.spot_sample import SpotSource, check_sample_id
from ..cohorts.st_layout import write_st_task
from ..cohorts.store_elements import choose_element
from ..cohorts.visium_hd import VisiumHDFolder
from ..cohorts.xenium import XeniumFolder
from ..runtime.errors import ParameterError
from .messages import report, status
from .sample_command import OneSample, SampleCommand, TaskOptions, say_what_matters


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
class Xenium(SampleCommand):
    """Prepare a Xenium sample: transcripts are placed on the H&E image and counted in squares of a patch's size."""

    source: Annotated[XeniumFolder, arg(name="")]
    transcripts: bool = False
    """Also write the transcripts with their places on the image, which 'finetune mint' pools in the tokens of a patch."""

    def spot_source(self) -> XeniumFolder:
        """Says where transcripts are."""
        return dataclasses.replace(self.source, slide=self.slide, um_per_px=self.slide_resolution_um_per_px)

    def after(self, prepared: PreparedSample) -> dict[str, Any]:
        """Writes the transcripts."""
        if not self.transcripts:
            return {}
        file = self.output / "transcripts" / f"{self.sample_id}.parquet"
        num_transcripts = write_placed_transcripts(self.spot_source(), file)
        return {"transcripts": str(file), "num_transcripts": num_transcripts}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hest(OneSample):
    """Prepare a sample of HEST-1k as it is downloaded: wsis/ID.tif, st/ID.h5ad and metadata/ID.json."""

    root: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Folder of the data set, with wsis, st and metadata."""
    study: Annotated[str | None, arg(metavar="NAME")] = None
    """Study that it is of; by default the title of its data set in HEST's metadata."""
    without_patient: bool = False
    """Leave the patient out, which HEST's metadata name for some samples only: a task has all patients or none."""
    counts_layer: Annotated[str | None, arg(metavar="NAME")] = None
    """Layer of the h5ad that holds raw counts, or raw; by default X, where HEST has them."""

    def spot_source(self) -> HestFolder:
        """Says where the sample is."""
        return HestFolder(folder=self.root, sample=self.sample_id, counts_layer=self.counts_layer)

    def slide_image(self) -> Path:
        """Says which image the spots lie on."""
        return self.spot_source().slide

    def origin(self) -> tuple[str, str | None]:
        """Takes study and patient from HEST's metadata where they are not given."""
        source = self.spot_source()
        source.files  # noqa: B018 - what is missing is said before what the metadata lack
        if self.without_patient and self.patient is not None:
            raise ParameterError("`patient` and `without_patient` contradict each other; give one of both")
        study = self.study or source.study
        if study is None:
            raise ParameterError(
                f"`study` is missing, and {source.metadata or self.root / 'metadata'} does not state the title of the data set; "
                "give it"
            )
        return study, None if self.without_patient else self.patient or source.patient


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialData(OneSample, TaskOptions):
    """Prepare a sample of a SpatialData store (zarr): a table of counts, the shapes that it annotates, and an image."""

    source: Annotated[SpatialDataStore, arg(name="")]
    slide: Annotated[Path | None, arg(metavar="IMAGE")] = None
    """Slide image at full resolution; by default the store's image is written to the task's folder wsis."""

    def spot_source(self) -> SpatialDataStore:
        """Says where spots and counts are."""
        source = self.source
        if self.slide is None:
            source = dataclasses.replace(source, image=choose_element(source.folder, "images", source.image))
        return dataclasses.replace(source, slide=self._path)

    def slide_image(self) -> Path:
        """Says which image the spots lie on; writes that of the store."""
        if self.slide is None:
            write_image_element(
                self.source.folder,
                self._path,
                self.source.image,
                um_per_px=self.slide_resolution_um_per_px,
                overwrite=self.overwrite,
            )
        return self._path

    @property
    def _path(self) -> Path:
        return self.slide or self.output / "wsis" / f"{check_sample_id(self.sample_id)}.tif"

    def origin(self) -> tuple[str, str | None]:
        """Says which study and patient the sample is of."""
        return self.study, self.patient


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


PrepareCommand = (
    Annotated[Visium, subcommand("visium")]
    | Annotated[VisiumHD, subcommand("visium-hd")]
    | Annotated[Xenium, subcommand("xenium")]
    | Annotated[ST, subcommand("st")]
    | Annotated[Hest, subcommand("hest")]
    | Annotated[SpatialData, subcommand("spatialdata")]
)
"""One for each platform, and for what others have prepared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Write your own samples in the HEST layout, which evaluation and fine-tuning read."""

    command: Annotated[PrepareCommand, arg(name="")]

    @property
    def when_interrupted(self) -> str:
        """What an interruption leaves."""
        return self.command.when_interrupted

    def run(self) -> None:
        """Runs the command."""
        self.command.run()
