"""Runs as the training loop leaves them: sharded checkpoints of teacher and student, and records."""

import json

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.exports import perturbed
from torch.distributed.tensor import Shard, distribute_tensor

from timm_mvhybrid.runtime.ranks import close_process_group

MODEL = "test_mvhybrid"
TEACHER_SEED, STUDENT_SEED = 11, 12


def training_state(shard=None):
    """Teacher, student, heads and an optimiser's state; `shard` turns a tensor into a sharded one."""
    shard = shard or (lambda tensor: tensor)

    def network(seed):
        backbone = {key: shard(value) for key, value in perturbed(MODEL, seed).state_dict().items()}
        return {
            "backbone": backbone,
            "dino_head": {"last_layer.weight": shard(torch.full((8, 4), 1.0 * seed))},
        }

    return {
        "teacher": network(TEACHER_SEED),
        "student": network(STUDENT_SEED),
        "optimizer": {"exp_avg": shard(torch.full((4, 4), float("nan"))), "lr": 0.1},
        "step": 20,
    }


def write_sharded(rank, world_size, folder, rendezvous):
    """One process of a sharded save."""
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world_size)
    mesh = dist.device_mesh.init_device_mesh("cpu", (world_size,))
    state = training_state(lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]))
    dcp.save(state, checkpoint_id=folder)
    close_process_group()


def write_records(run):
    """What a run writes about itself."""
    run.mkdir(parents=True, exist_ok=True)
    config = {
        "preset": "paper",
        "optimizer": {"name": "adamw", "lr": 0.002},
        "data": {
            "name": "Patches of our slides",
            "obtained": "own hospital, ethics 1/23",
            "license": "not public",
            "hub_datasets": ["our-lab/patches"],
        },
    }
    (run / "config.json").write_text(json.dumps(config))
    lines = [{"step": step, "loss": 10.0 - step / 10} for step in (10, 20, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    (run / "environment.json").write_text(json.dumps({"torch": "2.15.0", "gpus": 24}))
    evaluations = [
        {
            "metric": "pearson r",
            "value": 0.4321,
            "dataset": "HEST-Bench",
            "protocol": "PCA 256 + ridge, LOSO",
        },
        {"metric": "AUC", "value": 0.9, "dataset": "ours"},
    ]
    (run / "evaluations.json").write_text(json.dumps(evaluations))
