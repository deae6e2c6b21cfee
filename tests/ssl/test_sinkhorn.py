"""Balanced targets: against the textbook iteration, out of its range, and over processes."""

import pytest
import torch
from support.objective_ranks import ROW_COUNTS, class_features, run_in_two_processes, teacher_scores
from support.sinkhorn import sinkhorn_knopp

from timm_mvhybrid.ssl.centering import RunningMean, column_potentials
from timm_mvhybrid.ssl.losses import DINOv2Loss
from timm_mvhybrid.ssl.prototype_scores import PrototypeScores


def textbook(scores, temperature, num_iterations):
    """Scales columns and rows of exp(x / T) in turn."""
    plan = torch.exp(scores.double() / temperature)
    for _ in range(num_iterations):
        plan = plan / plan.sum(dim=0, keepdim=True)
        plan = plan / plan.sum(dim=1, keepdim=True)
    return plan


@pytest.mark.parametrize("num_iterations", [1, 3, 10])
@pytest.mark.parametrize("shape", [(7, 9), (1, 5), (6, 1), (30, 4)])
def test_equals_the_textbook_iteration(shape, num_iterations):
    torch.manual_seed(0)
    scores = torch.randn(shape, dtype=torch.float64)
    found = sinkhorn_knopp(scores, 0.07, num_iterations=num_iterations)
    torch.testing.assert_close(found, textbook(scores, 0.07, num_iterations), rtol=1e-11, atol=1e-13)


def test_many_iterations_use_all_prototypes_equally():
    torch.manual_seed(0)
    found = sinkhorn_knopp(torch.randn(12, 4, dtype=torch.float64), 1.0, num_iterations=200)
    torch.testing.assert_close(found.sum(dim=0), torch.full((4,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(12, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_beyond_the_range_of_exp_stay_finite(dtype):
    torch.manual_seed(0)
    scores = (50 * torch.randn(8, 6)).to(dtype)
    found = sinkhorn_knopp(scores, 0.04)
    assert found.dtype == torch.float32
    expected = sinkhorn_knopp(scores.double(), 0.04)
    assert expected.min() >= 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(8))


def test_float32_is_as_exact_as_the_goldens_ask():
    torch.manual_seed(0)
    scores = torch.randn(40, 30)
    torch.testing.assert_close(
        sinkhorn_knopp(scores, 0.06).double(), textbook(scores, 0.06, 3), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("chunk_rows", [1, 3, 4, 100])
def test_chunks_give_the_same_potentials(chunk_rows):
    torch.manual_seed(0)
    rows, prototypes = torch.randn(10, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    factored = PrototypeScores(rows=rows, prototypes=prototypes, chunk_rows=chunk_rows)
    whole = PrototypeScores(rows=rows @ prototypes.T)
    assert len(factored.slices()) == -(-10 // chunk_rows)
    torch.testing.assert_close(
        column_potentials(factored, 0.1), column_potentials(whole, 0.1), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(factored.column_sums(), whole.column_sums(), rtol=1e-12, atol=1e-12)


def test_given_scores_are_left_as_they_are():
    scores = torch.randn(5, 4)
    before = scores.clone()
    sinkhorn_knopp(scores, 1.0)
    torch.testing.assert_close(scores, before, rtol=0, atol=0)


def test_no_rows_give_no_targets_and_no_offset():
    assert sinkhorn_knopp(torch.empty(0, 5), 0.04).shape == (0, 5)
    potentials = column_potentials(PrototypeScores(rows=torch.empty(0, 5)), 0.04)
    torch.testing.assert_close(potentials, torch.zeros(5), rtol=0, atol=0)


@pytest.mark.distributed
def test_two_processes_with_any_numbers_of_rows_equal_one(tmp_path):
    found = run_in_two_processes(tmp_path)
    mean = RunningMean(9)
    for counts in ROW_COUNTS:
        scores = teacher_scores()[: sum(counts)]
        expected = sinkhorn_knopp(scores, 0.05)
        together = torch.cat([part[f"targets {counts}"] for part in found])
        torch.testing.assert_close(together, expected, rtol=1e-12, atol=1e-14)
        mean(PrototypeScores(rows=scores), 0.05)
        assert mean.center.abs().max() > 0
        potentials = column_potentials(PrototypeScores(rows=scores), 0.05)
        for part in found:
            torch.testing.assert_close(part[f"potentials {counts}"], potentials, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(part[f"center {counts}"], mean.center, rtol=1e-12, atol=1e-14)
    for regularizer in ("koleo", "kde"):
        features = class_features().flatten(0, 1).requires_grad_()
        zeros = torch.zeros(12, 9, dtype=torch.float64)
        criterion = DINOv2Loss(9, regularizer=regularizer)
        value = criterion.combine(zeros, zeros, zeros[:0], features, torch.zeros(()))[regularizer]
        value.backward()
        for part in found:
            torch.testing.assert_close(part[regularizer], value.detach(), rtol=1e-12, atol=1e-14)
        together = torch.cat([part[f"{regularizer} gradient"] for part in found], dim=1)
        # twice, because averaging the parameters' gradients over two processes halves them
        torch.testing.assert_close(together, 2 * features.grad.unflatten(0, (2, 6)), rtol=1e-10, atol=1e-12)
