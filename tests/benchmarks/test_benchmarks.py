"""What the benchmarks measure, compare, judge and write is right."""

import dataclasses
import gc
import itertools
import json
import subprocess
import sys

import pytest
import torch
from benchmarks import provenance, report, scan
from benchmarks.agreement import DisagreementError, check_agreement, relative_error
from benchmarks.goals import Goal, judge
from benchmarks.measure import Contender, Effort, Spread, Times, measure
from benchmarks.memory import peak_extra_bytes
from benchmarks.problems import Peer, check_peer, selective_scan_problem, ssd_scan_problem
from support.reports import a_provenance, point, small_report

MIB = 1 << 20


def test_every_round_runs_each_contender_once_in_changing_order():
    calls = []
    contenders = [Contender(name=name, call=lambda name=name: calls.append(name)) for name in "abc"]
    times = measure(contenders, Effort(budget_s=0, min_rounds=6, warmups=0))
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(rounds) == 6 == len(times.seconds["a"])
    followers = {(first, second) for names in rounds for first, second in itertools.pairwise(names)}
    assert followers == {(a, b) for a in "abc" for b in "abc" if a != b}


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    # a machine that is ten times slower in two of the rounds; the ratio of medians would be 10
    times = Times({"ours": [1.0, 1.0, 10.0, 10.0, 1.0], "peer": [20.0, 10.0, 100.0, 200.0, 50.0]})
    ratio = times.ratio("peer", "ours")
    assert (ratio.low, ratio.median, ratio.high) == (10.0, 20.0, 20.0)
    assert times.spread("ours") == Spread(median=1.0, low=1.0, high=10.0)


def test_the_timer_decides_what_a_contender_took():
    seconds = iter([1.0, 2.0, 4.0, 3.0])
    contenders = [Contender(name=name, call=lambda: None) for name in ("ours", "peer")]
    times = measure(contenders, Effort(budget_s=0, min_rounds=2), timer=lambda call: next(seconds))
    assert times.seconds == {"ours": [1.0, 3.0], "peer": [2.0, 4.0]}


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 3), (3.5, 6), (100.0, 7)])
def test_rounds_follow_the_budget_between_their_bounds(budget_s, rounds):
    clock = iter(range(100))
    effort = Effort(budget_s=budget_s, min_rounds=3, max_rounds=7, warmups=2)
    calls = []
    contender = Contender(name="ours", call=lambda: calls.append(1))
    times = measure([contender], effort, clock=lambda: float(next(clock)))
    assert len(times.seconds["ours"]) == rounds
    assert len(calls) == rounds + 2


def test_the_garbage_collector_rests_while_times_are_taken():
    states = []
    measure(
        [Contender(name="ours", call=lambda: states.append(gc.isenabled()))], Effort(min_rounds=1, budget_s=0)
    )
    assert states == [True, False]  # the warm-up, the round
    assert gc.isenabled()


def test_contenders_must_not_share_a_name():
    with pytest.raises(ValueError, match="share a name"):
        measure([Contender(name="ours", call=print)] * 2, Effort(warmups=0))


def test_memory_is_the_peak_and_not_the_sum():
    def call():
        torch.empty(3 * MIB, dtype=torch.int8)  # released at once
        kept = torch.empty(2 * MIB, dtype=torch.int8)
        return kept, torch.empty(2 * MIB, dtype=torch.int8)

    assert peak_extra_bytes(call) == 4 * MIB


