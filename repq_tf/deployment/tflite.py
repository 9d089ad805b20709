"""`export_tflite`: the integer file; the only module that calls a converter."""

import warnings

import numpy as np
from absl import logging

from repq_tf.deployment.containers import check_container, four_bit_layers
from repq_tf.deployment.emission import ON_INPUT_GRID, emit, skeleton, stays_inside
from repq_tf.deployment.merge import (
    grid_layer,
    input_quantizer,
    merge,
    quantized_node,
    read_deployable,
    stock_padding,
)
from repq_tf.deployment.pixels import pixel_table
from repq_tf.files import write_atomically
from repq_tf.keras_api import backend, keras, ops
from repq_tf.layers import DenseBlock, Quantize, QuantizedPReLU, ReparamConv
from repq_tf.quantization.graph import evaluate
from repq_tf.quantization.grids import own_quantizer
from repq_tf.quantization.nodes import fits, leaves
from repq_tf.quantization.operators import activation_name
from repq_tf.quantizers import levels, zero_point

END_TYPES = ("int8", "uint8", "float32")


def export_tflite(
    model,
    path,
    input_type="int8",
    output_type="int8",
    container="int8",
    pixels=None,
    input_shape=None,
):
    """Writes a quantized model as an all-integer `.tflite` file.

    The file holds one convolution for each block, with the weights, the biases and the
    scales that the model computes with in inference: grids of 2 to 8 bits lie
    inside int8 tensors. Tensors are called after the Keras layers that make them.

    Args:
        model: what `repq_tf.quantize` returned, trained or not; or what TFMOT trained with
            `repq_tf.tfmot`.
        path: the file to write.
        input_type: "int8", "uint8" or "float32"; what the caller of the file passes.
            int8 input must lie on the model's input grid.
        output_type: likewise, what it gets.
        container: of kernels of at most 4 bits: "int8", or "int4" to store the same
            integers two a byte. The file is about half as large; its convolutions are
            slower and round as `repq_tf.with_container(model, "int4")` does.
        pixels: for a uint8 file that takes images as cameras give them, the normalisation that
            the model was trained with: `(mean, std)` for `(pixel - mean) / std`, numbers or
            sequences with one for each channel; or the function that made float images of
            uint8 ones. The file looks up what the model's input quantizer makes of each
            pixel value, so that it is exact.
        input_shape: `(height, width, channels)` of the file's images, for a model of any
            size. Default: the model's. Of sizes that it leaves open the file has 1, and takes
            all: `interpreter.resize_tensor_input(index, (1, height, width, channels))`.

    Returns:
        The operators of the file with their counts.

    Raises:
        ValueError: the model has layers in floating point (they are named), or
            an argument is bad.
        RuntimeError: Keras does not run on TensorFlow.

    Example:
        >>> repq_tf.export_tflite(qat, "model.tflite")
        {'CONV_2D': 20, 'ADD': 8, ...}
        >>> repq_tf.export_tflite(qat, "p.tflite", input_type="uint8", pixels=(127.5, 127.5))
        {'CAST': 1, 'GATHER': 1, 'CONV_2D': 20, 'ADD': 8, ...}
    """
    from repq_tf.deployment import ends, flatbuffer, storage  # LiteRT's schema

    check_container(container)
    for name, value in (("input_type", input_type), ("output_type", output_type)):
        if value not in END_TYPES:
            raise ValueError(f"{name} must be one of {END_TYPES}. Received: {value!r}")
    if pixels is not None and input_type != "uint8":
        raise ValueError(
            f"pixels goes with input_type='uint8'. Received: input_type={input_type!r}"
        )
    _need_tensorflow("export_tflite")
    graph = read_deployable(model)
    trace = _Trace(graph, input_shape)
    table = None
    if pixels is not None:
        table = pixel_table(trace.input_layer, pixels, trace.input_shape[-1])
    elif input_type != "int8" and trace.input_layer.bits < 8:
        raise ValueError(
            f"input_type must be 'int8', or 'uint8' with pixels, for a model input of "
            f"{trace.input_layer.bits} bits: the file has no clamp to its grid. Received: "
            f"{input_type!r}"
        )
    content = _convert(trace, trace.input_shape, integer=True)
    content = flatbuffer.set_grids(content, trace.input_grid, trace.grids, trace.outputs)
    content = flatbuffer.clamp_in_rescale(content)
    content = ends.set_end_types(content, input_type, output_type, table)
    if container == "int4":
        content = storage.store_int4(content, _four_bit_layers(graph))
    operators = flatbuffer.integer_operators(content)
    write_atomically(path, content)
    return operators


