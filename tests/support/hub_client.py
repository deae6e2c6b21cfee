"""Calls in a process of its own, whose huggingface_hub was imported with the local server's address."""

import importlib
import io
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

DEADLINE_S = 240


@dataclass
class Outcome:
    """What a call did: its value, or its error by name, classes and text."""

    value: object = None
    error: str = ""
    kinds: tuple = ()
    causes: int = 0
    seconds: float = 0.0
    printed: str = ""


@contextmanager
def hub_client(**environment):
    """Starts a process with these variables, and none of the user's own token, cache or endpoint.

    Yields a function that calls another one there and returns an Outcome.
    """
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TIMM_MVHYBRID"))]:
        del os.environ[name]
    os.environ.update(
        {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **environment}
    )
    try:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        # starts the process while the variables are set
        pool.submit(os.getpid).result(timeout=DEADLINE_S)
    finally:
        os.environ.clear()
        os.environ.update(before)

    def call(function, *arguments, token=None, organization=None, **options):
        variables = {"HF_TOKEN": token, "TIMM_MVHYBRID_ORGANIZATION": organization}
        return pool.submit(_outcome, function, arguments, options, variables).result(timeout=DEADLINE_S)

    try:
        yield call
    finally:
        processes = list(pool._processes.values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.join(10)
            process.kill()


def _outcome(function, arguments, options, variables):
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    start, printed = time.monotonic(), io.StringIO()
    result = Outcome()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            result.value = function(*arguments, **options)
    except Exception as error:
        result.error = str(error)
        result.kinds = tuple(kind.__name__ for kind in type(error).__mro__)
        while error is not None:
            result.causes += 1
            error = error.__cause__
    result.seconds, result.printed = time.monotonic() - start, printed.getvalue()
    return result


def load(name, cache, create="timm_mvhybrid", **options):
    """Loads by our create_model, or timm's, and returns what identifies the result: sha256 of the file, digest of the tensors, features."""
    import torch

    import timm_mvhybrid
    from timm_mvhybrid.runtime.tensor_digest import tensors_sha256

    assert timm_mvhybrid.__version__
    module = importlib.import_module(create)
    model = module.create_model(name, pretrained=True, cache_dir=cache, **options).eval()
    size = model.pretrained_cfg["input_size"][1]
    image = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    with torch.no_grad():
        features = model.forward_features(image)
    return {
        "sha256": model.weights_sha256,
        "tensors": tensors_sha256(model.state_dict()),
        "features": features.flatten()[:64].tolist(),
        "hf_hub_id": model.pretrained_cfg.get("hf_hub_id"),
    }


def load_st(name, cache):
    """Loads a model with an ST token and returns the token's features of an image."""
    import torch

    from timm_mvhybrid import finetune

    images = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        return finetune.load(name, cache_dir=cache).features(images)["st"][0].tolist()


def load_merged(name, cache):
    """Loads an encoder by timm's own function and returns its class features of an image."""
    import timm

    import timm_mvhybrid

    assert timm_mvhybrid.__version__
    return _class_features(timm.create_model(name, pretrained=True, cache_dir=cache).eval())


def load_adapted(name, cache, weights):
    """Adds published adapters, or none, to a base with weights of a file, or others, and returns its class features."""
    import timm
    import torch
    from safetensors.torch import load_file

    from timm_mvhybrid import finetune

    torch.manual_seed(8)
    base = timm.create_model("test_mvhybrid", img_size=64, num_classes=0).eval()
    if weights is not None:
        base.load_state_dict(load_file(weights))
    if name is None:
        return _class_features(base)
    return _class_features(
        finetune.load_adapters(base, name, model_args={"img_size": 64}, cache_dir=cache).get_base_model()
    )


def _class_features(model):
    import torch

    images = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        return model.forward_features(images)[0, 0].tolist()


def publish(folder, repo, **options):
    from dataclasses import asdict

    import timm_mvhybrid.hub

    return asdict(timm_mvhybrid.export.publish(folder, repo, **options))


def command(*arguments):
    """Runs the command line and returns its exit code."""
    from timm_mvhybrid.cli import main

    return main(list(arguments))


def run_python(code):
    """Runs a program's text."""
    exec(code, {})


def set_organization(name):
    import timm_mvhybrid.hub

    timm_mvhybrid.hub.set_organization(name)


def predict(source, features):
    """Loads a predictor and returns what it predicts."""
    from timm_mvhybrid.predict import ExpressionPredictor

    return ExpressionPredictor.load(source).predict(features).upper.tolist()
