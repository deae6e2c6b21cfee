"""The loop with an objective that is nothing like pretraining: no backbone, no teacher, no images."""

import json
import os
import signal

import pytest
import torch
from support.forked import run_module
from support.regression import NUM_STEPS, Regression, regression_config, run_regression

from timm_mvhybrid.runtime.codec import encode
from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.training.checkpoint import best_checkpoint, find_damage, finished_steps
from timm_mvhybrid.training.world import can_shard_on_cpu

needs_cpu_sharding = pytest.mark.skipif(not can_shard_on_cpu(), reason="this torch's FSDP needs a GPU")


def weights(folder):
    return torch.load(folder / "layer.pt", weights_only=True)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name


def lines(folder):
    changing = ("time", "throughput/")
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(changing)}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def spawn(config, folder, *arguments, ranks=1):
    file = folder / "config.json"
    file.write_text(json.dumps(encode(config)))
    return run_module("support.regression", [file, *arguments], ranks=ranks)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = regression_config(tmp_path_factory.mktemp("finished") / "run")
    result = run_regression(config)
    assert (result.step, result.stopped_by, result.weights) == (
        NUM_STEPS,
        None,
        config.output / "layer.pt",
    )
    return config.output


def test_it_learns(finished):
    fits = [line["loss/fit"] for line in lines(finished) if "loss/fit" in line]
    assert len(fits) == NUM_STEPS
    assert fits[-1] < 0.5 * fits[0]


def test_what_the_objective_says_stands_in_log_records_and_checkpoints(finished):
    steps = [line for line in lines(finished) if "loss/fit" in line]
    assert [line["doubled"] for line in steps] == [2 * step for step in range(NUM_STEPS)]
    assert {"loss/anchor", "loss/total", "mean_y", "grad_norm/weight", "grad_norm/bias"} <= steps[0].keys()
    assert [line["event"] for line in lines(finished) if "event" in line] == ["late"]
    resolved = json.loads((finished / "config.json").read_text())["resolved"]
    assert (resolved["num_samples"], resolved["data_fingerprint"]) == (1200, "drawn")
    # the best of the evaluations at 3 and 6 is kept beside the regular ones
    assert sorted(finished_steps(finished / "checkpoints")) == [2, 3, 4, 6, 7]
    assert best_checkpoint(finished / "checkpoints") == (3, 3.0)
    (evaluation,) = json.loads((finished / "evaluations.json").read_text())
    assert (evaluation["metric"], evaluation["dataset"]) == ("r", "drawn")


def test_a_run_that_was_killed_goes_on_bit_for_bit(finished, tmp_path):
    config = regression_config(tmp_path / "run")
    assert spawn(config, tmp_path, 5)[0] == -signal.SIGKILL
    assert not (config.output / "layer.pt").exists()
    assert run_regression(config).step == NUM_STEPS
    assert_equal(weights(config.output), weights(finished))
    assert lines(config.output) == lines(finished)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_a_signal_stops_after_the_step_and_the_run_goes_on_bit_for_bit(finished, tmp_path):
    config = regression_config(tmp_path / "run")
    stopped = run_regression(config, signals={4: signal.SIGUSR1})
    assert (stopped.step, stopped.stopped_by, stopped.weights) == (5, "SIGUSR1", None)
    assert max(finished_steps(config.output / "checkpoints")) == 5
    with pytest.raises(PretrainError, match="holds a run already"):
        run_regression(config, resume="never")
    assert run_regression(config, resume="must").step == NUM_STEPS
    assert_equal(weights(config.output), weights(finished))
    assert lines(config.output) == lines(finished)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_parameters_that_need_no_gradient_stay_and_the_others_resume_bit_for_bit(tmp_path, monkeypatch):
    """As of an encoder whose adapters alone are trained."""
    build = Regression.__init__

    def frozen(self, *arguments, **options):
        build(self, *arguments, **options)
        self.trained.weight.requires_grad_(False)

    monkeypatch.setattr(Regression, "__init__", frozen)
    whole, stopped = (regression_config(tmp_path / name) for name in ("whole", "stopped"))
    run_regression(whole)
    run_regression(stopped, signals={2: signal.SIGTERM})
    run_regression(stopped)
    assert_equal(weights(stopped.output), weights(whole.output))
    steps = [line for line in lines(whole.output) if "loss/fit" in line]
    assert {name for name in steps[0] if name.startswith("grad_norm/")} == {"grad_norm/bias"}


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize("late", [4, NUM_STEPS])
def test_a_parameter_without_a_gradient_so_far_resumes_bit_for_bit(tmp_path, monkeypatch, late):
    """As the head of a panel of genes that no batch has measured yet."""
    build, losses = Regression.__init__, Regression.losses

    def with_head(self, *arguments, **options):
        build(self, *arguments, **options)
        self.trained.register_parameter("head", torch.nn.Parameter(torch.ones(2)))

    def measured(self, batch, step):
        found = losses(self, batch, step)
        return {"total": found["total"] + self.trained.head.square().sum()} if step >= late else found

    monkeypatch.setattr(Regression, "__init__", with_head)
    monkeypatch.setattr(Regression, "losses", measured)
    whole, stopped = (regression_config(tmp_path / name) for name in ("whole", "stopped"))
    run_regression(whole)
    run_regression(stopped, signals={2: signal.SIGTERM})
    run_regression(stopped)
    assert_equal(weights(stopped.output), weights(whole.output))
    assert torch.equal(weights(whole.output)["head"], torch.ones(2)) == (late == NUM_STEPS)


