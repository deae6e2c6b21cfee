"""Cohorts of several panels and platforms → batches of crops, whole patches and targets, the same at every resumption.

A batch is a dictionary, of which B is the number of patches of this process:

- ``image``: whole patches, neither cropped nor turned, (B, 3, H, W) uint8; cells of the token grid lie on them row by row;
- ``global_crops``, ``local_crops``: as ``ssl.crops`` makes them, uint8; ``crops``: the ``CropBatch`` that holds them;
- ``indices``: numbers of the patches, (B,) int64; ``step``; ``corrupt``: patches that could not be read;
- of each panel ``expression/<panel>`` (B, genes) float32 and ``measured/<panel>`` bool; of those with transcripts also
  ``token_expression/<panel>`` (B, grid², genes) and ``token_measured/<panel>``. Not standardised: ``Panel`` has mean and
  deviation. 0 where nothing was measured;
- with gene sets ``pathways`` (B, sets) float32, standardised, and ``pathways_measured`` bool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cohorts.pathways import PathwayMethod
from ..cohorts.token_grid import MIN_QV
from ..data.samples import Samples
from ..runtime.digest import file_sha256
from ..runtime.errors import DataError
from ..ssl.config import CropConfig
from ..ssl.crops import CropBatch
from ..ssl.loader import make_loader
from ..training.settings import require
from .cohort_entry import open_entries
from .holdout import HoldOut, Split, hold_out
from .measured import MeasuredSample, read_cohort
from .panels import Panel, SampleTargets, build_panel, panels_of
from .pathway_targets import PathwayTargets, score_pathways

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CohortConfig:
    """What is trained and validated on."""

    sources: tuple[str, ...]
    """Folders in HEST's layout (patches/ with adata/ or transcripts/), or manifests (.json) with weights and panels."""
    num_genes: int = 1000
    """Most variable genes to predict of a cohort of spots that names none."""
    token_grid: int = 16
    """Tokens along a side of a patch, where single transcripts are known."""
    token_pool: int = 4
    """Tokens along a side of a cell that transcripts are pooled in; 1 for single tokens."""
    min_qv: float = MIN_QV
    """Lowest quality of transcripts that count."""
    split: Split = "auto"
    """What training and validation do not share: studies, patients, auto (studies where there are several), or none for no
    validation."""
    hold_out: tuple[str, ...] = ()
    """Studies or patients to validate on; some at random by default."""
    validation_fraction: float = 0.2
    """Fraction of the patches to validate on, at least, in whole studies or patients."""
    pathways: Path | None = None
    """GMT file of gene sets to score in every patch."""
    pathway_method: PathwayMethod = "mean_z"
    """How gene sets are scored."""
    min_genes: int = 5
    """Measured genes that a gene set needs."""
    ignore_case: bool = False
    """Whether Actb and ACTB are one gene in gene sets."""
    num_workers: int = 4
    """Processes of each rank that read and crop, at most one a core; 0 reads in the main process."""
    max_corrupt: int = 0
    """Unreadable patches that are counted, reported and replaced before the run stops."""

    def __post_init__(self) -> None:
        # the command line fills them in later
        if isinstance(self.sources, Sequence):
            require(len(self.sources) > 0, "data.sources", "empty", "at least one folder or manifest")
        for name in ("num_genes", "token_grid", "token_pool", "min_genes"):
            require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "at least 1")
        require(
            self.token_grid % self.token_pool == 0,
            "data.token_pool",
            self.token_pool,
            f"a divisor of data.token_grid={self.token_grid}",
        )

    @property
    def grid(self) -> int:
        """Cells along a side of a patch."""
        return self.token_grid // self.token_pool


