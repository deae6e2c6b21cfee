"""Bags of patch embeddings in which a slide's label and its patient's survival show."""

from pathlib import Path

import h5py
import numpy as np


def write_bags(folder: Path, num_patients=24, dim=8, signal=5.0, seed=0, key="features"):
    """Two slides for every third patient; half of the patients have a share of patches moved along one direction."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    slides = []
    for patient in range(num_patients):
        positive = patient % 2 == 0
        for part in range(2 if patient % 3 == 0 else 1):
            bag = rng.normal(size=(rng.integers(15, 25), dim)).astype(np.float32)
            if positive:
                bag[: len(bag) // 3, 0] += signal
            slide = f"P{patient:02d}-{part}"
            with h5py.File(folder / f"{slide}.h5", "w") as file:
                file[key] = bag[None] if part else bag
            time = float(rng.exponential(4 if positive else 60)) + 0.1
            slides.append((slide, f"P{patient:02d}", positive, time))
    return slides


def write_labels(file: Path, slides, patient="patient"):
    lines = [f"slide_id,{patient},label"]
    lines += [f"{slide},{owner},{'MSI' if positive else 'MSS'}" for slide, owner, positive, _ in slides]
    file.write_text("\n".join(lines) + "\n")
    return file


def write_follow_up(file: Path, slides):
    time_of = {}
    lines = ["slide_id,case_id,time,event"]
    for slide, owner, _, time in slides:
        months = time_of.setdefault(owner, time)
        lines.append(f"{slide},{owner},{min(months, 30):.3f},{int(months < 30)}")
    file.write_text("\n".join(lines) + "\n")
    return file
