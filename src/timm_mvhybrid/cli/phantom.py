"""``timm-mvhybrid phantom``: options → a generated cohort in the HEST layout."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..synthetic import PhantomOptions, write_phantom
from .flags import spelled_once
from .messages import report, status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phantom:
    """Write a generated cohort of spatial transcriptomics in the HEST layout; nothing in it is measured."""

    out: Annotated[Positional[Path | None], arg(metavar="[DIR]")] = None
    """The same as --output, as earlier versions have it."""
    output: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(required)")] = None
    """Folder to write; complete or absent."""
    overwrite: bool = False
    """Replace an earlier phantom. Any other folder is never replaced."""
    options: Annotated[PhantomOptions, arg(name="")] = field(default_factory=PhantomOptions)
    num_workers: Annotated[int, arg(metavar="N")] = 0
    """Processes that draw; 0 draws in the main process. The files do not depend on it."""

    def run(self) -> None:
        """Runs the command."""
        output = spelled_once("`output`", self.output, self.out)
        with status("drawing") as update:
            summary = write_phantom(
                output,
                self.options,
                num_workers=self.num_workers,
                overwrite=self.overwrite,
                on_sample=lambda done, total: update(f"drawing: {done} of {total} samples"),
            )
        report(dataclasses.asdict(summary))
