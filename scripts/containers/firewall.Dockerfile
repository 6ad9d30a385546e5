# What cuts networks in `make chaos-net`: iptables, in a container that shares the network of the one that it cuts off.
FROM debian:trixie-slim
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends iptables \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
CMD ["sleep", "infinity"]
