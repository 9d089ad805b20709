"""Fitting: weights of an expression for which it computes a given convolution.

One branch, the *main* one, becomes the convolution; every other one is silenced: the
trainable factor nearest to its output (a batch norm's gamma, a scale, a kernel) becomes 0,
which leaves it a gradient. What cannot be silenced, such as an identity, is subtracted
from a plain convolution beside it or, failing that, from the main branch.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from repq_tf.branches import (
    BatchNorm,
    Branch,
    Chain,
    Convolution,
    NumpyReading,
    Online,
    Scale,
    Sum,
    UnitNorm,
)
from repq_tf.keras_api import Array, Pair
from repq_tf.kernels import AffineKernel
from repq_tf.layers import ReparamConv

_READING = NumpyReading()


@dataclasses.dataclass(frozen=True)
class Target:
    """What an expression has to compute, in float64.

    Attributes:
        affine: a convolution.
        moments: the mean and the variance of its output, `(channels,)`, where known.
        normalized: gain and beta of the batch norm behind it, whose statistics `moments`
            are: the target is `gain * (y - mean) + beta`. None for no batch norm.
    """

    affine: AffineKernel
    moments: tuple | None = None
    normalized: tuple | None = None

    def merged(self) -> "Target":
        """The same function without a batch norm of its own."""
        if self.normalized is None:
            return self
        assert self.moments is not None  # those of the batch norm
        (mean, variance), (gain, beta) = self.moments, self.normalized
        affine = self.affine.scale(gain, beta - mean * gain)
        return Target(affine, (beta, gain**2 * variance))


def fit_block(block: ReparamConv, target: Target) -> "Fit":
    """Sets the weights of a built `ReparamConv` so that it computes `target`.

    Returns:
        The `Fit` that did it.
    """
    fit = Fit()
    fit.fit(block.expression, target)
    if block.restored is not None:
        fit.settle(block.restored, target.merged())
    return fit


class Fit:
    """Sets the weights of expressions.

    Attributes:
        known: nodes whose statistics are true.
        guessed: those on the way to the main kernel whose statistics nobody knows. They are
            the identity in inference, and are not in training until they are calibrated.
    """

    def __init__(self, known: Iterable[Branch] = ()) -> None:
        self.known = list(known)
        self.guessed: list[BatchNorm] = []

    def fit(self, node: Branch, target: Target) -> None:
        """Makes `node` compute `target`.

        Raises:
            ValueError: it cannot; the message says why.
        """
        match node:
            case BatchNorm():
                self._batch_norm(node, target)
            case Sum():
                self._sum(node, target)
            case Chain():
                self._chain(node, target.merged())
            case Scale(child=UnitNorm(child=Convolution())) if not node.constant:
                self._length(node, target.merged())
            case Scale():
                self._scale(node, target.merged())
            case Convolution():
                affine = target.merged().affine
                kernel = affine.embed(node.kernel_size).regroup(node.groups).kernel
                node.kernel.assign(kernel)
                if node.bias is not None:
                    node.bias.assign(affine.bias)
            case Online() if not isinstance(node, UnitNorm):
                self.fit(node.child, target)
            case _:
                raise ValueError(f"branch {node.name!r} cannot take a given kernel")

    def settle(self, batch_norm: BatchNorm, target: Target) -> None:
        """Gives a batch norm behind the target's output `target`'s, or the identity's, map."""
        mean, variance = target.moments or (0.0, 1.0)
        (self.guessed if target.moments is None else self.known).append(batch_norm)
        gain, beta = target.normalized or (1.0, mean)
        full = np.ones(batch_norm.gamma.shape)
        batch_norm.gamma.assign(full * gain * np.sqrt(variance + batch_norm.epsilon))
        batch_norm.beta.assign(full * beta)
        batch_norm.statistics.moving_mean.assign(full * mean)
        batch_norm.statistics.moving_variance.assign(full * variance)

    def _batch_norm(self, node: BatchNorm, target: Target) -> None:
        self.settle(node, target)
        self.fit(node.child, Target(target.affine, target.moments))
        # A bias that the child has no place for.
        missing = target.affine.bias - node.child.merge(_READING).bias
        mean = node.statistics.moving_mean
        mean.assign(_READING.value(mean) - missing)

    def _sum(self, node: Sum, target: Target) -> None:
        main = _main_branch(node)
        others = [child for child in node.children if child is not main]
        rest = [child.merge(_READING) for child in others if not silence(child)]
        if rest:
            left = functools.reduce(AffineKernel.__add__, rest)
            beside = _counterweight(others, left)
            if beside is not None:
                self.fit(beside, Target(left.scale(-1.0)))
            else:
                target = Target(target.merged().affine + left.scale(-1.0))
        self.fit(main, target)

    def _scale(self, node: Scale, target: Target) -> None:
        if not node.constant:
            node.gain.assign(np.ones(node.gain.shape))
        gain = _READING.value(node.gain)
        if not gain.all():
            raise ValueError(f"the constant scale {node.name!r} is 0")
        shift = np.zeros_like(gain)
        if node.bias is not None and node.constant:
            shift = _READING.value(node.bias)
        moments = target.moments
        if moments is not None:
            moments = (moments[0] - shift) / gain, moments[1] / gain**2
        self.fit(node.child, Target(target.affine.scale(1 / gain, -shift / gain), moments))
        _complete_bias(node, target)

    def _length(self, node: Scale, target: Target) -> None:
        """A direction and its length; the direction of a filter of zeros stays."""
        leaf, kernel = node.child.child, target.affine.kernel
        norms = np.sqrt(np.sum(kernel**2, axis=(0, 1, 2)))
        kernel = np.where(norms > 0, kernel, _READING.value(leaf.kernel))
        affine = AffineKernel(kernel, np.zeros_like(norms), target.affine.groups)
        self.fit(leaf, Target(affine))
        node.gain.assign(norms)
        _complete_bias(node, target)

    def _chain(self, node: Chain, target: Target) -> None:
        """Factors the kernel: `P M S`, with P and S what stands before and after link M.

        `M = P+ W S+ + r (N - P+ P N S S+)`, where + is the pseudo-inverse and N the link's
        kernel as it is: the term in brackets cancels in the product and keeps the link's
        other directions alive. r <= 1 makes it no larger than the first term.
        """
        link = _main_link(node)
        if link is None:
            raise ValueError(
                f"{node.name!r}, a chain of several spatial convolutions, has no factors for it"
            )
        index = node.children.index(link)
        channels = link.kernel.shape[2] * link.groups
        before = _matrices(node.children[:index], channels, link.groups)
        after = _matrices(node.children[index + 1 :], link.filters, link.groups)
        wanted = _by_group(target.affine.embed(link.kernel_size).regroup(link.groups))
        initial = link.merge(_READING)
        free = _by_group(initial)
        left, right = np.linalg.pinv(before), np.linalg.pinv(after)
        kernel = _between(left, wanted, right)
        free = free - _between(left @ before, free, after @ right)
        size, limit = np.linalg.norm(free), np.linalg.norm(kernel)
        kernel = kernel + free * (limit / size if size > limit else 1.0)
        kernel = np.reshape(np.moveaxis(kernel, 2, 3), link.kernel.shape)
        self.fit(link, Target(AffineKernel(kernel, initial.bias, link.groups)))
        _complete_bias(node, target, node.children[-1])


