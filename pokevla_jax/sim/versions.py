"""The protocol facts of a simulated result: what must agree before two results may be merged or compared."""

from typing import Any

from pokevla_jax.sim import simplify
from pokevla_jax.sim.assets import Assets
from pokevla_jax.sim.upstream import choose_gl
from pokevla_jax.sim.upstream import package_versions


def protocol_facts(assets: Assets, *, renderer: str, image_size: int, hard_reset: bool) -> dict[str, Any]:
    """Versions, renderer and assets of a simulator, as plain JSON types.

    ``published`` says whether pixels and resets are those of published LIBERO evaluations; stand-in assets never are.
    """
    return {
        "versions": package_versions(),
        "renderer": simplify.settings() if renderer == "fast" else renderer,
        "gl": choose_gl(),
        "image_size": image_size,
        "hard_reset": hard_reset,
        "assets": assets.kind,
        "assets_sha256": assets.sha256,
        "published": renderer == "robosuite" and hard_reset and image_size == 256 and assets.kind == "real",
    }
