"""A test chart for models: bands of spatial frequency with equal signal-to-noise → what each model sees of each band.

Draws a phantom whose patches show gratings and whose genes follow their alignment, one band of frequencies each. Predicts
the genes from what is known of the patches (the oracle), from what can be measured in them, whole, below and above 4
cycles per patch, from their colours, and from models; in random folds and with each study left out.

    python examples/bands_phantom.py --output outputs/bands_phantom
    python examples/bands_phantom.py --models mvhybrid_small_patch16_256=weights.safetensors
"""

import argparse
from pathlib import Path

import anndata
import numpy as np
from rich.console import Console
from rich.table import Table

from timm_mvhybrid.cohorts.hest_layout import open_task, read_sample
from timm_mvhybrid.data import PatchH5Source
from timm_mvhybrid.evaluate import (
    EmbeddingOptions,
    ExpressionOptions,
    ProbeOptions,
    evaluate_expression,
    load_backbone,
)
from timm_mvhybrid.report import Result, check_report_folder, write_report
from timm_mvhybrid.synthetic import PhantomOptions, frequency_bands, grating_energies, write_phantom

EDGES = (1.0, 2.0, 4.0, 8.0, 16.0)
SPLIT = 4.0
"""Cycles per patch below which the one reference sees, and above which the other."""


def references(root: str) -> dict[str, dict[str, np.ndarray]]:
    """Makes embeddings whose sight is known: name → sample → (spots, features)."""
    bands = frequency_bands(EDGES)
    low = np.repeat([band.high <= SPLIT for band in bands], 2)
    found: dict[str, dict[str, np.ndarray]] = {
        name: {} for name in ("oracle", "spectrum", "low-pass", "high-pass")
    }
    task = open_task(root)
    for name in task.samples:
        sample = read_sample(task, name)
        truth = anndata.read_h5ad(sample.expression).obsm["morphology"].loc[sample.barcodes]
        source = PatchH5Source(sample.patches)
        patches = np.stack([source[index] for index in range(len(source))])
        energies = np.log(grating_energies(patches, bands)).astype(np.float32)
        found["oracle"][name] = truth.to_numpy(np.float32)
        found["spectrum"][name] = energies
        found["low-pass"][name] = energies[:, low]
        found["high-pass"][name] = energies[:, ~low]
    return found


def bands_table(result: Result) -> Table:
    """Puts each model's correlation in each band side by side, with intervals."""
    bands = [name for name in result.metrics if name.startswith("pcc:")]
    table = Table(
        "model", "folds", *(name.removeprefix("pcc:") for name in bands), title="PCC (95 % interval)"
    )
    for protocol in result.protocols:
        for model in result.models_of(protocol):
            cells = []
            for band in bands:
                found = result.summary(model, protocol, band)
                cells.append(f"{found.mean:.2f} ({found.interval.low:.2f} to {found.interval.high:.2f})")
            table.add_row(model, protocol, *cells)
    return table


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/bands_phantom"), help="folder of cohort and report"
    )
    parser.add_argument(
        "--models",
        nargs="*",
        default=["test_mvhybrid", "test_vit12"],
        metavar="NAME[=FILE]",
        help="names of timm models, and the files of their weights (default: random weights); none for references alone",
    )
    parser.add_argument("--studies", type=int, default=8, help="studies (default: 8)")
    parser.add_argument("--samples", type=int, default=2, help="samples of each study (default: 2)")
    parser.add_argument("--spots", type=int, default=60, help="spots of each sample (default: 60)")
    parser.add_argument(
        "--genes", type=int, default=120, help="genes of all bands and of none (default: 120)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the cohort (default: 0)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    # models and the report's folder are checked first: a cohort takes longer to draw
    report = check_report_folder(options.output / "report", overwrite=True)
    named = [name.partition("=") for name in options.models]
    backbones = [load_backbone(name, checkpoint=file or None, seed=0) for name, _, file in named]
    console = Console(width=160)
    console.print(
        "The cohort is generated: gratings, no tissue. What follows says which frequencies a model's features tell of, "
        "and nothing about tissue; of models with random weights it says that the instrument works.\n"
    )
    summary = write_phantom(
        options.output / "cohort",
        PhantomOptions(
            bands=EDGES,
            num_studies=options.studies,
            num_samples=options.samples,
            num_spots=options.spots,
            num_genes=options.genes,
            seed=options.seed,
        ),
        overwrite=True,
    )
    result = evaluate_expression(
        summary.output,
        [load_backbone("baseline:colour"), *backbones],
        ExpressionOptions(
            studies=Path(summary.output) / "studies.csv",
            protocols=("random", "loso"),
            panel="task",
            probe=ProbeOptions(num_map_genes=0),
            embedding=EmbeddingOptions(cache=options.output / "embeddings", batch_size=16),
        ),
        embeddings=references(summary.output),
    )
    if result is None:  # under torchrun, the first rank alone computes the scores
        return
    page = write_report(result, report, overwrite=True)
    console.print(bands_table(result))
    console.print(f"report: {page}", soft_wrap=True)


if __name__ == "__main__":
    main()
