"""Every row of the table of errors in docs/errors.md is what really happens, and every row has its cause here."""

import json
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.exports import exported, perturbed
from support.hub_client import load, publish
from support.hub_server import READ_TOKEN, TOKEN, Fault
from support.remote_files import write_tar
from support.training_runs import MODEL, training_state
from support.web_servers import serving

from timm_mvhybrid import create_model
from timm_mvhybrid.cli.flags import flags_of, in_flags
from timm_mvhybrid.cli.hub import Export, Publish
from timm_mvhybrid.data import DataError, list_slides, open_source, remote_attempts
from timm_mvhybrid.hub import export

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
TABLE = re.search(r"\| what you see \| what it means \| what to do \|\n\| -.*\n((?:\|.*\n)+)", PAGE)[1]
ROWS = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in TABLE.splitlines()]
REPO = "our-lab/published"
CAUSES = {}


def cause(sentence):
    """Marks a function as what brings a row's error about; it returns or raises the error's text."""

    def mark(function):
        CAUSES[sentence] = function
        return function

    return mark


def remote(hub, folder, cache, *, token=None, name=f"hf-hub:{REPO}", published=True, fault=None):
    server, call = hub
    if published:
        assert not call(publish, folder, REPO, token=TOKEN).error
    if fault:
        server.faults.append(fault)
    return call(load, name, cache, token=token).error


def local(folder, **options):
    return create_model(f"local-dir:{folder}", pretrained=True, **options)


