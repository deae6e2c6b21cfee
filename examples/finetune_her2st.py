"""MINT and STAMP on real tissue: sections of Spatial Transcriptomics → one honest table, each section left out in turn.

python examples/finetune_her2st.py HER2ST --pathways h.all.gmt.gz --seeds 5

HER2ST is a folder with images/, counts/, spots/ and sections.json, as github.com/almaan/her2st spreads them. For each
section that is left out, an encoder is fine-tuned on the others by each method. HEST's ridge probe, with 16 components,
is then fitted on the sections of training and predicts the 50 most variable genes (of those sections) of the section that
was left out: from 22 statistics of colour and contrast; from the frozen encoder's class token, the mean of its patch
tokens, and an ST token that has learned nothing; from MINT's class token, ST token and both; from STAMP's class token. A section that is left out may have others of its patient in training, which flatters
everything in the table alike; --leave-out patient leaves out whole patients.

The default is a tiny encoder with random weights: it shows that the method works, not what it is worth. Give
--model and --checkpoint of a pretrained one for that. About a minute a method, section and seed on one core.
"""

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np
import torch

from timm_mvhybrid import finetune
from timm_mvhybrid.cohorts.cohort import ExpressionCohort, select_at_most
from timm_mvhybrid.cohorts.hest_layout import open_task, read_spots
from timm_mvhybrid.cohorts.st_layout import write_st_task
from timm_mvhybrid.data import PatchH5Source
from timm_mvhybrid.embed.backbone import load_backbone
from timm_mvhybrid.embed.colour_statistics import colour_statistics
from timm_mvhybrid.finetune.config import MINT_PRESETS, STAMP_PRESETS, DataConfig, EncoderConfig
from timm_mvhybrid.finetune.runs import run_mint, run_stamp
from timm_mvhybrid.probes.expression_metrics import expression_metrics
from timm_mvhybrid.probes.ridge import ridge_probe
from timm_mvhybrid.ssl.crops import whole_patch

NUM_GENES, NUM_COMPONENTS = 50, 16
LABELS = (
    "frozen encoder, class token",
    "frozen encoder, mean of patch tokens",
    "frozen encoder, ST token as drawn",
    "22 statistics of colour and contrast",
    "MINT, class token",
    "MINT, ST token",
    "MINT, class and ST token",
    "STAMP, class token",
)


