"""A policy behind openpi's websocket protocol.

A client connects and gets the metadata; it then sends observations and gets actions, in turns. What cannot be answered
is answered by a text frame with one sentence. A request that was wrong leaves the connection open; an error of the
server itself closes it (code 1011), as openpi's server does. ``GET /healthz`` says OK from when the policy is warm.
"""

import asyncio
import contextlib
import hmac
import http
import logging
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Protocol

import numpy as np
from websockets.asyncio.server import Request
from websockets.asyncio.server import Response
from websockets.asyncio.server import Server
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from pokevla_jax.serving import protocol
from pokevla_jax.serving.batching import Batcher
from pokevla_jax.serving.observations import ObservationSpec

HEALTH = "/healthz"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Messages of one client that wait in memory while another is computed; the rest wait in its socket.
QUEUED_MESSAGES = 2
logger = logging.getLogger(__name__)


class ServingError(ValueError):
    """A server that cannot start; one sentence."""


class ServedPolicy(Protocol):
    """What the server needs of a policy; ``pokevla_jax.policy.Policy`` has it."""

    metadata: dict[str, Any]

    @property
    def max_batch_size(self) -> int: ...

    def warm_up(self) -> None: ...

    def infer(self, observations: Sequence[Mapping[str, Any]]) -> np.ndarray: ...


@dataclass(frozen=True)
class ServerOptions:
    """Where and for whom.

    Attributes:
        host: the address to bind; by default only this machine can reach it.
        port: 0 takes a free one.
        api_key: what clients must send as ``Authorization: Api-Key ...``; None lets everyone in who reaches the port.
        max_clients: further connections are refused (503).
        max_message_bytes: longer messages end their connection (code 1009).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    max_clients: int = 64
    max_message_bytes: int = protocol.MAX_MESSAGE_BYTES


class PolicyService:
    """Serves one policy until it is told to stop.

    Args:
        policy: what answers.
        options: where and for whom.
        facts: added to the policy's own metadata, such as the checkpoint's fingerprint.
    """

    def __init__(self, policy: ServedPolicy, options: ServerOptions, facts: Mapping[str, Any] | None = None):
        self._policy = policy
        self._options = options
        self._spec = ObservationSpec(policy.metadata["views"], policy.metadata["proprio_dim"])
        # Where the checkpoint lies is nobody's business outside this machine.
        known = {name: value for name, value in policy.metadata.items() if name != "path"}
        self.metadata = {
            **known,
            **(facts or {}),
            "observation": self._spec.layouts(),
            "max_batch_size": policy.max_batch_size,
            "max_message_bytes": options.max_message_bytes,
        }
        self._clients = 0

    async def run(self, stop: asyncio.Event, ready: Callable[[int], None]) -> None:
        """Takes the address, warms the policy up, listens, calls ``ready`` with the port; returns when ``stop`` is set.

        Raises:
            ServingError: when the address cannot be bound.
        """
        self._batcher = Batcher(self._policy.infer, self._policy.max_batch_size)
        try:
            with self._address():
                server = await self._bind()
            async with server:
                await asyncio.get_running_loop().run_in_executor(None, self._policy.warm_up)
                with self._address():
                    await server.start_serving()
                ready(server.sockets[0].getsockname()[1])
                await stop.wait()
        finally:
            self._batcher.close()

    async def _bind(self) -> Server:
        """The server, which has its address and does not accept yet."""
        return await serve(
            self._handle,
            self._options.host,
            self._options.port,
            start_serving=False,
            # Browsers state where a page came from; no page may talk to a robot's policy on this machine.
            origins=[None],
            compression=None,
            max_size=self._options.max_message_bytes,
            max_queue=QUEUED_MESSAGES,
            process_request=self._admit,
        )

    @contextlib.contextmanager
    def _address(self) -> Iterator[None]:
        """Says in a sentence that the address cannot be taken or, where two took it, not be listened on."""
        where = f"{self._options.host}:{self._options.port}"
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise ServingError(f"Cannot listen on {where} ({reason}); choose another --port or --host") from error

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """A plain HTTP answer for probes and for who may not enter; None lets the websocket handshake go on."""
        if request.path == HEALTH:
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        key = self._options.api_key
        if key is not None:
            sent = request.headers.get_all("Authorization")
            wanted = f"Api-Key {key}".encode()
            # In constant time, so that the time of an answer tells nothing about the key.
            if len(sent) != 1 or not hmac.compare_digest(sent[0].encode("utf-8", "replace"), wanted):
                return connection.respond(
                    http.HTTPStatus.UNAUTHORIZED, "Send the header 'Authorization: Api-Key KEY'\n"
                )
        if self._clients >= self._options.max_clients:
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE, f"All {self._options.max_clients} places are taken; try again\n"
            )
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        self._clients += 1
        logger.info("connection from %s", connection.remote_address)
        try:
            await self._converse(connection)
        except ConnectionClosed as closed:
            logger.info("connection from %s lost: %s", connection.remote_address, closed)
        finally:
            self._clients -= 1

    async def _converse(self, connection: ServerConnection) -> None:
        await connection.send(protocol.pack(self.metadata))
        previous = None
        async for message in connection:
            start = time.perf_counter()
            try:
                observation = self._spec.parse(protocol.unpack(message))
                inference = time.perf_counter()
                actions = await self._batcher.infer(observation)
            except ValueError as error:
                logger.warning("request of %s refused: %s", connection.remote_address, error)
                await connection.send(str(error))
                continue
            except Exception as error:
                logger.exception("request of %s failed", connection.remote_address)
                await connection.send(f"The server failed: {type(error).__name__}; its log says more")
                await connection.close(CloseCode.INTERNAL_ERROR, "server error; see the previous frame")
                return
            # The wait for a place in a batch is part of it, as it is part of what the client waits for.
            timing = {"infer_ms": 1000 * (time.perf_counter() - inference)}
            if previous is not None:
                timing["prev_total_ms"] = 1000 * previous
            await connection.send(protocol.pack({"actions": actions, "server_timing": timing}))
            previous = time.perf_counter() - start
