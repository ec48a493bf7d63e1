# The package on CPU. What it trains stays in ./runs:
#   docker build -t rllib_mfq . && docker run --rm --shm-size 2g -v "$PWD/runs:/runs" rllib_mfq
# Other commands: docker run ... rllib_mfq evaluate CHECKPOINT, and so on.
FROM python:3.11-slim
WORKDIR /opt/rllib_mfq
COPY . .
# torch's default wheel contains CUDA. For the CPU build give the address of PyTorch's CPU wheels:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=... -t rllib_mfq .
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir -c constraints.txt ".[render]"
WORKDIR /runs
ENTRYPOINT ["rllib"]
CMD ["example", "run", "battle_small", "--storage-path", "/runs"]
