"""The `.tflite` file format: what a file computes, written and read; it knows no Keras."""
