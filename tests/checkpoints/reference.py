"""Random PyTorch modules as references: their checkpoints, their outputs."""

import numpy as np
import torch
from torch import nn

import repq_tf

torch.set_num_threads(1)  # test processes share the cores, and TensorFlow has threads too


def randomized(module, seed=0):
    """The module in inference, with random weights and batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    constants = [p for p in module.parameters() if not p.requires_grad]

    def uniform(tensor, low, high):
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for parameter in module.parameters():
            if all(parameter is not constant for constant in constants):
                fan = parameter[0].numel() if parameter.ndim > 1 else 1
                bound = 1.5 * fan**-0.5
                uniform(parameter, -bound, bound)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                uniform(part.weight, -1.5, 1.5)
                uniform(part.bias, -0.5, 0.5)
                uniform(part.running_mean, -0.5, 0.5)
                uniform(part.running_var, 0.3, 2.0)
            if isinstance(part, nn.PReLU):
                uniform(part.weight, -0.2, 0.8)
    return module.eval()


def deploy(module):
    """Merges all blocks, by the authors' own re-parameterization."""
    if hasattr(module, "deploy"):
        module.deploy()
        return
    for child in module.children():
        deploy(child)


def save(module, path, prefix=""):
    """Writes a checkpoint as training programs do."""
    state = {f"module.{prefix}{name}": value for name, value in module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "best_acc1": torch.tensor(70.5)}, path)
    return path


def images(shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def torch_output(module, x):
    """The output to images (NHWC) in float64."""
    with torch.no_grad():
        y = module.double()(torch.from_numpy(x).double().permute(0, 3, 1, 2))
    module.float()
    return (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).numpy()


def assert_equal(model, module, x):
    """Relative error below 1e-5, of what is far from constant."""
    wanted = torch_output(module, x)
    assert wanted.std() > 1e-3
    given = np.asarray(model(x, training=False), np.float64)
    error = np.abs(given - wanted).max() / np.abs(wanted).max()
    assert error < 1e-5, error


def assert_loads(model, module, x, path, prefix=""):
    """The branches into the model, then the merged module into the merged model."""
    repq_tf.load_torch_checkpoint(model, save(module, path, prefix))
    assert_equal(model, module, x)
    merged = repq_tf.merge(model)
    for weight in merged.weights:
        weight.assign(weight + 1.0)
    wanted = torch_output(module, x)
    deploy(module)
    np.testing.assert_allclose(torch_output(module, x), wanted, atol=1e-5 * abs(wanted).max())
    repq_tf.load_torch_checkpoint(merged, save(module, path, prefix))
    assert_equal(merged, module, x)