@dataclass(frozen=True, eq=False, kw_only=True)
class FinetuneData:
    """Everything that is known of the patches of a run; ``open_cohorts`` reads it.

    Attributes:
        config: What was asked for.
        samples: All samples of all cohorts.
        panels: Panels by name.
        targets: Targets of each sample.
        pathways: Scores of gene sets; None without.
        split: What is held out.
        patches: Patches to train on.
    """

    config: CohortConfig
    samples: tuple[MeasuredSample, ...]
    panels: dict[str, Panel]
    targets: tuple[SampleTargets, ...]
    pathways: PathwayTargets | None
    split: HoldOut
    patches: Samples
    _train: list[int] = field(repr=False)

    @property
    def validation(self) -> tuple[int, ...]:
        """Numbers of the samples that are held out."""
        return tuple(np.flatnonzero(self.split.held_out).tolist())

    @property
    def num_validation_patches(self) -> int:
        """Measured patches that are held out."""
        return sum(int(self.samples[index].measured.sum()) for index in self.validation)

    @property
    def notes(self) -> list[str]:
        """What was left out of samples, and what panels cannot do, a sentence each."""
        found = [note for sample in self.samples for note in sample.notes]
        for name, panel in self.panels.items():
            numbers = [index for index, sample in enumerate(self.samples) if sample.entry.panel_name == name]
            varies = np.any([self.targets[index].has for index in numbers], axis=0)
            constant = [gene for gene, kept in zip(panel.genes, varies, strict=True) if not kept]
            if constant:
                found.append(
                    f"panel {name}: {len(constant)} of {len(panel.genes)} genes do not vary among training patches and are "
                    f"not predicted ('{constant[0]}' …)"
                )
        if self.pathways is not None:
            found += [
                f"panel {name}: no pathway scores ({why})" for name, why in self.pathways.unscored.items()
            ]
        return found

    def fingerprint(self) -> str:
        """Identifies patches, counts, genes, gene sets and split, for a resumed run to compare.

        Logarithms and what follows from them do not count: another processor may round them differently.

        Returns:
            32 hexadecimal digits.
        """
        config = self.config
        found = hashlib.sha256(self.patches.fingerprint().encode())
        for sample, targets, held_out in zip(self.samples, self.targets, self.split.held_out, strict=True):
            panel = targets.panel
            facts = (sample.sample_id, panel.name, panel.normalise, panel.grid, bool(held_out), panel.genes)
            found.update(repr((*facts, sample.genes, sample.area_um2)).encode())
            counts = sample.counts if sample.tokens is None else sample.tokens
            for part in (counts.data, counts.indices, counts.indptr):
                found.update(np.ascontiguousarray(part).tobytes())
        if self.pathways is not None and config.pathways is not None:
            found.update(file_sha256(config.pathways).encode())
            found.update(repr((self.pathways.names, config.pathway_method, config.ignore_case)).encode())
        return found.hexdigest()[:32]

    def batches(
        self,
        *,
        crops: CropConfig,
        batch_size: int,
        num_steps: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> Generator[Batch, None, None]:
        """Yields batches of this process, from a step to the end of the run.

        A batch depends on the seed, its step, its rank and the number of ranks, on nothing else, see ``make_loader``.

        Args:
            crops: Sizes, scales and orientations of the crops; whole patches have the size of global crops.
            batch_size: Patches of each rank.
            num_steps: Backward passes of the whole run.
            seed: Decides which patches come when, and everything random about them.
            start_step: Pass to begin with, when a run is resumed.
            rank: Of this process.
            world_size: Number of ranks.
            pin_memory: Whether crops go to page-locked memory, for CUDA.

        Yields:
            Batches, see the head of this module.

        Raises:
            PretrainError: If a number is outside its range.
            DataError: If more patches are unreadable than is tolerated.
        """
        loader = iter(
            make_loader(
                self.patches,
                crops=crops,
                batch_size=batch_size,
                num_steps=num_steps,
                seed=seed,
                start_step=start_step,
                rank=rank,
                world_size=world_size,
                num_workers=self.config.num_workers,
                pin_memory=pin_memory,
                max_corrupt=self.config.max_corrupt,
                image_size_px=crops.global_size_px,
            )
        )
        try:
            for batch in loader:
                yield self._with_targets(batch)
        finally:
            loader.close()

    def _with_targets(self, batch: CropBatch) -> Batch:
        places = [self.patches.locate(index) for index in batch.indices.tolist()]
        return {
            "step": batch.step,
            "crops": batch,
            "image": batch.images,
            "global_crops": batch.global_crops,
            "local_crops": batch.local_crops,
            "indices": batch.indices,
            "corrupt": batch.corrupt,
            **self.targets_of([(self._train[number], patch) for number, patch in places]),
        }

    def targets_of(self, places: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """Looks up the targets of patches.

        Args:
            places: Number of the sample, and of the patch in it, of each.

        Returns:
            The targets, see the head of this module.
        """
        rows_of: dict[int, list[int]] = {}
        for row, (number, _) in enumerate(places):
            rows_of.setdefault(number, []).append(row)
        patch = np.array([patch for _, patch in places])
        found: dict[str, NDArray[Any]] = {}
        for name, panel in self.panels.items():
            shape = (len(places), len(panel.genes))
            found[f"expression/{name}"] = np.zeros(shape, np.float32)
            found[f"measured/{name}"] = np.zeros(shape, np.bool_)
            if panel.grid is not None:
                cells = (len(places), panel.grid**2, len(panel.genes))
                found[f"token_expression/{name}"] = np.zeros(cells, np.float32)
                found[f"token_measured/{name}"] = np.zeros(cells, np.bool_)
        if self.pathways is not None:
            shape = (len(places), len(self.pathways.names))
            found["pathways"] = np.zeros(shape, np.float32)
            found["pathways_measured"] = np.zeros(shape, np.bool_)
        for number, rows in rows_of.items():
            self._enter(found, number, np.array(rows), patch[rows])
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _enter(
        self, found: dict[str, NDArray[Any]], number: int, rows: NDArray[np.int64], patch: NDArray[np.int64]
    ) -> None:
        """Enters the targets of one sample's patches in their rows."""
        targets = self.targets[number]
        name, measured = targets.panel.name, targets.measured[patch]
        ok = measured[:, None] & targets.has
        found[f"expression/{name}"][rows] = targets.expression[patch].toarray() * ok
        found[f"measured/{name}"][rows] = ok
        if targets.tokens is not None:
            assert targets.token_has is not None
            ok = measured[:, None] & targets.token_has
            cells = targets.tokens[patch].toarray().reshape(len(rows), -1, len(targets.panel.genes))
            found[f"token_expression/{name}"][rows] = cells * ok[:, None]
            found[f"token_measured/{name}"][rows] = ok[:, None]
        if self.pathways is not None:
            found["pathways"][rows] = self.pathways.values[number][patch]
            found["pathways_measured"][rows] = self.pathways.measured[number][patch]


def open_cohorts(config: CohortConfig, *, seed: int = 0) -> FinetuneData:
    """Reads cohorts, chooses what is held out, and computes all targets; genes and statistics come from training alone.

    Args:
        config: What is asked for.
        seed: Of the choice of what is held out.

    Returns:
        The data.

    Raises:
        DataError: If something is missing or cannot be used; the message names the file or field, and the remedy.
    """
    samples = [
        sample
        for entry in open_entries(config.sources)
        for sample in read_cohort(entry, grid=config.grid, min_qv=config.min_qv)
    ]
    split = hold_out(
        samples, split=config.split, groups=config.hold_out, fraction=config.validation_fraction, seed=seed
    )
    training = ~split.held_out
    panels: dict[str, tuple[Panel, Sequence[int]]] = {}
    targets: dict[int, SampleTargets] = {}
    for name, numbers in panels_of(samples).items():
        panel, found = build_panel(
            name,
            [samples[index] for index in numbers],
            training[numbers],
            num_genes=config.num_genes,
            grid=config.grid,
        )
        panels[name] = (panel, numbers)
        targets.update(zip(numbers, found, strict=True))
    pathways = None
    if config.pathways is not None:
        pathways = score_pathways(
            samples,
            panels,
            training,
            config.pathways,
            method=config.pathway_method,
            min_genes=config.min_genes,
            ignore_case=config.ignore_case,
        )
    train = np.flatnonzero(training).tolist()
    if not any(samples[index].measured.any() for index in train):
        raise DataError("no patch to train on was measured; give counts of more spots")
    return FinetuneData(
        config=config,
        samples=tuple(samples),
        panels={name: panel for name, (panel, _) in panels.items()},
        targets=tuple(targets[index] for index in range(len(samples))),
        pathways=pathways,
        split=split,
        patches=Samples(
            [samples[index].source for index in train],
            weights=[samples[index].entry.weight for index in train],
            names=[f"{samples[index].entry.panel_name}/{samples[index].sample_id}" for index in train],
        ),
        _train=train,
    )
