"""Embeds the tissue of a slide with TIAToolbox: slide → patches of 256 px at 0.5 µm/px → features in a .zarr."""

import argparse
from pathlib import Path

import torch
import zarr
from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor

from timm_mvhybrid.integrations.tiatoolbox import backbone

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("slide", type=Path, help="a slide that OpenSlide reads")
parser.add_argument("output", type=Path, help="folder of the results")
parser.add_argument("--model", default="mvhybrid_small_patch16_256")
parser.add_argument("--pretrained", action="store_true", help="with published weights; random ones otherwise")
parser.add_argument("--checkpoint", "--weights", type=Path, help="weights of your own, a file")
parser.add_argument("--device", default="cpu")
options = parser.parse_args()

if __name__ == "__main__":
    torch.manual_seed(0)
    own = {"checkpoint": options.checkpoint} if options.checkpoint else {}
    model = backbone(options.model, pretrained=options.pretrained, **own)
    extractor = DeepFeatureExtractor(model=model, batch_size=8, device=options.device)
    results = extractor.run(
        [options.slide],
        patch_mode=False,
        patch_input_shape=(256, 256),
        stride_shape=(256, 256),
        input_resolutions=[{"units": "mpp", "resolution": 0.5}],
        output_type="zarr",
        save_dir=options.output,
    )
    for slide, path in results.items():
        features = zarr.open(path)["features"]
        print(f"{slide}: {features.shape[0]} × {features.shape[1]} in {path}")