def silence(node: Branch) -> bool:
    """Sets trainable weights so that a branch is 0 everywhere; returns whether it can be."""
    match node:
        case BatchNorm():
            zeroed = (node.gamma, node.beta)
        case Scale() if not node.constant:
            zeroed = (node.gain, node.bias)
        case Convolution():
            zeroed = (node.kernel, node.bias)
        case Scale():
            return silence(node.child) and node.bias is None
        case Online() if not isinstance(node, UnitNorm):
            return silence(node.child)
        case Chain():
            return any(silence(link) for link in reversed(node.children))
        case Sum():
            return all([silence(child) for child in node.children])
        case _:
            return False
    for variable in zeroed:
        if variable is not None:
            variable.assign(np.zeros(variable.shape))
    return True


def _main_branch(node: Sum) -> Branch:
    """The branch of a sum that has a kernel of full size, in a chain only if need be."""
    main = min(node.children, key=lambda child: _chains(child, node.kernel_size))
    if _chains(main, node.kernel_size) == math.inf:
        raise ValueError(f"no branch of {node.name!r} has a kernel of {node.kernel_size}")
    return main


def _chains(node: Branch, size: Pair) -> float:
    """How many chains lead to a kernel of the size; infinite if there is none."""
    match node:
        case Convolution():
            return 0 if node.kernel_size == size else math.inf
        case Sum():
            return min(_chains(child, size) for child in node.children)
        case Chain():
            link = _main_link(node)
            return math.inf if link is None or link.kernel_size != size else 1
        case BatchNorm() | Scale() | Online():
            return _chains(node.child, size)
        case _:
            return math.inf


def _main_link(chain: Chain) -> Convolution | None:
    """The convolution of a chain that has its full size, all others being 1x1, or None."""
    links = [
        link
        for link in chain.children
        if isinstance(link, Convolution) and link.kernel_size == chain.kernel_size
    ]
    return links[len(links) // 2] if links else None


def _counterweight(branches: Iterable[Branch], affine: AffineKernel) -> Convolution | None:
    """A silenced plain convolution that can hold a kernel, or None."""
    for node in branches:
        if isinstance(node, Convolution) and not affine.bias.any():
            larger = all(a >= b for a, b in zip(node.kernel_size, affine.size, strict=True))
            if larger and affine.groups % node.groups == 0:
                return node
    return None


def _complete_bias(node: Branch, target: Target, holder: Branch | None = None) -> None:
    """Puts what lacks of the target's bias into the bias of `holder`, a part of the node."""
    holder = holder or node
    bias = getattr(holder, "bias", None)
    if bias is not None and not getattr(holder, "constant", False):
        missing = target.affine.bias - node.merge(_READING).bias
        bias.assign(_READING.value(bias) + missing)


def _by_group(affine: AffineKernel) -> Array:
    """The kernel as `(kh, kw, groups, inputs, outputs)`."""
    kernel = np.reshape(affine.kernel, (*affine.kernel.shape[:3], affine.groups, -1))
    return np.moveaxis(kernel, 3, 2)


def _matrices(links: Sequence[Branch], channels: int, groups: int) -> Array:
    """The map of 1x1 links, of none the identity, as `(groups, inputs, outputs)`."""
    kernels = [link.merge(_READING) for link in links]
    kernels = kernels or [AffineKernel.identity(channels, "float64")]
    return _by_group(functools.reduce(AffineKernel.then, kernels).regroup(groups))[0, 0]


def _between(left: Array, kernel: Array, right: Array) -> Array:
    return np.einsum("gmi,hwgio,gon->hwgmn", left, kernel, right)
