# docker build -t batchrank . ; docker run --rm -v "$PWD":/data batchrank plan /data/rows.parquet
FROM python:3.13-slim
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY batchrank /src/batchrank
RUN pip install --no-cache-dir /src -c /src/constraints.txt && rm -rf /src \
    && useradd --uid 1000 --create-home batchrank
USER 1000
WORKDIR /data
ENTRYPOINT ["batchrank"]
