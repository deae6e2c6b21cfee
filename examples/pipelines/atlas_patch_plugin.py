"""A plugin of AtlasPatch: MV_Hybrid with random weights, to try it out, and the six with published ones.

atlaspatch process slide.svs --output out --patch-size 256 --target-mag 20 \
    --feature-plugin examples/pipelines/atlas_patch_plugin.py --feature-extractors mvhybrid_random
"""

import torch

from timm_mvhybrid.integrations import atlas_patch


def register_feature_extractors(registry, device, dtype, num_workers):
    """Offers the extractors; AtlasPatch calls it by this name."""
    atlas_patch.register_feature_extractors(registry, device, dtype, num_workers)
    torch.manual_seed(0)
    # weights of your own: checkpoint="weights.safetensors"
    atlas_patch.register_model(
        registry, "mvhybrid_random", "mvhybrid_small_patch16_256", device, dtype, num_workers
    )
