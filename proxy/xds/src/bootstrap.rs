//! What a bootstrap asks for besides its static resources.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use shika_proto::envoy::config::core::v3::Node;

use shika_data::model::{access_log::AccessLog, listener::BindAddress};

/// A bootstrap whose static resources were accepted.
#[derive(Debug)]
pub struct BootstrapPlan {
    /// `node`, as sent to control planes; `user_agent_*` are filled in.
    pub node: Node,
    /// `admin`, if there is any.
    pub admin: Option<Admin>,
    /// `dynamic_resources.ads_config`
    pub ads: Option<ApiConfig>,
    /// `dynamic_resources.cds_config`
    pub cds: Option<Source>,
    /// `dynamic_resources.lds_config`
    pub lds: Option<Source>,
    /// `stats_config.stats_tags`: name and what gives the value.
    pub stats_tags: Vec<StatsTag>,
    /// `stats_config.use_all_default_tags`, default true.
    pub default_tags: bool,
    /// Layers of `layered_runtime` in order: name and values as JSON.
    pub runtime: Vec<(String, Value)>,
    /// `stats_flush_interval`, default 5 s.
    pub stats_flush_interval: Duration,
}

/// `admin`
#[derive(Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: BindAddress,
    /// Logs of admin requests.
    pub access_log: Vec<AccessLog>,
}

/// One entry of `stats_tags`.
#[derive(Clone, Debug)]
pub struct StatsTag {
    /// `tag_name`
    pub name: String,
    /// What gives the value.
    pub value: StatsTagValue,
}

/// The value of a [`StatsTag`].
#[derive(Clone, Debug)]
pub enum StatsTagValue {
    /// The second capture group is the value, the first is cut out of the name.
    Regex(regex::Regex),
    /// `fixed_value`
    Fixed(String),
    /// Neither is set: a tag of Envoy's own is asked for by its name.
    Default,
}

/// Where a type of resource comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The ADS stream.
    Ads {
        /// `initial_fetch_timeout`; `None` waits for ever. Envoy's default 15 s.
        initial_fetch_timeout: Option<Duration>,
    },
    /// A file, watched.
    File {
        /// File name.
        path: String,
        /// `watched_directory`, when another directory's moves are watched.
        watched_directory: Option<String>,
        /// `initial_fetch_timeout`; `None` waits for ever. Envoy's default 15 s.
        initial_fetch_timeout: Option<Duration>,
    },
    /// `api_config_source`: a subscription to this type alone. All names of a type that come from the same server share one.
    Api {
        /// The server, and how it is asked.
        api: Arc<ApiConfig>,
        /// `initial_fetch_timeout`; `None` waits for ever. Envoy's default 15 s.
        initial_fetch_timeout: Option<Duration>,
    },
}

/// `ApiConfigSource.api_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApiType {
    /// A stream, state of the world.
    Grpc,
    /// A stream of what changes.
    DeltaGrpc,
    /// Asked again and again over HTTP with JSON, state of the world.
    Rest {
        /// `refresh_delay`: from an answer to the next question, plus up to a second at random, as in Envoy.
        refresh: Duration,
        /// `request_timeout`. Envoy's default 1 s.
        timeout: Duration,
    },
}

/// `ApiConfigSource`: a control plane, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiConfig {
    /// `api_type`
    pub api_type: ApiType,
    /// `envoy_grpc.cluster_name`, for REST `cluster_names`.
    pub cluster: String,
    /// `envoy_grpc.authority`; the cluster's name if empty.
    pub authority: String,
    /// `initial_metadata`
    pub metadata: Vec<(String, String)>,
    /// `set_node_on_first_message_only`
    pub node_on_first_message_only: bool,
}
