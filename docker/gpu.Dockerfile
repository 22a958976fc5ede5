# The image for nodes with NVIDIA GPUs.
# docker build -f docker/gpu.Dockerfile -t meow_ray:0.1.0-gpu .
# Its CUDA version matches the pinned torch. The CUDA compiler builds DeepSpeed's kernels.
FROM rayproject/ray:2.60.0-py311-cu130

LABEL org.opencontainers.image.title="meow_ray" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

USER 0
# hadolint ignore=DL3008 # the pinned base image's distribution sets the versions
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/meow_ray
RUN chown ray:users .
USER 1000

# Install the heavy packages first, so that a change of the code does not reinstall them.
COPY --chown=ray:users Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=ray:users meow_ray/__init__.py meow_ray/
RUN make setup VENV=/home/ray/anaconda3 HARDWARE=gpu EXTRAS=gpu,qlora,lm-eval,tracking
COPY --chown=ray:users meow_ray meow_ray
COPY --chown=ray:users pipelines pipelines

# hadolint ignore=DL3064 # this is a mode, not a secret
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    TOKENIZERS_PARALLELISM=false
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:52365/api/local_raylet_healthz', timeout=5)"]
CMD ["meow", "--help"]
