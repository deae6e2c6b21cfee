"""A generated cohort → two backbones → random folds against left-out studies → a report.

Draws a phantom of eight studies, embeds its patches by two backbones, predicts expression by HEST's ridge probe, and
writes a page with tables, charts and maps. Prints what each backbone sees of genes that follow tissue architecture
and of genes that follow detail within nuclei.

    python examples/loso_phantom.py --output outputs/loso_phantom
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from timm_mvhybrid.evaluate import (
    EmbeddingOptions,
    ExpressionOptions,
    ProbeOptions,
    evaluate_expression,
    load_backbone,
)
from timm_mvhybrid.evaluate.expression.tables import find_drops
from timm_mvhybrid.report import check_report_folder, write_report
from timm_mvhybrid.synthetic import PhantomOptions, write_phantom

MODELS = ["mvhybrid_small_patch16_256", "vit12_small_patch16_256"]


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/loso_phantom"), help="folder of cohort and report"
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of timm models")
    parser.add_argument("--studies", type=int, default=8, help="studies (default: 8)")
    parser.add_argument("--samples", type=int, default=1, help="samples of each study (default: 1)")
    parser.add_argument("--spots", type=int, default=48, help="spots of each sample (default: 48)")
    parser.add_argument(
        "--num-components",
        type=int,
        help="principal components (default: 256, or fewer where there are fewer spots)",
    )
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    # the report's folder is checked first: a cohort takes longer to draw
    report = check_report_folder(options.output / "report", overwrite=True)
    console = Console()
    console.print(
        "The cohort is generated and the weights are random (seed 0): what follows shows how the evaluation works, and "
        "says nothing about tissue.\n"
    )

    cohort = PhantomOptions(num_studies=options.studies, num_samples=options.samples, num_spots=options.spots)
    summary = write_phantom(
        options.output / "cohort",
        cohort,
        overwrite=True,
        on_sample=lambda done, total: console.print(f"drew sample {done} of {total}"),
    )
    backbones = [load_backbone(name, seed=0) for name in options.models]
    result = evaluate_expression(
        summary.output,
        backbones,
        ExpressionOptions(
            studies=Path(summary.output) / "studies.csv",
            protocols=("random", "loso"),
            num_genes=50,
            probe=ProbeOptions(num_components=options.num_components or "auto"),
            embedding=EmbeddingOptions(cache=options.output / "embeddings", batch_size=16),
        ),
    )
    if result is None:  # under torchrun, the first rank alone computes the scores
        return
    page = write_report(result, report, overwrite=True)

    table = Table(
        "model", "folds", "architecture", "nuclear detail", "neither", title="mean PCC of genes that follow"
    )
    for key in [(model, protocol) for protocol in result.protocols for model in result.models_of(protocol)]:
        # the phantom's files say in var["band"] what each gene follows
        bands = [result.summary(*key, f"pcc:{band}") for band in ("low", "high", "none")]
        table.add_row(*key, *("–" if band is None else f"{band.mean:.3f}" for band in bands))
    console.print(table)
    for drop in find_drops(result):
        if drop.metric == "pcc" and drop.percent is not None:
            console.print(
                f"{drop.model}: PCC {drop.random:.3f} → {drop.loso:.3f}, a drop of {drop.percent:.0f} %"
            )
    console.print(f"report: {page}", soft_wrap=True)


if __name__ == "__main__":
    main()
