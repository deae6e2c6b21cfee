"""MINT and STAMP as objectives of the loop: they run, resume bit for bit, and two processes are one."""

import math
from dataclasses import replace

import pytest
import timm
import torch
import torch.distributed as dist
from safetensors import safe_open
from support.forked import spawn
from support.measured_patches import MeasuredPatches
from support.pretraining import equal, lines, stop_after

from timm_mvhybrid.finetune import FinetuneError, STModel, load_adapters
from timm_mvhybrid.finetune.mint import (
    MintConfig,
    MintObjective,
    MintRunConfig,
    anchor_distance,
)
from timm_mvhybrid.finetune.mint_student import pooled
from timm_mvhybrid.finetune.stamp import StampConfig, StampObjective, StampRunConfig
from timm_mvhybrid.finetune.training_data import panel_loss
from timm_mvhybrid.models import load_weights
from timm_mvhybrid.ssl.config import CollapseConfig, CropConfig, HeadConfig, ModelConfig, OptimizerConfig
from timm_mvhybrid.training.config import AdamWConfig, CheckpointConfig, LogConfig, ParallelConfig
from timm_mvhybrid.training.loop import run_training
from timm_mvhybrid.training.world import can_shard_on_cpu, join_world

pytest.importorskip("lightly")

ARCHITECTURE = "test_mvhybrid"
CROPS = CropConfig(global_size_px=64, local_size_px=32, num_local=2)
COMMON = dict(
    num_steps=3,
    batch_size=4,
    crops=CROPS,
    model=ModelConfig(name=ARCHITECTURE),
    parallel=ParallelConfig(device="cpu", sharding="none"),
    checkpoint=CheckpointConfig(every_steps=1, asynchronous=False),
)


def mint(output, **changes):
    options = dict(
        output=output,
        head=HeadConfig(num_prototypes=32, hidden_dim=32, bottleneck_dim=16, separate_ibot_head=False),
        optimizer=OptimizerConfig(warmup_steps=0, freeze_last_layer_steps=0),
    )
    return MintRunConfig(**{**COMMON, **options, **changes})


def stamp(output, **changes):
    options = dict(
        output=output,
        optimizer=AdamWConfig(base_learning_rate=0.02, warmup_steps=0, freeze_last_layer_steps=0),
        stamp=StampConfig(hidden_dims=(8, 16)),
    )
    return StampRunConfig(**{**COMMON, **options, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return MeasuredPatches(tmp_path_factory.mktemp("measured"))


def run(config, kind, data):
    return run_training(config, lambda world: kind(config, world, data), show_progress=False)


def written(file):
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}


@pytest.mark.parametrize(("make", "kind"), [(mint, MintObjective), (stamp, StampObjective)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"parallel": ParallelConfig(device="cpu", sharding="full", accumulate=2)},
            marks=pytest.mark.skipif(not can_shard_on_cpu(), reason="this torch's FSDP needs a GPU"),
        ),
    ],
    ids=["whole", "sharded"],
)
def test_runs_and_resumes_bit_for_bit(make, kind, changes, data, tmp_path):
    pytest.importorskip("peft") if kind is StampObjective else None
    whole = make(tmp_path / "whole", **changes)
    result = run(whole, kind, data)
    assert result.step == 3
    resumed = replace(whole, output=tmp_path / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        assert run(resumed, kind, data).step == 1
    run(resumed, kind, data)
    assert equal(
        written(tmp_path / "whole" / "encoder.safetensors"),
        written(tmp_path / "resumed" / "encoder.safetensors"),
    )
    encoder = timm.create_model(ARCHITECTURE, img_size=64)
    load_weights(encoder, result.weights)


def test_mint_logs_its_losses_and_leaves_an_encoder_and_an_st_model(data, tmp_path):
    config = mint(tmp_path / "run")
    run(config, MintObjective, data)
    log = lines(config.output)
    logged = set().union(*log)
    assert {"loss/dino_global", "loss/anchor", "loss/spots", "loss/cells", "loss/total"} <= logged
    assert "loss/ibot" not in logged
    encoder = timm.create_model(ARCHITECTURE, img_size=64).eval()
    load_weights(encoder, config.output / "encoder.safetensors")
    weights = written(config.output / "st_model.safetensors")
    assert {"st_token", "spot_heads.0.weight", "token_heads.0.bias"} <= weights.keys()
    model = STModel(timm.create_model(ARCHITECTURE, img_size=64).eval())
    model.load_state_dict({k: v for k, v in weights.items() if k.startswith(("backbone.", "st_token"))})
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.features(x)["class"], encoder.forward_features(x)[:, 0])


