# The service in one image; `docker build -t querywarden .`, then see docs/operations.md.
#
# Rules: what is installed is what requirements/run.txt pins, checked by hash; nothing runs as root; nothing is written below /app, so the
# root may be read-only (/tmp and /var/lib/querywarden must not be); kernels are compiled at build;
# no compiler, no pip and no test in what ships. Pin PYTHON by digest where builds must be repeatable.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY requirements/uv.txt requirements/build.txt requirements/run.txt requirements/
RUN pip install --require-hashes --only-binary :all: -r requirements/uv.txt \
 && uv venv /build && uv pip install --python /build/bin/python --require-hashes -r requirements/build.txt \
 && uv venv /app && uv pip install --python /app/bin/python --require-hashes --compile-bytecode -r requirements/run.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY detector detector
COPY consumers consumers
RUN /build/bin/hatchling build -t wheel -d /dist \
 && uv pip install --python /app/bin/python --no-deps --no-index --compile-bytecode /dist/*.whl
# The kernels, for any processor of this architecture: a worker that compiles them first polls for up to a minute nothing.
COPY examples/warm_kernels.py examples/image/start.sh /image/
RUN NUMBA_CACHE_DIR=/app/numba NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES= /app/bin/python -I /image/warm_kernels.py \
 && chmod -R a+rX /app/numba && install -m 0755 /image/start.sh /app/bin/start

FROM ${PYTHON}
LABEL org.opencontainers.image.title="querywarden" \
      org.opencontainers.image.description="Flags clients whose prediction queries look like model extraction" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --system --gid 10001 querywarden \
 && useradd --system --uid 10001 --gid querywarden --no-create-home --home-dir /var/lib/querywarden querywarden \
 && install -d -o querywarden -g querywarden -m 0700 /var/lib/querywarden \
 && pip uninstall --yes --quiet --root-user-action=ignore pip
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    NUMBA_CPU_NAME=generic \
    NUMBA_CPU_FEATURES= \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1 \
    QUERYWARDEN_STATE_DIR=/var/lib/querywarden \
    QUERYWARDEN_METRICS__BIND=0.0.0.0:9464
USER 10001:10001
WORKDIR /var/lib/querywarden
VOLUME /var/lib/querywarden
EXPOSE 9464
# SIGTERM drains within 20 s: stop with `docker stop --time 30`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
# Copies the kernels to NUMBA_CACHE_DIR, then becomes `querywarden`.
ENTRYPOINT ["start"]
CMD ["run"]