def main() -> int:
    """Fine-tunes, measures, and prints the table."""
    options = parse()
    task = write_task(options)
    files = open_task(task).files
    samples = tuple(read_spots(name, *files[name]) for name in sorted(files))
    groups = groups_of(task, options.leave_out)
    held_out = [group for group in sorted(set(groups.values())) if options.only in (None, group)]
    rows: dict[str, dict[tuple[int, str], float]] = {}
    for seed in range(options.seeds):
        for group in held_out:
            for label, found in fold(options, task, samples, groups, group, seed):
                rows.setdefault(label, {})[seed, group] = found
                print(f"seed {seed}, {group} left out, {label}: r = {found:.3f}", flush=True)
    print_table(rows, options, held_out)
    return 0


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with images/, counts/, spots/ and sections.json")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/finetune_her2st"), help="folder for runs"
    )
    parser.add_argument(
        "--pathways", type=Path, help="GMT file of gene sets, for STAMP; without it STAMP is left out"
    )
    parser.add_argument("--model", default="test_mvhybrid", help="encoder (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="file of its weights; random ones by default")
    parser.add_argument(
        "--size", type=int, default=128, help="side of its images in px (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs with other seeds (default: %(default)s)")
    parser.add_argument("--leave-out", choices=["section", "patient"], default="section")
    parser.add_argument("--only", help="leave out this section or patient alone")
    return parser.parse_args()


def write_task(options: argparse.Namespace) -> Path:
    """Cuts patches of 112 µm around the spots, once."""
    task: Path = options.output / f"task_{options.size}px"
    if not (task / "studies.csv").exists():
        write_st_task(
            options.data,
            task,
            study="HER2ST",
            patch_size_px=options.size,
            resolution_um_per_px=112 / options.size,
        )
    return task


def groups_of(task: Path, leave_out: str) -> dict[str, str]:
    """Says of each section what is left out with it; writes it as the studies that a run may split by."""
    header, *lines = (line.split(",") for line in (task / "studies.csv").read_text().split())
    columns = [dict(zip(header, line, strict=True)) for line in lines]
    found = {row["sample_id"]: row["sample_id" if leave_out == "section" else "patient"] for row in columns}
    table = "".join(f"{name},{group}\n" for name, group in found.items())
    (task / f"left_out_by_{leave_out}.csv").write_text(f"sample_id,study\n{table}")
    return found


def fold(options, task, samples, groups, group, seed):
    """Yields label and correlation of everything that is compared, with one section or patient left out.

    What was measured is kept in the run's folder, so that a stopped script goes on where it was.
    """
    start = options.checkpoint.stem if options.checkpoint else "random"
    run = options.output / f"{options.model}_{start}_{options.size}px_{options.steps}_{group}_{seed}"
    kept = run / "scores.json"
    scores = json.loads(kept.read_text()) if kept.exists() else {}
    contenders = [(measure_before, LABELS[:4]), (measure_mint, LABELS[4:7])]
    if options.pathways is not None:
        contenders.append((measure_stamp, LABELS[7:]))
    for measure, labels in contenders:
        if not all(label in scores for label in labels):
            images, score = read_patches(task, samples), scorer(samples, groups, group)
            weights = options.output / f"base_{options.model}_{start}_{seed}.safetensors"
            found = measure(options, task, group, seed, run, weights, images, score)
            scores |= dict(zip(labels, found, strict=True))
            run.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".part").write_text(json.dumps(scores, indent=2))
            kept.with_suffix(".part").replace(kept)
        yield from ((label, scores[label]) for label in labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """The patches of all spots."""

    all: list


@functools.cache
def read_patches(task, samples):
    """Reads the patches of all spots."""
    patches = [PatchH5Source(task / "patches" / f"{sample.sample_id}.h5") for sample in samples]
    return Images(
        [source[int(row)] for source, sample in zip(patches, samples, strict=True) for row in sample.rows]
    )


def scorer(samples, groups, group):
    """Makes the function that scores features of all patches on what is left out."""
    cohort = ExpressionCohort.of(samples)
    train = [number for number, name in enumerate(cohort.samples) if groups[name] != group]
    genes = select_at_most(
        [cohort.counts[cohort.sample_of == number] for number in train],
        [cohort.genes] * len(train),
        NUM_GENES,
    )
    is_train = np.array([groups[cohort.samples[number]] != group for number in cohort.sample_of])
    targets = cohort.log_counts(genes)

    def score(features: np.ndarray) -> float:
        found = ridge_probe(
            features[is_train], targets[is_train], features[~is_train], num_components=NUM_COMPONENTS
        )
        return float(expression_metrics(targets[~is_train], found, "zero").pcc)

    return score


def measure_before(options, task, group, seed, run, weights, images, score):
    """Scores colour statistics, and the encoder as all methods find it, with a token that has learned nothing."""
    found = features_before(options.model, options.checkpoint, options.size, seed, weights, images)
    return tuple(score(found[name]) for name in ("class", "mean", "st", "colour"))


@functools.lru_cache(maxsize=1)
def features_before(model, checkpoint, size, seed, weights, images):
    """Computes what is the same whatever is left out."""
    frozen = load_backbone(model, checkpoint=checkpoint, seed=seed, img_size=size).model
    save_base(frozen, weights)
    found = embed(frozen, images, size)
    torch.manual_seed(seed)
    with_token = finetune.STModel(frozen).eval()
    return {**found, "st": embed(with_token, images, size)["st"], "colour": colours(images)}


@functools.cache
def colours(images):
    """Computes statistics of colour and contrast."""
    return np.stack([colour_statistics(np.asarray(image)) for image in images.all])


def measure_mint(options, task, group, seed, run, weights, images, score):
    """Fine-tunes by MINT, and scores class token, ST token and both."""
    run_mint(settings(MINT_PRESETS, options, task, group, seed, weights, run / "mint"))
    found = embed(finetune.load(run / "mint"), images, options.size)
    both = np.concatenate([found["class"], found["st"]], axis=1)
    return score(found["class"]), score(found["st"]), score(both)


def measure_stamp(options, task, group, seed, run, weights, images, score):
    """Fine-tunes by STAMP, and scores the class token."""
    run_stamp(settings(STAMP_PRESETS, options, task, group, seed, weights, run / "stamp"))
    tuned = load_backbone(
        options.model, checkpoint=run / "stamp" / "encoder.safetensors", img_size=options.size
    ).model
    return (score(embed(tuned, images, options.size)["class"]),)


def settings(presets, options, task, group, seed, weights, output):
    """Takes the smoke preset, for the encoder and the sections that are asked for."""
    manifest = options.output / f"cohorts_{options.leave_out}.json"
    cohort = {
        "path": str(task.resolve()),
        "studies": str((task / f"left_out_by_{options.leave_out}.csv").resolve()),
        "normalise": "cpm",
        "genes": 250,
        "panel": "her2st",
    }
    manifest.write_text(json.dumps({"cohorts": [cohort]}))
    data = DataConfig(
        sources=(str(manifest),),
        pathways=options.pathways,
        split="study",
        hold_out=(group,),
        num_workers=0,
        name="HER2ST",
        obtained="Andersson et al., Nat Commun 12, 6012 (2021)",
        license="CC BY 4.0",
    )
    config = presets["smoke"](output=output, data=data)
    method = "stamp" if presets is STAMP_PRESETS else "mint"
    # its own validation is for its curves; the table needs little of it
    seldom = dataclasses.replace(getattr(config, method), validate_every_steps=options.steps)
    return dataclasses.replace(
        config,
        **{method: seldom},
        seed=seed,
        num_steps=options.steps,
        probe=dataclasses.replace(config.probe, max_train=200, max_validation=100),
        model=EncoderConfig(name=options.model, weights=weights),
        crops=dataclasses.replace(config.crops, global_size_px=options.size),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=min(20, options.steps)),
        checkpoint=dataclasses.replace(config.checkpoint, every_steps=options.steps),
        monitor=dataclasses.replace(config.monitor, log_every_steps=10),
    )


