"""Pretrains a backbone by LightlyTrain and embeds the images with it: folder of tiles → run folder.

    python lightly_train_pretrain.py tiles/ run/

writes LightlyTrain's run, ``embeddings.pt`` of LightlyTrain's own ``embed``, and the features of the exported backbone
in timm, ``features.npz``.
"""

import argparse
from pathlib import Path

import lightly_train
import numpy as np
import timm
import torch
from PIL import Image

from timm_mvhybrid.integrations.lightly_train import arguments

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("tiles", type=Path, help="folder of images")
parser.add_argument("run", type=Path, help="folder to make")
parser.add_argument("--model", default="mvhybrid_small_patch16_256")
parser.add_argument("--pretrained", action="store_true", help="go on from the published weights")
parser.add_argument("--method", default="dino", choices=["dino", "simclr"])
parser.add_argument("--image-size", type=int, help="side of the images in px (default: the model's own)")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=2)
parser.add_argument("--accelerator", default="cpu", help="cpu, gpu or auto")
options = parser.parse_args()

for_backbone = arguments(options.model, image_size=options.image_size, pretrained=options.pretrained)
size = for_backbone["transform_args"]["image_size"][0]
lightly_train.pretrain(
    out=options.run,
    data=options.tiles,
    method=options.method,
    epochs=options.epochs,
    batch_size=options.batch_size,
    accelerator=options.accelerator,
    devices=1,
    num_workers=0,
    **for_backbone,
)
lightly_train.embed(
    out=options.run / "embeddings.pt",
    data=options.tiles,
    checkpoint=options.run / "checkpoints" / "last.ckpt",
    image_size=size,
    batch_size=options.batch_size,
    accelerator=options.accelerator,
    num_workers=0,
)

model = timm.create_model(
    options.model,
    global_pool="avg",
    checkpoint_path=options.run / "exported_models" / "exported_last.pt",
).eval()
config = {**timm.data.resolve_data_config({}, model=model), "input_size": (3, size, size)}
transform = timm.data.create_transform(**config)
names = torch.load(options.run / "embeddings.pt", weights_only=True)["filenames"]
with torch.inference_mode():
    images = [transform(Image.open(options.tiles / name).convert("RGB")) for name in names]
    features = model(torch.stack(images)).numpy()
np.savez(options.run / "features.npz", names=names, features=features)
