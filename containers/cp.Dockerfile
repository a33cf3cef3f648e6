# The control plane and its command line.
FROM scratch
COPY shika-cp shikactl /usr/bin/
# An empty directory with its owner: an image from scratch has no mkdir, and a named volume takes the owner over.
COPY --chown=5679:5679 empty /var/lib/shika-cp
USER 5679:5679
ENV SHIKA_STORE_PATH=/var/lib/shika-cp/shika.db KUMA_GENERAL_WORK_DIR=/var/lib/shika-cp
VOLUME /var/lib/shika-cp
ENTRYPOINT ["/usr/bin/shika-cp"]
CMD ["run"]
