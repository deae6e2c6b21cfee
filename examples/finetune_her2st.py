"""MINT and STAMP on real tissue: sections of Spatial Transcriptomics → one honest table, each section left out in turn.

python examples/finetune_her2st.py HER2ST --pathways h.all.gmt.gz --seeds 5

HER2ST is a folder with images/, counts/, spots/ and sections.json, as github.com/almaan/her2st spreads them. For each
section that is left out, an encoder is fine-tuned on the others by each method. HEST's ridge probe, with 16 components,
is then fitted on the sections of training and predicts the 50 most variable genes (of those sections) of the section that
was left out: from the frozen encoder, from MINT's class token, ST token and both, from STAMP's class token, and from 22
statistics of colour and contrast. A section that is left out may have others of its patient in training, which flatters
everything in the table alike; --leave-out patient leaves out whole patients.

The default is a tiny encoder with random weights: it shows that the method works, not what it is worth. Give
--model and --checkpoint of a pretrained one for that. About a minute a method, section and seed on two cores.
"""

import argparse
import dataclasses
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


def main() -> int:
    """Fine-tunes, measures, and prints the table."""
    options = parse()
    task = write_task(options)
    files = open_task(task).files
    samples = [read_spots(name, *files[name]) for name in sorted(files)]
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
    """Yields label and correlation of everything that is compared, with one section or patient left out."""
    cohort = ExpressionCohort.of(samples)
    train = [number for number, name in enumerate(cohort.samples) if groups[name] != group]
    genes = select_at_most(
        [cohort.counts[cohort.sample_of == number] for number in train],
        [cohort.genes] * len(train),
        NUM_GENES,
    )
    is_train = np.array([groups[cohort.samples[number]] != group for number in cohort.sample_of])
    targets = cohort.log_counts(genes)
    patches = [PatchH5Source(task / "patches" / f"{sample.sample_id}.h5") for sample in samples]
    images = [
        source[int(row)] for source, sample in zip(patches, samples, strict=True) for row in sample.rows
    ]

    def score(features: np.ndarray) -> float:
        found = ridge_probe(
            features[is_train], targets[is_train], features[~is_train], num_components=NUM_COMPONENTS
        )
        return expression_metrics(targets[~is_train], found, "zero").pcc

    yield (
        "22 statistics of colour and contrast",
        score(np.stack([colour_statistics(np.asarray(x)) for x in images])),
    )
    arguments = {"img_size": options.size}
    frozen = load_backbone(options.model, checkpoint=options.checkpoint, seed=seed, **arguments).model
    weights = options.output / f"base_{options.model}_{seed}.safetensors"
    save_base(frozen, weights)
    yield "frozen encoder, class token", score(embed(frozen, images, options.size)["class"])

    run = options.output / f"{options.model}_{options.size}px_{options.steps}_{group}_{seed}"
    run_mint(settings(MINT_PRESETS, options, task, group, seed, weights, run / "mint"))
    found = embed(finetune.load(run / "mint"), images, options.size)
    yield "MINT, class token", score(found["class"])
    yield "MINT, ST token", score(found["st"])
    yield "MINT, class and ST token", score(np.concatenate([found["class"], found["st"]], axis=1))
    if options.pathways is not None:
        run_stamp(settings(STAMP_PRESETS, options, task, group, seed, weights, run / "stamp"))
        tuned = load_backbone(
            options.model, checkpoint=run / "stamp" / "encoder.safetensors", **arguments
        ).model
        yield "STAMP, class token", score(embed(tuned, images, options.size)["class"])


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
    return dataclasses.replace(
        config,
        seed=seed,
        num_steps=options.steps,
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
    """Embeds patches as the run saw them: class token, and ST token where there is one."""
    inner = getattr(model, "backbone", model)
    mean, std = (torch.tensor(inner.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), 64):
        batch = torch.stack([whole_patch(image, size) for image in images[start : start + 64]])
        batch = (batch / 255 - mean) / std
        is_st = hasattr(model, "features")
        tokens = model.features(batch) if is_st else {"class": model.forward_features(batch)[:, 0]}
        for name in ("class", "st"):
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
