:
4type.googleapis.com/envoy.config.cluster.v3.Cluster
c