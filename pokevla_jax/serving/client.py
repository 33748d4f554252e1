"""The other side of ``serving.server``: a connection that asks one question at a time."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from websockets.exceptions import InvalidHandshake
from websockets.exceptions import InvalidStatus
from websockets.exceptions import InvalidURI
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from pokevla_jax.serving import protocol


class ServerUnavailableError(OSError):
    """No server answers there, or it went away; asking again later can help."""


class RefusedError(ValueError):
    """The server answered that it will not; one sentence, its own."""


class PolicyClient:
    """A connection to a policy server; ``metadata`` holds what it said of its policy.

    Args:
        address: ``ws://HOST:PORT`` or ``wss://...``.
        api_key: the server's key, where it has one.
        timeout: seconds to wait for the connection, and for each answer.

    Raises:
        ServerUnavailableError, RefusedError: one sentence.
    """

    def __init__(self, address: str, *, api_key: str | None = None, timeout: float = 60.0):
        self._address, self._timeout = address, timeout
        self._open = contextlib.ExitStack()
        headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        try:
            # Straight to the host: proxies of the environment are for the web.
            self._connection = self._open.enter_context(
                connect(
                    address,
                    additional_headers=headers,
                    compression=None,
                    max_size=protocol.MAX_MESSAGE_BYTES,
                    open_timeout=timeout,
                    proxy=None,
                )
            )
        except (InvalidURI, ValueError) as error:  # the latter for a port that is no number
            raise RefusedError(f"{address!r} is no address of a policy server; write ws://HOST:PORT") from error
        except InvalidStatus as error:
            said = (error.response.body or b"").decode("utf-8", "replace").strip()[:200]
            code = error.response.status_code
            kind = ServerUnavailableError if code >= 500 else RefusedError
            raise kind(f"The server at {address} refused the connection ({code}): {said}") from error
        except (OSError, InvalidHandshake) as error:
            raise ServerUnavailableError(f"No policy server answers at {address} ({error}); is it running?") from error
        try:
            self.metadata = self._receive()
        except ValueError:
            self.close()
            raise

    def infer(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The action chunk ``[t, a]`` of one observation.

        Raises:
            ServerUnavailableError: when the connection is lost or no answer comes in time; connect anew.
            RefusedError: when the server refuses the observation.
        """
        message = protocol.pack(observation)
        try:
            self._connection.send(message)
        except (OSError, WebSocketException) as error:
            raise self._lost(error) from error
        actions = self._receive().get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
            raise RefusedError(f"The server at {self._address} answered without an array of actions")
        return actions

    def close(self) -> None:
        """Ends the connection."""
        self._open.close()

    def _receive(self) -> dict[str, Any]:
        try:
            message = self._connection.recv(self._timeout)
        except (OSError, WebSocketException) as error:
            # An answer that came too late would be taken for the next question's.
            self.close()
            raise self._lost(error) from error
        if isinstance(message, str):
            raise RefusedError(message)
        try:
            return protocol.unpack(message)
        except protocol.ProtocolError as error:
            raise RefusedError(f"What answers at {self._address} is no policy server: {error}") from error

    def _lost(self, error: Exception) -> ServerUnavailableError:
        reason = str(error) or f"no answer within {self._timeout:g} s"
        return ServerUnavailableError(f"The policy server at {self._address} was lost: {reason}")
