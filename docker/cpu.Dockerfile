# Trains on CPUs. In the checkout:
#   docker build -f docker/cpu.Dockerfile -t griffin-jax:cpu .
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim

# Debian removes old versions of its packages, so none is named.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends make \
 && rm -rf /var/lib/apt/lists/*

# The owner of what runs write into mounted folders: --build-arg USER_ID="$(id -u)".
# That is 0 for root, whose number the image has already.
ARG USER_ID=1000
RUN useradd --create-home --no-log-init --non-unique --uid "${USER_ID}" griffin \
 && install -d -o griffin -g griffin /app
USER ${USER_ID}
WORKDIR /app

# Without the code: the layer with the packages stays as it is while the code changes.
# Further extras of pyproject.toml: --build-arg EXTRAS="gcs".
COPY --chown=griffin:griffin Makefile pyproject.toml ./
COPY --chown=griffin:griffin requirements requirements
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1
RUN make install EXTRAS="${EXTRAS}"

ENV PATH="/app/.venv/bin:$PATH" PYTHONUNBUFFERED=1
COPY --chown=griffin:griffin . .
CMD ["python", "-m", "launch.train", "--help"]
