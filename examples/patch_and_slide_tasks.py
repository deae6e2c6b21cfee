"""Generated tissue → classification, retrieval, slide labels and survival by two backbones → four reports.

Draws patches of three kinds of "tissue" that differ in the size and number of their nuclei, and slides made of
them. In slides of the label MSI, and of patients who live shorter, one kind is more frequent. Every picture is
generated: the scores say that the tools work, and nothing about a backbone's worth.

    python examples/patch_and_slide_tasks.py --output outputs/tasks
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from timm_mvhybrid.data import FolderSource
from timm_mvhybrid.evaluate import (
    EmbeddingOptions,
    PatchTaskOptions,
    SlideTaskOptions,
    embed,
    evaluate_classification,
    evaluate_retrieval,
    evaluate_slides,
    evaluate_survival,
    load_backbone,
)
from timm_mvhybrid.report import write_report

NUCLEI = {"lymphoid": (60, 3), "stroma": (8, 4), "tumour": (25, 8)}
"""Kind → nuclei in a patch, and their radius in px."""
PATCH_SIZE_PX = 128


def draw_patch(kind: str, rng: np.random.Generator) -> Image.Image:
    """Draws round nuclei on a pink ground."""
    number, radius = NUCLEI[kind]
    ground = rng.normal((232, 180, 205), 6, (PATCH_SIZE_PX, PATCH_SIZE_PX, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    for _ in range(rng.poisson(number)):
        x, y = rng.uniform(0, PATCH_SIZE_PX, 2)
        size = radius * rng.uniform(0.7, 1.3)
        pen.ellipse((x - size, y - size, x + size, y + size), fill=(90 + int(rng.integers(30)), 60, 140))
    return image


def draw_classes(folder: Path, num_patches: int, rng: np.random.Generator) -> Path:
    """Draws a folder of patches for each kind, split into train and test."""
    for part in ("train", "test"):
        for kind in NUCLEI:
            (folder / part / kind).mkdir(parents=True)
            for index in range(num_patches):
                draw_patch(kind, rng).save(folder / part / kind / f"{index}.png")
    return folder


def draw_slides(folder: Path, num_slides: int, num_patches: int, rng: np.random.Generator) -> Path:
    """Draws slides as folders of patches, and tables of their labels and follow-up."""
    labels, follow_up = [], []
    for index in range(num_slides):
        name, positive = f"slide{index:02d}", index % 2 == 0
        (folder / "patches" / name).mkdir(parents=True)
        share = (0.6, 0.3, 0.1) if positive else (0.1, 0.3, 0.6)
        for number, kind in enumerate(rng.choice(list(NUCLEI), num_patches, p=share)):
            draw_patch(kind, rng).save(folder / "patches" / name / f"{number:03d}.png")
        months = rng.exponential(8 if positive else 60)
        labels.append((name, f"patient{index:02d}", "MSI" if positive else "MSS"))
        follow_up.append((name, f"patient{index:02d}", f"{min(months, 48):.2f}", int(months < 48)))
    for file, columns, rows in (
        ("labels.csv", ("slide_id", "patient", "label"), labels),
        ("follow_up.csv", ("slide_id", "patient", "time", "event"), follow_up),
    ):
        with (folder / file).open("w", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws, evaluates and writes the reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/tasks"))
    parser.add_argument("--models", nargs="+", default=["test_mvhybrid", "test_vit12"])
    parser.add_argument(
        "--patches", type=int, default=40, help="patches of each class and part, and of each slide"
    )
    parser.add_argument("--slides", type=int, default=40)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    options.output.mkdir(parents=True)
    classes = draw_classes(options.output / "classes", options.patches, rng)
    slides = draw_slides(options.output / "slides", options.slides, options.patches, rng)
    backbones = [load_backbone(name) for name in options.models]
    # random weights leave the class token almost constant, while the mean of the patches follows the picture
    embedding = EmbeddingOptions(cache=options.output / "cache", pool="avg")
    patch_options = PatchTaskOptions(embedding=embedding, num_neighbours=min(20, options.patches))
    bags = []
    for backbone in backbones:
        bags.append(options.output / "bags" / backbone.name)
        bags[-1].mkdir(parents=True)
        for slide in sorted((slides / "patches").iterdir()):
            embed(FolderSource(slide), backbone, bags[-1] / f"{slide.name}.h5", pool="avg")
    slide_options = SlideTaskOptions(num_folds=4, num_prototypes=4, time_unit="months")
    for name, result in (
        ("classification", evaluate_classification(classes, backbones, patch_options)),
        ("retrieval", evaluate_retrieval(classes, backbones, patch_options)),
        ("slides", evaluate_slides(bags, slides / "labels.csv", slide_options)),
        ("survival", evaluate_survival(bags, slides / "follow_up.csv", slide_options)),
    ):
        assert result is not None
        print(f"{name}: {write_report(result, options.output / name)}")


if __name__ == "__main__":
    main()