def test_memory_sees_saved_tensors_and_gradients_but_no_inputs():
    x = torch.ones(MIB // 4, requires_grad=True)
    # exp keeps its output; the sum's gradient is a view; the product is the gradient
    peak = peak_extra_bytes(lambda: torch.autograd.grad(x.exp().sum(), x))
    assert 2 * MIB <= peak < 2 * MIB + 1024


def test_memory_does_not_deduct_what_was_there_before():
    older = [torch.empty(8 * MIB, dtype=torch.int8)]

    def call():
        older.clear()
        return torch.empty(MIB, dtype=torch.int8)

    assert peak_extra_bytes(call) == MIB


def test_errors_are_relative_to_the_largest_number():
    exact = torch.tensor([4.0, -8.0], dtype=torch.float64)
    assert relative_error(exact.float() + 0.5, exact) == 0.0625
    assert relative_error(torch.zeros(2), exact) == 1.0
    assert relative_error(torch.tensor([4.0, float("nan")]), exact) == float("inf")
    assert relative_error(exact[:1], exact) == float("inf")


@pytest.mark.parametrize("actual", [{"y": torch.zeros(2)}, {"y": torch.full((2,), torch.nan)}, {}])
def test_agreement_refuses_zeros_nan_and_absent_results(actual):
    with pytest.raises(DisagreementError):
        check_agreement("peer", actual, {"y": torch.ones(2, dtype=torch.float64)}, 0.1)


@pytest.mark.parametrize("fault", ["output", "gradient", "none"])
def test_agreement_refuses_a_peer_with_a_wrong_output_or_gradient(fault):
    problem = selective_scan_problem(1, 4, 5, 2)
    right = scan.token_major_scan

    def faulty(u, delta, A, B, C, D, bias):
        if fault == "output":
            return right(u, delta, A, B, C, 1.001 * D, bias)
        return right(
            u, delta, A, B.detach() + 0.5 * (B - B.detach()) if fault == "gradient" else B, C, D, bias
        )

    peer = Peer(name="peer", scan=faulty, token_major=True)
    exact = problem.exact()
    if fault == "none":
        assert set(check_peer(peer, problem, exact)) == set(exact)
    else:
        with pytest.raises(
            DisagreementError, match="gradient by [BD]" if fault == "gradient" else r" in (y|grad)"
        ):
            check_peer(peer, problem, exact)


@pytest.mark.parametrize("problem", [selective_scan_problem(2, 4, 5, 3), ssd_scan_problem(2, 5, 2, 4, 3)])
def test_the_memory_floor_counts_each_input_and_output_once(problem):
    inputs = sum(x.numel() for x in problem.leaves.values())
    assert problem.forward_bytes() == 4 * (inputs + problem.cotangent.numel())
    assert problem.backward_bytes() == 4 * (2 * inputs + problem.cotangent.numel())
    half = problem.to(torch.bfloat16)
    streamed = sum(problem.leaves[name].numel() for name in problem.streamed) + problem.cotangent.numel()
    assert half.forward_bytes() == problem.forward_bytes() - 2 * streamed


@pytest.mark.parametrize(
    ("relation", "bound", "word"),
    [("≥", 3.0, "held"), ("≥", 3.1, "missed"), ("≤", 3.0, "held"), ("≤", 2.9, "missed")],
)
def test_goals_are_judged_by_the_median(relation, bound, word):
    figures = {"ratio": Spread(median=3.0, low=0.0, high=9.0)}
    assert judge([Goal(figure="ratio", relation=relation, bound=bound)], figures)[0].word == word


@pytest.mark.parametrize("figures", [{}, {"ratio": point(float("nan"))}])
def test_a_goal_without_a_figure_is_not_judged_and_not_held(figures):
    result = small_report(figures=figures)
    assert [verdict.word for verdict in result.verdicts] == ["not judged"]
    assert not result.held
    assert dataclasses.replace(result, judged=False).held


def test_markdown_and_json_say_the_same(tmp_path):
    origin = a_provenance(busy_cores=1.5)
    paths = small_report(notes=["mambapy: not installed"]).write(tmp_path / "new", origin)
    assert [path.name for path in paths] == [
        f"scan_amd-epyc-1-2-threads_2026-01-02.{kind}" for kind in ("md", "json")
    ]
    text, content = paths[0].read_text(), json.loads(paths[1].read_text())
    assert "| ratio | ≥ 2 | 3 | held |" in text
    assert "mambapy: not installed" in text
    assert "1.5 of 2 cores busy" in text
    assert "(no AMX)" in text
    assert content["figures"]["ratio"] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert content["goals"][0]["verdict"] == "held"
    assert content["provenance"]["commit"] == "abc"


def test_a_gpu_names_the_file_after_itself():
    assert a_provenance(hardware="NVIDIA H200").slug == "nvidia-h200"


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    path = small_report().write(tmp_path, a_provenance())[0]
    earlier = path.read_text()

    def fail(*_):
        raise OSError("full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        small_report(title="Other").write(tmp_path, a_provenance())
    assert path.read_text() == earlier
    assert len(list(tmp_path.iterdir())) == 2


def test_provenance_names_the_checkout_and_watches_other_processes():
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        origin = provenance.collect(threads=3)
    finally:
        burner.kill()
        burner.wait()
    assert origin.threads == 3
    assert (
        origin.packages["torch"] == torch.__version__.split("+")[0]
        or origin.packages["torch"] == torch.__version__
    )
    if origin.busy_cores is not None:
        assert origin.busy_cores > provenance.BUSY_CORES
        assert "do not trust" in origin.warning
