# Sets the redirection of a network namespace and ends: the same static program tells the kernel over netlink, so no nft and no iptables is needed.
# Runs in the namespace of the application (network_mode, pod) with the capability NET_ADMIN, which Docker grants to root alone.
FROM scratch
COPY shika-proxy /usr/bin/shika-proxy
USER 0:0
ENTRYPOINT ["/usr/bin/shika-proxy", "install", "transparent-proxy"]
CMD ["--kuma-dp-user=5678", "--redirect-dns"]
