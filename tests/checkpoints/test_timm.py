"""RepVGG and MobileOne of timm: its own modules, before and after its re-parameterization."""

from importlib.util import find_spec

import keras
import pytest
from safetensors.torch import save_file

import repq_tf
from repq_tf import layers
from tests.checkpoints.reference import assert_equal, images, randomized
from tests.checkpoints.timm_models import byobnet

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")

SIDE = 80  # above 64, so that every stage halves the image as on ImageNet


def reparameterize(module):
    for part in list(module.modules()):
        if hasattr(part, "reparameterize"):
            part.reparameterize()


def assert_loads(model, module, x, folder, prefix=""):
    """The branches into the model, then the merged module into the merged model."""

    def save(name):
        state = {f"{prefix}{key}": value for key, value in module.state_dict().items()}
        save_file(state, folder / name)
        return folder / name

    repq_tf.load_torch_checkpoint(model, save("branches.safetensors"))
    assert_equal(model, module, x)
    merged = repq_tf.merge(model)
    for weight in merged.weights:
        weight.assign(weight + 1.0)
    reparameterize(module)
    repq_tf.load_torch_checkpoint(merged, save("merged.safetensors"))
    assert_equal(merged, module, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_networks(name, tmp_path):
    module = randomized(getattr(byobnet(), name)(num_classes=5))
    model = repq_tf.models.build(name, 5, input_shape=(SIDE, SIDE, 3))
    assert_loads(model, module, images((1, SIDE, SIDE, 3)), tmp_path)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("family", ["RepVgg", "MobileOne"])
def test_blocks(family, groups, stride, tmp_path):
    theirs = getattr(byobnet(), f"{family}Block")
    options = {"num_conv_branches": 3} if family == "MobileOne" else {}
    group_size = None if groups == 1 else 16 // groups
    module = randomized(theirs(16, 16, 3, stride, group_size=group_size, **options))
    options = {"branches": 3} if family == "MobileOne" else {}
    ours = layers.MobileOneBlock if family == "MobileOne" else layers.RepVGGBlock
    x = keras.Input((9, 12, 16))
    block = ours(
        16,
        strides=stride,
        padding=1,
        groups=groups,
        activation="relu",
        name="stage2_block3",
        **options,
    )
    model = keras.Model(x, block(x))
    assert_loads(model, module, images((2, 9, 12, 16)), tmp_path, prefix="stages.1.2.")


def test_squeeze_and_excite(tmp_path):
    timm = byobnet()
    layer_function = timm.LayerFn(attn=timm.partial(timm.get_attn("se"), rd_ratio=1 / 16))
    module = randomized(timm.RepVggBlock(32, 128, layers=layer_function))
    x = keras.Input((9, 12, 32))
    y = layers.RepVGGBlock(128, padding=1, name="stage1_block1")(x)
    y = keras.layers.ReLU()(layers.SqueezeExcite(8, name="stage1_block1_se")(y))
    model = keras.Model(x, y)
    assert_loads(model, module, images((2, 9, 12, 32)), tmp_path, prefix="stages.0.0.")
