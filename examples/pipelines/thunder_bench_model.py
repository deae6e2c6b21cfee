"""A backbone for THUNDER's ``benchmark("custom:thunder_bench_model.py", ...)``, or for ``thunder benchmark``.

THUNDER creates the class without arguments, so its options come from the environment: ``MODEL``, a name of
``timm.create_model``, and ``CHECKPOINT``, a file of weights; ``PRETRAINED=0`` takes random weights.
"""

import os

from timm_mvhybrid.integrations.thunder_bench import model_class

Backbone = model_class(
    os.environ.get("MODEL", "mvhybrid_small_patch16_256"),
    checkpoint=os.environ.get("CHECKPOINT"),
    pretrained=None if os.environ.get("PRETRAINED", "1") == "1" else False,
)
