"""Networks of any shape over the processes; DINOv2's are in tests/pretrain."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from timm_mvhybrid.training.config import ParallelConfig
from timm_mvhybrid.training.parallelize import parallelize
from timm_mvhybrid.training.world import can_shard_on_cpu

pytestmark = pytest.mark.skipif(not can_shard_on_cpu(), reason="this torch's FSDP needs a GPU")


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Panels(nn.Module):
    """A backbone, a head, and a head for each panel of genes, of which a batch needs one."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = Backbone(), nn.Linear(4, 3)
        self.panels = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 5)})
        self.token = nn.Parameter(torch.ones(4))

    def forward(self, x, panel):
        features = self.backbone(x) + self.token
        return self.head(features), self.panels[panel](features)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_heads_in_a_container_are_sharded_and_compute_the_same(mesh):
    network, x = Panels(), torch.randn(3, 4)
    expected = network(x, "b")
    names = [name for name, _ in network.named_parameters()]
    parallelize(network, mesh, ParallelConfig(device="cpu"), recompute=True)
    assert [name for name, _ in network.named_parameters()] == names
    assert all(isinstance(parameter, DTensor) for parameter in network.parameters())
    for found, wanted in zip(network(x, "b"), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    sum(part.sum() for part in network(x, "b")).backward()
    assert network.panels["b"].weight.grad is not None
    assert network.token.grad is not None


def test_a_module_without_a_backbone_is_sharded_as_a_whole(mesh):
    layer, x = nn.Linear(4, 2), torch.randn(3, 4)
    expected = layer(x)
    parallelize(layer, mesh, ParallelConfig(device="cpu"), recompute=True)
    assert isinstance(layer.weight, DTensor)
    torch.testing.assert_close(layer(x), expected)
