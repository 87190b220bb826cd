# Threadkeep in a container; docs/deploy.md says how to run it.
FROM python:3.12-slim

# Anything here brings the embedded model, about 500 MB: docker build --build-arg MODEL=1 .
ARG MODEL=

ENV UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1

RUN pip install --no-cache-dir "uv>=0.9,<1" \
    && useradd --uid 1000 --create-home threadkeep \
    && install -d -o threadkeep -g threadkeep /app /data
# What llama.cpp is linked with.
RUN if [ -n "$MODEL" ]; then apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*; fi
WORKDIR /app
USER 1000:1000

# What is installed changes less often than the code, so it is a layer of its own.
COPY --chown=1000:1000 pyproject.toml README.md LICENSE ./
RUN uv sync --no-install-project --no-default-groups --extra databricks ${MODEL:+--group model}
COPY --chown=1000:1000 src src
COPY --chown=1000:1000 agent_server agent_server
RUN uv sync --no-default-groups --extra databricks ${MODEL:+--group model}

ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 HOST=0.0.0.0 DATABASE_URL=sqlite:////data/threadkeep.db
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('PORT', '8000') + '/health', timeout=4)"]
CMD ["start-app"]
