"""Small cohorts of spots and of transcripts: in memory, and on disk."""

import json
from pathlib import Path

import h5py
import numpy as np
from scipy import sparse
from support.hest_tasks import sample_arrays, write_studies

from timm_mvhybrid.cohorts.hest_writer import write_sample
from timm_mvhybrid.finetune.cohort_entry import CohortEntry
from timm_mvhybrid.finetune.measured import MeasuredSample

GENES = [f"G{index:02d}" for index in range(12)]
PATCH = {"pixel_size": 0.25, "downsample": 2.0}
"""Patches of 32 px are 64 px, or 16 µm, of level 0."""


class Source:
    """Patches of which only the number is known."""

    def __init__(self, num_patches):
        self.num_patches = num_patches

    def __len__(self):
        return self.num_patches


def measured_sample(
    counts, names=None, *, name="S0", study="A", patient="", panel="P", tokens=None, area_um2=None, **entry
):
    """A sample in memory; ``tokens`` is (patches, cells, genes), and counts are then its sum over cells."""
    if tokens is not None:
        counts = np.asarray(tokens).sum(axis=1)
    counts = sparse.csr_matrix(np.asarray(counts, np.float32))
    return MeasuredSample(
        entry=CohortEntry(path=Path(panel), panel=panel, **entry),
        sample_id=name,
        study=study,
        patient=patient,
        studies_file=Path(panel, "studies.csv"),
        platform="spots" if tokens is None else "transcripts",
        source=Source(counts.shape[0]),
        genes=tuple(names or [f"G{index:02d}" for index in range(counts.shape[1])]),
        counts=counts,
        measured=np.diff(counts.indptr) > 0,
        tokens=None
        if tokens is None
        else sparse.csr_matrix(np.asarray(tokens, np.float32).reshape(len(tokens), -1)),
        area_um2=area_um2,
        files=(),
    )


def write_spots(root, studies, patients=None, **options):
    """A cohort of spots whose samples are the keys of ``studies``."""
    for seed, name in enumerate(studies):
        write_sample(root, name, **sample_arrays(seed, **options), attributes=PATCH)
    write_studies(root / "studies.csv", studies, patients)
    return root


def write_transcripts(root, studies, *, num_transcripts=4000, seed=0, metadata=None):
    """A cohort of transcripts: patches side by side in rows of three, and beside them some controls and blunders."""
    import pyarrow
    from pyarrow import parquet

    for folder in ("patches", "transcripts"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(studies):
        rng = np.random.default_rng([seed, number])
        corners = np.stack([np.arange(6) % 3, np.arange(6) // 3], axis=1) * 64 + 100
        with h5py.File(root / "patches" / f"{name}.h5", "w") as file:
            images = file.create_dataset("img", data=rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
            images.attrs.update(PATCH)
            file.create_dataset("coords", data=corners)
        weights = rng.dirichlet(np.ones(len(GENES)))
        features = np.array([*GENES, "BLANK_1"])[rng.choice(13, num_transcripts, p=[*(0.9 * weights), 0.1])]
        table = {
            "he_x": rng.uniform(90, 310, num_transcripts),
            "he_y": rng.uniform(90, 250, num_transcripts),
            "feature_name": features.astype("S"),
            "qv": rng.uniform(10, 40, num_transcripts).astype(np.float32),
        }
        columns = {key: pyarrow.array(values) for key, values in table.items()}
        parquet.write_table(pyarrow.table(columns), root / "transcripts" / f"{name}.parquet")
        if metadata is not None:
            (root / "metadata").mkdir(exist_ok=True)
            (root / "metadata" / f"{name}.json").write_text(json.dumps(metadata))
    write_studies(root / "studies.csv", studies)
    return root


def write_manifest(file, *cohorts):
    file.write_text(json.dumps({"cohorts": list(cohorts)}))
    return file
