"""The least noise for a budget: one choice for each layer, by their convex hulls."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to quantize a layer.

    Attributes:
        bits: of its weights.
        cost: what they cost.
        noise: what they harm.
    """

    bits: int
    cost: float
    noise: float


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A choice for each layer.

    Attributes:
        choices: `{layer: Choice}`.
    """

    choices: Mapping[str, Choice]

    @property
    def cost(self) -> float:
        """The sum of the layers' costs."""
        return sum(choice.cost for choice in self.choices.values())

    @property
    def noise(self) -> float:
        """The sum of the layers' noises."""
        return sum(choice.noise for choice in self.choices.values())


def hull(choices: Iterable[Choice]) -> list[Choice]:
    """The choices on the lower convex hull of (cost, noise), the cheapest first.

    From each to the next, noise falls, and by less for each unit of cost than before.
    """
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, c.noise)):
        if found and choice.noise >= found[-1].noise:
            continue
        while len(found) > 1 and _slope(found[-2], choice) >= _slope(found[-2], found[-1]):
            found.pop()
        found.append(choice)
    return found


def _slope(one: Choice, two: Choice) -> float:
    """How much noise a unit of cost takes away, from one choice to a dearer one."""
    saved, cost = one.noise - two.noise, two.cost - one.cost
    return saved / cost if cost else math.inf


def allocate(
    choices: Mapping[str, Sequence[Choice]], budget: float = math.inf
) -> list[Allocation]:
    """Spends a budget greedily: each time on the step of a hull that saves most for its cost.

    Every allocation on the way but for the last ones, where the best steps no longer fit, has
    the least noise of all that cost no more; the result's noise is above the least one by no
    more than a single step saves.

    Args:
        choices: those of each layer.
        budget: the largest cost; the cheapest choices are taken in any case.

    Returns:
        The allocations on the way, from the cheapest one to the result.
    """
    hulls = {name: hull(found) for name, found in choices.items()}
    state = {name: found[0] for name, found in hulls.items()}
    steps = [
        (_slope(one, two), name, two)
        for name, found in hulls.items()
        for one, two in itertools.pairwise(found)
    ]
    cost = sum(choice.cost for choice in state.values())
    path, full = [Allocation(dict(state))], set()
    for _, name, choice in sorted(steps, key=lambda step: -step[0]):
        more = choice.cost - state[name].cost
        if name in full or cost + more > budget:
            full.add(name)  # what follows in this layer costs more still
            continue
        cost, state[name] = cost + more, choice
        path.append(Allocation(dict(state)))
    return path
