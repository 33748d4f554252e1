"""pokevla-serve: a trained policy over openpi's websocket protocol, for robots and evaluators on other machines.

The server compiles every batch size, listens, and answers each observation with a chunk of actions; observations that
arrive together are computed together. A message is a msgpack map with these keys (the metadata, which every client gets
first, states their types and shapes for the checkpoint at hand):

  images, state, prompt             views stacked in the checkpoint's order, or a map of view to image
  observation/image, observation/wrist_image, observation/state, prompt
                                    openpi's keys for LIBERO, where the checkpoint has LIBERO's two cameras

'instruction' is read where there is no 'prompt'. Images are uint8 RGB, turned by 180 degrees as LIBERO's evaluators do.
GET /healthz answers OK. Nothing is encrypted: on an open network, put a TLS proxy in front or use an SSH tunnel.
"""

import argparse
import asyncio
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from pokevla_jax import checkpoints
from pokevla_jax import terminal
from pokevla_jax.cli import flags
from pokevla_jax.policy import Policy
from pokevla_jax.serving.server import LOOPBACK
from pokevla_jax.serving.server import PolicyService
from pokevla_jax.serving.server import ServerOptions
from pokevla_jax.serving.server import ServingError

API_KEY = "POKEVLA_API_KEY"
EXAMPLES = (
    "pokevla-serve --checkpoint runs/soup",
    "# for robots on the network, up to 16 observations at a time, with a key",
    "pokevla-serve --checkpoint runs/soup --host 0.0.0.0 --max-batch 16 --api-key-file key.txt",
    "# on the other machine: the evaluator, or anything that uses openpi-client",
    "python -m eval run --policy ws://HOST:8000 --suite libero_object --tasks 0 --layouts 20 --layout-seed 90000 \\",
    "    --run-dir runs/eval/soup",
)
# What decides an action besides the weights.
PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = flags.make_parser(__doc__, EXAMPLES)
    p.prog = "pokevla-serve"
    p.add_argument("--checkpoint", required=True, metavar="DIR", help="a training run's folder, or one step of it")
    terminal.add_step(p)
    p.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="where to listen (default: %(default)s, this machine alone)",
    )
    p.add_argument(
        "--port",
        type=int,
        default=8000,
        metavar="N",
        help="where to listen; 0 takes a free one and prints it (default: %(default)s)",
    )
    p.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="observations computed at once (default: %(default)s)"
    )
    p.add_argument(
        "--exact",
        action="store_true",
        help="always compute batches of --max-batch, padded: equal bits for an observation whatever the load",
    )
    p.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"admit only clients with the key in it (default: ${API_KEY}, or none)",
    )
    p.add_argument("--max-clients", type=int, default=64, metavar="N", help="most connections (default: %(default)s)")
    p.add_argument(
        "--max-message-mib", type=int, default=16, metavar="N", help="longest message (default: %(default)s)"
    )
    return p


def command(arguments: argparse.Namespace) -> int:
    """Serves until it is interrupted or terminated."""
    for name, highest in (("max_batch", 4096), ("max_clients", 4096), ("max_message_mib", 1024)):
        if not 1 <= getattr(arguments, name) <= highest:
            option = name.replace("_", "-")
            raise ServingError(f"--{option} must be 1 to {highest}, got {getattr(arguments, name)}")
    if not 0 <= arguments.port < 2**16:
        raise ServingError(f"--port must be 0 to 65535, got {arguments.port}")
    options = ServerOptions(
        host=arguments.host,
        port=arguments.port,
        api_key=_api_key(arguments.api_key_file),
        max_clients=arguments.max_clients,
        max_message_bytes=arguments.max_message_mib * 2**20,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("websockets").setLevel(logging.ERROR)
    if options.host not in LOOPBACK and options.api_key is None:
        logging.warning("%s is open to everyone who reaches it; --api-key-file asks clients for a key", options.host)
    # One step, also if training saves another one meanwhile.
    folder = checkpoints.resolve(arguments.checkpoint, arguments.step)
    sizes = (arguments.max_batch,) if arguments.exact else None
    policy = Policy.load(folder, batch_size=arguments.max_batch, batch_sizes=sizes)
    service = PolicyService(policy, options, checkpoint_facts(folder, exact=arguments.exact))
    asyncio.run(_serve(service, options))
    return 0


def checkpoint_facts(folder: epath.Path, *, exact: bool) -> dict[str, Any]:
    """What an evaluation's protocol must know of a checkpoint that it does not read itself."""
    config, assets = checkpoints.load_assets(folder)
    return {
        "seed": config.seed,
        "pictures": [dict(way) for way in assets.pictures],
        "fingerprint": checkpoints.folder_hash(folder / "params"),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "exact": exact,
    }


async def _serve(service: PolicyService, options: ServerOptions) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host = f"[{options.host}]" if ":" in options.host else options.host
    await service.run(stop, lambda port: print(f"pokevla-serve: ready at ws://{host}:{port}", flush=True))


def _api_key(path: Path | None) -> str | None:
    """The key of the file, else of the environment; never of the command line, which every user of a machine sees."""
    if path is None:
        return os.environ.get(API_KEY) or None
    if not path.is_file():
        raise ServingError(f"--api-key-file {path} does not exist; write the key into it")
    key = path.read_text().strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ServingError(f"--api-key-file {path} must hold one line of printable ASCII; nothing else fits a header")
    return key


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command."""
    return flags.run(parser(), command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
