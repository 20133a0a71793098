"""Commands that say, of what was typed wrong, which command it was typed to."""

import click
from typer.core import TyperCommand


class Command(TyperCommand):
    """A command whose usage errors know it; click's own parser leaves that out of some."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads what was typed.

        Raises:
            UsageError: it cannot be read; ``ctx`` is that of this command.
        """
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
