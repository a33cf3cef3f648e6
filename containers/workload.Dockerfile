# What the demonstration runs behind sidecars: an HTTP echo, curl and jq, and the control plane's command line for the set-up.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates curl jq && rm -rf /var/lib/apt/lists/*
COPY shika-loadtest shikactl /usr/bin/
USER 1000:1000
ENTRYPOINT []
CMD ["sleep", "infinity"]