def test_mint_learns_expression_and_the_anchor_holds(data, tmp_path):
    drift = {}
    for anchor_weight in (0.0, 10.0):
        config = mint(
            tmp_path / f"run{anchor_weight}",
            num_steps=12,
            batch_size=8,
            mint=MintConfig(anchor_weight=anchor_weight),
            optimizer=OptimizerConfig(base_learning_rate=0.02, warmup_steps=0, freeze_last_layer_steps=0),
            monitor=CollapseConfig(log_every_steps=1),
        )
        made = []
        run(config, lambda *given, keep=made: keep.append(MintObjective(*given)) or keep[0], data)
        log = [line for line in lines(config.output) if "loss/spots" in line]
        assert log[-1]["loss/spots"] < log[0]["loss/spots"]
        images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(3))
        encoder = timm.create_model(ARCHITECTURE, img_size=64).eval()
        load_weights(encoder, config.output / "encoder.safetensors")
        with torch.no_grad():
            features = [m.eval().forward_features(images)[:, 0] for m in (encoder, made[0].frozen)]
        drift[anchor_weight] = anchor_distance(*features, "cosine")
    assert drift[10.0] < drift[0.0]


def test_batches_without_targets_add_nothing(tmp_path):
    data = MeasuredPatches(tmp_path, unmeasured=True)
    config = mint(tmp_path / "run")
    with join_world(config.parallel) as world:
        objective = MintObjective(config, world, data)
        batch = next(objective.batches(0))
        for given in (batch, {k: v for k, v in batch.items() if "/" not in k}):
            losses = objective.losses(objective.prepare(given, 0), 0)
            assert losses["spots"].item() == losses["cells"].item() == 0
            losses["total"].backward()
            grads = {k: p.grad for k, p in objective.student.named_parameters() if p.requires_grad}
            assert grads.pop("backbone.mask_token") is None, "nothing is hidden without iBOT"
            assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())
            assert not grads["spot_heads.0.weight"].any()
        # at the start nothing has drifted
        assert losses["anchor"].item() == pytest.approx(0, abs=1e-5)
    pytest.importorskip("peft")
    config = stamp(tmp_path / "stamp")
    with join_world(config.parallel) as world:
        objective = StampObjective(config, world, data)
        losses = objective.losses(objective.prepare(next(objective.batches(0)), 0), 0)
        assert losses["total"].item() == losses["ln_batch"].item() == 0
        losses["total"].backward()
        assert all(p.grad is not None for p in objective.network.parameters() if p.requires_grad)


def test_stamp_trains_adapters_alone_and_writes_them_with_their_base(data, tmp_path):
    pytest.importorskip("peft")
    config = stamp(tmp_path / "run", num_steps=20, batch_size=8, monitor=LogConfig(log_every_steps=1))
    with join_world(config.parallel) as world:
        torch.manual_seed(0)
        objective = StampObjective(config, world, data)
        before = {k: v.clone() for k, v in objective.network.backbone.state_dict().items()}
        trained = {k for k, p in objective.network.named_parameters() if p.requires_grad}
        assert all("lora_" in k or not k.startswith("backbone.") for k in trained)
    run(config, StampObjective, data)
    log = [line for line in lines(config.output) if "loss/contrast" in line]
    assert log[-1]["loss/total"] < log[0]["loss/total"]
    assert all(0 < line["loss/ln_batch"] <= math.log(8) + 1e-6 for line in log)
    base = timm.create_model(ARCHITECTURE, img_size=64).eval()
    own = {
        k.replace(".base_layer", ""): v for k, v in before.items() if "lora_" not in k and k != "mask_token"
    }
    base.load_state_dict(own)
    x = torch.randn(2, 3, 64, 64)
    adapted = load_adapters(base, config.output / "adapters", model_args={"img_size": 64})
    changed = adapted(x)
    merged = timm.create_model(ARCHITECTURE, img_size=64).eval()
    load_weights(merged, config.output / "encoder.safetensors")
    assert (merged(x) - changed).abs().max() <= 1e-5 * changed.abs().max()
    with adapted.disable_adapter():
        assert (adapted(x) - changed).norm() > 1e-3 * changed.norm()


