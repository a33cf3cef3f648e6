//! What a bootstrap asks for besides its static resources.

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use crate::overload::Overload;
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
    /// `overload_manager`
    pub overload: Option<Overload>,
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

/// A regex of a tag. Envoy takes these as C++ does, look-around included, which Kuma's metrics configuration makes use of; patterns without it are
/// matched in linear time.
#[derive(Clone, Debug)]
pub enum TagRegex {
    /// Without look-around.
    Linear(regex::Regex),
    /// With it: gives a name up, as not matching, after a bounded number of steps.
    LookAround(Box<fancy_regex::Regex>),
}

impl TagRegex {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let linear = match regex::RegexBuilder::new(pattern).size_limit(1 << 20).build() {
            Ok(regex) => return Ok(TagRegex::Linear(regex)),
            Err(error) => error,
        };
        if let Ok(regex) = fancy_regex::RegexBuilder::new(pattern).backtrack_limit(10_000).build() {
            return Ok(TagRegex::LookAround(Box::new(regex)));
        }
        let why = linear.to_string();
        Err(why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
    }

    /// What is cut out of a name, and the value: the first group, and the second, or the first where there is no second.
    pub fn groups(&self, name: &str) -> Option<(Range<usize>, Range<usize>)> {
        let groups = match self {
            TagRegex::Linear(regex) => {
                let found = regex.captures(name)?;
                [1, 2].map(|group| found.get(group).map(|part| part.range()))
            }
            TagRegex::LookAround(regex) => {
                let found = regex.captures(name).ok().flatten()?;
                [1, 2].map(|group| found.get(group).map(|part| part.range()))
            }
        };
        let [cut, value] = groups;
        let cut = cut?;
        Some((cut.clone(), value.unwrap_or(cut)))
    }
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
    Regex(TagRegex),
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
    /// A token that is read for every stream.
    pub token_file: Option<TokenFile>,
    /// Pause between pings and how long an answer may take; the cluster's if unset.
    pub keepalive: Option<(Duration, Duration)>,
    /// Bound on a message of the control plane, bytes. Envoy has none of its own for `envoy_grpc`.
    pub largest_message: usize,
}

/// `config.grpc_credential.v3.FileBasedMetadataConfig`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenFile {
    /// Where it is.
    pub path: PathBuf,
    /// Name of the header; Envoy's default `authorization`.
    pub header: String,
    /// What stands before the token in it.
    pub prefix: String,
}
