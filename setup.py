"""Packaging of repq_tf; the metadata lives here, tool settings live in pyproject.toml."""

import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# `models/` and `train/` stand at the top of the repository and are installed
# inside the package, so that no module called `models` lands in site-packages.
PACKAGE_DIR = {
    "repq_tf": "repq_tf",
    "repq_tf.models": "models",
    "repq_tf.train": "train",
}


def long_description():
    """The README without what lies in the repository: pictures, and the targets of links."""
    paragraphs = (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n")
    readme = "\n\n".join(part for part in paragraphs if part[:2] != "![" and " ·" not in part)
    return re.sub(r"\[([^\]]+)\]\((?!https:)[^)]+\)", r"\1", readme)


def packages():
    """Every package, under the name it is imported by."""
    found = ["repq_tf"]
    found += [f"repq_tf.{name}" for name in find_packages("repq_tf")]
    for installed, folder in (("repq_tf.models", "models"), ("repq_tf.train", "train")):
        found.append(installed)
        found += [f"{installed}.{name}" for name in find_packages(folder)]
    return found


setup(
    name="repq_tf",
    version=runpy.run_path(str(ROOT / "repq_tf" / "version.py"))["__version__"],
    description=(
        "Quantization-aware training of re-parameterized convolutional networks"
        " on the merged kernel, shipped as exact integer TFLite files."
    ),
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The repq_tf developers",
    project_urls={"Paper": "https://arxiv.org/abs/2311.05317"},
    keywords=[
        "re-parameterization",
        "quantization-aware training",
        "LSQ",
        "Keras",
        "TensorFlow Lite",
        "LiteRT",
        "RepVGG",
        "ACNet",
        "int8",
        "microcontrollers",
    ],
    python_requires=">=3.11",
    package_dir=PACKAGE_DIR,
    packages=packages(),
    entry_points={
        "console_scripts": [
            "repq-train = repq_tf.train.main:main",
            "repq-upscale = repq_tf.train.upscale:main",
            "repq-parity = repq_tf.parity.__main__:main",
        ]
    },
    package_data={"repq_tf": ["py.typed"], "repq_tf.models": ["weights/*"]},
    install_requires=[
        "absl-py>=1.4",
        "ai-edge-litert>=2.1",
        "importlib_resources",  # tensorflow-datasets 4.9.10 imports it undeclared
        "keras>=3.13",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pillow>=10",
        "scikit-learn>=1.4",
        "tensorboard>=2.19",  # no longer a dependency of tensorflow 2.21
        "tensorflow>=2.20",
        "tensorflow-datasets>=4.9.7",
    ],
    extras_require={
        "tfmot": ["tensorflow-model-optimization>=0.8.1", "tf_keras>=2.20"],
        "jax": ["jax>=0.4.30"],
        "onnx": ["onnx>=1.17", "tf2onnx>=1.17"],  # what Keras's own export to ONNX imports
        "torch": ["safetensors>=0.4", "torch>=2.6"],  # reads checkpoints, nothing else
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings-python>=2"],
        "test": [
            "ai-edge-model-explorer-adapter>=0.2",
            "build>=1.2",
            "hypothesis>=6.100",
            "ipykernel>=6",
            "jax>=0.4.30",
            "mypy>=1.15",
            "nbclient>=0.10",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "openvino>=2025.4",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "safetensors>=0.4",
            "scikit-image>=0.24",
            "scipy>=1.12",
            "tensorflow-model-optimization>=0.8.1",
            "tf2onnx>=1.17",
            "tf_keras>=2.20",
            "tflite-micro>=0.dev20261000",  # has no release that is not one of development
            "timm>=1.0.31",
            "torch==2.13.0",  # one version, so that tests do not move to another build of it
            "twine>=6",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Topic :: Software Development :: Libraries :: Python Modules",
    ],
)
