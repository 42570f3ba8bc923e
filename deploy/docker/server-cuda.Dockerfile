# The server on machines with NVIDIA GPUs. From the project's folder:
#
#     docker build --file deploy/docker/server-cuda.Dockerfile --tag paramd-server:cuda .
#     docker run --gpus all ... paramd-server:cuda ...
#
# The base has the CUDA runtime and a Python of 3.11 or newer, or its distribution's packages with one.
ARG BASE_IMAGE=nvidia/cuda:12.6.3-runtime-ubuntu24.04

FROM ${BASE_IMAGE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
WORKDIR /build
COPY requirements/build.txt requirements/runtime.txt requirements/
# The environment that goes into the image has no pip of its own.
RUN python3 -m venv tools \
    && python3 -m venv --without-pip /opt/paramd \
    && tools/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt \
    && tools/bin/pip --python /opt/paramd/bin/python install --no-cache-dir --require-hashes \
        -r requirements/runtime.txt
COPY client client
COPY server server
RUN tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels \
        ./client ./server \
    && tools/bin/pip --python /opt/paramd/bin/python install --no-cache-dir --no-deps wheels/*.whl

FROM python
LABEL org.opencontainers.image.title="paramd-server" \
    org.opencontainers.image.description="The parameter daemon, with the CUDA runtime" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/paramd /opt/paramd
# For snapshots, and for certificates and tokens. A new named volume takes over the owner.
RUN install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/paramd /etc/paramd
ENV PATH=/opt/paramd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
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
