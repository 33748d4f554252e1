"""How fast a run is: samples, tokens and model FLOPs per second, and MFU where the device's peak is known."""

from collections.abc import Mapping

from jax.sharding import Mesh

from pokevla_jax import flops
from pokevla_jax.config import Config
from pokevla_jax.sharding import flatten
from pokevla_jax.training.state import TrainState


def count_flops(config: Config, abstract: TrainState) -> flops.TrainFlops:
    """FLOPs of one sample's training step, with what this state trains and what it freezes."""
    trained, frozen = flatten(abstract.trained), flatten(abstract.frozen)
    return flops.train_flops(config, [*trained, *frozen], frozen.keys())


class Speed:
    """Completes the figures of a log line."""

    def __init__(self, config: Config, counted: flops.TrainFlops, mesh: Mesh):
        self._tokens, self._flops = flops.sequence_length(config), counted.student
        self._num_devices = mesh.size
        self._peak = flops.peak_flops(mesh.devices.flat[0].device_kind)

    def extend(self, values: Mapping[str, float]) -> dict[str, float]:
        """``values`` with tokens, TFLOP of the student per second and device, and MFU."""
        samples = values["samples_per_second"]
        result = dict(values) | {"tokens_per_second": samples * self._tokens}
        result["tflops_per_second_per_device"] = self._flops * samples / self._num_devices / 1e12
        if self._peak is not None:
            result["mfu"] = flops.mfu(self._flops, samples, self._num_devices, self._peak)
        return result
