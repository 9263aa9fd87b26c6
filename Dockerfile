# CPU:   docker build -t reformer .
# CUDA:  docker build -t reformer-cuda --build-arg EXTRA=cuda12 .     (docker run --gpus=all; needs the driver only)
# Train: docker run -v $PWD/runs:/runs reformer reformer-train --config=configs/stdlib.py:tiny --workdir=/runs/tiny
FROM python:3.12-slim

ARG EXTRA=
WORKDIR /reformer
COPY requirements.txt pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir "./${EXTRA:+[$EXTRA]}"

WORKDIR /runs
CMD ["reformer-train", "--help"]
