"""Embeds the tissue of a slide with lazyslide: slide → tissue → tiles of 256 px at 0.5 µm/px → features in a .zarr."""

import argparse
from pathlib import Path

import lazyslide as zs
from wsidata import open_wsi

import timm_mvhybrid.integrations.lazyslide

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("slide", type=Path, help="a slide that OpenSlide reads")
parser.add_argument("output", type=Path, help="the .zarr to write")
parser.add_argument("--model", default="mvhybrid_small_patch16_256")
parser.add_argument("--pretrained", action="store_true", help="with published weights; random ones otherwise")
parser.add_argument(
    "--checkpoint",
    "--weights",
    type=Path,
    help="weights of your own: a file, or a folder of 'timm-mvhybrid export'",
)
parser.add_argument("--dense", action="store_true", help="features of every square of 16 px too")
parser.add_argument("--device", default="cpu")
options = parser.parse_args()

timm_mvhybrid.integrations.lazyslide.register()
wsi = open_wsi(options.slide, store=options.output)
zs.pp.find_tissues(wsi)
zs.pp.tile_tissues(wsi, 256, mpp=0.5)
zs.tl.feature_extraction(
    wsi,
    options.model,
    model_path=options.checkpoint,
    load_kws=None if options.checkpoint else {"pretrained": options.pretrained},
    dense=options.dense,
    device=options.device,
    pbar=False,
)
wsi.write()
for name, table in wsi.tables.items():
    print(f"{name}: {table.shape[0]} × {table.shape[1]}")
