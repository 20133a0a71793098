"""Commands that say which of them was typed wrong, and that can be quiet."""

from typing import Any

import click
from typer.core import TyperCommand, TyperOption

_QUIET = "leakmap.quiet"


def quiet() -> bool:
    """Whether the command that runs was asked to say nothing of its progress."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


class Command(TyperCommand):
    """A command with ``--quiet``, whose usage errors know it; click's own parser leaves that out of some."""

    def __init__(self, name: str | None, **how: Any) -> None:
        hushes = TyperOption(
            param_decls=["--quiet"],
            is_flag=True,
            default=False,
            expose_value=False,
            help="Say nothing of progress, neither before nor meanwhile.",
            callback=lambda context, _, wanted: context.meta.update({_QUIET: wanted}),
        )
        super().__init__(name, **{**how, "params": [*(how.get("params") or ()), hushes]})

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
