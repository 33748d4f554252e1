"""Draws that depend on a name alone, so that other data, hosts or versions of a library never change them."""

import hashlib


def uniform(name: str) -> float:
    """A number in [0, 1) from the SHA-256 of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
