"""A slide → patches → a minute of pretraining on a CPU → an exported model, and what the training changed.

Tiles the H&E slide that lies beside this script, pretrains a tiny model on the upper half of it, exports the teacher
and loads it again by timm. Whether its features are better than those of random weights is measured on the lower half,
which the training has not seen: for each tile there, how many of its nearest tiles by features are its neighbours on
the slide, as tissue changes slowly. Tiles do not overlap, so that no two share a pixel. Random weights find neighbours
by their colour, so the measure is taken a second time with the colours of each tile changed at random, as another
stain or scanner would. Two minutes of training make a smoke result, not a model to use.

    python examples/pretrain_slide.py --output outputs/pretrain_slide
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from quickstart import SLIDE, component_map, picture, principal_components
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2 import ColorJitter

from timm_mvhybrid.data import PatchH5Source, Slide, TilingOptions, tile_slides
from timm_mvhybrid.evaluate import Backbone, embed, load_backbone
from timm_mvhybrid.hub import export
from timm_mvhybrid.pretrain.config import DataConfig
from timm_mvhybrid.pretrain.plan import smoke
from timm_mvhybrid.pretrain.train import train
from timm_mvhybrid.training.metrics_log import read_lines
from timm_mvhybrid.training.plot import plot_runs

MODEL = "test_mvhybrid"
PATCH_SIZE = 128
RANDOM_SEEDS = range(5)
PIXELS_PER_PATCH = 24


def tile_side(slide: Path) -> float:
    """Returns the side of the tiles in level-0 px."""
    return PATCH_SIZE * TilingOptions().resolution_um_per_px / Slide(slide).resolution_um_per_px


def tile_half(slide: Path, store: Path, *, upper: bool, overlap: int) -> Path:
    """Tiles a slide and keeps the patches that lie wholly in its upper or lower half, in one h5 file."""
    options = TilingOptions(patch_size_px=PATCH_SIZE, overlap_px=overlap)
    summary = tile_slides([slide], store, options)
    if summary.failed:
        raise SystemExit(f"error: {summary.failed[0].message}")
    patches = summary.slides[0].output
    side = tile_side(slide)
    middle = Slide(slide).dimensions[1] / 2
    half = store / "half.h5"
    with h5py.File(patches) as source, h5py.File(half, "w") as target:
        top = source["coords"][:, 1]
        kept = np.flatnonzero(top + side <= middle if upper else top >= middle)
        for name in ("img", "coords"):
            dataset = target.create_dataset(name, data=source[name][kept])
            dataset.attrs.update(source[name].attrs)
        target.attrs.update(source.attrs)
    return half


def change_colours(patches: Path, output: Path) -> Path:
    """Writes patches again, each in colours of its own."""
    jitter = ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)
    with h5py.File(patches) as source, h5py.File(output, "w") as target, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        changed = [jitter(torch.from_numpy(tile).permute(2, 0, 1)).permute(1, 2, 0) for tile in source["img"]]
        target["img"] = torch.stack(changed).numpy()
        target["coords"] = source["coords"][:]
    return output


def neighbour_precision(embeddings: np.ndarray, coords: np.ndarray, side: float) -> tuple[np.ndarray, float]:
    """Measures how many of the nearest tiles by features are neighbours on the slide.

    Args:
        embeddings: (N, D).
        coords: (N, 2) top-left corners in level-0 px, of tiles that do not overlap.
        side: Side of the tiles in level-0 px.

    Returns:
        For each tile that has neighbours, up to 8, the share of them among as many nearest by cosine similarity; and
        the mean that random features would get.
    """
    distance = np.abs(coords[:, None] - coords[None]).max(axis=2)
    neighbours = (distance > 0) & (distance < 1.5 * side)
    directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similarity = directions @ directions.T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")
    counts = neighbours.sum(axis=1)
    shares = [neighbours[tile, order[tile, :count]].mean() for tile, count in enumerate(counts) if count > 0]
    return np.array(shares), float(counts[counts > 0].mean() / (len(coords) - 1))


def compare(patches: Path, exported: Path, folder: Path, slide: Path) -> dict[str, Any]:
    """Measures exported and random weights on the same tiles.

    Args:
        patches: The tiles.
        exported: Folder of the exported model.
        folder: Where the embeddings go.
        slide: Where the tiles are from.

    Returns:
        Means of `neighbour_precision`, and how far the exported weights are above the mean of the random ones, with
        the standard error of that difference over the tiles.
    """
    with h5py.File(patches) as file:
        coords = file["coords"][:]
    side = tile_side(slide)
    by_seed = []
    for seed in RANDOM_SEEDS:
        embedded = embed_tiles(patches, load_backbone(MODEL, seed=seed), folder / "random.h5")
        by_seed.append(neighbour_precision(embedded, coords, side)[0])
    backbone = load_backbone(f"local-dir:{exported}", pretrained=True)
    shares, chance = neighbour_precision(
        embed_tiles(patches, backbone, folder / "pretrained.h5"), coords, side
    )
    difference = shares - np.mean(by_seed, axis=0)
    return {
        "chance": chance,
        "random": [float(values.mean()) for values in by_seed],
        "pretrained": float(shares.mean()),
        "difference": float(difference.mean()),
        "standard_error": float(difference.std() / np.sqrt(len(difference))),
    }


def embed_tiles(patches: Path, backbone: Backbone, output: Path) -> np.ndarray:
    """Embeds the patches of an h5 file."""
    embed(PatchH5Source(patches), backbone, output, device="cpu", overwrite=True)
    with h5py.File(output) as file:
        embeddings: np.ndarray = file["embeddings"][:]
    return embeddings


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--slide", type=Path, default=SLIDE, help="slide to train on (default: the one shipped)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/pretrain_slide"), help="folder of the results"
    )
    parser.add_argument("--steps", type=int, default=120, help="optimiser steps (default: 120)")
    parser.add_argument("--batch-size", type=int, default=32, help="patches a step (default: 32)")
    options = parser.parse_args()
    console = Console()

    store = options.output / "patches"
    training = tile_half(options.slide, store / "training", upper=True, overlap=PATCH_SIZE // 2)
    held_out = tile_half(options.slide, store / "held_out", upper=False, overlap=0)

    run = options.output / "run"
    config = smoke(
        output=run, data=DataConfig(sources=(str(training),), num_workers=1, name=options.slide.name)
    )
    warmup = max(options.steps // 10, 1)
    config = dataclasses.replace(
        config,
        num_steps=options.steps,
        batch_size=options.batch_size,
        loss=dataclasses.replace(config.loss, teacher_temperature_warmup_steps=3 * warmup),
        # for so few steps of so small a model; chosen on the half that it was trained on
        optimizer=dataclasses.replace(
            config.optimizer, warmup_steps=warmup, base_learning_rate=0.04, patch_embed_multiplier=1.0
        ),
        checkpoint=dataclasses.replace(config.checkpoint, every_steps=max(options.steps // 3, 1)),
    )
    console.print(f"pretraining {MODEL} for {options.steps} steps of {options.batch_size} patches …")
    train(config)
    lines = [line for line in read_lines(run / "metrics.jsonl") if "loss/total" in line]
    losses, seconds = [line["loss/total"] for line in lines], lines[-1]["time"] - lines[0]["time"]
    ends = max(len(losses) // 10, 1)
    curves = plot_runs([run], options.output / "curves.png", smoothing=0.05)

    exported = options.output / "exported"
    export(run, MODEL, exported, overwrite=True)

    changed = change_colours(held_out, store / "changed_colours.h5")
    precisions = {}
    for name, patches in (("changed_colours", changed), ("as_scanned", held_out)):
        precisions[name] = compare(patches, exported, options.output, options.slide)

    num_tiles = len(PatchH5Source(held_out))
    table = Table(title=f"Neighbours on the slide among the nearest, {num_tiles} held-out tiles")
    for column in ("colours", "chance", "random weights", "pretrained", "difference"):
        table.add_column(column, justify="left" if column == "colours" else "right")
    for name in ("as_scanned", "changed_colours"):
        found = precisions[name]
        table.add_row(
            name.replace("_", " "),
            f"{found['chance']:.3f}",
            f"{np.mean(found['random']):.3f}",
            f"{found['pretrained']:.3f}",
            f"{found['difference']:+.3f} ± {found['standard_error']:.3f}",
        )
    console.print(table)

    figures = {
        "model": MODEL,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "seconds": round(seconds, 1),
        "num_threads": torch.get_num_threads(),
        "loss_first_tenth": float(np.mean(losses[:ends])),
        "loss_last_tenth": float(np.mean(losses[-ends:])),
        "num_training_patches": len(PatchH5Source(training)),
        "num_held_out_tiles": num_tiles,
        "neighbour_precision": precisions,
    }
    (options.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")

    side = tile_side(options.slide)
    with h5py.File(held_out) as file:
        coords = file["coords"][:]
    lower = coords - [0, coords[:, 1].min()]
    size = tuple(int(np.ceil(lower[:, axis].max() / side + 1)) * PIXELS_PER_PATCH for axis in (0, 1))
    with h5py.File(options.output / "random.h5") as file:
        untrained = file["embeddings"][:]
    with h5py.File(options.output / "pretrained.h5") as file:
        pretrained = file["embeddings"][:]
    panels = [
        (title, component_map(lower, side, principal_components(embeddings), size))
        for title, embeddings in (("random weights", untrained), ("pretrained", pretrained))
    ]
    picture(panels).save(options.output / "components.png")
    console.print(
        f"loss {figures['loss_first_tenth']:.3f} → {figures['loss_last_tenth']:.3f} in {seconds:.0f} s; "
        f"figures, {curves.name} and components.png: {options.output}"
    )


if __name__ == "__main__":
    main()
