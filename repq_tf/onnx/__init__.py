"""The ONNX format: a program of integers in QuantizeLinear and DequantizeLinear pairs."""
