"""Fixtures of all tests: a home of their own, a tiny tokenizer, the shared data."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from meow_ray.distributed import cluster as ray_cluster
from tests.support.tiny import byte_tokenizer
from tests.support.world import World

PROJECT = Path(__file__).parents[1]

# processes of one run share the cores: threads that wait for a core that another process has,
# as those of OpenMP do, slow all of them down
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _PROCESSES)))

settings.register_profile("meow", deadline=None, max_examples=50)
settings.load_profile("meow")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test touches the user's caches; only compiled extensions, slow to build, are shared."""
    home = tmp_path_factory.mktemp("home")
    extensions = os.environ.get(
        "TORCH_EXTENSIONS_DIR", str(Path("~/.cache/torch_extensions").expanduser())
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("MEOW_HOME", str(home / "meow"))
        patch.setenv("HF_HOME", str(home / "huggingface"))
        patch.setenv(
            "VLLM_CACHE_ROOT",
            os.environ.get("VLLM_CACHE_ROOT", str(Path("~/.cache/vllm").expanduser())),
        )
        patch.setenv("TORCH_EXTENSIONS_DIR", extensions)
        yield home


@pytest.fixture(scope="session", autouse=True)
def own_ray_folder() -> Iterator[None]:
    """No test joins a cluster that a test of another process started.

    A new cluster writes its address to a file in Ray's temporary folder, where `meow` finds it.
    """
    folder = tempfile.mkdtemp(prefix="ray-")  # short, because paths of sockets are
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setattr(ray_cluster, "TEMPORARY", folder)
        patch.setattr(ray_cluster, "CURRENT_CLUSTER", Path(folder, "ray", "ray_current_cluster"))
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds a file of the shared data, or skips the test."""
    folder = Path(os.environ.get("MEOW_SHARED_DATA", PROJECT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            if folder.exists() and os.environ.get("MEOW_REQUIRE_SHARED_DATA"):
                pytest.fail(f"shared data: {path} is absent, but its folder is there")
            pytest.skip(f"shared data: {path} is absent")
        return path

    return find


@pytest.fixture(scope="session")
def s3() -> Iterator[Callable[[str], str]]:
    """A real S3 endpoint: turns a path into a URI in its bucket."""
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            patch.setenv(name, value)
        connection = HTTPConnection(host, port)
        connection.request("PUT", "/bucket")
        assert connection.getresponse().status == 200
        yield lambda path: f"s3://bucket/{path}?scheme=http&endpoint_override={host}%3A{port}"
    server.stop()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer: one token a byte, `<s>` in front of a text, a small chat template."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers that transformers, vLLM and DeepSpeed load."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
        dtype="float32",
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head and two nodes, processes of their own."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")
        nodes = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        for _ in range(2):
            nodes.add_node(num_cpus=2)
        # commands that a test starts join this cluster only if they get its address
        ray_cluster.CURRENT_CLUSTER.unlink(missing_ok=True)
        yield nodes
        nodes.shutdown()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three small stages over one data file."""
    return World(tmp_path)
