"""What the API reference makes of the package."""

import re
from typing import Any

import griffe


class Reference(griffe.Extension):
    """Reads docstrings, and finds public names, as Python does."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Makes `Example:` the heading under which Griffe expects `>>>`."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(
                r"^Example(?:, (.*))?:$", r"Examples: \1", text, flags=re.M
            )

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Makes of names that a module and its function share the function, where imported."""
        loader.resolve_aliases(implicit=True, external=False)
        packages = [pkg, pkg["api"]]
        while packages:
            package = packages.pop()
            packages += [module for module in package.modules.values() if module.is_init_module]
            for name, member in list(package.members.items()):
                function = shared(member)
                if function is not None:
                    package.set_member(name, griffe.Alias(name, function, parent=package))


def shared(member: griffe.Object | griffe.Alias) -> griffe.Object | griffe.Alias | None:
    """Returns the function that a package imports from a module of the same name."""
    if member.is_alias and not member.resolved:
        return None
    module = member.final_target if member.is_alias else member
    imported = module.is_module and module.parent and module.name in module.parent.imports
    return module.members.get(module.name) if imported else None
