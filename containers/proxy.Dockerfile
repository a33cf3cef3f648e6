# The data plane proxy alone: one static program, no shell, no libraries, no users but a number.
# Built by scripts/images.sh from the directory of static programs.
FROM scratch
# A /tmp that all may write to, for the work directory. A tmpfs over it takes its mode over when the container is started again.
COPY root/ /
COPY shika-proxy /usr/bin/shika-proxy
# The user whose traffic is not redirected.
USER 5678:5678
ENTRYPOINT ["/usr/bin/shika-proxy"]
CMD ["run"]
