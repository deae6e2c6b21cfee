"""Runs parts of the objective in two gloo processes, whose results the caller compares with one process's."""

from pathlib import Path

import support.seeds  # noqa: F401 - moves the seeds in these processes too
import torch
import torch.distributed as dist
from support.forked import spawn
from support.sinkhorn import sinkhorn_knopp

from timm_mvhybrid.runtime.ranks import close_process_group

ROW_COUNTS = ((5, 2), (0, 7), (0, 0))


def teacher_scores():
    return torch.randn(7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def class_features():
    return torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run_in_two_processes(folder):
    """Returns what each process found."""
    spawn(_work, (str(folder),))
    return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(2)]


def _work(rank, folder):
    from timm_mvhybrid.ssl.centering import RunningMean, column_potentials
    from timm_mvhybrid.ssl.losses import DINOv2Loss
    from timm_mvhybrid.ssl.prototype_scores import PrototypeScores

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    mean = RunningMean(9)
    for counts in ROW_COUNTS:
        first = counts[0] * rank
        scores = teacher_scores()[first : first + counts[rank]]
        found[f"targets {counts}"] = sinkhorn_knopp(scores, 0.05)
        found[f"potentials {counts}"] = column_potentials(PrototypeScores(rows=scores), 0.05)
        mean(PrototypeScores(rows=scores), 0.05)
        found[f"center {counts}"] = mean.center.clone()
    for regularizer in ("koleo", "kde"):
        criterion = DINOv2Loss(9, regularizer=regularizer, regularizer_scope="world")
        features = class_features()[:, 3 * rank : 3 * rank + 3].flatten(0, 1).requires_grad_()
        zeros = torch.zeros(6, 9, dtype=torch.float64)
        value = criterion.combine(zeros, zeros, zeros[:0], features, torch.zeros(()))[regularizer]
        value.backward()
        found[regularizer] = value.detach()
        found[f"{regularizer} gradient"] = features.grad.unflatten(0, (2, 3))
    torch.save(found, Path(folder, f"{rank}.pt"))
    close_process_group()
