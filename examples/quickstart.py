"""A slide → embeddings of its tissue by all six backbones → a table and a picture.

Tiles the H&E slide that lies beside this script at 0.5 µm/px, embeds every tissue patch, prints each backbone's size
and speed, and draws the slide beside maps of the embeddings' first three principal components (as red, green, blue).

    python examples/quickstart.py --output outputs/quickstart
"""

import argparse
from pathlib import Path

import h5py
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

from timm_mvhybrid.data import Slide, SlideSource, TilingOptions
from timm_mvhybrid.evaluate import embed, load_backbone, num_available_workers
from timm_mvhybrid.models import MODEL_NAMES

SLIDE = Path(__file__).parent / "data" / "CMU-1-Small-Region.svs"
PIXELS_PER_PATCH = 24
TITLE_HEIGHT = 30
MARGIN = 16


def principal_components(embeddings: np.ndarray) -> np.ndarray:
    """Projects embeddings (patches, dim) on their first three components, each scaled to 0 … 1."""
    centred = embeddings - embeddings.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    scores = centred @ directions[:3].T
    scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))
    low, high = np.percentile(scores, [2, 98], axis=0)
    return np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)


def component_map(
    coords: np.ndarray, patch_size: int, components: np.ndarray, size: tuple[int, int]
) -> Image.Image:
    """Paints every patch in the colour of its components on a white slide of the given size in px."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    scale = PIXELS_PER_PATCH / patch_size
    for (x, y), colour in zip(coords * scale, components, strict=True):
        box = [round(x), round(y), round(x) + PIXELS_PER_PATCH - 1, round(y) + PIXELS_PER_PATCH - 1]
        draw.rectangle(box, fill=tuple(round(255 * channel) for channel in colour))
    return image


def picture(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Joins titled panels of one size in a row."""
    width, height = panels[0][1].size
    canvas = Image.new(
        "RGB", (MARGIN + len(panels) * (width + MARGIN), height + TITLE_HEIGHT + MARGIN), "white"
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for index, (title, panel) in enumerate(panels):
        left = MARGIN + index * (width + MARGIN)
        draw.text((left, 8), title, fill="black", font=font)
        canvas.paste(panel, (left, TITLE_HEIGHT))
    return canvas


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, default=SLIDE, help="slide to embed (default: the one shipped)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/quickstart"), help="folder of the results"
    )
    parser.add_argument(
        "--models", nargs="+", default=list(MODEL_NAMES), help="names of timm models (default: all six)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="patches a batch (default: 8)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(
        "The weights are random (seed 0), for none are published yet: what follows shows that everything runs and how "
        "fast, and says nothing about tissue.\n"
    )

    source = SlideSource(options.slide, TilingOptions())
    patch_size = round(source.patch_size_level0)
    slide = Slide(options.slide)
    size = tuple(round(side * PIXELS_PER_PATCH / patch_size) for side in slide.dimensions)
    thumbnail = Image.fromarray(slide.thumbnail(patch_size / PIXELS_PER_PATCH)).resize(size)
    panels = [("slide", thumbnail)]

    table = Table(title=f"{len(source)} tissue patches of 256 px at 0.5 µm/px")
    table.add_column("model")
    for name in ("parameters (M)", "patches/s", "embedding size"):
        table.add_column(name, justify="right")
    for name in options.models:
        backbone = load_backbone(name, seed=0)
        output = options.output / f"{name}.h5"
        with console.status(f"{name} …"):
            summary = embed(
                source,
                backbone,
                output,
                batch_size=options.batch_size,
                num_workers=min(1, num_available_workers()),
                overwrite=True,
            )
        parameters = sum(parameter.numel() for parameter in backbone.model.parameters()) / 1e6
        speed, dim = f"{summary.patches_per_second:.1f}", str(summary.embedding_dim)
        table.add_row(name, f"{parameters:.1f}", speed, dim)
        with h5py.File(output) as file:
            components = principal_components(file["embeddings"][:])
            panels.append(
                (name.split("_small")[0], component_map(file["coords"][:], patch_size, components, size))
            )
    console.print(table)
    path = options.output / "components.png"
    picture(panels).save(path)
    console.print(f"Embeddings and picture: {options.output}")


if __name__ == "__main__":
    main()
