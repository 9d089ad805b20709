"""The authors' modules in PyTorch, written after their descriptions: the same names of
tensors, the same function, and their own re-parameterization."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


def sequential(**modules):
    return nn.Sequential(OrderedDict(modules))


def conv_bn(inputs, outputs, size, stride=1, groups=1):
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return sequential(conv=conv, bn=nn.BatchNorm2d(outputs))


def fuse(kernel, bn, bias=0.0):
    gain = bn.weight / (bn.running_var + bn.eps).sqrt()
    return kernel * gain[:, None, None, None], bn.bias + (bias - bn.running_mean) * gain


def embed(kernel, size):
    height, width = ((size - n) // 2 for n in kernel.shape[2:])
    return F.pad(kernel, (width, width, height, height))


def dirac(channels, groups, size=1):
    kernel = torch.zeros(channels, channels // groups, size, size)
    for index in range(channels):
        kernel[index, index % (channels // groups), size // 2, size // 2] = 1
    return kernel


def chain(first, bias, second, groups):
    """A 1x1 kernel and its bias, then a k x k one: group by group."""
    kernels = [
        F.conv2d(b, a.transpose(0, 1))
        for a, b in zip(first.chunk(groups), second.chunk(groups), strict=True)
    ]
    biases = [
        (b * c[None, :, None, None]).sum((1, 2, 3))
        for b, c in zip(second.chunk(groups), bias.chunk(groups), strict=True)
    ]
    return torch.cat(kernels), torch.cat(biases)


def separable(depthwise, pointwise, groups):
    """A depthwise kernel, then a 1x1 one, as one: OREPA's `dwsc2full`.

    The groups' outputs take turns in the rows of the 1x1 kernel, but not in the result.
    """
    outputs, wide = pointwise.shape[:2]
    _, _, *size = depthwise.shape
    rows = pointwise.reshape(outputs // groups, groups, wide // 8, 8)
    filters = depthwise.reshape(groups, wide // 8, 8, *size)
    kernel = torch.einsum("rgit,githw->grihw", rows, filters)
    return kernel.reshape(outputs, wide // 8, *size)


class Block(nn.Module):
    """A block that can be merged: `merged` is the name of its convolution then."""

    merged = ""

    def __init__(self, inputs, outputs, size=3, stride=1, groups=1, act=True):
        super().__init__()
        self.shape = (inputs, outputs, size, stride, groups)
        self.act = nn.ReLU() if act else nn.Identity()
        self.se = nn.Identity()
        self.make(inputs, outputs, size, stride, groups)

    def forward(self, x):
        y = self.get_submodule(self.merged)(x) if self.is_merged else self.branches(x)
        return self.act(self.se(y))

    @property
    def is_merged(self):
        return hasattr(self, self.merged)

    def deploy(self):
        inputs, outputs, size, stride, groups = self.shape
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups)
        kernel, bias = self.kernel_and_bias()
        conv.weight.data, conv.bias.data = kernel.detach(), bias.detach()
        kept = ("act", "se")
        for name in [n for n, _ in self.named_children() if n not in kept]:
            delattr(self, name)
        for name in list(self._parameters) + list(self._buffers):
            delattr(self, name)
        self.add_module(self.merged, conv)


class ConvBN(Block):
    merged = "conv"
    is_merged = property(lambda self: not hasattr(self, "bn"))

    def make(self, inputs, outputs, size, stride, groups):
        self.conv = nn.Conv2d(
            inputs, outputs, size, stride, size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def branches(self, x):
        return self.bn(self.conv(x))

    def kernel_and_bias(self):
        return fuse(self.conv.weight, self.bn)


class RepVGG(Block):
    merged = "rbr_reparam"

    def make(self, inputs, outputs, size, stride, groups):
        self.rbr_dense = conv_bn(inputs, outputs, size, stride, groups)
        self.rbr_1x1 = conv_bn(inputs, outputs, 1, stride, groups)
        same = inputs == outputs and stride == 1
        self.rbr_identity = nn.BatchNorm2d(inputs) if same else None

    def branches(self, x):
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return y if self.rbr_identity is None else y + self.rbr_identity(x)

    def dense(self):
        return fuse(self.rbr_dense.conv.weight, self.rbr_dense.bn)

    def kernel_and_bias(self):
        inputs, _, size, _, groups = self.shape
        kernel, bias = self.dense()
        pointwise, shift = fuse(self.rbr_1x1.conv.weight, self.rbr_1x1.bn)
        kernel, bias = kernel + embed(pointwise, size), bias + shift
        if self.rbr_identity is not None:
            identity, shift = fuse(dirac(inputs, groups, size), self.rbr_identity)
            kernel, bias = kernel + identity, bias + shift
        return kernel, bias


class QARepVGG(Block):
    merged = "rbr_reparam"

    def make(self, inputs, outputs, size, stride, groups):
        self.rbr_dense = conv_bn(inputs, outputs, size, stride, groups)
        self.rbr_1x1 = nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=False)
        self.same = inputs == outputs and stride == 1
        self.bn = nn.BatchNorm2d(outputs)

    def branches(self, x):
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return self.bn(y + x if self.same else y)

    def kernel_and_bias(self):
        inputs, _, size, _, groups = self.shape
        kernel, bias = fuse(self.rbr_dense.conv.weight, self.rbr_dense.bn)
        kernel = kernel + embed(self.rbr_1x1.weight, size)
        if self.same:
            kernel = kernel + dirac(inputs, groups, size)
        return fuse(kernel, self.bn, bias)


class SqueezeExcite(nn.Module):
    def __init__(self, channels, names):
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Conv2d(channels, channels // 16, 1))
        self.add_module(names[1], nn.Conv2d(channels // 16, channels, 1))

    def forward(self, x):
        first, second = (self.get_submodule(name) for name in self.names)
        return x * torch.sigmoid(second(F.relu(first(x.mean((2, 3), keepdim=True)))))


class MobileOne(Block):
    merged = "reparam_conv"
    count = 4

    def make(self, inputs, outputs, size, stride, groups):
        self.rbr_conv = nn.ModuleList(
            conv_bn(inputs, outputs, size, stride, groups) for _ in range(self.count)
        )
        self.rbr_scale = conv_bn(inputs, outputs, 1, stride, groups) if size > 1 else None
        same = inputs == outputs and stride == 1
        self.rbr_skip = nn.BatchNorm2d(inputs) if same else None

    def branches(self, x):
        y = sum(conv(x) for conv in self.rbr_conv)
        y = y if self.rbr_scale is None else y + self.rbr_scale(x)
        return y if self.rbr_skip is None else y + self.rbr_skip(x)

    def kernel_and_bias(self):
        inputs, _, size, _, groups = self.shape
        pairs = [fuse(conv.conv.weight, conv.bn) for conv in self.rbr_conv]
        if self.rbr_scale is not None:
            kernel, bias = fuse(self.rbr_scale.conv.weight, self.rbr_scale.bn)
            pairs.append((embed(kernel, size), bias))
        if self.rbr_skip is not None:
            pairs.append(fuse(dirac(inputs, groups, size), self.rbr_skip))
        return sum(kernel for kernel, _ in pairs), sum(bias for _, bias in pairs)


class MobileOneOfOne(MobileOne):
    count = 1


class ACB(Block):
    merged = "fused_conv"

    def make(self, inputs, outputs, size, stride, groups):
        for name, shape in (("square", (size, size)), ("ver", (size, 1)), ("hor", (1, size))):
            pads = tuple(n // 2 for n in shape)
            options = {"groups": groups, "bias": False}
            conv = nn.Conv2d(inputs, outputs, shape, stride, pads, **options)
            self.add_module(f"{name}_conv", conv)
            self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def branches(self, x):
        names = ("square", "ver", "hor")
        return sum(getattr(self, f"{n}_bn")(getattr(self, f"{n}_conv")(x)) for n in names)

    def kernel_and_bias(self):
        pairs = [
            fuse(getattr(self, f"{n}_conv").weight, getattr(self, f"{n}_bn"))
            for n in ("square", "ver", "hor")
        ]
        kernels = [embed(kernel, self.shape[2]) for kernel, _ in pairs]
        return sum(kernels), sum(bias for _, bias in pairs)


class BNAndPad(nn.Module):
    def __init__(self, channels, pixels):
        super().__init__()
        self.bn, self.pixels = nn.BatchNorm2d(channels), pixels

    def forward(self, x):
        zeros = torch.zeros_like(x[:, :, :1, :1])
        border = self.bn(zeros)
        y = self.bn(x) - border
        return F.pad(y, [self.pixels] * 4) + border


class IdentityConv(nn.Conv2d):
    def __init__(self, channels, groups):
        super().__init__(channels, channels, 1, groups=groups, bias=False)

    @property
    def actual(self):
        return self.weight + dirac(self.weight.shape[0], self.groups)

    def forward(self, x):
        return F.conv2d(x, self.actual, groups=self.groups)


class DBB(Block):
    merged = "dbb_reparam"

    def make(self, inputs, outputs, size, stride, groups):
        depthwise = groups == outputs
        options = {"groups": groups, "bias": False}
        self.dbb_origin = conv_bn(inputs, outputs, size, stride, groups)
        self.dbb_avg, self.dbb_1x1_kxk = nn.Sequential(), nn.Sequential()
        pads = size // 2 if depthwise else 0
        if not depthwise:
            self.dbb_avg.add_module("conv", nn.Conv2d(inputs, outputs, 1, **options))
            self.dbb_avg.add_module("bn", BNAndPad(outputs, size // 2))
            self.dbb_1x1 = conv_bn(inputs, outputs, 1, stride, groups)
        self.dbb_avg.add_module("avg", nn.AvgPool2d(size, stride, pads))
        self.dbb_avg.add_module("avgbn", nn.BatchNorm2d(outputs))
        internal = 2 * inputs if depthwise else inputs
        if depthwise:
            self.dbb_1x1_kxk.add_module("conv1", nn.Conv2d(inputs, internal, 1, **options))
        else:
            self.dbb_1x1_kxk.add_module("idconv1", IdentityConv(inputs, groups))
        self.dbb_1x1_kxk.add_module("bn1", BNAndPad(internal, size // 2))
        conv = nn.Conv2d(internal, outputs, size, stride, **options)
        self.dbb_1x1_kxk.add_module("conv2", conv)
        self.dbb_1x1_kxk.add_module("bn2", nn.BatchNorm2d(outputs))

    def branches(self, x):
        y = self.dbb_origin(x) + self.dbb_avg(x) + self.dbb_1x1_kxk(x)
        return y + self.dbb_1x1(x) if hasattr(self, "dbb_1x1") else y

    def kernel_and_bias(self):
        _, outputs, size, _, groups = self.shape
        pairs = [fuse(self.dbb_origin.conv.weight, self.dbb_origin.bn)]
        stack = self.dbb_1x1_kxk
        first = stack.idconv1.actual if hasattr(stack, "idconv1") else stack.conv1.weight
        first, bias = fuse(first, stack.bn1.bn)
        kernel, bias = chain(first, bias, stack.conv2.weight, groups)
        pairs.append(fuse(kernel, stack.bn2, bias))
        mean = torch.zeros(outputs, outputs // groups, size, size)
        mean += dirac(outputs, groups) / size**2
        if hasattr(self, "dbb_1x1"):
            kernel, shift = fuse(self.dbb_1x1.conv.weight, self.dbb_1x1.bn)
            pairs.append((embed(kernel, size), shift))
            first, bias = fuse(self.dbb_avg.conv.weight, self.dbb_avg.bn.bn)
            mean, bias = chain(first, bias, mean, groups)
            pairs.append(fuse(mean, self.dbb_avg.avgbn, bias))
        else:
            pairs.append(fuse(mean, self.dbb_avg.avgbn))
        return sum(kernel for kernel, _ in pairs), sum(bias for _, bias in pairs)


class OREPA(Block):
    """The generated kernel; `stem` begins the names of its tensors."""

    merged = "orepa_reparam"
    stem, pointwise, rows, post = "weight_orepa", True, 6, True

    def make(self, inputs, outputs, size, stride, groups):
        def add(name, *shape):
            self.register_parameter(f"{self.stem}_{name}", nn.Parameter(torch.empty(shape)))

        inner = inputs if groups <= 4 else 2 * inputs
        grouped = inputs // groups
        add("origin", outputs, grouped, size, size)
        add("avg_conv", outputs, grouped, 1, 1)
        add("pfir_conv", outputs, grouped, 1, 1)
        if self.pointwise:
            add("1x1", outputs, grouped, 1, 1)
        add("1x1_kxk_idconv1", inner, grouped, 1, 1)
        add("1x1_kxk_conv2", outputs, inner // groups, size, size)
        add("gconv_dw", 8 * inputs, 1, size, size)
        add("gconv_pw", outputs, 8 * grouped, 1, 1)
        self.vector = nn.Parameter(torch.empty(self.rows, outputs))
        identity = torch.eye(grouped).repeat(inner // grouped, 1)[:, :, None, None]
        self.register_buffer("id_tensor", identity)
        average = torch.full((size, size), 1 / size**2)
        self.register_buffer(f"{self.stem}_avg_avg", average)
        place = torch.arange(3, dtype=torch.float64) + 0.5
        prior = torch.empty(outputs, 3, 3)
        for o in range(outputs):
            along_height = o < outputs / 2
            f = o + 1 if along_height else o + 1 - outputs / 2
            wave = torch.cos(torch.pi * place * f / 3)
            prior[o] = wave[:, None] if along_height else wave[None, :]
        self.register_buffer(f"{self.stem}_prior", prior)
        if self.post:
            self.bn = nn.BatchNorm2d(outputs)

    def weight(self):
        size, _, groups = self.shape[2:]

        def get(name):
            return getattr(self, f"{self.stem}_{name}")

        first = get("1x1_kxk_idconv1") + self.id_tensor
        zeros = torch.zeros(len(first))
        terms = [
            get("origin"),
            get("avg_conv") * get("avg_avg"),
            get("pfir_conv") * get("prior")[:, None],
            chain(first, zeros, get("1x1_kxk_conv2"), groups)[0],
            *([embed(get("1x1"), size)] if self.pointwise else []),
            separable(get("gconv_dw"), get("gconv_pw"), groups),
        ]
        rows = self.vector[: len(terms), :, None, None, None]
        return sum(row * term for row, term in zip(rows, terms, strict=True))

    def convolve(self, x):
        _, _, size, stride, groups = self.shape
        return F.conv2d(x, self.weight(), None, stride, size // 2, groups=groups)

    def branches(self, x):
        return self.bn(self.convolve(x))

    def kernel_and_bias(self):
        return fuse(self.weight(), self.bn)


class OREPA1x1(Block):
    merged = "or1x1_reparam"

    def make(self, inputs, outputs, size, stride, groups):
        middle = min(inputs, outputs)
        shapes = {
            "origin": (outputs, inputs),
            "l2i_conv1": (middle, inputs),
            "l2i_conv2": (outputs, middle),
        }
        for name, shape in shapes.items():
            parameter = nn.Parameter(torch.empty(*shape, 1, 1))
            self.register_parameter(f"weight_or1x1_{name}", parameter)
        self.vector = nn.Parameter(torch.empty(2, outputs))
        self.bn = nn.BatchNorm2d(outputs)

    def weight(self):
        product = (
            self.weight_or1x1_l2i_conv2[..., 0, 0] @ self.weight_or1x1_l2i_conv1[..., 0, 0]
        )
        rows = self.vector[:, :, None, None, None]
        return rows[0] * self.weight_or1x1_origin + rows[1] * product[:, :, None, None]

    def branches(self, x):
        return self.bn(F.conv2d(x, self.weight(), stride=self.shape[3]))

    def kernel_and_bias(self):
        return fuse(self.weight(), self.bn)


class OREPALink(OREPA):
    post = False


class OREPALarge(Block):
    """Composed by correlation, as in the authors' code."""

    merged = "or_large_reparam"

    def make(self, inputs, outputs, size, stride, groups):
        for index in range((size - 1) // 2):
            link = OREPALink(inputs if index == 0 else outputs, outputs)
            self.add_module(f"weight{index}", link)
        self.bn = nn.BatchNorm2d(outputs)

    def weight(self):
        weight = self.weight0.weight().transpose(0, 1)
        for index in range(1, (self.shape[2] - 1) // 2):
            weight = F.conv2d(weight, getattr(self, f"weight{index}").weight(), padding=2)
        return weight.transpose(0, 1)

    def branches(self, x):
        _, _, size, stride, _ = self.shape
        return self.bn(F.conv2d(x, self.weight(), None, stride, size // 2))

    def kernel_and_bias(self):
        return fuse(self.weight(), self.bn)


class OREPADense(OREPA):
    stem, pointwise = "weight_rbr", False


class OREPARepVGG(RepVGG):
    def make(self, inputs, outputs, size, stride, groups):
        super().make(inputs, outputs, size, stride, groups)
        self.rbr_dense = OREPADense(inputs, outputs, size, stride, groups, act=False)

    def dense(self):
        return self.rbr_dense.kernel_and_bias()


class Edge(nn.Module):
    """ECB's 1x1 convolution, then a 3x3 one or a scaled fixed filter."""

    def __init__(self, inputs, outputs, middle=None, mask=None):
        super().__init__()
        self.k0 = nn.Parameter(torch.empty(middle or outputs, inputs, 1, 1))
        self.b0 = nn.Parameter(torch.empty(middle or outputs))
        if mask is None:
            self.k1 = nn.Parameter(torch.empty(outputs, middle, 3, 3))
            self.b1 = nn.Parameter(torch.empty(outputs))
        else:
            self.scale = nn.Parameter(torch.empty(outputs, 1, 1, 1))
            self.bias = nn.Parameter(torch.empty(outputs))
            mask = torch.tensor(mask, dtype=torch.float32).expand(outputs, 1, 3, 3).clone()
            self.mask = nn.Parameter(mask, requires_grad=False)

    def kernel_and_bias(self):
        if hasattr(self, "k1"):
            second, bias = self.k1, self.b1
        else:
            second, bias = dirac(len(self.bias), 1) * (self.scale * self.mask), self.bias
        kernel, shift = chain(self.k0, self.b0, second, 1)
        return kernel, shift + bias

    def forward(self, x):
        y = F.conv2d(x, self.k0, self.b0)
        border = self.b0[None, :, None, None]
        y = F.pad(y - border, [1] * 4) + border
        if hasattr(self, "k1"):
            return F.conv2d(y, self.k1, self.b1)
        return F.conv2d(y, self.scale * self.mask, self.bias, groups=len(self.bias))


class ECB(Block):
    merged = "conv3x3"
    is_merged = property(lambda self: not hasattr(self, "conv1x1_3x3"))
    identity = False

    def make(self, inputs, outputs, size, stride, groups):
        sobel = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
        masks = {"sbx": sobel, "sby": [list(row) for row in zip(*sobel, strict=True)]}
        masks["lpl"] = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
        self.conv3x3 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv1x1_3x3 = Edge(inputs, outputs, middle=2 * outputs)
        for name, mask in masks.items():
            self.add_module(f"conv1x1_{name}", Edge(inputs, outputs, mask=mask))
        self.parts = [f"conv1x1_{name}" for name in ("3x3", *masks)]

    def branches(self, x):
        y = self.conv3x3(x) + sum(getattr(self, name)(x) for name in self.parts)
        return y + x if self.has_identity else y

    @property
    def has_identity(self):
        return self.identity and self.shape[0] == self.shape[1]

    def kernel_and_bias(self):
        pairs = [getattr(self, name).kernel_and_bias() for name in self.parts]
        pairs.append((self.conv3x3.weight, self.conv3x3.bias))
        if self.has_identity:
            pairs.append((dirac(self.shape[0], 1, 3), 0.0))
        return sum(kernel for kernel, _ in pairs), sum(bias for _, bias in pairs)
