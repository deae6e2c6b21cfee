"""TRIDENT's own command line with the six backbones beside its encoders.

Copy this file into a clone of github.com/mahmoodlab/TRIDENT and run it in place of ``run_batch_of_slides.py``:

python trident_slides.py --task all --wsi_dir slides --job_dir out --mag 20 --patch_size 256 \
    --patch_encoder mvhybrid_small_patch16_256
"""

from timm_mvhybrid.integrations.trident import register

register()  # here and not below: the processes that TRIDENT starts, one a GPU, read this file again

from run_batch_of_slides import main  # noqa: E402 (it reads the names of the encoders)

if __name__ == "__main__":
    main()
