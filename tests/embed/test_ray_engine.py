"""Engine ray: how workers are laid out, and that they make the files of the local engine, also when one is killed."""

import os
import signal
import sys
import types

import pytest
from support.generated_slides import write_slide
from support.slide_folders import TILING, file_digests, write_slides

from timm_mvhybrid.data import TilingOptions, list_slides
from timm_mvhybrid.embed.cohort_run import CohortOptions, embed_slides
from timm_mvhybrid.embed.embeddings import ForwardOptions
from timm_mvhybrid.embed.engine_calls import EngineCalls
from timm_mvhybrid.embed.ray_engine import RayLayout, RayOptions, lay_out
from timm_mvhybrid.embed.slide_cohort import read_records
from timm_mvhybrid.evaluate import load_backbone
from timm_mvhybrid.runtime.errors import EvaluationError, MissingPackageError, ParameterError

LAPTOP = [{"CPU": 2.0}]
CLUSTER = [{"CPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}]


@pytest.mark.parametrize(
    ("nodes", "device", "options", "expected"),
    [
        (LAPTOP, "auto", {}, RayLayout(num_workers=1, gpus=0, cpus=2)),
        (LAPTOP, "auto", {"ray_workers": 2}, RayLayout(num_workers=2, gpus=0, cpus=1)),
        (LAPTOP, "cpu", {"ray_workers": 5}, RayLayout(num_workers=5, gpus=0, cpus=1)),
        (CLUSTER, "auto", {}, RayLayout(num_workers=16, gpus=1, cpus=8)),
        (CLUSTER, "cuda", {"ray_gpus": 0.5}, RayLayout(num_workers=32, gpus=0.5, cpus=4)),
        (CLUSTER, "auto", {"ray_workers": 3, "ray_cpus": 6}, RayLayout(num_workers=3, gpus=1, cpus=6)),
        (CLUSTER, "cpu", {}, RayLayout(num_workers=3, gpus=0, cpus=8)),
    ],
)
def test_workers_fill_a_cluster(nodes, device, options, expected):
    assert lay_out(RayOptions(**options), device, nodes) == expected


def test_what_no_node_has_is_refused():
    with pytest.raises(
        EvaluationError, match="`ray_gpus` is 1, and no node of the cluster has more than 0; lower it"
    ):
        lay_out(RayOptions(ray_gpus=1), "auto", LAPTOP)
    with pytest.raises(
        EvaluationError, match="a worker takes 3 CPU cores, and no node of the cluster has more than 2"
    ):
        lay_out(RayOptions(ray_cpus=3), "auto", LAPTOP)
    with pytest.raises(ParameterError, match="`ray_workers` must be at least 1, not 0"):
        RayOptions(ray_workers=0)


def run(inputs, output, engine, calls=None):
    return embed_slides(
        list_slides([inputs]),
        load_backbone("test_vit12"),
        output,
        tiling=TilingOptions(**TILING),
        forward=ForwardOptions(batch_size=5, device="cpu", num_workers=1),
        options=CohortOptions(engine=engine, ray=RayOptions(ray_workers=2)),
        calls=calls,
    )


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    write_slides(tmp_path / "in", "d")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingPackageError, match=r"ray is not installed; pip install 'timm-mvhybrid\[ray\]'"
    ):
        run(tmp_path / "in", tmp_path / "out", "ray")


class FakeRay:
    """As much of Ray as starts actors, on one node with one GPU, and ends their work at once."""

    exceptions = types.SimpleNamespace(RayError=RuntimeError, RayTaskError=KeyError)

    def __init__(self):
        self.options, self.num_actors = None, 0

    def is_initialized(self):
        return True

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}]

    def remote(self, actor):
        def options(**given):
            self.options = given
            return types.SimpleNamespace(remote=self._start)

        return types.SimpleNamespace(options=options)

    def _start(self):
        self.num_actors += 1
        call = types.SimpleNamespace(remote=lambda *arguments: object())
        return types.SimpleNamespace(run=call, state=call, stop=call)

    def put(self, value):
        return value

    def wait(self, tasks, **options):
        return tasks, []

    def get(self, task):
        return False, 0.0


def test_a_part_of_a_gpu_is_what_ray_is_asked_for(tmp_path, monkeypatch):
    write_slides(tmp_path / "in")
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    embed_slides(
        list_slides([tmp_path / "in"]),
        load_backbone("test_vit12"),
        tmp_path / "out",
        tiling=TilingOptions(**TILING),
        forward=ForwardOptions(device="cuda"),
        options=CohortOptions(engine="ray", ray=RayOptions(ray_gpus=0.5, ray_restarts=2)),
    )
    assert (ray.options["num_gpus"], ray.options["num_cpus"], ray.options["max_restarts"]) == (0.5, 2, 2)
    assert ray.num_actors == 2


def test_workers_that_are_all_lost_end_the_run_with_what_is_left(tmp_path, monkeypatch):
    class Lost(FakeRay):
        def get(self, task):
            raise RuntimeError("out of memory")

    write_slides(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "ray", Lost())
    with pytest.raises(
        EvaluationError, match="2 of 2 workers of Ray were lost for good, and 4 slides are left"
    ):
        run(tmp_path / "in", tmp_path / "out", "ray")


@pytest.mark.distributed
def test_workers_of_ray_make_the_same_files_and_one_that_is_killed_is_replaced(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray")
    slides = write_slides(tmp_path / "in")
    for index in range(8):
        os.link(slides / "a.tif", slides / f"z{index}.tif")
    write_slide(slides / "unscaled.tif", um_per_px=None)
    expected = run(slides, tmp_path / "local", "local")
    killed, told = [], []

    def kill_the_first(record):
        told.append(record.slide_id)
        if record.state == "done" and not killed:
            killed.append(int(record.worker.split("process ")[1].split(",")[0]))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    summary = run("in", "ray", "ray", EngineCalls(on_slide=kill_the_first))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert os.getpid() not in killed
    assert (summary.num_embedded, summary.num_left) == (12, 0) == (expected.num_embedded, expected.num_left)
    assert [record.slide_id for record in summary.failed] == ["unscaled"]
    assert file_digests(tmp_path / "ray") == file_digests(tmp_path / "local")
    assert sorted(told) == sorted(read_records(tmp_path / "ray"))
    assert {record.attempts for record in read_records(tmp_path / "ray").values()} == {1}
    # what is done is done for every engine
    assert run(slides, tmp_path / "ray", "local").num_kept == 12