@pytest.mark.parametrize(
    "changes", [{"accumulate": 3}, {"precision": "bf16"}, {"precision": "fp16"}], ids=str
)
def test_accumulation_and_precision_resume_bit_for_bit(tmp_path, changes):
    whole, killed = (
        regression_config(tmp_path / name, parallel=changes, checkpoint={"asynchronous": False})
        for name in ("whole", "killed")
    )
    run_regression(whole)
    assert spawn(killed, tmp_path, 4)[0] == -signal.SIGKILL
    assert [step for step in finished_steps(killed.output / "checkpoints")]
    run_regression(killed)
    assert_equal(weights(killed.output), weights(whole.output))


def test_passes_that_are_accumulated_make_one_step(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Regression, "prepare", lambda self, batch, step: seen.append(step) or _clean(batch))
    monkeypatch.setattr(Regression, "write_weights", lambda self, folder: seen.append(self.steps))
    run_regression(regression_config(tmp_path / "run", parallel={"accumulate": 2}, num_steps=2))
    assert seen == [0, 0, 1, 1, [0, 1]]


def _clean(batch):
    return batch["x"], batch["x"][:, :2]


def test_an_overflow_of_float16_skips_the_step_and_what_follows_it(tmp_path, monkeypatch):
    losses, steps = Regression.losses, []

    def overflowing(self, batch, step):
        parts = losses(self, batch, step)
        return {**parts, "total": parts["total"] * (float("inf") if step == 1 else 1.0)}

    monkeypatch.setattr(Regression, "losses", overflowing)
    monkeypatch.setattr(Regression, "after_step", lambda self, step: steps.append(step))
    run_regression(regression_config(tmp_path / "run", parallel={"precision": "fp16"}))
    skipped = [line["skipped"] for line in lines(tmp_path / "run") if "skipped" in line]
    assert skipped[1]
    assert steps == [step for step, left_out in enumerate(skipped) if not left_out]
    assert steps


def test_a_loss_that_is_not_finite_keeps_state_and_batches(tmp_path, monkeypatch):
    losses = Regression.losses

    def poisoned(self, batch, step):
        parts = losses(self, batch, step)
        return {**parts, "total": parts["total"] * (float("nan") if step == 3 else 1.0)}

    monkeypatch.setattr(Regression, "losses", poisoned)
    with pytest.raises(PretrainError, match=r"step 3: total = nan.*the state before it and its batches are"):
        run_regression(regression_config(tmp_path / "run"))
    (failure,) = (tmp_path / "run/failures").iterdir()
    assert find_damage(failure / "step_00000003") is None
    from safetensors.torch import load_file

    assert load_file(failure / "batches_rank0.safetensors")["0.x"].shape == (12, 5)


def test_another_recipe_is_refused_and_what_only_changes_speed_is_not(finished, tmp_path):
    run_regression(regression_config(tmp_path / "run"))
    with pytest.raises(PretrainError, match=r"`optimizer\.clip_norm` was 1\.0 and is 2\.0"):
        run_regression(regression_config(tmp_path / "run", optimizer={"clip_norm": 2.0}))
    assert run_regression(regression_config(tmp_path / "run", monitor={"log_every_steps": 5})).step == 7


@pytest.mark.parametrize("name", ["optimizer", "step"])
def test_a_state_under_the_loops_names_is_refused(tmp_path, monkeypatch, name):
    state = Regression.state_dict
    monkeypatch.setattr(Regression, "state_dict", lambda self: {**state(self), name: self.mean})
    with pytest.raises(PretrainError, match=f"Regression names {name} in its state_dict"):
        run_regression(regression_config(tmp_path / "run"))


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(PretrainError, match="take a multiple of 5"):
        run_regression(regression_config(tmp_path / "run", parallel={"accumulate": 5}))
    assert not (tmp_path / "run").exists()


@needs_cpu_sharding
@pytest.mark.distributed
def test_two_processes_learn_what_one_does(tmp_path, monkeypatch):
    """Averages of halves are the whole's average; Adam's first steps divide what rounding leaves by its own size."""
    monkeypatch.setattr(Regression, "prepare", lambda self, batch, step: _as_two(self, batch))
    one, two = (regression_config(tmp_path / name) for name in ("one", "two"))
    run_regression(one)
    code, _, errors = spawn(two, tmp_path, ranks=2)
    assert code == 0, errors
    for name in ("weight", "bias"):
        difference = (weights(one.output)[name] - weights(two.output)[name]).abs().max()
        assert difference < 1e-4, name


def _as_two(objective, batch):
    """Without the noise, which each process draws for itself."""
    return batch["x"], batch["x"] @ objective.truth.T
