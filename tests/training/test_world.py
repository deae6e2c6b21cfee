import pytest
import torch

from timm_mvhybrid.cli.pretrain import parse_pretrain
from timm_mvhybrid.runtime.errors import PretrainError
from timm_mvhybrid.training.config import ParallelConfig
from timm_mvhybrid.training.world import join_world


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "99")
    for device in ("auto", "cuda"):
        with (
            pytest.raises(
                PretrainError,
                match=r"device 'cuda:99' is not available \(\d+ CUDA .* cpu.*: .* no more processes",
            ),
            join_world(ParallelConfig(device=device)),
        ):
            pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_cuda_that_is_not_there_is_refused():
    with pytest.raises(
        PretrainError, match=r"`parallel\.device` is cuda, but torch finds no CUDA device; take auto or cpu"
    ):
        with join_world(ParallelConfig(device="cuda")):
            pass


@pytest.mark.parametrize("device", ["xpu", "hpu", "meta", "gpu", "cuda:7"])
def test_devices_that_pretraining_does_not_take_are_wrong_usage(device, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_pretrain(["--output", str(tmp_path), "--data.sources", "x", "--parallel.device", device])
    assert caught.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"'{device}'" in said
    assert "cpu" in said
    file = tmp_path / "c.json"
    file.write_text(f'{{"parallel": {{"device": "{device}"}}}}')
    with pytest.raises(
        PretrainError, match=rf"c\.json: parallel.device is '{device}'; it must be one of auto, cpu"
    ):
        parse_pretrain(["--output", str(tmp_path), "--data.sources", "x", "--config", str(file)])