def file(path, **options):
    overlay = {"file": str(path)}
    return timm.create_model(MODEL, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def rewrite(folder, change):
    (folder / "config.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return file(folder / "model.safetensors")


@cause("nothing is published at")
def _(hub, folder, cache):
    return remote(hub, folder, cache, name=MODEL, published=False)


@cause("no token was sent (401)")
def _(hub, folder, cache):
    hub[1](publish, folder, REPO, private=True, token=TOKEN)
    return remote(hub, folder, cache, published=False)


@cause("refused the token (401)")
def _(hub, folder, cache):
    return remote(hub, folder, cache, token="hf_expired")


@cause("forbids this (403)")
def _(hub, folder, cache):
    return hub[1](publish, folder, REPO, token=READ_TOKEN).error


@cause("has no such revision")
def _(hub, folder, cache):
    return remote(hub, folder, cache, name=f"hf-hub:{REPO}@v9")


@cause("has no such file")
def _(hub, folder, cache):
    commit = hub[1](publish, folder, REPO, token=TOKEN).value["commit"]
    del hub[0].repositories[REPO].commits[commit]["config.json"]
    return remote(hub, folder, cache, published=False)


@cause("no connection to")
def _(hub, folder, cache):
    with hub[0].paused():
        return remote(hub, folder, cache, published=False)


@cause("HF_HUB_OFFLINE forbids the network")
def _(hub, folder, cache):
    return hub[1](load_offline, f"hf-hub:{REPO}", cache).error


def load_offline(name, cache):
    """Stands for a process that was started with HF_HUB_OFFLINE=1, which the tests over HTTP start."""
    from unittest import mock

    from huggingface_hub.utils import OfflineModeIsEnabled

    error = OfflineModeIsEnabled("offline")
    with mock.patch("timm_mvhybrid.weights.hub_download.get_hf_file_metadata", side_effect=error):
        return load(name, cache)


@cause("the server failed")
def _(hub, folder, cache):
    return remote(hub, folder, cache, fault=Fault("HEAD", "resolve", status=500))


@cause("broke off")
def _(hub, folder, cache):
    return remote(hub, folder, cache, fault=Fault("GET", "model.safetensors", drop_after=0))


@cause("its sha256 is")
def _(hub, folder, cache):
    return remote(hub, folder, cache, fault=Fault("GET", "model.safetensors", flip=-1000))


@cause("its tensors are not those that were exported")
def _(hub, folder, cache):
    (folder / "config.json").unlink()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return file(folder / "model.safetensors")


@cause("the file is empty")
def _(hub, folder, cache):
    (folder / "model.safetensors").write_bytes(b"")
    return local(folder)


@cause("is a web page")
def _(hub, folder, cache):
    (folder / "model.safetensors").write_text("<html>503</html>")
    return local(folder)


@cause("not a readable safetensors file")
def _(hub, folder, cache):
    (folder / "config.json").unlink()
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    return file(folder / "model.safetensors")


@cause("nothing of it was run")
def _(hub, folder, cache):
    torch.save(perturbed(MODEL).state_dict(), folder / "model.safetensors")
    return local(folder)


@cause("holds more than tensors")
def _(hub, folder, cache):
    (folder / "weights.pth").write_bytes(pickle.dumps({"weight": Path("x")}, protocol=2))
    return file(folder / "weights.pth")


@cause("holds FSDP's flattened parameters")
def _(hub, folder, cache):
    torch.save({"model": {"backbone._fsdp_wrapped_module._flat_param": torch.zeros(9)}}, folder / "rank0.pth")
    return file(folder / "rank0.pth")


@cause("and nothing says which is meant")
def _(hub, folder, cache):
    weights = {"encoder_q": perturbed(MODEL, 1).state_dict(), "encoder_k": perturbed(MODEL, 2).state_dict()}
    torch.save(weights, folder / "moco.pth")
    return file(folder / "moco.pth")


@cause("hold NaN or Inf")
def _(hub, folder, cache):
    return rewrite(folder, lambda tensors: tensors["norm.bias"].fill_(float("nan")))


@cause("does not fit the model")
def _(hub, folder, cache):
    return rewrite(folder, lambda tensors: tensors.pop("norm.bias"))


@cause("computes other features")
def _(hub, folder, cache):
    return local(folder, num_heads=4)


@cause("no such checkpoint file")
def _(hub, folder, cache):
    return file(folder / "modell.safetensors")


@cause("not a readable configuration")
def _(hub, folder, cache):
    (folder / "config.json").write_text('{"archi')
    return local(folder)


@cause("names no architecture")
def _(hub, folder, cache):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return local(folder)


@cause("config.json: no such file")
def _(hub, folder, cache):
    (folder / "config.json").unlink()
    return local(folder)


@cause("cannot be streamed")
def _(hub, folder, cache):
    (folder / "slide.svs").write_bytes(bytes(100))
    with serving(folder) as site:
        return list_slides([f"{site.url}/slide.svs"])


@cause("sends whole files only")
def _(hub, folder, cache):
    write_tar(folder / "patches.tar")
    with serving(folder) as site:
        site.ranges = False
        return open_source(f"{site.url}/patches.tar")


@cause("find out whether the machine answers")
def _(hub, folder, cache):
    write_tar(folder / "patches.tar")
    with serving(folder) as site:
        site.failures.extend([503] * 20)
        return open_source(f"{site.url}/patches.tar")


@cause("bfloat16 would change the features")
def _(hub, folder, cache):
    model = perturbed("test_vim_einfft")
    save_file({key: value * (1 + 3 * (value.ndim > 1)) for key, value in model.state_dict().items()}, cache)
    return export(cache, "test_vim_einfft", folder / "out", dtype="bfloat16")


@cause("has no teacher")
def _(hub, folder, cache):
    torch.save({"student": training_state()["student"]}, folder / "student.pt")
    return export(folder / "student.pt", MODEL, folder / "out")


@cause("exists already")
def _(hub, folder, cache):
    return export(folder / "model.safetensors", MODEL, folder)


@cause("publishing needs a token")
def _(hub, folder, cache):
    return hub[1](publish, folder, REPO).error


@cause("tags are never moved")
def _(hub, folder, cache):
    hub[1](publish, exported(folder.parent / "first", seed=8)[0], REPO, revision="v1", token=TOKEN)
    return hub[1](publish, folder, REPO, revision="v1", token=TOKEN).error


@cause("but the repository is public")
def _(hub, folder, cache):
    hub[1](publish, folder, REPO, token=TOKEN)
    return hub[1](publish, folder, REPO, private=True, token=TOKEN).error


@cause("can run code when they are opened")
def _(hub, folder, cache):
    (folder / "optimizer.pt").write_bytes(b"")
    return hub[1](publish, folder, REPO, token=TOKEN).error


def test_table_and_causes_name_the_same_errors():
    assert [row[0].strip("`") for row in ROWS] == list(CAUSES)
    assert all(len(row) == 3 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0].strip("`") for row in ROWS])
def test_each_row_happens_and_the_message_itself_names_the_remedy(hub, tmp_path, row, monkeypatch):
    see, _, remedy = row
    monkeypatch.setattr(remote_attempts, "FIRST_WAIT_S", 0.001)
    folder, _ = exported(tmp_path / "exports")
    try:
        text = CAUSES[see.strip("`")](hub, folder, tmp_path / "cache.safetensors")
    except (RuntimeError, DataError) as error:
        text = str(error)
    assert isinstance(text, str), "it loaded"
    assert see.strip("`") in text
    assert "\n" not in text
    quoted = re.findall("`([^`]+)`", remedy)
    assert quoted
    text = in_flags(text, {**flags_of(Export), **flags_of(Publish)})
    assert not [word for word in quoted if word not in text], text
