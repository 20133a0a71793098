"""Attacks by name, one published attack per file."""

from typing import TYPE_CHECKING

from leakmap.registry.registry import Registry

if TYPE_CHECKING:
    from leakmap.attacker.protocol import Attack

attacks: "Registry[Attack]" = Registry("attack", __name__)
DEFAULT = "strongest"
"""What is run where no attack is named."""
