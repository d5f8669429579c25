"""The parsers of ``fairseq-sam``: one-line complaints, flags anywhere, ``--version``."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn, Optional, Sequence


class OneLineEach(argparse.RawDescriptionHelpFormatter):
    """Leaves the names of subcommands the room that they need, so that each has one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=20, width=96)

    def add_argument(self, action: argparse.Action) -> None:
        """Adds one; argparse forgets that subcommands are indented."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line; the usage text is what ``--help`` is for."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class IntermixedParser(Parser):
    """A subcommand's parser, which takes flags before, between and after the positionals.

    By itself argparse gives all positionals to the first place where some stand, and refuses those
    that come later: ``DATA ADAM.pt --rho 0.1 SAM.pt``. Its intermixed parsing does not, but
    subparsers do not call it. The epilog's lines stay as they are.
    """

    _intermixing = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses as argparse does, but flags may stand anywhere."""
        if self._intermixing:  # argparse's own two rounds, of flags and of positionals
            return super().parse_known_args(args, namespace)
        self._intermixing = True
        try:
            # The second round would take what is after -- for flags.
            parse = super().parse_known_args
            if "--" not in args:
                parse = self.parse_known_intermixed_args
            namespace, extras = parse(args, namespace)
        finally:
            self._intermixing = False
        if extras:  # the main parser would leave the command's name out
            self.error(f"unrecognized arguments: {' '.join(extras)}")
        return namespace, extras


class ShowVersion(argparse.Action):
    """Prints the versions, without importing what they are of."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Optional[str] = None,
    ) -> None:
        """Prints and ends the program."""
        from fairseq_sam.commands.versions import versions

        print("\n".join(versions()))
        parser.exit()
