"""Runs HEST-Benchmark with a backbone: patches of 224 px, genes of each task by ridge regression, patients held out.

Needs a clone of github.com/mahmoodlab/HEST and its data set on the Hub, which it downloads, and asks to be accepted there.
"""

import argparse
from pathlib import Path

import torch
from hest.bench.benchmark import benchmark

from timm_mvhybrid.integrations.hest import encoder

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("output", type=Path, help="folder of the results")
parser.add_argument("--data", type=Path, default=Path("hest_bench"), help="folder for the data set's files")
parser.add_argument("--tasks", nargs="+", default=["IDC"], help="tasks of the benchmark; '*' for all")
parser.add_argument("--model", default="mvhybrid_small_patch16_256")
parser.add_argument(
    "--checkpoint", "--weights", type=Path, help="weights of your own, a file; published ones otherwise"
)
options = parser.parse_args()

if __name__ == "__main__":
    # a model, its transform and the precision of autocast; without encoders=[], HEST runs its ResNet-50 too
    model, transform, precision = encoder(
        options.model, checkpoint=options.checkpoint, precision=torch.float32
    )
    tasks, _ = benchmark(
        model,
        transform,
        precision,
        encoders=[],
        datasets=options.tasks,
        bench_data_root=str(options.data.absolute()),
        results_dir=str(options.output.absolute()),
    )
    for task in tasks:
        for result in task["results"]:
            print(
                f"{task['dataset_name']}: Pearson {result['pearson_mean']:.4f} ± {result['pearson_std']:.4f}"
            )
