"""Names inside a block: what the authors' modules call the branches of ours.

A table maps our names to theirs. Our name of a weight is its path in the block's
expression, `stacked/square/kernel`, where batch norms and scales do not count as steps;
a key matches every path that ends in it, and the longest key wins. A key without the
weight's own name maps a whole convolution or batch norm to a module.
Several names, or `Source`s, are those of several authors; the first that a checkpoint has is
taken.
Sources: the repositories DingXiaoH/RepVGG, ACNet and DiverseBranchBlock,
cxxgtxy/QARepVGG, JUGGHM/OREPA_CVPR2022, apple/ml-mobileone, xindongzhang/ECBSR, and timm.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from repq_tf.branches import LAPLACIAN, SOBEL_X, SOBEL_Y
from repq_tf.checkpoints.layouts import (
    Source,
    filtered,
    folded,
    kernel,
    residual,
    row,
    total,
    vector,
)
from repq_tf.keras_api import Layer, Pair, keras
from repq_tf.layers import (
    ECB,
    ACBlock,
    ConvBlock,
    ConvBNBlock,
    DenseBlock,
    DiverseBranchBlock,
    MobileOneBlock,
    OREPABlock,
    OREPARepVGGBlock,
    OREPAStem,
    QARepVGGBlock,
    ReparamConv,
    RepVGGBlock,
    SqueezeExcite,
)
from repq_tf.layers.blocks.orepa import frequency_prior


@dataclasses.dataclass(frozen=True)
class Table:
    """The names inside one block.

    Attributes:
        names: our names to a module's name, a `Source`, or several of them.
        constants: tensors that are no weights, by name, and the values they must have.
    """

    names: dict
    constants: dict = dataclasses.field(default_factory=dict)


def block_table(layer: Layer) -> Table:
    """The `Table` of a layer; an empty one for a layer that no author has."""
    make = _TABLES.get(type(layer))
    return make(layer) if make else Table({})


def _repvgg(block: ReparamConv) -> Table:
    """RepVGG's and QARepVGG's, whose 1x1 branch may be a convolution alone."""
    return Table(
        {
            "square": ("rbr_dense.conv", "conv_kxk.conv"),
            "square_bn": ("rbr_dense.bn", "conv_kxk.bn"),
            "pointwise": ("rbr_1x1.conv", "conv_1x1.conv", "rbr_1x1"),
            "pointwise_bn": ("rbr_1x1.bn", "conv_1x1.bn"),
            "identity_bn": ("rbr_identity", "identity"),
            "bn": "bn",
        }
    )


def _mobileone(block: MobileOneBlock) -> Table:
    names = {
        "scale": ("rbr_scale.conv", "conv_scale.conv"),
        "scale_bn": ("rbr_scale.bn", "conv_scale.bn"),
        "skip_bn": ("rbr_skip", "identity"),
    }
    for index in range(block.branches):
        for ours, theirs in ((f"conv{index}", "conv"), (f"conv{index}_bn", "bn")):
            names[ours] = (f"rbr_conv.{index}.{theirs}", f"conv_kxk.{index}.{theirs}")
    return Table(names)


def _acnet(block: ReparamConv) -> Table:
    parts = {"square": "square", "horizontal": "hor", "vertical": "ver"}
    names = {}
    for ours, theirs in parts.items():
        names[ours] = (f"{theirs}_conv", f"acb.{theirs}_conv")
        names[f"{ours}_bn"] = (f"{theirs}_bn", f"acb.{theirs}_bn")
    return Table(names)


def _dbb(block: ReparamConv) -> Table:
    return Table(
        {
            "square": "dbb_origin.conv",
            "square_bn": "dbb_origin.bn",
            "pointwise": "dbb_1x1.conv",
            "pointwise_bn": "dbb_1x1.bn",
            "averaged/first": "dbb_avg.conv",
            "averaged/first_bn": "dbb_avg.bn.bn",
            "averaged_bn": "dbb_avg.avgbn",
            "average_bn": "dbb_avg.avgbn",
            "stacked/first": "dbb_1x1_kxk.conv1",
            "stacked/first/residual": "dbb_1x1_kxk.idconv1",
            "stacked/first_bn": "dbb_1x1_kxk.bn1.bn",
            "stacked/square": "dbb_1x1_kxk.conv2",
            "stacked_bn": "dbb_1x1_kxk.bn2",
        }
    )


def _ecb(block: ECB) -> Table:
    names = {
        "square": "conv3x3",
        "expand/kernel": kernel("conv1x1_3x3.k0", inner=True),
        "expand/bias": vector("conv1x1_3x3.b0", inner=True),
        "expanded_square/kernel": kernel("conv1x1_3x3.k1"),
        "expanded_square/bias": vector("conv1x1_3x3.b1"),
    }
    constants = {}
    edges = {"sobel_x": ("sbx", SOBEL_X), "sobel_y": ("sby", SOBEL_Y)}
    edges["laplacian"] = ("lpl", LAPLACIAN)
    for ours, (short, filters) in edges.items():
        theirs = f"conv1x1_{short}"
        names[f"{ours}_pointwise/kernel"] = kernel(f"{theirs}.k0")
        names[f"{ours}_pointwise/bias"] = vector(f"{theirs}.b0")
        names[f"{ours}_scale/gain"] = vector(f"{theirs}.scale")
        names[f"{ours}_scale/bias"] = vector(f"{theirs}.bias")
        constants[f"{theirs}.mask"] = np.broadcast_to(filters, (block.filters, 1, 3, 3))
    return Table(names, constants)


_ROWS = ("origin", "average", "prior", "stacked", "pointwise", "separable")
_FILTERED = ("average", "prior")


def _generated(
    block: ReparamConv,
    stem: str,
    module: str = "",
    name: str = "generated",
    size: Pair | None = None,
    mirrored: bool = False,
    rows: Sequence[str] = _ROWS,
) -> Table:
    """OREPA's generated kernel.

    Args:
        block: the block.
        stem: what its tensors' names begin with.
        module: the module it is in, with a dot.
        name: our name of the kernel.
        size: of the kernel; defaults to the block's.
        mirrored: whether the kernel is turned by half a turn.
        rows: our names of the branches that the rows of the authors' `vector` scale.
    """
    size = size or block.kernel_size
    theirs, ours = f"{module}{stem}", frequency_prior(size, block.filters)
    first = (f"{theirs}_1x1_kxk_idconv1", f"{module}id_tensor")
    terms = {
        "origin/kernel": kernel(f"{theirs}_origin", mirrored),
        "average/first/kernel": kernel(f"{theirs}_avg_conv"),
        "prior/first/kernel": filtered(
            f"{theirs}_pfir_conv", f"{theirs}_prior", ours, mirrored
        ),
        "stacked/first/kernel": total(*first),
        "stacked/first/residual/kernel": residual(*first),
        "stacked/square/kernel": kernel(f"{theirs}_1x1_kxk_conv2", mirrored),
        "pointwise/kernel": kernel(f"{theirs}_1x1"),
        "separable/depthwise/kernel": kernel(f"{theirs}_gconv_dw", mirrored),
        "separable/pointwise/kernel": kernel(f"{theirs}_gconv_pw", turns=block.groups),
    }
    for index, branch in enumerate(rows):
        scale = f"{branch}/filters_scale" if branch in _FILTERED else f"{branch}_scale"
        terms[f"{scale}/gain"] = row(f"{module}vector", index)
    names = {f"{name}/sum/{key}": source for key, source in terms.items()}
    return Table(names, {f"{theirs}_avg_avg": np.full(size, 1 / np.prod(size))})


def _orepa(block: OREPABlock) -> Table:
    if block.kernel_size == (1, 1):
        return Table(
            {
                "origin/kernel": kernel("weight_or1x1_origin"),
                "product/first/kernel": kernel("weight_or1x1_l2i_conv1"),
                "product/first/residual/kernel": residual("weight_or1x1_l2i_conv1"),
                "product/second/kernel": kernel("weight_or1x1_l2i_conv2"),
                "product/second/residual/kernel": residual("weight_or1x1_l2i_conv2"),
                "origin_scale/gain": row("vector", 0),
                "product_scale/gain": row("vector", 1),
                "bn": "bn",
            }
        )
    table = _generated(block, "weight_orepa")
    return Table({**table.names, "bn": "bn"}, table.constants)


def _orepa_stem(block: OREPAStem) -> Table:
    """The authors compose by correlation: a convolution with all but the first mirrored."""
    names, constants = {"bn": "bn"}, {}
    for index in range((block.kernel_size[0] - 1) // 2):
        table = _generated(
            block,
            "weight_orepa",
            module=f"weight{index}.",
            name=f"link{index}",
            size=(3, 3),
            mirrored=index > 0,
        )
        names.update(table.names)
        constants.update(table.constants)
    return Table(names, constants)


def _orepa_repvgg(block: OREPARepVGGBlock) -> Table:
    rows = [name for name in _ROWS if name != "pointwise"]
    table = _generated(block, "weight_rbr", module="rbr_dense.", rows=rows)
    names = {
        "pointwise": "rbr_1x1.conv",
        "pointwise_bn": "rbr_1x1.bn",
        "generated_bn": "rbr_dense.bn",
        "identity_bn": "rbr_identity",
    }
    return Table({**table.names, **names}, table.constants)


# What the authors call a merged convolution.
_MERGED = (
    *("rbr_reparam", "reparam_conv", "dbb_reparam", "orepa_reparam", "or1x1_reparam"),
    *("or_large_reparam", "fused_conv", "acb.fused_conv", "conv3x3", "conv", "0"),
)


def _merged(conv: Layer) -> tuple[str | Source, ...]:
    """The names of one convolution; in ACNet's deployed files some have kept batch norms.

    Without a bias there is no place for what the batch norm adds.
    """
    return (folded("conv", "bn"), *_MERGED) if conv.use_bias else _MERGED


_TABLES = {
    ACBlock: _acnet,
    ConvBNBlock: lambda _: Table({"conv": "conv", "bn": "bn"}),
    ConvBlock: lambda block: Table({"conv": _merged(block)}),
    DenseBlock: lambda _: Table({"conv": ""}),
    DiverseBranchBlock: _dbb,
    ECB: _ecb,
    MobileOneBlock: _mobileone,
    OREPABlock: _orepa,
    OREPARepVGGBlock: _orepa_repvgg,
    OREPAStem: _orepa_stem,
    QARepVGGBlock: _repvgg,
    RepVGGBlock: _repvgg,
    SqueezeExcite: lambda _: Table(
        {
            "reduce": ("se.down", "se.reduce", "attn.fc1"),
            "expand": ("se.up", "se.expand", "attn.fc2"),
        }
    ),
    keras.layers.Conv2D: lambda layer: Table({"": _merged(layer)}),
    keras.layers.Dense: lambda _: Table({"": ""}),
    keras.layers.DepthwiseConv2D: lambda layer: Table({"": _merged(layer)}),
    keras.layers.PReLU: lambda _: Table({"": ("act", "1")}),
}
