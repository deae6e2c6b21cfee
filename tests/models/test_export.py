"""Exported programs and ONNX files: the model's numbers, for any batch, without this package."""

import copy
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn

from timm_mvhybrid.models import TEST_MODEL_NAMES, OnnxExportError, export_onnx, onnx_export

needs_onnx = pytest.mark.skipif(not hasattr(torch.onnx, "ops"), reason="ONNX export needs torch 2.8 or newer")

LOADER = """
import sys, torch
torch.set_num_threads(1)
for path in sys.argv[1:]:
    case = torch.load(path + ".case")
    program = torch.export.load(path)
    actual = program.module()(case["images"])
    torch.testing.assert_close(actual, case["expected"], rtol=1e-4, atol=1e-5)
assert not any(name.startswith("timm") for name in sys.modules)
"""


def make(name, **options):
    """A model whose blocks all show in the output and differ from each other."""
    torch.manual_seed(0)
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1 and "A_" not in key:
                parameter.mul_(2)
            if "gamma" in key:
                parameter.fill_(0.5)
    return model


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run_onnx(path, image):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return torch.from_numpy(result)


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.slow
def test_exported_programs_run_without_this_package(tmp_path):
    paths = []
    for name in TEST_MODEL_NAMES:
        model = make(name, depth=2)
        # torch 2.6 is strict by default, and wants an upper end
        program = torch.export.export(
            model,
            (images(2, 3, 64, 64),),
            dynamic_shapes=({0: torch.export.Dim("batch", max=1024)},),
            strict=False,
        )
        targets = {
            node.target
            for module in program.graph_module.modules()
            if isinstance(module, torch.fx.GraphModule)
            for node in module.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload)
        }
        assert {target.namespace for target in targets} == {"aten"}
        x = images(5, 3, 64, 64, seed=1)
        paths.append(str(tmp_path / f"{name}.pt2"))
        torch.export.save(program, paths[-1])
        torch.save({"images": x, "expected": model(x).detach()}, paths[-1] + ".case")
    subprocess.run([sys.executable, "-c", LOADER, *paths], check=True)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", TEST_MODEL_NAMES)
def test_onnxruntime_gives_the_models_features_for_other_batches(name, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = make(name, depth=3)
    path = tmp_path / "model.onnx"
    result = export_onnx(model, path, image_size_px=64)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    for batch in (1, 2, 5):
        x = images(batch, 3, 64, 64, seed=batch)
        with torch.no_grad():
            assert relative_error(run_onnx(path, x), model(x)) < 1e-4
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert [(entry.domain, entry.version) for entry in file.opset_import] == [("", 20)]
    assert len(file.functions) == 0
    assert {node.domain for node in file.graph.node} == {""}
    assert file.graph.input[0].name == "image"
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [d.dim_value for d in file.graph.input[0].type.tensor_type.shape.dim[1:]] == [3, 64, 64]
    assert file.graph.output[0].name == "features"
    assert file.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 64
    stated = {entry.key: entry.value for entry in file.metadata_props}
    assert stated["model"] == name
    assert stated["image_size_px"] == "64 x 64"
    assert stated["mean"] == "0.70322989, 0.53606487, 0.66096631"
    assert result.output == str(path)
    assert result.num_bytes == path.stat().st_size
    assert result.num_nodes == len(file.graph.node)
    assert result.output_shape == (64,)
    assert 0 < result.largest_error < 1e-5
    assert str(onnx_export.__file__).encode() not in path.read_bytes()


@needs_onnx
def test_tokens_normalisation_and_another_size(tmp_path):
    onnx = pytest.importorskip("onnx")
    # the smallest graph: what is asked here lies outside the blocks
    model = make("test_vit12", depth=1)
    path = tmp_path / "model.onnx"
    result = export_onnx(
        model, path, image_size_px=(64, 96), tokens=True, normalize=True, opset=21, metadata={"study": "ä"}
    )
    assert result.output_shape == (25, 64)
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    # the model resamples its position embedding in the call, the file holds it resampled
    with torch.no_grad():
        expected = model.forward_features((x - mean) / std)
    assert relative_error(run_onnx(path, x), expected) < 1e-4
    file = onnx.load(path)
    assert file.opset_import[0].version == 21
    assert file.graph.output[0].name == "tokens"
    stated = {entry.key: entry.value for entry in file.metadata_props}
    assert stated["study"] == "ä"
    assert stated["normalization"] == "in the graph; image is RGB from 0 to 1"


@needs_onnx
def test_other_timm_models_export_too(tmp_path):
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3).eval()
    x = images(4, 3, 160, 160)
    export_onnx(model, tmp_path / "model.onnx")
    with torch.no_grad():
        assert relative_error(run_onnx(tmp_path / "model.onnx", x), model(x)) < 1e-4
    with pytest.raises(OnnxExportError, match="does not take images of 100 × 100 px"):
        export_onnx(model, tmp_path / "other.onnx", image_size_px=100)


@needs_onnx
def test_the_model_is_left_as_it_is(tmp_path):
    pytest.importorskip("onnx")
    model = make("test_vit12", depth=2).to(torch.bfloat16).train()
    before = copy.deepcopy(model.state_dict())
    export_onnx(model, tmp_path / "model.onnx", image_size_px=64)
    assert model.training
    assert model.patch_embed.img_size == (128, 128)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all("forward" not in vars(module) for module in model.modules())
    for key, value in model.state_dict().items():
        assert value.dtype == before[key].dtype
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


