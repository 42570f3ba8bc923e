# The server on machines with NVIDIA GPUs. From the project's folder:
#
#     docker build --file deploy/docker/server-cuda.Dockerfile --tag paramd-server:cuda .
#     docker run --gpus all ... paramd-server:cuda ...
#
# CuPy's packages bring what they need of CUDA 12, but for the driver: the NVIDIA container toolkit puts
# that of the machine into the container, which has to be one for CUDA 12.0 or newer.
# Both images are Debian's with Python 3.11 or newer, of one version; BUILD_IMAGE also has pip and venv.
ARG BASE_IMAGE=python:3.12-slim
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS build
WORKDIR /build
COPY requirements/build.txt requirements/runtime.txt requirements/cuda.txt requirements/
# The environment that goes into the image has no pip of its own.
RUN python3 -m venv tools \
    && python3 -m venv --without-pip /opt/paramd \
    && tools/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt \
    && tools/bin/pip --python /opt/paramd/bin/python install --no-cache-dir --require-hashes \
        -r requirements/runtime.txt -r requirements/cuda.txt
COPY client client
COPY server server
RUN tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels \
        ./client ./server \
    && tools/bin/pip --python /opt/paramd/bin/python install --no-cache-dir --no-deps wheels/*.whl

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="paramd-server" \
    org.opencontainers.image.description="The parameter daemon for NVIDIA GPUs, with CuPy for CUDA 12" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/paramd /opt/paramd
# For snapshots, and for certificates and tokens. A new named volume takes over the owner.
RUN install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/paramd /etc/paramd
ENV PATH=/opt/paramd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    # For the NVIDIA container toolkit: which GPUs, and which parts of the driver.
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    # The user has no home, and CuPy wants a folder, though compiled kernels stay in memory.
    CUPY_CACHE_DIR=/tmp \
    CUPY_CACHE_IN_MEMORY=1 \
    PARAMD_LISTEN=0.0.0.0:50051 \
    # Of the ten seconds that `docker stop` waits; the rest is for the last snapshot.
    PARAMD_GRACE=5 \
    # Of `paramd`, for the health check. Where the server has TLS, it also takes PARAMD_TLS_CA.
    PARAMD_TARGET=127.0.0.1:50051
USER 10001:10001
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=3 \
    CMD ["paramd", "health", "--probe", "--timeout", "8"]
ENTRYPOINT ["paramd-server"]
