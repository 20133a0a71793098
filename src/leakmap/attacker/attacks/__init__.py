"""Attacks by name, one published attack per file."""

from leakmap.attacker.protocol import Attack
from leakmap.registry.registry import Registry

attacks: Registry[Attack] = Registry("attack", __name__)
DEFAULT = "strongest"
"""What is run where no attack is named."""
