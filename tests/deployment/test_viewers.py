"""Model Explorer opens the files: operators, layers' names, scales."""

import json

import numpy as np
import pytest

import repq_tf
from tests.quantization.networks import network, quantize, residual

adapter = pytest.importorskip(
    "ai_edge_model_explorer_adapter",
    reason="needs Model Explorer: pip install ai-edge-model-explorer-adapter",
)


def test_model_explorer_shows_names_and_scales(tmp_path):
    qat, path = quantize(network(residual)), tmp_path / "x.tflite"
    operators = repq_tf.export_tflite(qat, path)
    text = adapter.ConvertFlatbufferDirectlyToJson(adapter.VisualizeConfig(), str(path))
    (graph,) = (graph for entry in json.loads(text) for graph in entry["subgraphs"])
    shown = {}
    for node in graph["nodes"]:
        for output in node.get("outputsMetadata", ()):
            known = {entry["key"]: entry["value"] for entry in output["attrs"]}
            shown[known.get("tensor_name")] = node["label"], known.get("quantization")
    assert sum(kind == "conv_2d" for kind, _ in shown.values()) == operators["CONV_2D"]
    kind, grid = shown["stem"]
    scale = float(grid.split()[0])
    assert kind == "conv_2d"
    np.testing.assert_allclose(scale, float(qat.get_layer("stem_quantize").step), rtol=1e-4)
