"""A parser that says in one line what is wrong with a command line, and what was probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

from mkmeta.cli.output import report_error
from mkmeta.errors import ExitCode, UsageError, legible

_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")  # as argparse has it: no option


class KindParser(argparse.ArgumentParser):
    """argparse's, but for its errors: they are those of the program, also with --json, and end it with code 2."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse has it; an option that there is not is named before anything that is missing."""
        self.check_options(args or [])
        return super().parse_known_args(self.in_order(args or []), namespace)

    def in_order(self, args: Sequence[str]) -> list[str]:
        """The options first, each with its value, then the rest.

        Of `build M --userxattr DEST` argparse would take M for all there is to take, and know nothing of DEST.
        """
        options: list[str] = []
        rest: list[str] = []
        waiting = iter(args)
        for arg in waiting:
            if arg == "--":
                return [*options, *rest, arg, *waiting]
            if len(arg) < 2 or arg[0] != "-" or " " in arg or _NEGATIVE_NUMBER.fullmatch(arg):
                rest.append(arg)
                continue
            options.append(arg)
            if self._wants_another(arg):
                value = next(waiting, None)
                if value is None:
                    return list(args)  # which is an error
                options.append(value)
        return options + rest

    def _wants_another(self, arg: str) -> bool:
        """Whether the argument after an option is its value."""
        if arg.startswith("--"):
            action = self._option_string_actions.get(arg)
            return action is not None and action.nargs != 0
        for number, letter in enumerate(arg[1:], 2):
            action = self._option_string_actions.get("-" + letter)
            if action is None or action.nargs != 0:
                return action is not None and number == len(arg)
        return False

    def check_options(self, args: Iterable[str]) -> None:
        """Ends the program with an error where an option is given that the parser does not have."""
        before = ""
        for arg in args:
            if arg == "--":
                return
            if len(arg) < 2 or arg[0] != "-" or " " in arg or _NEGATIVE_NUMBER.fullmatch(arg):
                before = arg
                continue
            name = arg.partition("=")[0] if arg.startswith("--") else arg[:2]
            if name not in self._option_string_actions:
                meant = did_you_mean(name, self._option_string_actions)
                action = self._option_string_actions.get(before)
                if meant is None and action is not None and action.nargs != 0:
                    meant = f"write {before}={legible(arg)} if that is a value of {before}"
                self.fail(f"there is no option {legible(name)}", meant)
            if arg.removeprefix(name) in ("--", "=--"):  # argparse drops it, and has a list for a value
                self.fail(f"'--' is no value of {name}", "write ./-- for a file of that name")
            before = arg

    def error(self, message: str) -> NoReturn:
        """Prints the line, and ends the program."""
        hint = None
        if "expected one argument" in message or "expected at least one argument" in message:
            hint = "a value that begins with - is written behind an =, as in --option=-value"
        self.fail(message, hint)

    def fail(self, message: str, hint: str | None = None) -> NoReturn:
        """Prints what is wrong and what to do, and ends the program."""
        verb = self.prog.partition(" ")[2]
        shown = f"{verb}: {message}" if verb else message
        report_error(UsageError(legible(shown), hint=hint or f"`{self.prog} --help` explains the command line"))
        raise SystemExit(int(ExitCode.USAGE))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            meant = did_you_mean(str(value), choices)
            what = f"'{legible(str(value))}' is not one of {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"{what}: {meant}" if meant else what)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if action.type is int:
                raise argparse.ArgumentError(action, f"'{legible(arg_string)}' is not a whole number") from None
            raise error from None


def did_you_mean(word: str, known: Collection[str]) -> str | None:
    """A question, where one of the known words is nearly the given one."""
    begun = [one for one in known if one.startswith(word)] if word.strip("-") else []
    near = begun if len(begun) == 1 else difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else None
