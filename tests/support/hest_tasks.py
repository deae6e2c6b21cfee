"""Small tasks in the HEST layout whose genes follow the patches' colours."""

from pathlib import Path

import numpy as np

from timm_mvhybrid.cohorts.hest_writer import write_sample, write_split

GENES = [f"G{index:02d}" for index in range(12)]


def sample_arrays(seed, num_spots=24, genes=GENES):
    rng = np.random.default_rng(seed)
    colour = rng.integers(60, 200, (num_spots, 1, 1, 3))
    patches = np.clip(colour + rng.integers(-20, 20, (num_spots, 32, 32, 3)), 0, 255).astype(np.uint8)
    weights = np.random.default_rng(99).normal(size=(3, len(genes))) / 40
    rate = np.exp(1.5 + (colour.reshape(num_spots, 3) - 130) @ weights)
    return {
        "patches": patches,
        "coords": np.stack([np.arange(num_spots) % 6, np.arange(num_spots) // 6], axis=1) * 64,
        "barcodes": [f"S{seed}-{index:03d}" for index in rng.permutation(num_spots)],
        "counts": rng.poisson(rate),
        "genes": list(genes),
        "spatial": np.stack([np.arange(num_spots) % 6, np.arange(num_spots) // 6], axis=1) * 64.0 + 32,
    }


def write_task(folder: Path, num_samples=4, splits=True, **options) -> Path:
    task = folder / "TASK"
    names = [f"S{index}" for index in range(num_samples)]
    for index, name in enumerate(names):
        write_sample(
            task,
            name,
            **sample_arrays(index, **options),
            attributes={"pixel_size": 0.25, "downsample": 2.0, "patch_size_src": 64, "patch_size_target": 32},
        )
        if splits:
            write_split(task, index, [other for other in names if other != name], [name])
    return task


def write_studies(file: Path, studies: dict[str, str], patients: dict[str, str] | None = None) -> Path:
    lines = ["sample_id,study" + (",patient" if patients else "")]
    lines += [
        f"{name},{study}" + (f",{patients[name]}" if patients else "") for name, study in studies.items()
    ]
    file.write_text("\n".join(lines) + "\n")
    return file
