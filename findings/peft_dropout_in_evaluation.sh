#!/usr/bin/env bash
# peft 0.21.2, torch 2.14.1: adapters put on a model in evaluation mode drop out all the same.
#
# Expected: get_peft_model() on a model after .eval() gives a model in evaluation mode: the same output twice, and that of
# the adapters merged into the weights.
# Seen: the layers that it adds are in training mode, as new modules are, whatever mode the model was in; lora_dropout
# draws, two passes differ, and the merged model gives something else. After another .eval() all agree.
# Hurt: whoever adapts a model that was loaded for inference, and compares or exports without calling .eval() again.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
    torch==2.14.1 numpy==2.4.6 peft==0.21.2
cat > "$folder/adapt.py" <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)).eval()
config = LoraConfig(target_modules=["0"], r=4, lora_dropout=0.5, init_lora_weights=False)
adapted = get_peft_model(model, config)
x = torch.randn(4, 32)
with torch.no_grad():
    first, second = adapted(x), adapted(x)
    training = sorted(name for name, module in adapted.named_modules() if module.training)
    adapted.eval()
    third, fourth = adapted(x), adapted(x)
    merged = adapted.merge_and_unload()(x)
num_training = sum("lora" in name for name in training)
print("peft", version("peft"), "torch", version("torch"))
print(f"{num_training} modules of the adapter are in training mode, on a model in evaluation mode")
print(f"two passes: largest difference {(first - second).abs().max():.2g}")
print(f"against the merged weights: {(first - merged).abs().max():.2g}")
print(f"after another .eval(): {(third - fourth).abs().max():.2g} and {(third - merged).abs().max():.2g}")
differ = not torch.equal(first, second) and not torch.allclose(first, merged, atol=1e-3)
agree = torch.equal(third, fourth) and torch.allclose(third, merged, atol=1e-5)
sys.exit(not (num_training and differ and agree))
PYTHON
if PYTHONPATH="$folder/packages" "${PYTHON:-python3}" "$folder/adapt.py"; then
    echo "as seen: the dropout of adapters draws in evaluation"
else
    echo "CHANGED"
    exit 1
fi
