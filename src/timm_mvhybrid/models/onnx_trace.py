"""Blocks that are alike → one traced block, copied, which keeps the export of a deep model short.

torch's exporter takes milliseconds a node, and 24 state-space blocks have thousands. Blocks of the same structure
differ in their parameters only, so each structure is traced once, as a function of tokens and parameters. The model
around them is traced with calls in their place, and the calls are then replaced by copies of the function's body.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .hybrid_vision_transformer import HybridVisionTransformer

if TYPE_CHECKING:
    import onnx_ir

DOMAIN = "timm_mvhybrid"


def trace_in_parts(module: nn.Module, model: nn.Module, images: Tensor, opset: int) -> onnx_ir.Model:
    """Traces a module, each kind of its blocks once.

    Args:
        module: What the graph computes from ``images``.
        model: The model in it; its blocks are traced by kind if it is one of this package.
        images: Example images, (batch, channels, height, width); the graph takes any batch.
        opset: Version of the ONNX operators.

    Returns:
        A graph without functions, with one input and one output.
    """
    from onnx_ir.passes import common

    def trace(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.onnx.ONNXProgram:
        return _trace(module, inputs, opset)

    kinds: list[BlockKind] = []
    if isinstance(model, HybridVisionTransformer):
        kinds = kinds_of_blocks(list(model.blocks))
    for kind in kinds:
        kind.replace_forwards()
    try:
        onnx_model = trace(module, (images,)).model
    finally:
        for kind in kinds:
            kind.restore_forwards()
    for kind in kinds:
        function = kind.function(trace)
        onnx_model.functions[function.identifier()] = function
    for transform in (
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        # the blocks share the constants of their transforms
        common.DeduplicateInitializersPass(size_limit=2**31),
        common.RemoveUnusedFunctionsPass(),
        # the exporter writes Python stack traces, with this machine's paths, into every node
        common.ClearMetadataAndDocStringPass(),
    ):
        transform(onnx_model)
    onnx_model.opset_imports.pop(DOMAIN, None)
    _name_batch(onnx_model.graph)
    return onnx_model


class BlockKind:
    """Blocks of one structure.

    Args:
        name: Name of the function that stands for them while the model is traced.
        blocks: The blocks.
    """

    def __init__(self, name: str, blocks: Sequence[nn.Module]) -> None:
        self.name = name
        self.blocks = list(blocks)
        self.tokens: Tensor | None = None

    def replace_forwards(self) -> None:
        """Replaces the forward of every block of the kind by a call of the function."""
        for block in self.blocks:
            block.forward = self._call_of(block)

    def restore_forwards(self) -> None:
        """Restores the forward of every block."""
        for block in self.blocks:
            del block.forward

    def function(self, trace: Any) -> onnx_ir.Function:
        """Traces the first block as a function of tokens and parameters.

        Args:
            trace: Traces a module with given example inputs, the first of which has a dynamic first axis.
        """
        import onnx_ir

        assert self.tokens is not None
        block = self.blocks[0]
        graph = trace(_WithParameters(block), (self.tokens, *_tensors(block).values())).model.graph
        constants = []
        for value in list(graph.initializers.values()):
            constant = onnx_ir.node(
                "Constant", inputs=[], attributes={"value": value.const_value}, num_outputs=1
            )
            value.replace_all_uses_with(constant.outputs[0])
            constants.append(constant)
        graph.initializers.clear()
        for constant in constants:
            graph.insert_before(graph[0], constant)
        return onnx_ir.Function(DOMAIN, self.name, graph=graph, attributes=[])

    def _call_of(self, block: nn.Module) -> Any:
        """Makes the forward that calls the function with the parameters of a block."""

        def forward(x: Tensor, **_: None) -> Tensor:
            # the function is traced with an example of the shape that arrives here
            self.tokens = torch.zeros(2, *x.shape[1:], dtype=x.dtype)
            return torch.onnx.ops.symbolic(
                f"{DOMAIN}::{self.name}",
                [x, *_tensors(block).values()],
                dtype=x.dtype,
                shape=x.shape,
                version=1,
            )

        return forward


class _WithParameters(nn.Module):
    """A block as a function of tokens and its tensors.

    Args:
        block: The block.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # in a tuple, so that the block's parameters do not become this module's
        self._block = (block,)
        self._names = list(_tensors(block))

    def forward(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """Runs the block on tokens (batch, length, dim)."""
        values = dict(zip(self._names, tensors, strict=True))
        result: Tensor = torch.func.functional_call(self._block[0], values, (x,))
        return result


def kinds_of_blocks(blocks: Sequence[nn.Module]) -> list[BlockKind]:
    """Sorts blocks by structure.

    Args:
        blocks: Modules that take tokens to tokens of the same shape.
    """
    by_structure: dict[str, list[nn.Module]] = {}
    for block in blocks:
        by_structure.setdefault(_structure(block), []).append(block)
    return [BlockKind(f"Block{index}", alike) for index, alike in enumerate(by_structure.values())]


def _structure(block: nn.Module) -> str:
    """Describes everything about a block except the values of its tensors."""
    plain = (bool, int, float, str, tuple, type(None))
    modules = [
        (name, type(module), {key: value for key, value in vars(module).items() if isinstance(value, plain)})
        for name, module in block.named_modules()
    ]
    tensors = [(name, tensor.shape, tensor.dtype) for name, tensor in _tensors(block).items()]
    return repr((modules, repr(block), tensors))


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}


def _trace(module: nn.Module, inputs: tuple[Tensor, ...], opset: int) -> torch.onnx.ONNXProgram:
    """Traces a module whose first input has a batch of any size."""
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        # of the exporter's own internals, which its caller cannot change
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.export.export(
            module.eval(), inputs, dynamic_shapes=_dynamic_shapes(module, inputs, batch), strict=False
        )
        onnx_program = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    assert onnx_program is not None
    return onnx_program


def _name_batch(graph: onnx_ir.Graph) -> None:
    """Names the batch in every shape, because each trace had a symbol of its own for it.

    The shapes are worth keeping: onnxruntime takes minutes to infer those of a deep graph.
    """
    import onnx_ir

    def named(dim: int | onnx_ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int):
            return dim
        return None if dim.value is None else re.sub(r"\bs\d+\b", "batch", dim.value)

    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None:
            value.shape = onnx_ir.Shape(map(named, value.shape))


def _dynamic_shapes(module: nn.Module, inputs: tuple[Tensor, ...], batch: Any) -> Any:
    """Declares the first axis of the first input dynamic, in the form of the module's signature."""
    if len(inputs) == 1:
        return ({0: batch},)
    return ({0: batch}, tuple(None for _ in inputs[1:]))
