//! `filters.network.kafka_broker.v3.KafkaBroker`, as far as it only counts.

use prost::Message;
use shika_proto::google::protobuf::Any;

use super::{Compiled, Fault};

/// The contrib filter that Kuma puts before the proxy of Kafka ports. It is not in the schema that Envoy's types come from.
const KAFKA_BROKER: &str = "envoy.extensions.filters.network.kafka_broker.v3.KafkaBroker";

/// What of it Kuma sets.
#[derive(Clone, PartialEq, Message)]
struct KafkaBroker {
    #[prost(string, tag = "1")]
    stat_prefix: String,
}

/// Whether a filter does no more than count Kafka messages, and can be left out. One that rewrites or refuses messages is refused.
pub(crate) fn is_counter(content: &Any) -> Compiled<bool> {
    if content.type_url.rsplit('/').next() != Some(KAFKA_BROKER) {
        return Ok(false);
    }
    let known = KafkaBroker::decode(content.value.as_slice()).ok();
    if known.is_some_and(|known| known.encode_to_vec() == content.value) {
        return Ok(true);
    }
    Err(Fault::new("typed_config", format!("{KAFKA_BROKER}: nothing but stat_prefix is supported")))
}
