"""Errors a user of the simulator can act on; every message is one sentence saying what to do."""


class SimulationError(ValueError):
    """The simulator was asked for something it does not have, or given something it cannot use."""


class AssetError(FileNotFoundError):
    """The benchmark's meshes, textures or scenes are missing or incomplete."""
