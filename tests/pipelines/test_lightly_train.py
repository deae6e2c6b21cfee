"""LightlyTrain: pretraining of our backbones on tiles, its embeddings, its export back in timm.

Its ``embed`` gives the mean of the patch tokens, so that is what ours is compared with.
"""

import subprocess
import sys
from pathlib import Path

import h5py
import lightly_train
import numpy as np
import pytest
import timm
import torch
from cosines import smallest_cosine

import timm_mvhybrid
from timm_mvhybrid.data import open_source
from timm_mvhybrid.evaluate import embed, load_backbone
from timm_mvhybrid.integrations.lightly_train import arguments

MODELS = ("test_mvhybrid", "test_hydra_hybrid", "test_vim_einfft", "test_hydra_einfft", "test_vit12")


def pretrain(tiles, run, model, method="simclr", **options):
    lightly_train.pretrain(
        out=run,
        data=tiles,
        method=method,
        epochs=1,
        batch_size=2,
        accelerator="cpu",
        devices=1,
        num_workers=0,
        **{**arguments(model), **options},
    )
    return run / "checkpoints" / "last.ckpt"


def embeddings(tiles, checkpoint, output, **options):
    lightly_train.embed(
        out=output,
        data=tiles,
        checkpoint=checkpoint,
        batch_size=4,
        accelerator="cpu",
        num_workers=0,
        **options,
    )
    stored = torch.load(output, weights_only=True)
    return {name: row for row, name in enumerate(stored["filenames"])}, stored["embeddings"].numpy()


def own(name, tiles, checkpoint, **options):
    """Our own embeddings of the trained weights, mean of the patches, and the rows of their images."""
    output = checkpoint.parent / "own.h5"
    embed(
        open_source(tiles),
        load_backbone(name, checkpoint=checkpoint),
        output,
        pool="avg",
        batch_size=4,
        **options,
    )
    with h5py.File(output) as file:
        rows = {Path(path).name: row for row, path in enumerate(file["paths"].asstr()[:])}
        return rows, file["embeddings"][:]


def in_order(names, pair):
    rows, features = pair
    return features[[rows[name] for name in names]]


def test_example_from_published_weights(hub, tiles, tmp_path, example, record):
    name = "mvhybrid_small_patch16_256"
    published = hub(name).state_dict()
    run = tmp_path / "run"
    example("lightly_train_pretrain.py", tiles, run, "--model", name, "--pretrained")
    exported = run / "exported_models" / "exported_last.pt"
    trained = torch.load(exported, weights_only=True)
    assert trained.keys() == published.keys()
    change = max((trained[key] - published[key]).abs().max().item() for key in trained)
    # it went on from the published weights: moved by the few steps of one epoch, and not made anew
    assert 0 < change < 0.05
    theirs = torch.load(run / "embeddings.pt", weights_only=True)
    names = list(theirs["filenames"])
    saved = np.load(run / "features.npz")
    assert saved["names"].tolist() == names
    assert saved["features"].shape == (len(names), 384)
    ours = in_order(names, own(name, tiles, exported))
    cosine = smallest_cosine(ours, theirs["embeddings"].numpy())
    in_timm = smallest_cosine(ours, saved["features"])
    record(name, method="dino", cosine_embed=cosine, cosine_export_in_timm=in_timm, largest_change=change)
    assert cosine >= 0.999
    assert in_timm >= 0.999


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_backbone(tiles, tmp_path, name, record):
    checkpoint = pretrain(tiles, tmp_path / "run", name)
    rows, theirs = embeddings(tiles, checkpoint, tmp_path / "embeddings.pt", image_size=256)
    exported = tmp_path / "run" / "exported_models" / "exported_last.pt"
    ours = in_order(list(rows), own(name, tiles, exported, input_size=256))
    cosine = smallest_cosine(ours, theirs)
    record(name, method="simclr", cosine_embed=cosine)
    assert cosine >= 0.999


def test_its_own_normalisation_gives_other_features(tiles, tmp_path, record):
    """Why :func:`arguments` passes the normalisation: LightlyTrain's own is ImageNet's."""
    checkpoint = pretrain(tiles, tmp_path / "run", "test_mvhybrid", transform_args=None)
    rows, theirs = embeddings(tiles, checkpoint, tmp_path / "embeddings.pt", image_size=256)
    exported = tmp_path / "run" / "exported_models" / "exported_last.pt"
    cosine = smallest_cosine(
        in_order(list(rows), own("test_mvhybrid", tiles, exported, input_size=256)), theirs
    )
    record("without our normalisation", cosine_embed=cosine)
    assert cosine < 0.999


def test_export_of_its_own_command_line(tiles, tmp_path):
    """A process that never imports us: LightlyTrain's checkpoint brings our classes with it."""
    checkpoint = pretrain(tiles, tmp_path / "run", "test_mvhybrid")
    output = tmp_path / "exported.pt"
    command = [
        Path(sys.executable).with_name("lightly-train"),
        "export",
        f"out={output}",
        f"checkpoint={checkpoint}",
    ]
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
    model = timm.create_model("test_mvhybrid", checkpoint_path=output)
    trained = torch.load(checkpoint, weights_only=False)["state_dict"]
    found = [key for key in trained if key.endswith("patch_embed.proj.weight")]
    assert any(torch.equal(trained[key], model.patch_embed.proj.weight) for key in found)


def test_teacher_of_other_packages_is_refused(tiles, tmp_path):
    """The limit that our module's documentation names."""
    with pytest.raises(AttributeError, match="make_teacher"):
        pretrain(tiles, tmp_path / "run", "test_mvhybrid", method="dinov2")


def test_our_package_is_the_one_under_test():
    assert Path(timm_mvhybrid.__file__).parents[2] == Path(__file__).parents[2]
