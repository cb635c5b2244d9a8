# `ltx2 serve` on one GPU; docs/guides/serving.md says how to build and run it.
FROM python:3.12-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# PyTorch brings CUDA; only the driver comes from the host.
FROM python:3.12-slim-bookworm
# Triton compiles what calls its kernels.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# A layer of its own, which stays when the package changes.
COPY constraints.txt /opt/constraints.txt
RUN pip install --no-cache-dir --constraint /opt/constraints.txt torch
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /opt/constraints.txt "$(echo /wheels/*.whl)[serve,postgres]"

# Jobs with their files, and what is loaded from the Hub or compiled, outlive the container.
RUN useradd --uid 1000 --create-home ltx2 \
    && install --directory --mode 700 --owner ltx2 --group ltx2 /data /cache
ENV HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
VOLUME ["/data", "/cache"]
USER 1000:1000
WORKDIR /data
EXPOSE 8000
# A large checkpoint takes minutes to load, and more to come from the Hub.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import http.client, sys; ask = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); ask.request('GET', '/health'); sys.exit(ask.getresponse().status != 200)"]
ENTRYPOINT ["ltx2", "serve", "--host", "0.0.0.0", "--port", "8000", "--data", "/data"]
# What stands behind the name of the image in `docker run` takes its place.
CMD ["--checkpoint", "ltx2-mini"]