def _four_bit_layers(graph):
    names, left = four_bit_layers(graph)
    if left:
        warnings.warn(
            f"layers {left} stay in the int8 container: a channel with a negative batch-norm "
            "gain has the weight -8, which is 8 in the file and does not fit 4 bits",
            stacklevel=3,
        )
    return names


def export_tflite_float(model, path):
    """Writes a float model, merged, as a float32 `.tflite` file, for comparison.

    Args:
        model: a float model.
        path: the file to write.
    """
    _need_tensorflow("export_tflite_float")
    merged = merge(model)

    def run(x):
        return {"output": merged(x, training=False)}

    write_atomically(path, _convert(run, merged.input_shape[1:], integer=False))


def _need_tensorflow(caller):
    if backend() != "tensorflow":
        raise RuntimeError(
            f"{caller} needs TensorFlow's converter; load the saved model in a process with "
            f"KERAS_BACKEND=tensorflow. Received: KERAS_BACKEND={backend()}"
        )


def _convert(function, shape, integer):
    """Runs the converter on `function(x) -> {key: tensor}`."""
    import tensorflow as tf

    module = tf.Module()
    signature = [tf.TensorSpec([None, *shape], tf.float32, name="input")]
    module.run = tf.function(function, input_signature=signature, autograph=False)
    concrete = module.run.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if integer:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    # It warns of float outputs whenever there are several; the result is checked instead.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return converter.convert()
    finally:
        logging.set_verbosity(verbosity)


