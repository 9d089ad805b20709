"""LSQ of the plain ResNets in PyTorch, compiled: what `train_step.py` is compared with.

    pip install torch
    python benchmarks/torch_lsq.py --model=resnet8 --batch_size=128

The networks are those of `repq_tf.models.resnet8` and `resnet18` on small images, quantized
where `repq_tf.quantize` does: weights with a step for each output channel, batch norms behind
the quantized convolutions, every stored tensor. LSQ is the published one (arXiv 1902.08153), by
autodiff of its pseudocode, and `torch.compile` with channels last makes of it what it can.
"""

import argparse
import sys
import time
from pathlib import Path

try:
    import torch
except ImportError:
    sys.exit("benchmarks/torch_lsq.py needs PyTorch: pip install torch")
from torch import nn
from torch.nn import functional

# Channels of the stem and of each stage, blocks of a stage, whether shortcuts are normalized
# and convolutions have biases.
NETWORKS = {
    "resnet8": ((16, 16, 32, 64), 1, False, True),
    "resnet18": ((64, 64, 128, 256, 512), 2, True, False),
}


class LSQ(nn.Module):
    """A fake quantizer with a learned step."""

    def __init__(self, bits: int, signed: bool, channels: int | None = None) -> None:
        super().__init__()
        self.low = -(2 ** (bits - 1)) if signed else 0
        self.high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        self.per_channel = channels is not None
        shape = (channels, 1, 1, 1) if self.per_channel else ()
        self.step = nn.Parameter(torch.full(shape, 0.02))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rounds to the grid, straight through."""
        count = x[0].numel()
        scale = (count * self.high) ** -0.5
        step = (self.step - self.step * scale).detach() + self.step * scale
        v = torch.clamp(x / step, self.low, self.high)
        return ((v.round() - v).detach() + v) * step


class Convolution(nn.Module):
    """A quantized convolution, its batch norm and its ReLU, on its output's grid."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        relu: bool,
        bits: int,
        bias: bool,
        normalized: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias)
        self.norm = nn.BatchNorm2d(outputs) if normalized else nn.Identity()
        self.relu = relu
        self.weights = LSQ(bits, True, outputs) if bits else nn.Identity()
        self.output = LSQ(bits, not relu) if bits else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolves a quantized tensor."""
        conv = self.conv
        kernel = self.weights(conv.weight)
        y = functional.conv2d(x, kernel, conv.bias, conv.stride, conv.padding)
        y = self.norm(y)
        return self.output(functional.relu(y) if self.relu else y)


class Block(nn.Module):
    """A basic block of a ResNet."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, bits: int, normalized: bool, bias: bool
    ) -> None:
        super().__init__()
        self.first = Convolution(inputs, outputs, 3, stride, True, bits, bias)
        self.second = Convolution(outputs, outputs, 3, 1, False, bits, bias)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            plain = bias or not normalized
            self.shortcut = Convolution(
                inputs, outputs, 1, stride, False, bits, plain, normalized
            )
        self.output = LSQ(bits, False) if bits else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the shortcut."""
        return self.output(functional.relu(self.second(self.first(x)) + self.shortcut(x)))


class Network(nn.Module):
    """A plain ResNet of small images; `bits` is 0 for floating point."""

    def __init__(self, name: str, width: float, bits: int, classes: int = 10) -> None:
        super().__init__()
        numbers, depth, normalized, bias = NETWORKS[name]
        stem, *stages = (max(8, int(width * n / 8 + 0.5) * 8) for n in numbers)
        self.input = LSQ(bits, True) if bits else nn.Identity()
        blocks = [Convolution(3, stem, 3, 1, True, bits, bias)]
        inputs = stem
        for stage, channels in enumerate(stages):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(Block(inputs, channels, stride, bits, normalized, bias))
                inputs = channels
        self.blocks = nn.Sequential(*blocks)
        self.mean = LSQ(bits, False) if bits else nn.Identity()
        self.dense = nn.Linear(inputs, classes)
        self.weights = LSQ(bits, True) if bits else nn.Identity()
        self.output = LSQ(bits, True) if bits else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to logits."""
        x = self.mean(self.blocks(self.input(x)).mean((2, 3)))
        return self.output(
            functional.linear(x, self.weights(self.dense.weight), self.dense.bias)
        )


def make_step(options: argparse.Namespace):
    """A function that runs a compiled training step and returns its loss."""
    torch.manual_seed(0)
    network = Network(options.model, options.width, options.bits)
    network = network.to(memory_format=torch.channels_last)
    size = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randn(size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.batch_size,))
    optimizer = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9)
    compiled = network if options.eager else torch.compile(network)

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def peak_memory() -> float:
    """Peak resident memory of this process in MB (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1e3


def main() -> None:
    """Prints milliseconds a step, or serves steps to `train_step.py`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=NETWORKS, default="resnet18")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--bits", type=int, default=8, help="0 for floating point.")
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--eager", action="store_true", help="Do not compile.")
    parser.add_argument("--serve", action="store_true", help="Run a step for each line read.")
    options = parser.parse_args()
    step = make_step(options)
    if options.serve:
        for line in sys.stdin:
            print(peak_memory() if line.strip() == "memory" else step(), flush=True)
        return
    times = []
    for _ in range(3 + options.rounds):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    print(f"{1e3 * sorted(times[3:])[len(times[3:]) // 2]:.1f} ms")


if __name__ == "__main__":
    main()
