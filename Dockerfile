# syntax=docker/dockerfile:1
# Two stages: the locked install into a virtual environment, and an image that holds nothing else.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/hexhail
COPY requirements/runtime.txt requirements/
RUN /opt/hexhail/bin/pip install --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md ./
COPY geo geo
COPY matcher matcher
COPY api api
COPY benchmarks benchmarks
COPY config config
RUN /opt/hexhail/bin/pip install --no-deps --no-build-isolation .
# Compiled for the machine that builds the image; on another kind of processor the first start compiles again.
RUN NUMBA_CACHE_DIR=/opt/numba /opt/hexhail/bin/python -m geo.warm \
    && NUMBA_CACHE_DIR=/opt/numba /opt/hexhail/bin/python -m matcher.solver_child warm

FROM python:3.11.14-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin hexhail \
    && install --directory --owner=hexhail --group=hexhail --mode=0750 /var/lib/hexhail
COPY --from=build /opt/hexhail /opt/hexhail
COPY --from=build --chown=hexhail:hexhail /opt/numba /var/lib/hexhail/numba
ENV PATH=/opt/hexhail/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HEXHAIL_HOST=0.0.0.0 \
    HEXHAIL_PORT=8080 \
    HEXHAIL_DATA_DIR=/var/lib/hexhail \
    HEXHAIL_LOG_FORMAT=json \
    NUMBA_CACHE_DIR=/var/lib/hexhail/numba
USER 10001
WORKDIR /var/lib/hexhail
VOLUME /var/lib/hexhail
EXPOSE 8080
STOPSIGNAL SIGTERM
# Alive, not ready: a container is not to be restarted because a database is down.
# A container that runs only `--role matcher` listens nowhere: give it its own check, or none.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['HEXHAIL_PORT']}/healthz\", timeout=2)"]
# Run it with an init (`docker run --init`, compose: `init: true`): the first process does not reap strangers.
ENTRYPOINT ["hexhail"]
CMD ["serve"]