def save_base(model: torch.nn.Module, file: Path) -> None:
    """Writes the weights that all methods start from."""
    from safetensors.torch import save_file

    if not file.exists():
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)


@torch.no_grad()
def embed(model, images, size: int) -> dict[str, np.ndarray]:
    """Embeds patches as the run saw them: class token, mean of the patch tokens, or ST token where there is one."""
    inner = getattr(model, "backbone", model)
    mean, std = (torch.tensor(inner.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images.all), 64):
        batch = torch.stack([whole_patch(image, size) for image in images.all[start : start + 64]])
        batch = (batch / 255 - mean) / std
        is_st = hasattr(model, "features")
        if is_st:
            tokens = model.features(batch)
        else:
            every = model.forward_features(batch)
            tokens = {"class": every[:, 0], "mean": every[:, model.num_prefix_tokens :].mean(dim=1)}
        for name in ("class", "mean", "st"):
            if name in tokens:
                parts.setdefault(name, []).append(tokens[name].numpy())
    return {name: np.concatenate(found) for name, found in parts.items()}


def print_table(rows, options, held_out) -> None:
    """Prints mean and standard error over seeds, of the mean over what was left out."""
    start = options.checkpoint.name if options.checkpoint else "random weights"
    print(
        f"\n{options.model} ({start}), {options.steps} steps, {options.seeds} seeds, left out: {', '.join(held_out)}"
    )
    print(
        f"Pearson's r, mean over {NUM_GENES} genes, then over what was left out; ± standard error over seeds\n"
    )
    for label, found in rows.items():
        means = [np.mean([found[seed, group] for group in held_out]) for seed in range(options.seeds)]
        error = f" ± {np.std(means, ddof=1) / np.sqrt(len(means)):.3f}" if len(means) > 1 else ""
        print(f"{label:<38} {np.mean(means):.3f}{error}")


if __name__ == "__main__":
    sys.exit(main())
