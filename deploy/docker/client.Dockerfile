# Two images for workers. From the project's folder:
#
#     docker build --file deploy/docker/client.Dockerfile --target client --tag paramd-client .
#     docker build --file deploy/docker/client.Dockerfile --target worker --tag paramd-worker .
#
# `client` is the base of a user's own: the package `paramd` and its command. `worker` adds the
# digits example, with the images of handwritten digits that scikit-learn carries.
# Both base images are Debian's with Python 3.11 or newer, of one version; BUILD_IMAGE also has pip and venv.
ARG BASE_IMAGE=python:3.12-slim
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS build
WORKDIR /build
COPY requirements/build.txt requirements/client.txt requirements/
# The environment that goes into the image has no pip of its own.
RUN python3 -m venv tools \
    && python3 -m venv --without-pip /opt/paramd \
    && tools/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt \
    && tools/bin/pip --python /opt/paramd/bin/python install --no-cache-dir --require-hashes \
        -r requirements/client.txt
COPY client client
RUN tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels ./client \
    && tools/bin/pip --python /opt/paramd/bin/python install --no-cache-dir --no-deps wheels/*.whl

FROM ${BASE_IMAGE} AS client
LABEL org.opencontainers.image.title="paramd-client" \
    org.opencontainers.image.description="Workers of the parameter daemon: the package paramd and its command" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/paramd /opt/paramd
ENV PATH=/opt/paramd/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001:10001
STOPSIGNAL SIGTERM
CMD ["paramd", "--help"]

FROM build AS worker-build
COPY requirements/worker.txt requirements/
RUN tools/bin/pip --python /opt/paramd/bin/python install --no-cache-dir --require-hashes \
        -r requirements/worker.txt

FROM client AS worker
LABEL org.opencontainers.image.title="paramd-worker" \
    org.opencontainers.image.description="A worker that trains on handwritten digits"
COPY --from=worker-build /opt/paramd /opt/paramd
COPY examples /opt/worker/examples
WORKDIR /opt/worker
CMD ["python", "-m", "examples.cluster_worker"]
