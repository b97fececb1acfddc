"""An ONNX export as a model repository of NVIDIA Triton Inference Server.

The repository is the folder itself: MODEL/config.pbtxt and MODEL/1/model.onnx, one MODEL for each ONNX file.
Source of the fields: triton-inference-server/common protobuf/model_config.proto; of the layout: its user guide,
model_repository.md (a model of external data lies beside model.onnx in the version's folder).
"""

from __future__ import annotations

from pathlib import Path

from export.source import Source

TYPES = {1: "TYPE_FP32", 6: "TYPE_INT32", 7: "TYPE_INT64", 9: "TYPE_BOOL"}
BATCH = 64


def arrange(folder: Path, source: Source, names: list[str]) -> None:
    """Move the ONNX files `names` of `folder` to where Triton looks for them, and write a config.pbtxt for each."""
    import onnx

    from compress.core.files import atomic_write

    for name in names:
        model = folder / Path(name).stem
        version = model / "1"
        version.mkdir(parents=True)
        graph = onnx.load_model(str(folder / name), load_external_data=False).graph
        atomic_write(model / "config.pbtxt", [config(model.name, graph).encode()])
        used = {e.value for t in graph.initializer for e in t.external_data if e.key == "location"}
        (folder / name).replace(version / "model.onnx")
        for file in sorted(used):
            if (folder / file).is_file():
                target = version / file
                target.hardlink_to(folder / file)
    for path in folder.glob("*_data"):
        path.unlink()
    del source


def config(name: str, graph: object) -> str:
    """config.pbtxt of a graph: inputs and outputs without the batch axis, which Triton fills."""
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {BATCH}"]
    for kind in ("input", "output"):
        lines.append(f"{kind} [")
        entries = []
        for value in getattr(graph, kind):
            tensor = value.type.tensor_type
            sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim][1:]
            dims = ", ".join(map(str, sizes))
            entries.append(f'  {{ name: "{value.name}" data_type: {TYPES[tensor.elem_type]} dims: [ {dims} ] }}')
        lines += [",\n".join(entries), "]"]
    lines.append("dynamic_batching { }")
    lines.append("instance_group [ { count: 1 kind: KIND_AUTO } ]")
    return "\n".join(lines) + "\n"
