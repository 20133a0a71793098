"""Attacks by name, one published attack per file; ``path/to/file.py:constructor`` is a user's own."""

from typing import TYPE_CHECKING

from leakmap.registry.registry import Registry

if TYPE_CHECKING:
    from leakmap.attacker.protocol import Attack

attacks: "Registry[Attack]" = Registry("attack", __name__, own=True)
DEFAULT = "strongest"
"""What is run where no attack is named."""
