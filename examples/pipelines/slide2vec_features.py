"""Embeds the tissue of a slide with slide2vec: slide → tissue tiles of 256 px at 0.5 µm/px → features in a .pt file."""

import argparse
from pathlib import Path

import timm
import torch
from slide2vec import ExecutionOptions, Model, Pipeline, PreprocessingConfig

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("slide", type=Path, help="a slide that OpenSlide reads")
parser.add_argument("output", type=Path, help="folder of the results")
parser.add_argument("--model", default="mvhybrid_small_patch16_256")
parser.add_argument("--pretrained", action="store_true", help="with published weights; random ones otherwise")
parser.add_argument("--checkpoint", "--weights", type=Path, help="weights of your own, a file")
parser.add_argument("--variant", choices=("cls", "cls_patch_mean"), default="cls")
parser.add_argument("--device", default="cpu")
options = parser.parse_args()

if __name__ == "__main__":
    name = options.model
    if not options.pretrained:
        from timm_mvhybrid.integrations.slide2vec import register_checkpoint

        name = "own_weights"
        weights = options.checkpoint or options.output / "random_weights.pth"
        if options.checkpoint is None:
            options.output.mkdir(parents=True, exist_ok=True)
            torch.manual_seed(0)
            torch.save(timm.create_model(options.model).state_dict(), weights)
        register_checkpoint(name, weights, options.model)
    # slide2vec knows the six backbones by itself: with published weights nothing of ours is imported
    model = Model.from_preset(name, output_variant=options.variant, device=options.device)
    execution = ExecutionOptions(output_dir=options.output, batch_size=8, num_workers_per_gpu=0, num_gpus=1)
    result = Pipeline(model, PreprocessingConfig(), execution=execution).run(slides=[options.slide])
    for artifact in result.tile_artifacts:
        print(f"{artifact.path}: {artifact.num_tiles} × {artifact.feature_dim}")
