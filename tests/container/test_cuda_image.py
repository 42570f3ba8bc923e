"""The image for NVIDIA GPUs, on an engine without any: it is whole, and serves from main memory."""

from __future__ import annotations

import re

import docker
import pytest

from tests.container.cluster import Cluster, await_end, log_of
from tests.container.images import Images, make_cuda_image

pytestmark = [pytest.mark.container, pytest.mark.timeout(1200)]

# Megabytes upon the base image: 330 are the server, the rest is CuPy with what it needs of CUDA.
SIZE = 1000
# As the server does it; NVRTC compiles without a GPU, and CuPy says where it finds the headers.
COMPILES = """
from paramd_server.arrays.cuda import runtime
from cupy._core.core import assemble_cupy_compiler_options
from cupy_backends.cuda.libs import nvrtc
program = nvrtc.createProgram('extern "C" __global__ void f(float* x) { *x = 1; }', "f.cu", [], [])
options = assemble_cupy_compiler_options(("--fmad=false", "--std=c++14"))
nvrtc.compileProgram(program, (*options, "-arch=sm_80"))
print("compiled for CUDA", nvrtc.getVersion(), len(nvrtc.getCUBIN(program)) > 0)
"""
ASKS = """
import paramd
from paramd.errors import ContextNotAvailableError
with paramd.connect("cuda:50051") as session:
    weight = paramd.Parameter("w", shape=(2,), session=session)
    try:
        weight.initialize("ones", ctx=paramd.gpu(0))
    except ContextNotAvailableError as err:
        print("refused:", err)
    weight.initialize("ones", ctx=paramd.cpu(0))
    print("has", weight.data().asnumpy().sum(), "on", session.num_gpus(), "GPUs")
"""


@pytest.fixture(scope="module")
def image(engine: docker.DockerClient, images: Images) -> str:
    return make_cuda_image(engine, images.base)


def test_image_asks_for_the_driver_and_has_no_root(engine: docker.DockerClient, image: str) -> None:
    config = engine.images.get(image).attrs["Config"]
    assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(
        config["Env"]
    )
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["paramd-server"]


def test_image_is_no_larger_than_cupy_makes_it(
    engine: docker.DockerClient, images: Images, image: str
) -> None:
    base = engine.images.get(images.base).attrs["Size"]
    added = (engine.images.get(image).attrs["Size"] - base) / 1e6
    assert added < SIZE, f"{added:.0f} MB upon the base image"


def test_kernels_compile_in_a_read_only_container(cluster: Cluster, image: str) -> None:
    compiles = cluster.add("compiles", image, entrypoint=["python", "-c", COMPILES])
    assert await_end(compiles) == 0, log_of(compiles)
    assert re.search(r"compiled for CUDA \(12, \d+\) True", log_of(compiles)), log_of(compiles)


def test_server_without_a_gpu_serves_from_main_memory(cluster: Cluster, image: str) -> None:
    server = cluster.add("cuda", image, command=["--insecure"])
    asks = cluster.add("asks", cluster.images.client, command=["python", "-c", ASKS])
    assert await_end(asks) == 0, log_of(asks) + log_of(server)
    assert "refused: the server has no context gpu(0); it has cpu(0..) (no NVIDIA" in log_of(asks)
    assert "has 2.0 on 0 GPUs" in log_of(asks)
    server.stop(timeout=20)
    assert await_end(server) == 0, log_of(server)
