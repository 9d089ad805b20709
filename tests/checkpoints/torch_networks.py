"""The authors' networks in PyTorch: the same names of modules, at any width."""

import torch
from torch import nn

from tests.checkpoints import torch_blocks as blocks


class Classifier(nn.Module):
    """Stages of modules `(name, module)`, then the mean and a linear layer."""

    def head(self, channels, classes, name="linear"):
        self.body = list(dict(self.named_children()))
        self.last = name
        self.add_module(name, nn.Linear(channels, classes))

    def forward(self, x):
        for name in self.body:
            x = self.get_submodule(name)(x)
        return self.get_submodule(self.last)(x.mean((2, 3)))


class RepVGGNet(Classifier):
    """Of RepVGG, QARepVGG and OREPA-RepVGG.

    Args:
        block: class of the blocks.
        stages: the channels of each block, stage by stage; the stem is the first stage.
        classes: number of classes.
    """

    def __init__(self, block, stages, classes):
        super().__init__()
        inputs = 3
        for stage, widths in enumerate(stages):
            modules = []
            for index, width in enumerate(widths):
                modules.append(block(inputs, width, stride=1 if index else 2))
                inputs = width
            self.add_module(f"stage{stage}", nn.Sequential(*modules) if stage else modules[0])
        self.head(inputs, classes)


class MobileOneNet(Classifier):
    """Of pairs of a depthwise and a pointwise block.

    Args:
        stages: the widths of each stage's pairs; the stem's width is the first stage.
        squeezed: how many pairs at each stage's end have squeeze and excite.
        classes: number of classes.
    """

    def __init__(self, block, stages, squeezed, classes):
        super().__init__()
        inputs = stages[0][0]
        self.stage0 = blocks.MobileOneOfOne(3, inputs, 3, 2)
        for stage, (widths, count) in enumerate(zip(stages[1:], squeezed, strict=True), 1):
            modules = []
            for index, width in enumerate(widths):
                stride = 1 if index else 2
                pair = [block(inputs, inputs, 3, stride, inputs), block(inputs, width, 1)]
                if index >= len(widths) - count:
                    for module in pair:
                        channels = module.shape[1]
                        module.se = blocks.SqueezeExcite(channels, ("reduce", "expand"))
                modules += pair
                inputs = width
            self.add_module(f"stage{stage}", nn.Sequential(*modules))
        self.head(inputs, classes)


def acnet_conv(inputs, outputs, size, stride, act=True):
    """As ACNet's builder makes it: 1x1 and 7x7 convolutions are plain and never merged."""
    relu = {"relu": nn.ReLU()} if act else {}
    if size != 3:
        conv = blocks.conv_bn(inputs, outputs, size, stride)
        return blocks.sequential(**dict(conv.named_children()), **relu)
    block = blocks.ACB(inputs, outputs, size, stride, act=False)
    return blocks.sequential(acb=block, **relu) if act else block


class Residual(nn.Module):
    def __init__(self, kinds, inputs, channels, stride, deep):
        super().__init__()
        outputs = 4 * channels if deep else channels
        if deep:
            shapes = [(inputs, channels, 1, 1), (channels, channels, 3, stride)]
            shapes.append((channels, outputs, 1, 1))
        else:
            shapes = [(inputs, channels, 3, stride), (channels, channels, 3, 1)]
        self.names = [f"conv{index}" for index in range(1, len(shapes) + 1)]
        for name, shape in zip(self.names, shapes, strict=True):
            self.add_module(name, kinds[shape[2]](*shape, act=name != self.names[-1]))
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = kinds[1](inputs, outputs, 1, stride, act=False)

    def forward(self, x):
        y = x
        for name in self.names:
            y = getattr(self, name)(y)
        return torch.relu(y + self.shortcut(x))


class ResNet(Classifier):
    """As in DBB's and OREPA's repositories, and ACNet's of basic blocks.

    Args:
        kinds: class of the blocks by kernel size: 1, 3 and 7.
        widths: of the four stages.
        depths: of the four stages.
        classes: number of classes.
        deep: whether residual blocks are bottlenecks.
        staged: whether the stem is in a module `stage0`; in ACNet's it is not.
    """

    def __init__(self, kinds, widths, depths, classes, deep=False, staged=True):
        super().__init__()
        stem = self
        if staged:
            stem = self.stage0 = nn.Sequential()
        stem.add_module("conv1", kinds[7](3, widths[0], 7, 2))
        stem.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
        inputs = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
            modules = []
            for index in range(depth):
                stride = 2 if stage > 1 and index == 0 else 1
                modules.append(Residual(kinds, inputs, width, stride, deep))
                inputs = 4 * width if deep else width
            self.add_module(f"stage{stage}", nn.Sequential(*modules))
        self.head(inputs, classes)


class ECBSR(nn.Module):
    """Every image channel is added to its own `scale^2` channels of the pixel shuffle."""

    def __init__(self, m, c, scale, colors, identity=False):
        super().__init__()
        self.scale = scale
        shapes = [(colors, c), *[(c, c)] * m, (c, colors * scale**2)]
        self.backbone = nn.Sequential(*(blocks.ECB(*shape) for shape in shapes))
        for block in self.backbone:
            block.identity = identity
            block.act = nn.PReLU(block.shape[1])
        self.backbone[-1].act = nn.Identity()

    def forward(self, x):
        y = self.backbone(x) + x.repeat_interleave(self.scale**2, 1)
        return nn.functional.pixel_shuffle(y, self.scale)
