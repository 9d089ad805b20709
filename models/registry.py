"""The table of models by name."""

_MODELS = {}


def register(function, plain=None):
    """Enters a function that builds a model under its name.

    Args:
        function: `function(classes, input_shape, width, **block_options)`.
        plain: name of its plain twin: the same network of ordinary convolutions. None for
            a network that is plain itself.

    Returns:
        The function.
    """
    name = function.__name__
    if name in _MODELS:
        raise ValueError(f"name must be new. Received: {name!r}, which is registered")
    _MODELS[name] = (function, plain or name)
    return function


def list_models():
    """Returns the names of all models, sorted."""
    return sorted(_MODELS)


def build(name, classes=1000, input_shape=(224, 224, 3), width=1.0, **block_options):
    """Builds a model by name.

    Args:
        name: one of `list_models()`.
        classes: number of outputs.
        input_shape: `(height, width, channels)` of the images.
        width: what every number of channels is multiplied by.
        **block_options: passed to every block.

    Returns:
        A Functional `keras.Model`.

    Example:
        >>> model = repq_tf.models.build("ac_resnet18", classes=10, input_shape=(32, 32, 3))
    """
    function, _ = _find(name)
    return function(classes=classes, input_shape=input_shape, width=width, **block_options)


def plain_twin(name):
    """Returns the name of a model's plain twin: what the Plain baseline trains.

    Args:
        name: one of `list_models()`.

    Example:
        >>> repq_tf.models.plain_twin("ac_resnet18")
        'resnet18'
    """
    _, plain = _find(name)
    return plain


def _find(name):
    if name not in _MODELS:
        raise ValueError(f"name must be one of: {', '.join(list_models())}. Received: {name!r}")
    return _MODELS[name]
