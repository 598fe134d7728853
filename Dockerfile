# Three images from one file; deploy/README.md says how to add a model of your own.
#   docker build --target inference .    percore with TensorFlow and no model: one machine, or a pod of a cluster
#   docker build --target gateway .      the gateway of a cluster: one Python process, no TensorFlow
#   docker build --target demo .         inference with the demo models; the default
ARG BASE=python:3.11-slim-bookworm

# --- base of every image: a folder for unix sockets; Python writes no compiled files beside the code ------------------------------
FROM ${BASE} AS base
# The kernel drops a SIGTERM to process 1 unless that process has a handler, and Python has none while it starts.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends 'tini=0.19.*' \
    && rm -rf /var/lib/apt/lists/* /var/log/*
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PERCORE_HOST=0.0.0.0 \
    PERCORE_STATE_DIR=/run/percore
# The mode lets any numeric user write to these folders, because some clusters choose a user for each namespace. A volume for stored
# calls is mounted over /var/lib/percore, or into it.
RUN mkdir -m 1777 /run/percore /var/lib/percore && mkdir /app
WORKDIR /app

# --- libraries, from the lock files and nowhere else --------------------------------------------------------------------------
FROM ${BASE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
WORKDIR /build

FROM builder AS inference-libraries
RUN apt-get update \
    && apt-get install --yes --no-install-recommends 'binutils=2.40-*' \
    && rm -rf /var/lib/apt/lists/* /var/log/*
COPY requirements/runtime.txt requirements/
# TensorFlow brings 350 MB for compilers and 220 MB of symbols for debuggers. Both are removed.
RUN python -m pip --python /opt/venv/bin/python install --quiet --require-hashes --no-deps -r requirements/runtime.txt \
    && rm -rf /opt/venv/lib/python3.11/site-packages/tensorflow/include /opt/venv/lib/python3.11/site-packages/clang \
    && strip --strip-unneeded /opt/venv/lib/python3.11/site-packages/tensorflow/libtensorflow_*.so.2

FROM builder AS gateway-libraries
COPY requirements/gateway.txt requirements/
# percore uses only the core of the client of Kubernetes. The classes for every kind of object, and those for asyncio, are 125 MB.
RUN python -m pip --python /opt/venv/bin/python install --quiet --require-hashes --no-deps -r requirements/gateway.txt \
    && rm -rf /opt/venv/lib/python3.11/site-packages/kubernetes/aio \
    && find /opt/venv/lib/python3.11/site-packages/kubernetes/client/api /opt/venv/lib/python3.11/site-packages/kubernetes/client/models \
       -type f ! -name '__init__*' -delete

# --- percore itself, compiled, because the root of a pod is read-only and it could not be compiled later -------------------------
FROM builder AS code
COPY service/percore percore
# Without a check of dates, because copied files have other dates.
RUN python -m compileall -q --invalidation-mode unchecked-hash percore

# --- inference ------------------------------------------------------------------------------------------------------------------
FROM base AS inference
ENV PERCORE_MODEL_REPOSITORY=/models TF_CPP_MIN_LOG_LEVEL=1
COPY --from=inference-libraries /opt/venv /opt/venv
COPY --from=code /build/percore /opt/venv/lib/python3.11/site-packages/percore
USER 65532:65532
EXPOSE 8080 9090
# Without arguments it runs `percore serve`. The containers of a pod run `worker` and `status-server`.
ENTRYPOINT ["tini", "--", "python", "-P", "-m", "percore"]

# --- gateway --------------------------------------------------------------------------------------------------------------------
FROM base AS gateway
# The folder for bodies of queued calls; the chart mounts a volume there. The mode lets any numeric user write.
RUN mkdir -m 1777 /var/spool/percore
COPY --from=gateway-libraries /opt/venv /opt/venv
COPY --from=code /build/percore /opt/venv/lib/python3.11/site-packages/percore
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["tini", "--", "python", "-P", "-m", "percore"]
CMD ["gateway"]

# --- demo -----------------------------------------------------------------------------------------------------------------------
FROM inference-libraries AS demo-models
COPY requirements/dev.txt requirements/
# Only scikit-learn and its dependencies, with the versions and hashes of the lock file for development.
RUN awk '/^[^ ]/ { take = /^(scikit-learn|scipy|joblib|cloudpickle|narwhals|threadpoolctl)==/ } take' requirements/dev.txt >requirements/demo.txt \
    && python -m pip --python /opt/venv/bin/python install --quiet --require-hashes --no-deps -r requirements/demo.txt
COPY demo demo
RUN /opt/venv/bin/python -m demo.models /models

FROM inference AS demo
COPY --from=demo-models /models /models
