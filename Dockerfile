# Two stages: the toolchain builds, the image that runs holds one program and the root certificates.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Without the simulator: the image is for real environments.
RUN cargo build --release --locked --no-default-features

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /var/lib/dynavault dynavault
COPY --from=build /src/target/release/dynavault /usr/local/bin/dynavault
USER 10001
VOLUME /var/lib/dynavault
# Mount the configuration at /etc/dynavault; it is looked for there.
ENTRYPOINT ["/usr/local/bin/dynavault"]
CMD ["--help"]
