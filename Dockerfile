# Build:  docker build -t movie-recommender .
# Train:  docker run --rm -v recs:/srv/artifacts movie-recommender python train_als.py
#         with your own data:  -v /path/to/ratings:/data:ro -e MOVIELENS_DIR=/data
# Serve:  docker run --rm -p 8000:8000 -v recs:/srv/artifacts movie-recommender
# A folder mounted in place of the volume must be writable by uid 10001 for training.

FROM python:3.13-slim AS build
COPY requirements.txt .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir -r requirements.txt

FROM python:3.13-slim
# implicit is parallel through OpenMP, whose runtime the slim image lacks.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 recs
COPY --from=build /venv /venv
WORKDIR /srv
COPY train_als.py ./
COPY app ./app
RUN mkdir artifacts data_small && chown recs:recs artifacts data_small
USER recs
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
EXPOSE 8000
# Alive, not ready: a container without a model must stay up to say what it needs.
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["uvicorn", "app.main:app", "--host", "0.0.0.0", "--port", "8000", \
    "--timeout-graceful-shutdown", "8"]
