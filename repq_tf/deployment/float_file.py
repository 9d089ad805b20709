"""`export_tflite_float`: a float file for comparison, by TensorFlow's converter."""

import os
from collections.abc import Callable, Mapping

from absl import logging

from repq_tf.files import new_file, write_atomically
from repq_tf.graphs import pairs, read_graph, read_native
from repq_tf.keras_api import Shape, Tensor, backend, keras
from repq_tf.layers import Quantize
from repq_tf.reparameterization.merge import merge
from repq_tf.tflite.reading import load
from repq_tf.tflite.writer import dump, signature


def export_tflite_float(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes a float model, merged, as a float32 `.tflite` file, for comparison.

    Args:
        model: a float model.
        path: the file to write.

    Raises:
        ValueError: the model is quantized.
        FileNotFoundError: the folder of `path` does not exist.
        RuntimeError: Keras does not run on TensorFlow.
    """
    if backend() != "tensorflow":
        raise RuntimeError(
            "export_tflite_float needs TensorFlow's converter; load the saved model in a "
            f"process with KERAS_BACKEND=tensorflow. Received: KERAS_BACKEND={backend()}"
        )
    path = new_file(path)
    for node in read_native(model).nodes.values():
        if isinstance(node.layer, Quantize) or getattr(node.layer, "weight_quantizer", None):
            raise ValueError(
                "model must be a float model; repq_tf.export_tflite writes quantized ones. "
                f"Received: {model.name!r}, whose layer {node.name!r} is quantized"
            )
    merged = merge(model)
    graph = read_graph(merged)
    (source,) = (node.name for node in graph.nodes.values() if node.is_input)
    # The converter sorts them.
    keys = {f"output{index:03}": key for index, key in enumerate(graph.output_keys)}

    def run(x: Tensor) -> dict[str, Tensor]:
        outputs = pairs(graph.outputs, merged(x, training=False))
        return {key: y for key, (_, y) in zip(keys, outputs, strict=True)}

    content = _convert(run, merged.input_shape[1:])
    write_atomically(path, _with_signature(content, source, keys))


def _convert(function: Callable[[Tensor], dict[str, Tensor]], shape: Shape) -> bytes:
    """Runs the converter on `function(x) -> {key: tensor}`."""
    import tensorflow as tf

    module = tf.Module()
    signature = [tf.TensorSpec([None, *shape], tf.float32, name="input")]
    module.run = tf.function(function, input_signature=signature, autograph=False)
    concrete = module.run.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    # It warns of float outputs whenever there are several.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return converter.convert()
    finally:
        logging.set_verbosity(verbosity)


def _with_signature(content: bytes, input_name: str, keys: Mapping[str, str]) -> bytes:
    """A file whose signature calls its ends as the model does.

    Args:
        content: the bytes of a file, with a signature or, from models of variables, without.
        input_name: the name of its input.
        keys: `{the converter's name of an output: the model's}`, in order.
    """
    model = load(content)
    graph = model.subgraphs[0]
    found = dict(zip(keys, map(int, graph.outputs), strict=True))
    if model.signatureDefs:
        found = {o.name.decode(): int(o.tensorIndex) for o in model.signatureDefs[0].outputs}
    outputs = {key: found[name] for name, key in keys.items()}
    model.signatureDefs = [signature({input_name: int(graph.inputs[0])}, outputs)]
    return dump(model)
