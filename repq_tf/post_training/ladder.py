"""The accuracy contract: settings tried from the cheapest on, until one is good enough."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from repq_tf.arguments import number
from repq_tf.keras_api import keras
from repq_tf.text import columns
from repq_tf.user_warning import warn_user

# `metric(model)`: how good a model is, float or quantized; the larger, the better.
Metric: TypeAlias = Callable[[keras.Model], float]
# What is tried, each on top of what was before: the steps of a ladder.
_STEPS: tuple[dict[str, Any], ...] = (
    {"weight_range": "output_error", "activation_range": "output_error"},
    {"rounding": "descent"},
    {"activation_bits": 16},
)
_HEADER = (
    "",
    "weight range",
    "activation range",
    "rounding",
    "activation bits",
    "metric",
    "drop",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a rung of the ladder sets.

    Attributes:
        weight_range: of the layers that no rule names.
        activation_range: likewise.
        rounding: how the levels of kernels are chosen.
        activation_bits: of the layers that no rule names.
    """

    weight_range: str
    activation_range: str
    rounding: str
    activation_bits: int | None

    @property
    def of_layers(self) -> dict[str, Any]:
        """Those that are settings of layers."""
        return {key: value for key, value in vars(self).items() if key != "rounding"}


@dataclasses.dataclass(frozen=True)
class Rung:
    """A quantized model that was judged.

    Attributes:
        settings: its `Settings`.
        value: the metric's value of it.
        drop: by how much that of the float model is larger.
        holds: whether the drop is as small as was asked for.
    """

    settings: Settings
    value: float
    drop: float
    holds: bool


@dataclasses.dataclass(frozen=True)
class Ladder:
    """What `post_training_quantize(max_drop=...)` tried; `str(ladder)` is the table.

    Attributes:
        float_value: the metric's value of the float model.
        max_drop: the largest drop allowed.
        rungs: a `Rung` for each quantized model, in the order of trial.
    """

    float_value: float
    max_drop: float
    rungs: tuple[Rung, ...]

    @property
    def best(self) -> int:
        """The number of the rung with the smallest drop: the last one, if it holds."""
        return min(range(len(self.rungs)), key=lambda k: self.rungs[k].drop)

    @property
    def holds(self) -> bool:
        """Whether a rung holds."""
        return self.rungs[-1].holds

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [
            _HEADER,
            ("float", "", "", "", "", f"{self.float_value:.5g}", ""),
        ]
        for k, rung in enumerate(self.rungs, start=1):
            cells = [str(value) for value in vars(rung.settings).values()]
            drop = f"{rung.drop:.3g}" + (" holds" if rung.holds else "")
            lines.append((str(k), *cells, f"{rung.value:.5g}", drop))
        best = f"none holds; {self.best + 1} is the best"
        return f"{columns(lines)}\nmax_drop={self.max_drop:g}: " + (
            f"{len(self.rungs)} holds" if self.holds else best
        )


def rungs_from(first: Settings, roundings: Sequence[str]) -> Iterator[Settings]:
    """The settings to try: the given ones, and all that a step makes better.

    Args:
        first: the given ones.
        roundings: what there is, the worst one first; no step goes back to a worse one.
    """
    yield first
    settings = first
    for changes in _STEPS:
        rounding = changes.get("rounding", settings.rounding)
        if roundings.index(rounding) < roundings.index(settings.rounding):
            continue
        changed = dataclasses.replace(settings, **changes)
        if changed != settings:
            yield changed
        settings = changed


def climb(
    rungs: Sequence[Settings],
    quantized: Callable[[Settings, bool], keras.Model],
    metric: Metric,
    model: keras.Model,
    max_drop: float,
    verbose: bool,
) -> keras.Model:
    """Tries settings until one holds.

    Args:
        rungs: the settings to try, in order.
        quantized: `quantized(settings, verbose)` returns the model of some settings.
        metric: judges it.
        model: the float model.
        max_drop: the largest drop allowed.
        verbose: whether to print what was tried.

    Returns:
        The model that holds, or else the best one, with a warning; its attribute `ladder` is
        the `Ladder`.
    """

    def judged(candidate: keras.Model) -> float:
        return float(number(metric(candidate), "what metric returns"))

    real, tried = judged(model), list[Rung]()
    best: Any = None
    for settings in rungs:
        candidate = quantized(settings, verbose)
        value = judged(candidate)
        tried.append(Rung(settings, value, real - value, real - value <= max_drop))
        ladder = Ladder(real, max_drop, tuple(tried))
        if verbose:
            print(ladder)
        if ladder.best == len(tried) - 1:
            best = candidate
        if ladder.holds:
            break
    else:
        warn_user(
            f"max_drop: no settings hold {max_drop:g}; the smallest drop is "
            f"{tried[ladder.best].drop:.3g}"
        )
    best.ladder = ladder
    return best
