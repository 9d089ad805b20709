"""Command lines, made of a table of flags.

abseil reads them: `--flag=value`, `--flag value`, `--noflag`, `--flagfile=FILE`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as abseil

from repq_tf.train.errors import UserError
from repq_tf.train.settings.flags import FLAGS, Flag
from repq_tf.train.settings.kinds import Switch, did_you_mean

_HELP = ("help", "helpfull", "helpshort", "h", "?")
_WIDTH = 88


def read(
    arguments: Sequence[str], table: Mapping[str, Flag] = FLAGS
) -> tuple[dict[str, Any], list[str]]:
    """Reads a command line.

    Args:
        arguments: What follows the name of the program.
        table: Flag name -> `flags.Flag`.

    Returns:
        Flag name -> value, of those that were given; and the other arguments.

    Raises:
        UserError: A flag is unknown, or has no value or one that is not allowed.
    """
    found = abseil.FlagValues()
    found.set_gnu_getopt(True)
    for flag in table.values():
        switch = isinstance(flag.kind, Switch)
        line = abseil.Flag(_Reader(flag), None, flag.name, None, flag.help, boolean=switch)
        abseil.DEFINE_flag(line, found)
    try:
        _, *others = found(["", *arguments])
    except abseil.UnrecognizedFlagError as error:
        raise UserError(
            f"Unknown command line flag '{error.flagname}'"
            f"{did_you_mean(error.flagname, table) or '.'} --help lists all flags."
        ) from error
    except abseil.CantOpenFlagFileError as error:
        reason = str(error).partition("flagfile: ")[2]
        raise UserError(
            f"--flagfile must be a file that can be read. Received: {reason}"
        ) from error
    except (abseil.Error, ValueError) as error:
        raise _named(error, table) from error
    values = {name: found[name].value for name in table}
    return {name: value for name, value in values.items() if value is not None}, others


def _named(error: Exception, table: Mapping[str, Flag]) -> UserError:
    """Returns the error of a flag, whoever found it, in our words."""
    if isinstance(error.__context__, UserError):
        return error.__context__
    text = " ".join(str(error).split())
    name = text.removeprefix("Missing value for flag").strip(" -")
    if name in table:
        return UserError(f"--{name} must be {table[name].kind.allowed}. Received: nothing")
    return UserError(text)


class _Reader(abseil.ArgumentParser):
    """Reads and checks the value of one flag."""

    def __init__(self, flag: Flag) -> None:
        self._flag = flag

    def parse(self, argument: str) -> Any:
        value = self._flag.kind.read(argument)
        self._flag.check(value)
        return value


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Says whether a command line asks what the flags are."""
    arguments = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any(a.startswith("-") and a.lstrip("-") in _HELP for a in arguments)


def describe(program: str, table: Mapping[str, Flag] = FLAGS) -> str:
    """Returns the text of `--help`: what the program does, and its flags in their groups.

    Args:
        program: The documentation of the program.
        table: Flag name -> `flags.Flag`.
    """
    lines, group = [program.strip()], None
    for flag in table.values():
        if flag.group != group:
            group = flag.group
            lines += ["", f"{group or 'Flags'}:"]
        switch = isinstance(flag.kind, Switch)
        lines.append(f"  --[no]{flag.name}" if switch else f"  --{flag.name}")
        text = flag.help if flag.task is None else f"For --task={flag.task}. {flag.help}"
        if flag.default is not None and not switch:
            text += f" Default: {flag.default}."
        lines += textwrap.wrap(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
