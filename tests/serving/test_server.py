"""A real server on a real port, asked by openpi's own client."""

import asyncio
import contextlib
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import websockets.sync.client
import websockets.sync.server
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed
from websockets.exceptions import InvalidStatus

from eval.errors import EvaluationError
from eval.policies import resolve_policy
from pokevla_jax import checkpoints
from pokevla_jax.cli import serve as command
from pokevla_jax.policy import Policy
from pokevla_jax.serving.client import PolicyClient
from pokevla_jax.serving.client import RefusedError
from pokevla_jax.serving.server import PolicyService
from pokevla_jax.serving.server import ServerOptions
from pokevla_jax.serving.server import ServingError
from tests import policy_checkpoint as fake


class ToyPolicy:
    """Acts by the first pixel: 77 is an error of its own, 78 and 79 are defects; remembers its batches."""

    max_batch_size = 4

    def __init__(self, delay=0.0):
        self.metadata = {"views": ["agentview", "wrist"], "proprio_dim": 8, "path": "a secret place"}
        self.batches, self.delay, self.warm = [], delay, False

    def warm_up(self):
        time.sleep(self.delay)
        self.warm = True

    def infer(self, observations):
        assert self.warm
        self.batches.append(len(observations))
        time.sleep(self.delay)
        pixels = [int(o["images"][0, 0, 0, 0]) for o in observations]
        if 77 in pixels:
            raise ValueError("cannot look at 77")
        if 78 in pixels:
            raise RuntimeError("a detail of the server")
        # No row for 79.
        rows = [np.full((8, 7), pixel, np.float32) for pixel in pixels if pixel != 79]
        return np.array(rows, np.float32)


