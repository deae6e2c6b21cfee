"""``timm-mvhybrid phantom``: options → a generated cohort in the HEST layout."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from .messages import report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phantom:
    """Write a generated cohort of spatial transcriptomics in the HEST layout; nothing in it is measured."""

    output: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder to write; complete or absent."""
    overwrite: bool = False
    """Replace an earlier phantom. Any other folder is never replaced."""

    studies: Annotated[int, arg(metavar="N")] = 8
    """Studies, each with its own stain, scanner and laboratory effects."""
    samples: Annotated[int, arg(metavar="N")] = 3
    """Samples of each study."""
    spots: Annotated[int, arg(metavar="N")] = 60
    """Spots of each sample."""
    genes: Annotated[int, arg(metavar="N")] = 120
    """Genes."""
    seed: int = 0
    """Seed of everything."""

    low_share: Annotated[float, arg(metavar="SHARE")] = 0.4
    """Share of genes driven by tissue architecture, 0 to 1."""
    high_share: Annotated[float, arg(metavar="SHARE")] = 0.4
    """Share of genes driven by detail within nuclei, 0 to 1; the rest follow no morphology."""
    low_effect: float = 0.7
    """Effect of architecture on log expected counts, per standard deviation."""
    high_effect: float = 0.7
    """Effect of nuclear detail."""
    noise: float = 0.25
    """Variation of the log expected count that nothing explains."""
    gradient: float = 0.3
    """Smooth variation over each slide, independent of morphology."""
    study_effect: float = 0.6
    """Variation of each gene's log level between studies."""
    dispersion: float = 0.1
    """Overdispersion of the negative binomial counts."""
    dropout: Annotated[float, arg(metavar="SHARE")] = 0.05
    """Probability that a count is lost."""
    depth: float = 12.0
    """Median count of a gene in a spot."""
    image_shift: float = 1.0
    """Strength of the studies' differences in stain, focus and resolution; 0 for none."""
    capture_um: Annotated[float, arg(metavar="UM")] = 100.0
    """Diameter in µm of the disc around a spot whose morphology drives its genes."""

    num_workers: Annotated[int, arg(metavar="N")] = 0
    """Processes that draw; 0 draws in the main process. The files do not depend on it."""

    def run(self) -> None:
        """Runs the command."""
        from rich.console import Console

        from ..synthetic import PhantomOptions, write_phantom

        own = {"output", "overwrite", "num_workers"}
        counts = {"studies", "samples", "spots", "genes"}
        values = {
            f"num_{field.name}" if field.name in counts else field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in own
        }
        options = PhantomOptions(**values)
        console = Console(stderr=True, quiet=not sys.stderr.isatty())
        with console.status("drawing") as status:
            summary = write_phantom(
                self.output,
                options,
                num_workers=self.num_workers,
                overwrite=self.overwrite,
                on_sample=lambda done, total: status.update(f"drawing: {done} of {total} samples"),
            )
        report(dataclasses.asdict(summary))
