"""Command line: ``python -m benchmarks NAME`` → a report on the terminal, files, an exit code.

0 means that every goal is held, 1 that one is missed or cannot be judged, 2 wrong usage, 3 that an implementation
disagrees with the reference or a build failed, so that nothing was timed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import arg, subcommand

from .settings import Settings

if TYPE_CHECKING:
    from .report import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan(Settings):
    """Selective scan on a CPU beside mamba_ssm's, mambapy's and torch's; about 4 minutes."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .scan import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EinFFT(Settings):
    """EinFFT on a CPU beside its straightforward complex form; about a minute."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .einfft import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Settings):
    """Whole models on a CPU beside timm's ViT-S of the same depth; about 9 minutes."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .model import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Settings):
    """torch.export, torch.compile and ONNX for each of the six models."""

    models: tuple[
        Literal["mvhybrid", "hydra_hybrid", "vim_einfft", "hydra_einfft", "vit12", "vit24"], ...
    ] = ()
    """Models to measure; all six by default."""
    compile_backend: Literal["inductor", "aot_eager"] = "inductor"
    """Backend of torch.compile; inductor needs a C++ compiler."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .export import run

        return run(self, models=self.models, compile_backend=self.compile_backend)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Settings):
    """Crops and augmentation of pretraining on one core beside the same through Pillow; about 2 minutes."""

    threads: int = 1
    """Threads that torch may use; the figures are per core."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .data import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize(Settings):
    """What resizing by torchvision in place of Pillow does to pixels and features; about a minute."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .resize import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohortMemory(Settings):
    """Peak memory of embedding a slide of 60,000 tiles beside one of 600; about 15 minutes."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .cohort_memory import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Settings):
    """Ridge probe over left-out studies beside HEST's recipe with scikit-learn; about 9 minutes."""

    threads: int = 1
    """Threads that linear algebra may use."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .evaluation import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(Settings):
    """Prediction of a slide beside embedding it alone, and its memory; about 8 minutes."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .predict import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohort(Settings):
    """Cohorts of slides beside TRIDENT's and CLAM's commands, and what each part of a run costs; about 20 minutes."""

    trident: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """A clone of TRIDENT, whose requirements of tests/pipelines/requirements are installed; it is not measured by default."""
    clam: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """A clone of CLAM, likewise."""
    parts: tuple[Literal["peers", "share", "engines", "slides"], ...] = (
        "peers",
        "share",
        "engines",
        "slides",
    )
    """What to measure."""
    rounds: Annotated[int, arg(metavar="N")] = 3
    """How often whole commands are run."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .cohort import CLAM, TRIDENT, run

        return run(self, {TRIDENT: self.trident, CLAM: self.clam}, self.parts, self.rounds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pathways(Settings):
    """Scores of gene sets beside decoupler's and gseapy's; about 15 minutes."""

    threads: int = 1
    """Threads that linear algebra may use."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .pathways import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareVisiumHD(Settings):
    """Bins of Visium HD added up beside dense arrays and pandas; a minute, and with --side-mm 8, 16 million bins, half an hour."""

    side_mm: Annotated[float, arg(metavar="MM")] = 2.0
    """Side of the generated sample in mm; bins are 2 µm wide."""
    filled: Annotated[float, arg(metavar="FRACTION")] = 0.01
    """Fraction of the values of bins × genes that are above 0."""
    num_genes: Annotated[int, arg(metavar="N")] = 2000
    """Genes of the generated sample."""
    threads: int = 1
    """Threads that linear algebra may use."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .prepare_visium_hd import run

        return run(self, self.side_mm, self.filled, self.num_genes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(Settings):
    """What the ST token costs beside the backbone alone, and a step of adapters beside one of all weights, on a CPU."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .peers import MissingPeerError

        if importlib.util.find_spec("peft") is None:
            raise MissingPeerError("peft: not installed; pip install 'timm-mvhybrid[finetune]'")
        from .finetune import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis(Settings):
    """Gains of gratings in batches beside one derivative each, and the complex scan beside the real one; 3 minutes."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .analysis import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu(Settings):
    """Scans and training steps on a GPU beside mamba-ssm's kernels, timm's ViT and the memory floor."""

    seconds: float = 15.0
    """Time in s for each group of contenders, beyond the smallest number of rounds."""
    device: Annotated[str, arg(metavar="NAME")] = "cuda"
    """cuda, cuda:1, or with --quick also cpu."""
    sdist_dir: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder with mamba_ssm-*.tar.gz and causal_conv1d-*.tar.gz to build for this GPU; none is built by default."""
    parts: tuple[Literal["selective_scan", "ssd_scan", "model"], ...] = (
        "selective_scan",
        "ssd_scan",
        "model",
    )
    """What to measure."""

    def report(self) -> Report:
        """Runs the benchmark."""
        import torch

        from .gpu import run

        return run(self, torch.device(self.device), self.sdist_dir, self.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Settings):
    """The pretraining loop on one GPU: images/s, memory, time waiting for data, overhead; a few minutes a model."""

    device: Annotated[str, arg(metavar="NAME")] = "cuda"
    """cuda, cuda:1, or with --quick also cpu."""
    num_steps: Annotated[int, arg(metavar="N")] = 200
    """Optimizer steps of each run."""

    def report(self) -> Report:
        """Runs the benchmark."""
        import torch

        from .pretrain import run

        return run(self, torch.device(self.device), self.num_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernels(Settings):
    """Registers, spills and shared memory of the Triton kernels, compiled for GPUs that need not be here."""

    def report(self) -> Report:
        """Runs the benchmark."""
        from .peers import MissingPeerError

        if importlib.util.find_spec("triton") is None:
            raise MissingPeerError("triton: not installed; pip install triton")
        from .kernels import run

        return run(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readme:
    """Rewrite the table of ratios in README.md from the newest committed results."""


Benchmark = (
    Scan
    | EinFFT
    | Model
    | Data
    | Resize
    | CohortMemory
    | Finetune
    | Analysis
    | Export
    | Kernels
    | Pathways
    | PrepareVisiumHD
    | Predict
    | Cohort
    | Gpu
    | Pretrain
)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: Arguments after the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    command = tyro.cli(
        Annotated[Scan, subcommand("scan")]
        | Annotated[EinFFT, subcommand("einfft")]
        | Annotated[Model, subcommand("model")]
        | Annotated[Data, subcommand("data")]
        | Annotated[Resize, subcommand("resize")]
        | Annotated[CohortMemory, subcommand("cohort_memory")]
        | Annotated[Finetune, subcommand("finetune")]
        | Annotated[Analysis, subcommand("analysis")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Kernels, subcommand("kernels")]
        | Annotated[Evaluation, subcommand("evaluation")]
        | Annotated[Pathways, subcommand("pathways")]
        | Annotated[PrepareVisiumHD, subcommand("prepare_visium_hd")]
        | Annotated[Predict, subcommand("predict")]
        | Annotated[Cohort, subcommand("cohort")]
        | Annotated[Gpu, subcommand("gpu")]
        | Annotated[Pretrain, subcommand("pretrain")]
        | Annotated[Readme, subcommand("readme")],
        prog="python -m benchmarks",
        description="Speed of timm_mvhybrid beside its peers. Files go to benchmarks/results.",
        args=args,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    if isinstance(command, Readme):
        from .readme import update

        update()
        return 0
    if isinstance(command, Gpu | Pretrain):
        problem = _device_problem(command)
        if problem is not None:
            print(f"error: {problem}", file=sys.stderr)
            return 2
    return _measure(command)


def _measure(command: Benchmark) -> int:
    """Runs one benchmark, prints and writes its report."""
    import torch

    from .agreement import DisagreementError
    from .peers import MissingPeerError
    from .provenance import collect
    from .report import RESULTS
    from .wheels import BuildError

    device = torch.device(command.device) if isinstance(command, Gpu | Pretrain) else torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(command.threads)
    try:
        provenance = collect(command.threads, device)
        if provenance.warning:
            print(provenance.warning, file=sys.stderr)
        report = command.report()
    except (DisagreementError, BuildError, MissingPeerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, MissingPeerError) else 3
    finally:
        torch.set_num_threads(before)
    print(report.markdown(provenance))
    folder = command.output or (None if command.quick else RESULTS)
    if folder is not None:
        for path in report.write(folder, provenance):
            print(f"wrote {path}")
    if report.held or command.no_fail:
        return 0
    for verdict in report.verdicts:
        if verdict.word != "held":
            print(f"{verdict.word}: {verdict.goal.figure}", file=sys.stderr)
    return 1


def _device_problem(command: Gpu | Pretrain) -> str | None:
    """Says why the GPU benchmark cannot start."""
    from timm_mvhybrid.runtime.device import DeviceError, find_device

    try:
        device = find_device(command.device)
    except DeviceError as error:
        return f"--device {command.device}: {error}"
    if device.type == "cpu":
        return (
            None
            if command.quick
            else "--device cpu is for --quick; times on a CPU: python -m benchmarks scan"
        )
    if device.type != "cuda":
        return f"--device {command.device}: only CUDA devices can be timed"
    return None


if __name__ == "__main__":
    sys.exit(main())