def test_what_does_not_fit_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="separate_ibot_head"):
        mint(tmp_path, head=HeadConfig(num_prototypes=32))
    config = mint(tmp_path, crops=replace(CROPS, global_size_px=48))
    with join_world(config.parallel) as world:
        with pytest.raises(FinetuneError, match=r"2 × 2 cells of the panel 'xenium\.v1'; take 32 px"):
            MintObjective(config, world, data)
        other = MeasuredPatches(tmp_path)
        other.pathways = None
        with pytest.raises(FinetuneError, match=r"`data\.pathways`"):
            StampObjective(stamp(tmp_path), world, other)


def test_tokens_are_pooled_over_cells():
    tokens = torch.arange(16.0).view(1, 16, 1)
    assert pooled(tokens, (4, 4), 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(pooled(tokens, (4, 4), 4), tokens)


def test_the_anchor_is_a_distance():
    x = torch.randn(3, 5, 8)
    assert anchor_distance(2 * x, x, "cosine").item() == pytest.approx(0, abs=1e-6)
    assert anchor_distance(-x, x, "cosine").item() == pytest.approx(2)
    assert anchor_distance(x + 1, x, "mse").item() == pytest.approx(1)


def drawn():
    g = torch.Generator().manual_seed(9)
    predictions = {name: torch.randn(6, 4, generator=g, dtype=torch.float64) for name in ("a", "b", "c")}
    targets = {}
    for name in predictions:
        targets[f"expression/{name}"] = torch.randn(6, 4, generator=g, dtype=torch.float64)
        # all of a in the first process, none of c anywhere
        targets[f"measured/{name}"] = torch.rand(6, 4, generator=g) < 0.5
    targets["measured/a"][3:] = False
    targets["measured/c"][:] = False
    return predictions, targets, lambda name: (torch.zeros(4), torch.ones(4))


def _work(rank, folder):
    from timm_mvhybrid.runtime.ranks import close_process_group
    from timm_mvhybrid.ssl.collectives import gather_rows

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    predictions, targets, statistics = drawn()
    rows = slice(3 * rank, 3 * rank + 3)
    own = {name: x[rows].clone().requires_grad_() for name, x in predictions.items()}
    loss = panel_loss(own, {name: x[rows] for name, x in targets.items()}, statistics)
    loss.backward()
    whole = gather_rows(torch.cat([loss.detach().view(1, 1), *(x.grad.view(-1, 1) for x in own.values())]))
    if rank == 0:
        torch.save(whole, f"{folder}/found.pt")
    close_process_group()


@pytest.mark.distributed
def test_panels_over_two_processes_are_one(tmp_path):
    spawn(_work, (str(tmp_path),))
    first, second = torch.load(tmp_path / "found.pt", weights_only=True).chunk(2)
    predictions, targets, statistics = drawn()
    for x in predictions.values():
        x.requires_grad_()
    loss = panel_loss(predictions, targets, statistics)
    loss.backward()
    assert ((first[0] + second[0]) / 2 - loss).abs() <= 1e-12
    # data parallelism averages
    for number, x in enumerate(predictions.values()):
        part = slice(1 + 12 * number, 13 + 12 * number)
        found = torch.cat([first[part], second[part]]).view(6, 4) / 2
        torch.testing.assert_close(found, x.grad, rtol=0, atol=1e-12)
