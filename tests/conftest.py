"""Settings of every test: quiet TensorFlow, two virtual CPU devices, cheap hypothesis."""

import collections
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# As the training program does: CPUs without AVX-512 take half the time.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# XLA's programs run once here: what it compiles soon is better than what runs fast.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
# And what one process compiles for JAX, all others of these tests take over.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repq_tf",
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repq_tf")

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    CPU = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        CPU, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    # Two test processes share two cores.
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.threading.set_intra_op_parallelism_threads(1)


def pytest_collection_modifyitems(items):
    """The dearest files come first, so that no process is left with one at the end."""
    seconds = collections.Counter()
    for item in items:
        mark = item.get_closest_marker("slow")
        seconds[item.path] += (mark.args or (2,))[0] if mark else 0
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(autouse=True)
def _same_start():
    """Every test draws the same weights, alone or in the suite."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def two_replicas():
    """The one strategy of the process.

    TensorFlow numbers the collectives of every strategy alike, so that on CPU devices
    a second strategy in a process runs into the first one's ("Shape mismatch in the
    collective instance").
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def float64():
    """Everything built in the test is float64."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