class _Trace:
    """A quantized model as a TensorFlow function with fake quantization.

    Called, it returns each gridded tensor under a key, so that the file's tensors can be
    found; `grids` then says what each of them must be.
    """

    def __init__(self, graph, input_shape):
        self.graph = graph
        self.grids = {}
        self.input_grid = None
        (source,) = (node for node in graph.nodes.values() if node.is_input)
        self.input_layer = own_quantizer(graph, source)
        self.input_shape = _fixed_shape(source.input_shape[1:], input_shape)
        self.outputs = [f"output{index}" for index in range(len(graph.output_tensors))]
        # Numbers are taken now: inside the trace, variables have none.
        self.weights, self.steps, self.slopes = {}, {}, {}
        for node in graph.nodes.values():
            self._check(node)
            if isinstance(node.layer, ReparamConv):
                step = input_quantizer(graph, node).step
                *weights, groups = node.layer.integer_weights(step)
                weights = (ops.convert_to_numpy(value) for value in weights)
                self.weights[node.name] = (*weights, np.float32(step), groups)
            elif isinstance(node.layer, Quantize):
                self.steps[node.layer.name] = np.float32(node.layer.step)
            if isinstance(node.layer, QuantizedPReLU):
                slope = map(ops.convert_to_numpy, node.layer.integer_slope())
                self.slopes[node.name] = tuple(slope)
        if self.input_layer is None:
            raise ValueError(
                f"model {graph.name!r}: its input {source.name!r} has no quantizer, so the "
                "file would not be all integer"
            )
        finite = {name: np.isfinite(step) for name, step in self.steps.items()}
        finite.update(
            {n: all(np.isfinite(w).all() for w in ws[:3]) for n, ws in self.weights.items()}
        )
        broken = [name for name, good in finite.items() if not good]
        if broken:
            raise ValueError(
                f"model {graph.name!r} holds NaN or infinity, first in layer {broken[0]!r}; "
                "its training has diverged"
            )

    def _check(self, node):
        if not isinstance(node.layer, ReparamConv):
            if node.layer.weights and not isinstance(node.layer, Quantize):
                raise ValueError(
                    f"layer {node.name!r} ({type(node.layer).__name__}) computes in floating "
                    "point; export what repq_tf.quantize returned, not the merged model"
                )
            return
        quantized = node.layer.weight_quantizer is not None
        readers = self.graph.consumers(node.name)
        if quantized and input_quantizer(self.graph, node) and readers:
            if all(type(reader.layer) is Quantize for reader in readers):
                return
        raise ValueError(
            f"layer {node.name!r} computes in floating point (its kernel, its input or its "
            "output has no quantizer), so the file would not be all integer"
        )

    def __call__(self, x):
        self.taps, self.grids = {}, {}
        results = evaluate(self.graph, lambda node: x, self._apply)
        sources = self.graph.output_tensors
        for key, tensor, source in zip(self.outputs, leaves(results), sources, strict=True):
            self.taps[key] = tensor
            self.grids[key] = self.grid(grid_layer(self.graph, source))
        return self.taps

    def grid(self, layer, name="", weights=None, weight_scale=None, bias=None):
        """The `Grid` of a tensor that a `Quantize` layer rounds."""
        from repq_tf.deployment import flatbuffer

        zero = zero_point(layer.bits, layer.signed)
        scale = self.steps[layer.name]
        return flatbuffer.Grid(scale, zero, name, weights, weight_scale, bias)

    def tap(self, y, grid):
        """Notes the grid of a tensor of the file; returns the tensor."""
        key = f"tap{len(self.taps)}"
        self.taps[key], self.grids[key] = y, grid
        return y

    def fake_quantize(self, x, layer):
        """8-bit fake quantization whose range holds the layer's grid."""
        import tensorflow as tf

        step, zero = float(self.steps[layer.name]), zero_point(layer.bits, layer.signed)
        return tf.quantization.fake_quant_with_min_max_vars(
            x, (-128 - zero) * step, (127 - zero) * step, num_bits=8
        )

    def _apply(self, node, args, kwargs):
        import tensorflow as tf

        layer, x = node.layer, args[0]
        if isinstance(layer, Quantize):
            return self._quantize(node, emit(self, node, args)), self.steps[layer.name]
        if isinstance(layer, DenseBlock):
            return self._dense(node, x), None
        if isinstance(layer, ReparamConv):
            return self._convolution(node, x), None
        if isinstance(layer, keras.layers.Dropout):
            return x
        if isinstance(layer, keras.layers.Flatten | keras.layers.Reshape) or (
            isinstance(layer, keras.layers.GlobalAveragePooling2D) and x.shape[1:3] == (1, 1)
        ):
            # With a static shape; Keras's own computes the shape at run time.
            shape = layer.compute_output_shape(x.shape)[1:]
            if None in shape:
                raise ValueError(
                    f"layer {node.name!r} makes {shape} of images of any size, which a file "
                    "cannot; give input_shape"
                )
            return tf.reshape(x, (-1, *shape))
        if isinstance(layer, ON_INPUT_GRID):
            return emit(self, node, args)
        y = layer(*args, **kwargs)
        relu = isinstance(layer, keras.layers.ReLU | keras.layers.Activation)
        readers = self.graph.consumers(node.name)
        if relu and not any(type(reader.layer) is Quantize for reader in readers):
            # A ReLU that stands alone keeps the scale of its input.
            y = self.fake_quantize(y, grid_layer(self.graph, node.inputs[0]))
        return y

    def _quantize(self, node, x):
        """Fake-quantizes a tensor and notes the grid of the file's tensor."""
        import tensorflow as tf

        layer = node.layer
        source = quantized_node(self.graph, node)
        if source.is_input:
            self.input_grid = self.grid(layer, source.name)
            return self.fake_quantize(x, layer)
        weights = self.weights.get(source.name, (None,) * 5)[:3]
        y = self.fake_quantize(x, layer)
        # An average must keep its zero point as well.
        if layer.signed and layer.bits < 8 and not stays_inside(source.layer):
            low = levels(layer.bits, True, narrow=False)[0] * self.steps[layer.name]
            y = tf.maximum(y, self.fake_quantize(tf.constant(float(low)), layer))
            y = self.fake_quantize(y, layer)
        return self.tap(y, self.grid(layer, source.name, *weights))

    def _convolution(self, node, x):
        import tensorflow as tf

        block = node.layer
        integers, scale, bias, step, groups = self.weights[node.name]
        spatial, channels = tuple(x.shape[1:3]), x.shape[-1]
        window = block.window(spatial)
        padding = stock_padding(window, block, spatial)
        if padding is None:
            x, padding = tf.pad(x, ((0, 0), *window, (0, 0))), "valid"
        if groups == channels > 1:
            shape = (*block.kernel_size, channels, -1)
            kernel = skeleton((integers * scale).reshape(shape))
            strides = (1, *block.strides, 1)
            y = tf.nn.depthwise_conv2d(x, kernel, strides, padding.upper())
        else:
            kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
                integers * scale, -127.0 * scale, 127.0 * scale, 8, narrow_range=True
            )
            y = tf.nn.conv2d(x, kernel, block.strides, padding.upper())
        return _activate(block, tf.nn.bias_add(y, bias * (scale * step)))

    def _dense(self, node, x):
        import tensorflow as tf

        integers, scale, bias, step, _ = self.weights[node.name]
        y = tf.matmul(x, skeleton(integers[0, 0] * scale))
        return _activate(node.layer, tf.nn.bias_add(y, bias * (scale * step)))


def _fixed_shape(model_shape, given):
    """The shape of the file's images: what is given, if the model takes that."""
    if given is None:
        return model_shape
    if not fits(model_shape, given):
        raise ValueError(
            f"input_shape must be one that the model takes, {model_shape}. Received: {given}"
        )
    return tuple(given)


def _activate(block, y):
    import tensorflow as tf

    name = activation_name(block)
    return {"linear": lambda x: x, "relu": tf.nn.relu, "relu6": tf.nn.relu6}[name](y)
