"""PyTorch to ONNX: modules, exported programs (.pt2) and TorchScript, by `torch.onnx`."""

from __future__ import annotations

import inspect
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from graphprune.converters.source import Asked, Converted, Run, load_object, one_shape
from graphprune.errors import UsageError

_OPSET = 18
_WHOLE = re.compile(r"ids|mask|token|index|indices|position")


def to_onnx(source: str, asked: Asked) -> Converted:
    """Convert `module:attribute`, a .pt2 file or a TorchScript file.

    >>> to_onnx("models:net", Asked(shapes={"x": (1, 3, 224, 224)})).notes  # doctest: +SKIP
    ()

    Raises UsageError where sizes of inputs have to be given, or a file holds weights only.
    """
    import torch

    path = Path(source)
    if path.suffix == ".pt2":
        program = torch.export.load(path)
        return Converted(_written(program, (), {"dynamo": True}, asked), _runner(program.module()))
    if path.is_file():
        script = _script(path)
        names = [a.name for a in script.forward.schema.arguments][1:]
        return _of_script(script, one_shape(source, asked, names), asked)
    module = load_object(source).eval()
    shapes = one_shape(source, _with_own(module, asked), _inputs(module, asked.shapes))
    return of_module(module, {name: _made(name, shape) for name, shape in shapes.items()}, asked)


def of_module(
    module: Any, inputs: Mapping[str, Any], asked: Asked, axes: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
) -> Converted:
    """Convert a module, given example inputs by the names that its `forward` has, in order.

    `axes` has names of open axes for each input (by default the first one is "batch"), `outputs` the names of outputs.
    Where the module does not stay open, the batch is that of the example, and a note says so.
    """
    import torch

    open_axes = axes or {name: {0: "batch"} for name, x in inputs.items() if x.ndim}
    shapes = {name: dict.fromkeys(open_axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in inputs}
    options: dict[str, Any] = {"dynamo": True, "input_names": list(inputs), "output_names": outputs}
    # An example of size 1 would be taken for a size that stays.
    example = tuple(_widened(x, open_axes.get(name, {})) for name, x in inputs.items())
    if not asked.fixed:
        try:
            told = {**options, "dynamic_shapes": _nested(module, tuple(shapes.values()))}
            return Converted(_named(_written(module, example, told, asked), open_axes), _runner(module))
        except Exception as error:  # whatever torch.export raises: it specialises, or cannot trace with open sizes
            note = (f"the batch stays {next(iter(inputs.values())).shape[0]}: not exported open: {_cause(error)}",)
        return Converted(_written(module, tuple(inputs.values()), options, asked), _runner(module), note)
    return Converted(_written(module, tuple(inputs.values()), options, asked), _runner(module))


def _nested(module: Any, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return shapes as torch.export wants them: those of `*inputs` are one argument."""
    kinds = {p.kind for p in inspect.signature(module.forward).parameters.values()}
    return (shapes,) if inspect.Parameter.VAR_POSITIONAL in kinds else shapes


def _cause(error: BaseException) -> str:
    """Return what went wrong first, in a line: exporters wrap it in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__)[:120]


def _of_script(script: Any, shapes: Mapping[str, tuple[int, ...]], asked: Asked) -> Converted:
    example = tuple(_made(name, shape) for name, shape in shapes.items())
    options: dict[str, Any] = {"dynamo": False, "input_names": list(shapes)}
    if not asked.fixed:
        options["output_names"] = outputs = [f"output_{k}" for k in range(len(_leaves(script(*example))))]
        options["dynamic_axes"] = {name: {0: "batch"} for name in (*shapes, *outputs)}
    return Converted(_written(script, example, options, asked), _runner(script))


def _written(module: Any, example: tuple[Any, ...], options: Mapping[str, Any], asked: Asked) -> onnx.ModelProto:
    import torch

    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = Path(folder) / "model.onnx"
        told = {"opset_version": asked.opset or _OPSET, "external_data": True, "verbose": False, **options}
        if not options["dynamo"]:
            told.pop("external_data")
        if asked.norms and not options["dynamo"]:
            raise UsageError("--keep-norms: the exporter of TorchScript always folds them: give a .pt2 or a module")
        torch.onnx.export(module, example, str(target), **({"optimize": False} if asked.norms else {}), **told)
        return _tidied(target) if asked.norms else onnx.load(target)


def _tidied(path: Path) -> onnx.ModelProto:
    """Return a model without what exporters leave to their optimiser, which would fold normalisations, too."""
    import onnx_ir as ir
    from onnxscript import optimizer

    model = ir.external_data.load_to_model(ir.load(path))
    optimizer.inline(model)
    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)
    return ir.to_proto(model)


def _named(model: onnx.ModelProto, axes: Mapping[str, Mapping[int, str]]) -> onnx.ModelProto:
    """Give open axes of inputs their names, and outputs' axes that are the same, too."""
    names: dict[str, str] = {}
    for value in model.graph.input:
        for k, name in axes.get(value.name, {}).items():
            names[value.type.tensor_type.shape.dim[k].dim_param] = name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    return model


def _runner(module: Any) -> Run:
    import torch

    def run(arrays: Sequence[Any]) -> Sequence[Any]:
        with torch.no_grad():
            return [x.numpy() for x in _leaves(module(*[torch.from_numpy(a) for a in arrays]))]

    return run


def _leaves(answer: Any) -> list[Any]:
    import torch

    return [x for x in torch.utils._pytree.tree_leaves(answer) if isinstance(x, torch.Tensor)]


def _inputs(module: Any, given: Mapping[str, object]) -> list[str]:
    """Return the names of a module's inputs: those without which it does not run, and those given."""
    wanted = inspect.signature(module.forward).parameters.values()
    return [
        p.name for p in wanted
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and (p.default is p.empty or p.name in given)
    ]


def _with_own(module: Any, asked: Asked) -> Asked:
    """Add sizes that the module itself knows (`example_input_array` of Lightning, `default_cfg` of timm)."""
    names = _inputs(module, asked.shapes)
    example: Any = getattr(module, "example_input_array", None)
    timm = getattr(module, "default_cfg", None)
    shape = tuple(example.shape) if hasattr(example, "shape") else None
    if isinstance(timm, dict) and timm.get("input_size"):
        shape = (1, *timm["input_size"])
    if shape is None or asked.shapes or len(names) != 1:
        return asked
    return Asked(asked.opset, {names[0]: shape}, asked.fixed, asked.trust)


def _made(name: str, shape: Sequence[int]) -> Any:
    import torch

    whole = _WHOLE.search(name) is not None
    return torch.ones(*shape, dtype=torch.int64) if whole else torch.randn(*shape)


def _widened(x: Any, axes: Mapping[int, str]) -> Any:
    for k in axes:
        if x.shape[k] == 1:
            x = x.repeat_interleave(2, dim=k)
    return x


def _script(path: Path) -> Any:
    import torch

    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if not any("/code/" in name for name in names):
        raise UsageError(
            f"{path}: is not TorchScript: it holds weights, or a pickled module, without the code that makes a model "
            "of them; give module:attribute, or a file of torch.export.save or torch.jit.save"
        )
    return torch.jit.load(path, map_location="cpu").eval()
