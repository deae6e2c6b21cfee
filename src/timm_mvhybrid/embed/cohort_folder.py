"""The folder of a cohort, as one process writes it: a slide is claimed, its file finished, its record appended."""

from __future__ import annotations

import json
import os
import platform
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from ..runtime.atomic_file import Leftovers, claimed
from ..runtime.digest import file_sha256
from ..runtime.errors import BusyOutputError
from .cohort_plan import MADE_OF, PlannedSlide
from .device_lane import SlideJob
from .slide_cohort import RecordLog, SlideRecord, SlideState
from .slide_opening import OpenedSlide


class CohortFolder:
    """What a process does in the folder.

    Args:
        folder: The folder; it exists.
        log: Its records.
    """

    def __init__(self, folder: Path, log: RecordLog) -> None:
        self.folder = folder
        self.log = log
        self._leftovers = Leftovers(folder)

    def file(self, planned: PlannedSlide) -> Path:
        """Names a slide's file."""
        return self.folder / f"{planned.slide.slide_id}.h5"

    def claim(self, planned: PlannedSlide) -> ExitStack | None:
        """Keeps other processes from a slide until this is closed; None if one is at it, or was since the plan was made.

        Raises:
            OutputError: The folder takes no files.
        """
        claim = ExitStack()
        file = self.file(planned)
        try:
            claim.enter_context(claimed(file))
        except BusyOutputError:
            return None
        record = self.log.refresh().get(planned.slide.slide_id)
        if record is not None and record.attempts > planned.attempts:
            claim.close()
            return None
        self._leftovers.remove(file)
        return claim

    def finish(self, job: SlideJob) -> str:
        """Gives a slide's file its name.

        Returns:
            Its SHA-256.

        Raises:
            DataError: None of its patches could be read.
            OutputError: The disk does not take it.
        """
        assert job.embedding is not None
        job.embedding.finish(**{MADE_OF: json.dumps(_digests(job), sort_keys=True)})
        return file_sha256(self.file(job.planned))

    def note_unchanged(self, job: SlideJob, opened: OpenedSlide) -> None:
        """Notes where an unchanged slide lies now, so that it need not be read again to know that."""
        before = self.log.refresh().get(job.planned.slide.slide_id)
        if before is None:
            # of a file whose record was lost
            before = job.planned.recovered
            assert before is not None
            digests = {**before.digests, "file": file_sha256(self.file(job.planned))}
            before = replace(before, digests=digests)
        self.log.append(replace(before, path=opened.path, coords=opened.coords, stamp=opened.stamp))

    def record(
        self, job: SlideJob, state: SlideState, *, error: str = "", file_digest: str = ""
    ) -> SlideRecord:
        """Appends how a slide ended; the file of one that does not have its settings any more goes.

        Raises:
            OutputError: The disk does not take it.
        """
        planned, opened, embedding = job.planned, job.opened, job.embedding
        slide, is_done = planned.slide, state == "done" and embedding is not None
        if not is_done and not planned.known:
            # whoever reads the folder would take it for today's
            with suppress(FileNotFoundError):
                self.file(planned).unlink()
        device = "no device" if job.lane is None else job.lane.placed.device
        record = SlideRecord(
            slide_id=slide.slide_id,
            path=str(slide.path.absolute()) if opened is None else opened.path,
            coords="" if opened is None else opened.coords,
            state=state,
            attempts=planned.attempts + 1,
            error=error,
            warnings=() if opened is None else opened.warnings,
            tiles=embedding.num_patches if is_done and embedding is not None else 0,
            num_corrupt=0 if embedding is None else embedding.num_corrupt,
            seconds=round(time.monotonic() - job.start, 3),
            file=self.file(planned).name if is_done else "",
            digests={**_digests(job), **({"file": file_digest} if file_digest else {})},
            stamp="" if opened is None else opened.stamp,
            worker=f"{platform.node()} process {os.getpid()}, {device}",
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        self.log.append(record)
        return record


def _digests(job: SlideJob) -> dict[str, str]:
    return {**({} if job.opened is None else job.opened.digests), **job.planned.digests}