@needs_onnx
def test_blocks_that_differ_in_more_than_weights_stay_different(tmp_path):
    """A number that is no parameter, as a norm's epsilon, must not be taken from another block."""
    pytest.importorskip("onnx")
    model = make("test_vit12", depth=2)
    model.blocks[1].norm1.eps = 10.0
    export_onnx(model, tmp_path / "model.onnx", image_size_px=32, verify=False)
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        assert relative_error(run_onnx(tmp_path / "model.onnx", x), model(x)) < 1e-4


@needs_onnx
@pytest.mark.parametrize("damage", ["noise", "nan", "batch"])
def test_a_file_that_differs_from_the_model_is_refused(damage, tmp_path, monkeypatch):
    onnx_ir = pytest.importorskip("onnx_ir")
    model = make("test_vit12", depth=1)
    trace = onnx_export.trace_in_parts

    def damaged(*arguments):
        traced = trace(*arguments)
        if damage == "batch":
            (output,) = traced.graph.outputs
            first = onnx_ir.node("Constant", [], {"value_ints": [0]}, num_outputs=1)
            row = onnx_ir.node("Gather", [output, first.outputs[0]], {"axis": 0}, num_outputs=1)
            row.outputs[0].dtype, row.outputs[0].shape = output.dtype, output.shape
            traced.graph.extend([first, row])
            traced.graph.outputs[0] = row.outputs[0]
        else:
            weight = traced.graph.initializers["model.patch_embed.proj.bias"]
            # not the same in every channel, for that the norm would take out
            values = weight.const_value.numpy() + (np.linspace(0, 1, 64) if damage == "noise" else np.nan)
            weight.const_value = onnx_ir.tensor(values.astype(np.float32))
        return traced

    monkeypatch.setattr(onnx_export, "trace_in_parts", damaged)
    message = r"returns \(1, 64\) for a batch of 3" if damage == "batch" else "differs from the model by"
    with pytest.raises(OnnxExportError, match=message):
        export_onnx(model, tmp_path / "model.onnx", image_size_px=32)
    assert list(tmp_path.iterdir()) == []
    if damage == "noise":
        assert (
            export_onnx(model, tmp_path / "model.onnx", image_size_px=32, verify=False).largest_error is None
        )


@needs_onnx
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(opset=19), "`opset` is 19; it must be at least 20"),
        (dict(image_size_px=100), r"it must be a multiple of `patch_size`"),
        (dict(path="missing/model.onnx"), "missing does not exist; create it first"),
        (dict(path="taken.onnx"), "taken.onnx: exists already; replace it with `overwrite=True`"),
        (dict(path="."), "is a folder; name a file"),
    ],
)
def test_bad_arguments_are_named(options, message, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.onnx").write_text("taken")
    arguments = {"path": "model.onnx", **options}
    with pytest.raises(OnnxExportError, match=message):
        export_onnx(make("test_vit12", depth=1), **arguments)
    assert (tmp_path / "taken.onnx").read_text() == "taken"
    assert [path.name for path in tmp_path.iterdir()] == ["taken.onnx"]


@needs_onnx
def test_more_than_one_file_can_hold_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(onnx_export, "_MAX_BYTES", 1000)
    with pytest.raises(OnnxExportError, match="more than 2 GB"):
        export_onnx(make("test_vit12", depth=1), tmp_path / "model.onnx")


def test_missing_packages_are_named_with_the_remedy(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name)
    )
    with pytest.raises(
        OnnxExportError, match=r"onnx and onnxscript and onnxruntime; .* 'timm-mvhybrid\[onnx\]'"
    ):
        export_onnx(make("test_vit12", depth=1), tmp_path / "model.onnx")


def test_an_old_torch_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delattr(torch.onnx, "ops", raising=False)
    with pytest.raises(OnnxExportError, match=r"needs torch 2\.8 or newer, this is .*; pip install -U torch"):
        export_onnx(make("test_vit12", depth=1), tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["test_mvhybrid", "test_vim_einfft", "test_hydra_einfft"])
def test_a_graph_compiled_for_a_dynamic_batch_serves_every_batch(name):
    model = make(name, depth=1)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for batch in (2, 3, 7):
            x = images(batch, 3, 64, 64)
            torch._dynamo.mark_dynamic(x, 0)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1
    assert "timm_mvhybrid" in str(graphs[0].graph)


@pytest.mark.parametrize("name", ["test_mvhybrid", "test_vim_einfft", "test_hydra_einfft"])
def test_torch_func_sees_through_a_model(name):
    model = make(name, depth=1, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    x = images(2, 3, 32, 32).double()

    def loss(values, image):
        return torch.func.functional_call(model, values, (image.unsqueeze(0),)).square().sum()

    per_image = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index in range(2):
        expected = torch.autograd.grad(loss(parameters, x[index]), list(parameters.values()))
        for (key, actual), value in zip(per_image.items(), expected, strict=True):
            torch.testing.assert_close(actual[index], value, rtol=1e-9, atol=1e-11, msg=key)


def test_blocks_are_traced_by_structure():
    from timm_mvhybrid.models.onnx_trace import kinds_of_blocks

    model = make("test_hydra_hybrid", depth=5)
    kinds = kinds_of_blocks(list(model.blocks))
    assert [len(kind.blocks) for kind in kinds] == [3, 2]
    model.blocks[0].norm1 = nn.LayerNorm(64, eps=1e-3)
    assert [len(kind.blocks) for kind in kinds_of_blocks(list(model.blocks))] == [1, 2, 2]
    model = make("test_mvhybrid", depth=2, ssm_depth=2)
    assert [len(kind.blocks) for kind in kinds_of_blocks(list(model.blocks))] == [2]
    model.blocks[1].channel_mixer.threshold = 1.0
    assert [len(kind.blocks) for kind in kinds_of_blocks(list(model.blocks))] == [1, 1]
