# syntax=docker/dockerfile:1
# The image of every pod: head, workers and submitter of a KubeRay job (k8s/README.md).
#   docker build --tag dataengine:0.1.0-ray2.60.0 --build-context models=./models .
# `models` is a folder of weights that a config names by path, such as aesthetic/sac+logos+ava1-l14-linearMSE.pth. It becomes
# /models: weights in the image are the same on every worker. Without that option the folder stays empty.
FROM scratch AS models

FROM python:3.12-slim-bookworm

# FAISS comes as cpu or gpu, two packages that own the same module. dataengine runs it on CPUs only, so cpu does for both kinds
# of worker; gpu is for images that other programs share.
ARG FAISS=cpu

# KubeRay's probes are bash commands around wget.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bash ca-certificates wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 dataengine \
 && useradd --uid 10001 --gid 10001 --create-home dataengine

WORKDIR /opt/dataengine

# The dependencies change seldom and weigh gigabytes, the code changes daily and weighs nothing: hence two steps. The lock
# decides every version; what only developers need is in the lock but in neither extra. Into the system's Python, because
# some operators start Ray from a login shell, which forgets the PATH of a virtual environment.
COPY pyproject.toml requirements.lock ./
RUN --mount=type=cache,target=/root/.cache \
    python -m pip install uv==0.13.9 \
 && uv pip install --system --requirement pyproject.toml --extra engine --extra "${FAISS}" --constraint requirements.lock

COPY README.md ./
COPY configs configs
COPY dataengine dataengine
COPY pipelines pipelines
RUN uv pip install --system --no-deps .
COPY --from=models / /models/

ENV PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001
