# A node of the bus, the command `eventbus`, and what an agent needs: one image for all of them.
#   docker build -t eventbus .
#   docker run -e EVENTBUS_REDIS_URL=redis://... -e EVENTBUS_JWT_SECRET_FILE=/secrets/node/jwt-secret -v ... eventbus
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY clients/js ./clients/js
COPY eventbus ./eventbus
COPY gateway ./gateway
RUN pip wheel --no-cache-dir --wheel-dir /wheels ".[gateway]"

FROM python:${PYTHON}-slim
# The directories of secrets belong to the user, so that a fresh volume on them does too.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels "eventbus[gateway]" \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin eventbus \
    && install -d -m 0755 -o eventbus -g eventbus /secrets/node /secrets/prometheus
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    EVENTBUS_HOST=0.0.0.0 \
    EVENTBUS_LOG_FORMAT=json
USER 10001
EXPOSE 8080 8081
# SIGTERM drains the node; give it longer than EVENTBUS_DRAIN_MS before it is killed.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('EVENTBUS_PORT', '8080') + '/readyz', timeout=2)"]
CMD ["eventbus-gateway", "serve"]
