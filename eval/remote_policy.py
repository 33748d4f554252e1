"""``--policy ws://HOST:PORT``: a policy that another process or host serves (``pokevla-serve``).

Every simulator keeps a connection of its own, so that the server batches their looks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import numpy as np

from eval.errors import EvaluationError
from pokevla_jax.serving.client import PolicyClient
from pokevla_jax.serving.client import RefusedError
from pokevla_jax.serving.client import ServerUnavailableError

SCHEMES = ("ws://", "wss://")
API_KEY = "POKEVLA_API_KEY"
# What the protocol takes from the metadata: names as for a checkpoint that is read here, and the types they must have.
_FACTS: dict[str, tuple[type, ...]] = {
    "preset": (str,),
    "step": (int,),
    "seed": (int,),
    "pictures": (list,),
    "fingerprint": (str,),
    "action_horizon": (int,),
    "zero_images": (bool,),
    "zero_language": (bool,),
    "packages": (dict,),
    "exact": (bool,),
    "max_batch_size": (int,),
}


@dataclass
class RemoteInfer:
    """Asks the server and waits; picklable before its first call, so that it travels to the simulators.

    Attributes:
        address: the server's.
        fingerprint: the weights it must have; another server behind the same address is an error, not a result.
        api_key: its key, where it has one.
        timeout: seconds to wait for an answer.
    """

    address: str
    fingerprint: str
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    _client: PolicyClient | None = field(default=None, repr=False)

    def __call__(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The chunk of one observation.

        A lost connection is made anew once: a policy without memory can be asked twice.

        Raises:
            EvaluationError: when the server refuses, stays away or has other weights by now.
        """
        if observation.get("prompt") == "":
            # An ablation says nothing on purpose; servers take an empty instruction for a mistake otherwise.
            observation = {**observation, "no_instruction": True}
        try:
            try:
                return self._connected().infer(observation)
            except ServerUnavailableError:
                self._disconnect()
                return self._connected().infer(observation)
        except (ServerUnavailableError, RefusedError) as error:
            self._disconnect()
            raise EvaluationError(str(error)) from error

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def _connected(self) -> PolicyClient:
        if self._client is None:
            client = PolicyClient(self.address, api_key=self.api_key, timeout=self.timeout)
            found = client.metadata.get("fingerprint")
            if found != self.fingerprint:
                client.close()
                raise EvaluationError(
                    f"The server at {self.address} has weights {found} now, not {self.fingerprint}; start it again "
                    "with the checkpoint of this run, or give another --run-dir"
                )
            self._client = client
        return self._client


def read_server(address: str, api_key: str | None) -> dict[str, Any]:
    """What the server at ``address`` says of its policy: the entries that the protocol needs, of the right types.

    Raises:
        EvaluationError: when there is no server, or it does not say which policy it has.
    """
    try:
        client = PolicyClient(address, api_key=api_key, timeout=30.0)
    except (ServerUnavailableError, RefusedError) as error:
        raise EvaluationError(f"--policy {address}: {error}") from error
    client.close()
    for name, types in _FACTS.items():
        value = client.metadata.get(name)
        # A bool is an int to Python, and not to anyone else.
        wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if wrong or not _is_plain(value):
            raise EvaluationError(
                f"--policy {address}: the server does not state its policy's {name!r}, without which results cannot be "
                "told apart; serve the checkpoint with pokevla-serve"
            )
    return {name: client.metadata[name] for name in _FACTS}


def _is_plain(value: Any) -> bool:
    """Whether a stranger's value can stand in a JSON file: texts, numbers, and lists and maps of them."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(entry) for key, entry in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
