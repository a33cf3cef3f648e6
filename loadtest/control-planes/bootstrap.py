"""Bootstraps for both proxies, one for each way of being subscribed to a control plane."""

import json

# The ways, by the names that go-control-plane's test server has for them.
MODES = ("ads", "delta-ads", "xds", "delta", "rest")


def cluster(name, port, http2):
    """A static cluster with one endpoint on loopback."""
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options" if http2 else "http_protocol_options": {}},
    }
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": assignment(name, [port]),
    }


def assignment(name, ports):
    """Endpoints on loopback."""
    address = [{"socket_address": {"address": "127.0.0.1", "port_value": port}} for port in ports]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": a}} for a in address]}]}


def api(mode, refresh="0.5s"):
    """The `ApiConfigSource` of a mode."""
    if mode == "rest":
        return {
            "api_type": "REST",
            "transport_api_version": "V3",
            "cluster_names": ["xds_cluster"],
            "refresh_delay": refresh,
        }
    return {
        "api_type": "DELTA_GRPC" if mode.startswith("delta") else "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds_cluster"}}],
    }


def source(mode, refresh="0.5s"):
    """The `ConfigSource` of a mode."""
    from_where = {"ads": {}} if mode.endswith("ads") else {"api_config_source": api(mode, refresh)}
    return {**from_where, "resource_api_version": "V3"}


def bootstrap(mode, node, server_port, admin_port, als_port=None, refresh="0.5s"):
    """A bootstrap that takes everything from the control plane at `server_port`."""
    dynamic = {"cds_config": source(mode, refresh), "lds_config": source(mode, refresh)}
    if mode.endswith("ads"):
        dynamic["ads_config"] = api(mode)
    clusters = [cluster("xds_cluster", server_port, http2=mode != "rest")]
    if als_port:
        clusters.append(cluster("als_cluster", als_port, http2=True))
    return json.dumps(
        {
            "node": {"id": node, "cluster": "control-planes"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}},
            "dynamic_resources": dynamic,
            "static_resources": {"clusters": clusters},
        },
        indent=1,
    )
