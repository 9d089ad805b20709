"""Groups of sites whose tensors must share one scale: what holds for a group as a whole."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from repq_tf.keras_api import keras
from repq_tf.quantization.sites import Site

# Of so few bits, a level more or less is a seventh of the range and more.
_FEW_BITS = (2, 3)


@dataclasses.dataclass
class Group:
    """Sites with one quantizer.

    Attributes:
        name: that of one of them.
        sites: in topological order.
    """

    name: str
    sites: list

    @property
    def origins(self) -> list[Site]:
        """The sites whose outputs the quantizer rounds."""
        return [s for s in self.sites if s.kind in ("input", "convolution", "new_scale")]

    @property
    def fixed(self) -> list[Site]:
        """The sites whose scale the runtime prescribes."""
        return [site for site in self.sites if site.kind == "fixed"]

    def free_prescribed(self) -> None:
        """Puts the group's quantizer behind prescribed scales that are not those of all."""
        operators = [site.operator for site in self.fixed if site.operator is not None]
        grids = {(operator.step, operator.signed) for operator in operators}
        if len(grids) > 1 or (grids and self.origins):
            for site in self.fixed:
                site.kind = "new_scale"

    def share_sign(self) -> None:
        """Makes the group signed where one of its origins is."""
        signed = any(site.signed for site in (*self.origins, *self.fixed))
        for site in self.sites:
            if site.kind != "fixed":
                site.signed = signed

    def share_bits(self) -> None:
        """Gives the group the most bits that an origin asks for; None where one has none."""
        if len(self.fixed) == len(self.sites):
            return
        given = [site.bits.activation_bits for site in self.origins]
        known = [bits for bits in given if bits is not None]
        self._set(activation_bits=max(known, default=8) if known == given else None)

    def share_range(self, default: str) -> None:
        """Gives the group the range rule of the last origin that has not the default."""
        given = [site.bits.activation_range for site in self.origins]
        named = [rule for rule in given if rule != default]
        self._set(activation_range=(named or [default])[-1])

    def fix_step(self, name: str, step: float) -> None:
        """Fixes the step of the group's grid.

        Args:
            name: of the layer whose tensor's step it is.
            step: the step.
        """
        for site in self.sites:
            if site.kind == "fixed" or site.step not in (None, step):
                raise ValueError(
                    f"layer {name!r}: its step cannot be fixed at {step}, because the tensor "
                    f"must share that of layer {site.name!r}, which is fixed already"
                )
            site.step = step

    def prescribe(self, floats: Collection[str]) -> None:
        """Gives tensors sharing a prescribed scale that scale and 8 bits; not float layers.

        Args:
            floats: names of parts of layers that stay in floating point, and have none.
        """
        for fixed in self.fixed:
            assert fixed.operator is not None  # which makes it fixed
            for site in self.sites:
                site.step = fixed.operator.step
            self._set(activation_bits=None if fixed.name in floats else 8)

    def mirror(self) -> None:
        """Puts one level more above 0 where PReLUs alone make the group, on few bits."""
        few = all(site.bits.activation_bits in _FEW_BITS for site in self.sites)
        rarely_negative = all(isinstance(s.layer, keras.layers.PReLU) for s in self.origins)
        for site in self.sites:
            site.mirrored = few and bool(self.origins) and rarely_negative and site.signed

    def _set(self, **settings: Any) -> None:
        for site in self.sites:
            site.bits = dataclasses.replace(site.bits, **settings)


def form_groups(sites: Mapping[str, Site]) -> dict[str, Group]:
    """Forms groups by union-find, and tells each site the name of its own.

    Operators that keep the scale join the groups of all their inputs.

    Args:
        sites: sites by name, in topological order.

    Returns:
        `{name: Group}`, in the order of their first sites.
    """
    parent = {name: name for name in sites}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for site in sites.values():
        if site.kind == "same_scale":
            for source in site.inputs:
                parent[find(site.name)] = find(source)
    groups: dict[str, Group] = {}
    for site in sites.values():
        site.group = find(site.name)
        groups.setdefault(site.group, Group(site.group, [])).sites.append(site)
    for group in groups.values():
        group.free_prescribed()
    return groups