@contextlib.contextmanager
def serving(policy, *, facts=None, **options):
    """The port of a server in a thread."""
    loop, stop, port, failed = asyncio.new_event_loop(), asyncio.Event(), [], []
    listening = threading.Event()

    def ready(number):
        port.append(number)
        listening.set()

    def run():
        try:
            loop.run_until_complete(PolicyService(policy, ServerOptions(port=0, **options), facts).run(stop, ready))
        except Exception as error:
            failed.append(error)
            listening.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert listening.wait(120)
        if failed:
            raise failed[0]
        yield port[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()
    assert not failed


def observation(pixel=0, seed=0, size=64, prompt=fake.PROMPT):
    """As openpi's LIBERO evaluator sends it."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    image[0, 0, 0] = pixel
    return {
        "observation/image": image,
        "observation/wrist_image": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "observation/state": rng.uniform(-0.5, 0.5, 8),
        "prompt": prompt,
    }


def own(sent):
    """The same as the policy takes it."""
    return {
        "images": np.stack([sent["observation/image"], sent["observation/wrist_image"]]),
        "state": sent["observation/state"].astype(np.float32),
        "prompt": sent["prompt"],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake.write_checkpoint(tmp_path_factory.mktemp("run"), fake.make_config())


@pytest.fixture(scope="module")
def policy(folder):
    return Policy.load(folder, batch_sizes=(4,))


@pytest.fixture(scope="module")
def port(policy):
    with serving(policy) as number:
        yield number


def test_openpis_client_gets_the_metadata_and_the_policys_actions(policy, port):
    client = WebsocketClientPolicy("127.0.0.1", port)
    metadata = client.get_server_metadata()
    assert metadata["action_horizon"] == 8
    assert metadata["observation"]["openpi-libero"]["observation/wrist_image"].startswith("uint8")
    assert metadata["observation"]["stacked"]["state"] == "float [8]"
    assert "path" not in metadata
    sent = observation()
    first, second = client.infer(sent), client.infer(own(sent))
    np.testing.assert_array_equal(first["actions"], policy.infer([own(sent)])[0])
    np.testing.assert_array_equal(second["actions"], first["actions"])
    assert first["actions"].dtype == np.float32
    assert first["server_timing"].keys() == {"infer_ms"}
    assert second["server_timing"]["prev_total_ms"] >= first["server_timing"]["infer_ms"] > 0


def test_concurrent_clients_get_what_each_gets_alone(policy, port):
    alone = [policy.infer([own(observation(seed=seed))])[0] for seed in range(6)]
    compiled = policy._actions._cache_size()

    def ask(seed):
        client = WebsocketClientPolicy("127.0.0.1", port)
        return [client.infer(observation(seed=seed))["actions"] for _ in range(3)]

    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(ask, range(6)))
    for answers, expected in zip(together, alone, strict=True):
        for answer in answers:
            np.testing.assert_array_equal(answer, expected)
    assert len({a.tobytes() for a in alone}) == 6
    assert policy._actions._cache_size() == compiled


def test_a_refused_observation_leaves_the_connection_and_the_others_alone(policy, port):
    client, other = WebsocketClientPolicy("127.0.0.1", port), WebsocketClientPolicy("127.0.0.1", port)
    state = np.full(8, np.nan)
    good = observation()
    expected = policy.infer([own(good)])[0]
    for wrong, words in (
        (good | {"observation/state": state}, "'observation/state' holds a number that is not finite"),
        (good | {"observation/image": good["observation/image"][..., 0]}, "'observation/image' must be uint8"),
        ({"prompt": "go"}, "lacks 'images'"),
        # Found by the policy's own transform.
        (good | {"prompt": "soup basket " * 150}, "tokens does not fit"),
    ):
        with pytest.raises(RuntimeError, match=words):
            client.infer(wrong)
        for asked in (client, other):
            np.testing.assert_array_equal(asked.infer(good)["actions"], expected)


@pytest.mark.parametrize("message", ["text", b"\xc1", b"", msgpack_numpy.packb([1, 2])])
def test_what_is_no_message_is_answered_by_text(port, message):
    with websockets.sync.client.connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as connection:
        assert isinstance(connection.recv(), bytes)
        connection.send(message)
        assert re.match("The message is .*", connection.recv())
        connection.send(msgpack_numpy.packb(observation()))
        assert msgpack_numpy.unpackb(connection.recv())["actions"].shape == (8, 7)


def test_a_message_over_the_limit_ends_its_connection_alone():
    with serving(ToyPolicy(), max_message_bytes=100_000) as port:
        patient = WebsocketClientPolicy("127.0.0.1", port)
        assert patient.get_server_metadata()["max_message_bytes"] == 100_000
        with pytest.raises(ConnectionClosed) as error:
            WebsocketClientPolicy("127.0.0.1", port).infer(observation(size=200))
        assert error.value.sent.code == 1009 or error.value.rcvd.code == 1009
        assert patient.infer(observation(5))["actions"][0, 0] == 5


def test_waiting_observations_share_batches_and_errors_stay_with_their_own():
    policy = ToyPolicy(delay=0.1)
    with serving(policy) as port:
        clients = [WebsocketClientPolicy("127.0.0.1", port) for _ in range(10)]

        def ask(pixel):
            try:
                return clients[pixel - 70].infer(observation(pixel))["actions"][0, 0]
            except RuntimeError as error:
                return str(error)

        with ThreadPoolExecutor(10) as threads:
            answers = list(threads.map(ask, range(70, 80)))
        assert answers[:7] == list(range(70, 77))
        assert answers[7].endswith("cannot look at 77")
        assert "The server failed: RuntimeError" in answers[8]
        assert "The server failed: RuntimeError" in answers[9]
        assert 1 < max(policy.batches) <= 4


def test_a_defect_of_the_server_closes_that_connection_and_tells_no_details():
    with serving(ToyPolicy()) as port:
        other = WebsocketClientPolicy("127.0.0.1", port)
        client = WebsocketClientPolicy("127.0.0.1", port)
        with pytest.raises(RuntimeError, match="The server failed: RuntimeError") as error:
            client.infer(observation(78))
        assert "detail" not in str(error.value)
        with pytest.raises(ConnectionClosed) as closed:
            client.infer(observation())
        assert closed.value.rcvd.code == 1011
        assert other.infer(observation(3))["actions"][0, 0] == 3


def test_a_network_of_nan_is_an_answer_and_no_action(folder):
    config, params, _ = checkpoints.load_policy_checkpoint(folder)
    broken = Policy(config, params, fake.make_statistics(), fake.make_tokenizer(config))
    broken._actions = lambda params, batch: np.full((1, 8, 7), np.nan, np.float32)
    with serving(broken) as port, pytest.raises(RuntimeError, match="not finite; the checkpoint is broken"):
        WebsocketClientPolicy("127.0.0.1", port).infer(observation())


def test_only_the_key_opens_and_probes_need_none():
    with serving(ToyPolicy(), api_key="right") as port:
        assert WebsocketClientPolicy("127.0.0.1", port, api_key="right").infer(observation(9))["actions"][0, 0] == 9
        for key in (None, "wrong", "RIGHT", "righ", "right right"):
            with pytest.raises(InvalidStatus) as error:
                WebsocketClientPolicy("127.0.0.1", port, api_key=key)
            assert error.value.response.status_code == 401, key
        with pytest.raises(RefusedError, match="401"):
            PolicyClient(f"ws://127.0.0.1:{port}", api_key="wrong")
        answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{port}/healthz", timeout=30
        )
        assert (answer.status, answer.read()) == (200, b"OK\n")


def test_web_pages_and_too_many_clients_are_refused():
    with serving(ToyPolicy(), max_clients=1) as port:
        address = f"ws://127.0.0.1:{port}"
        with pytest.raises(InvalidStatus) as error:
            websockets.sync.client.connect(address, origin="http://elsewhere", proxy=None)
        assert error.value.response.status_code == 403
        client = WebsocketClientPolicy("127.0.0.1", port)
        with pytest.raises(InvalidStatus) as error:
            WebsocketClientPolicy("127.0.0.1", port)
        assert error.value.response.status_code == 503
        client._ws.close()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(InvalidStatus):
                assert WebsocketClientPolicy("127.0.0.1", port).infer(observation(2))["actions"][0, 0] == 2
                return
        pytest.fail("the place of a client that left stays taken")


def test_a_client_that_leaves_while_it_waits_harms_nobody():
    with serving(ToyPolicy(delay=0.2)) as port:
        leaving, staying = (WebsocketClientPolicy("127.0.0.1", port) for _ in range(2))
        leaving._ws.send(msgpack_numpy.packb(observation(1)))
        leaving._ws.socket.close()
        assert staying.infer(observation(6))["actions"][0, 0] == 6


def test_a_port_in_use_is_one_sentence_before_anything_is_compiled():
    with serving(ToyPolicy()) as port:
        stop, policy = asyncio.Event(), ToyPolicy()
        service = PolicyService(policy, ServerOptions(port=port))
        with pytest.raises(ServingError, match=f"Cannot listen on 127.0.0.1:{port} .*--port"):
            asyncio.run(service.run(stop, lambda number: None))
        assert not policy.warm


def test_a_port_that_another_server_took_meanwhile_is_one_sentence():
    """Both may take an address that nobody listens on yet; only one of them can listen."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        policy = ToyPolicy()
        policy.warm_up = other.listen
        service = PolicyService(policy, ServerOptions(port=port))
        with pytest.raises(ServingError, match=f"Cannot listen on 127.0.0.1:{port} .*--port"):
            asyncio.run(service.run(asyncio.Event(), lambda number: None))


def start(folder, *arguments, **environment):
    """The command in a process of its own, and its address once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pokevla_jax.cli.serve", "--checkpoint", str(folder), *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = re.fullmatch(r"pokevla-serve: ready at (ws://127\.0\.0\.1:(\d+))\n", process.stdout.readline())
    assert found, process.wait(60)
    return process, found[1], int(found[2])


@pytest.mark.multiprocess
def test_the_command_is_killed_and_started_again_under_the_evaluator(folder, policy, monkeypatch):
    """The evaluator's side: facts for the protocol, a lost server, the same one again."""
    monkeypatch.setenv("POKEVLA_API_KEY", "key")
    options = ("--max-batch", "4", "--exact")
    process, address, port = start(folder, *options, "--port", "0")
    try:
        remote = resolve_policy(address, specs=[], scenes=None, execute=5)
        local = resolve_policy(str(folder), specs=[], scenes=None, execute=5, exact=4)
        assert remote.facts == local.facts | {"kind": "server"}
        assert remote.execute == 5
        with pytest.raises(EvaluationError, match=r"--exact 8: .* batches of 4; start it with --exact --max-batch 8"):
            resolve_policy(address, specs=[], scenes=None, exact=8)
        sent = own(observation())
        expected = policy.infer([sent])[0]
        np.testing.assert_array_equal(remote.agent.act(sent), expected)
        process.kill()
        process.wait(60)
        with pytest.raises(ValueError, match=f"No policy server answers at {address}"):
            remote.agent.act(sent)
        process, _, _ = start(folder, *options, "--port", str(port))
        np.testing.assert_array_equal(remote.agent.act(sent), expected)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait(60)


def test_the_evaluator_refuses_other_weights_and_strangers(tmp_path):
    facts = {
        "preset": "tiny",
        "step": 1,
        "seed": 0,
        "pictures": [],
        "fingerprint": "a",
        "action_horizon": 8,
        "zero_images": True,
        "zero_language": False,
        "packages": {},
        "exact": False,
    }
    with serving(ToyPolicy(), facts=facts) as port:
        choice = resolve_policy(f"ws://127.0.0.1:{port}", specs=[], scenes=None)
        assert choice.facts["label"] == "blind-trained"
        # As it travels to the simulators.
        assert pickle.loads(pickle.dumps(choice.agent)).act(own(observation(4)))[0, 0] == 4
        with pytest.raises(ValueError, match="--execute 9: the policy's chunks have 8"):
            resolve_policy(f"ws://127.0.0.1:{port}", specs=[], scenes=None, execute=9)
        with pytest.raises(ValueError, match="--step goes with"):
            resolve_policy(f"ws://127.0.0.1:{port}", specs=[], scenes=None, step=3)
        other = resolve_policy(f"ws://127.0.0.1:{port}", specs=[], scenes=None).agent
        other._infer.fingerprint = "b"
        with pytest.raises(ValueError, match="has weights a now, not b"):
            other.act(own(observation()))
    with serving(ToyPolicy(), facts=facts | {"step": True}) as port, pytest.raises(ValueError, match=r"state .*'step'"):
        resolve_policy(f"ws://127.0.0.1:{port}", specs=[], scenes=None)
    with serving(ToyPolicy()) as port, pytest.raises(ValueError, match="pokevla-serve"):
        resolve_policy(f"ws://127.0.0.1:{port}", specs=[], scenes=None)
    with websockets.sync.server.serve(lambda connection: connection.send(b"\xc1"), "127.0.0.1", 0) as stranger:
        threading.Thread(target=stranger.serve_forever).start()
        address = f"ws://127.0.0.1:{stranger.socket.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"--policy {address}: What answers .* is no policy server"):
            resolve_policy(address, specs=[], scenes=None)
        stranger.shutdown()
    for address in ("ws://", "ws://127.0.0.1:1", "ws://127.0.0.1:port"):
        with pytest.raises(ValueError, match=f"--policy {address}: "):
            resolve_policy(address, specs=[], scenes=None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--checkpoint", "nowhere"), "nowhere does not exist"),
        (("--checkpoint", ".", "--max-batch", "0"), "--max-batch must be 1 to 4096"),
        (("--checkpoint", ".", "--port", "99999"), "--port must be 0 to 65535"),
        (("--checkpoint", ".", "--api-key-file", "nowhere"), "nowhere does not exist; write the key"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pokevla-serve: error: ")]
    assert words in line
