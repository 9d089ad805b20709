"""Random values, by the names that they have in `hypothesis.strategies`.

Hypothesis tries small cases and variants of one first, in which many layers are rare. Here all
values are as likely; a strategy is a function of a `random.Random`, which may be one of
hypothesis (`hypothesis.strategies.randoms`), so that a failing case is made smaller.
"""


def sampled_from(values):
    """One of some values."""
    return lambda rng: rng.choice(list(values))


def integers(least, most):
    """A whole number between two, which it may be."""
    return lambda rng: rng.randint(least, most)


def booleans():
    """True or False."""
    return sampled_from((False, True))


def tuples(*strategies):
    """A tuple of what each strategy draws."""
    return lambda rng: tuple(strategy(rng) for strategy in strategies)


def dictionaries(keys, values, max_size):
    """A dict of no more items than `max_size`."""
    return lambda rng: {keys(rng): values(rng) for _ in range(rng.randint(0, max_size))}


def fixed_dictionaries(strategies):
    """A dict of what is drawn for each key."""
    return lambda rng: {key: strategy(rng) for key, strategy in strategies.items()}


def drawing(rng):
    """Returns `draw(strategy)`, which draws from a `random.Random`."""
    return lambda strategy: strategy(rng)
