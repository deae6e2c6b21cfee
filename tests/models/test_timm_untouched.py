"""What importing this package, and creating its models, leaves of timm."""

import json
import subprocess
import sys

from support.exports import exported

LOOK = """
import importlib, inspect, json, pathlib, pkgutil, sys
import timm, timm.models

# these at least; all that timm imports, beside them
for name in ("_factory", "_hub", "_helpers", "_builder"):
    importlib.import_module(f"timm.models.{name}")


def objects():
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "timm":
            continue
        for attribute, value in vars(module).items():
            if inspect.isroutine(value) or inspect.isclass(value):
                found[name, attribute] = value
            if inspect.isclass(value) and value.__module__ == name:
                found.update({(name, attribute, member): it for member, it in vars(value).items() if callable(it)})
    return found


before = objects()
import timm_mvhybrid

folder = sys.argv[1]
for create in (timm.create_model, timm_mvhybrid.create_model):
    create(f"local-dir:{folder}", pretrained=True)
    create("test_mvhybrid", checkpoint_path=f"{folder}/model.safetensors")
    create("test_mvhybrid", pretrained=True, pretrained_cfg_overlay={"file": f"{folder}/model.safetensors"})
    create("test_vit")


def changed():
    after = objects()
    return [".".join(name) for name in before if after.get(name) is not before[name]]


found = changed()
timm.models._factory.load_checkpoint = lambda *args, **kwargs: None
print(json.dumps([len(before), found, changed()]))
"""


def test_every_function_and_class_of_timm_is_the_object_it_was(tmp_path):
    folder, _ = exported(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", LOOK, str(folder)], capture_output=True, text=True, check=True
    )
    count, names, names_after_a_replacement = json.loads(run.stdout.splitlines()[-1])
    assert names == []
    assert count > 1000
    # and a replacement would be seen
    assert names_after_a_replacement == ["timm.models._factory.load_checkpoint"]
