#!/usr/bin/env bash
# CLAM's own script with one of the backbones: patches of a slide folder → features, 384 numbers a patch.
# Run it in a clone of github.com/mahmoodlab/CLAM, on what its create_patches_fp.py made with --patch_size 256:
#   bash clam_features.sh SLIDES PATCHES FEATURES [EXTENSION [CHECKPOINT]]
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,4s/^# *//p' "$0" >&2
    exit 2
fi
slides=$1 patches=$2 features=$3 extension=${4:-.svs} checkpoint=${5:-}
python -m timm_mvhybrid.integrations.clam ${checkpoint:+--checkpoint "$checkpoint"} extract_features_fp.py \
    --model_name "${MODEL:-mvhybrid_small_patch16_256}" --target_patch_size 256 \
    --data_h5_dir "$patches" --data_slide_dir "$slides" --csv_path "$patches/process_list_autogen.csv" \
    --feat_dir "$features" --slide_ext "$extension"
echo "train with: python main.py --embed_dim 384 ..."
