"""The names of the models, as data: what they are for and which network is their plain twin.

A command line is checked against them before Keras is imported.
"""

import dataclasses
from collections.abc import Iterable, Iterator

TASKS = ("classification", "super_resolution")


@dataclasses.dataclass(frozen=True)
class ModelName:
    """A line of the table.

    Attributes:
        plain: name of the plain twin: the same network of ordinary convolutions; its own name
            for a network that is plain itself.
        task: what it is for, one of `TASKS`.
    """

    plain: str
    task: str = "classification"


def _resnets() -> Iterator[tuple[str, ModelName]]:
    for size in (18, 34, 50):
        plain = f"resnet{size}"
        for family in ("", "ac_", "dbb_", "orepa_"):
            yield f"{family}{plain}", ModelName(plain)
    for family in ("", "ac_", "dbb_", "orepa_", "repvgg_"):
        yield f"{family}resnet8", ModelName("resnet8")


def _repvggs() -> Iterator[tuple[str, ModelName]]:
    a = ("a0", "a1", "a2")
    b = ("b0", "b1", "b1g2", "b1g4", "b2", "b2g2", "b2g4", "b3", "b3g2", "b3g4")
    for size in ("tiny", *a, *b, "d2se"):
        plain = f"repvgg_{size}_plain"
        yield plain, ModelName(plain)
        yield f"repvgg_{size}", ModelName(plain)
        if size != "d2se":
            yield f"qarepvgg_{size}", ModelName(plain)
        if size in a:
            yield f"orepa_repvgg_{size}", ModelName(plain)
    yield "oabn_repvgg_tiny", ModelName("repvgg_tiny_plain")


def _repopts() -> Iterator[tuple[str, ModelName]]:
    for size in ("b1", "b2", "l1", "l2"):
        plain = f"repopt_vgg_{size}"
        yield plain, ModelName(plain)
        yield f"{plain}_search", ModelName(plain)


def _pairs(
    names: Iterable[str], task: str = "classification"
) -> Iterator[tuple[str, ModelName]]:
    """Networks whose plain twin is called like them."""
    for name in names:
        for each in (name, f"{name}_plain"):
            yield each, ModelName(f"{name}_plain", task)


_MOBILEONES = [f"mobileone_{size}" for size in ("tiny", "s0", "s1", "s2", "s3", "s4")]
_ECBSRS = [f"ecbsr_m{m}c{c}" for m in (4, 10, 16) for c in (8, 16, 32, 64)]
_REPVGG_SRS = [f"repvgg_sr_m{m}c{c}" for m in (4, 10) for c in (16, 32)]

MODELS = {
    **dict(_resnets()),
    **dict(_repvggs()),
    **dict(_repopts()),
    **dict(_pairs(_MOBILEONES)),
    **dict(_pairs([*_ECBSRS, *_REPVGG_SRS], "super_resolution")),
}


def list_models(task: str | None = None) -> list[str]:
    """Returns the names of all models, sorted.

    Args:
        task: "classification" or "super_resolution" for the models of one task.

    Example:
        >>> repq_tf.models.list_models("super_resolution")[:2]
        ['ecbsr_m10c16', 'ecbsr_m10c16_plain']
    """
    if task is not None:
        check_task(task)
    return sorted(name for name, model in MODELS.items() if task in (None, model.task))


def check_task(task: str) -> str:
    """Returns a task, or raises ValueError listing those there are."""
    if task not in TASKS:
        raise ValueError(f"task must be one of: {', '.join(TASKS)}. Received: {task!r}")
    return task
