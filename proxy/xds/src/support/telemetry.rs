//! Filters of access logs.

use super::{Message, NAME, NO_RUNTIME};

/// Their part of the table.
pub(super) const TABLE: &[Message] = &[
    Message {
        name: "envoy.config.accesslog.v3.RuntimeFilter",
        honoured: "percent_sampled use_independent_randomness",
        harmless: &[("runtime_key", NO_RUNTIME)],
        refused: &[],
    },
    Message {
        name: "envoy.config.accesslog.v3.GrpcStatusFilter",
        honoured: "statuses exclude",
        harmless: &[],
        refused: &[],
    },
    Message { name: "envoy.config.accesslog.v3.LogTypeFilter", honoured: "types exclude", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.accesslog.v3.MetadataFilter",
        honoured: "matcher match_if_key_not_found",
        harmless: &[],
        refused: &[],
    },
    Message {
        name: "envoy.type.matcher.v3.MetadataMatcher",
        honoured: "filter path value",
        harmless: &[],
        refused: &[("invert", "is not supported")],
    },
    Message { name: "envoy.type.matcher.v3.MetadataMatcher.PathSegment", honoured: "key", harmless: &[], refused: &[] },
    Message {
        name: "envoy.type.matcher.v3.ValueMatcher",
        honoured: "null_match double_match string_match bool_match present_match",
        harmless: &[],
        refused: &[("list_match", "no metadata is a list"), ("or_match", "is not supported")],
    },
    Message { name: "envoy.type.matcher.v3.ValueMatcher.NullMatch", honoured: "", harmless: &[], refused: &[] },
    Message {
        name: "envoy.type.matcher.v3.DoubleMatcher",
        honoured: "",
        harmless: &[
            ("range", "metadata is text, which no number matches"),
            ("exact", "metadata is text, which no number matches"),
        ],
        refused: &[],
    },
    Message { name: "envoy.type.v3.DoubleRange", honoured: "", harmless: &[], refused: &[] },
    Message {
        name: "envoy.config.accesslog.v3.ExtensionFilter",
        honoured: "typed_config",
        harmless: &[("name", NAME)],
        refused: &[],
    },
    Message {
        name: "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        honoured: "expression",
        harmless: &[],
        refused: &[("cel_config", "is not supported")],
    },
];
