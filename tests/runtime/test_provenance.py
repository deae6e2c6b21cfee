import importlib.metadata
import platform

import torch

from timm_mvhybrid.runtime.provenance import PACKAGES, collect_provenance, installed_versions
from timm_mvhybrid.training.run_directory import describe_environment
from timm_mvhybrid.version import __version__


def test_versions_are_those_that_are_installed(monkeypatch):
    true = importlib.metadata.version

    def version(name):
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return true(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = installed_versions(("torch", "timm", "no-such-package"))
    assert found == {"timm-mvhybrid": __version__, "torch": torch.__version__.split("+")[0]}


def test_runs_and_results_name_the_same_packages():
    run = describe_environment()["versions"]
    result = collect_provenance(seed=0, options={}, data={}).versions
    assert result == {**run, "python": platform.python_version()}
    assert {"timm-mvhybrid", "torch", "timm", "numpy"} <= set(run) <= {"timm-mvhybrid", *PACKAGES}
