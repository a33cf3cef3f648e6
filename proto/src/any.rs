//! Messages into and out of `google.protobuf.Any`.

use prost::{DecodeError, Message, Name};

use crate::google::protobuf::Any;
use crate::type_url;

/// Why an `Any` does not give the message that was asked for.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// It holds another type.
    #[error("expected {expected}, found {found:?}")]
    Type {
        /// Full name of the message that was asked for.
        expected: String,
        /// Type URL of the `Any`.
        found: String,
    },
    /// Its bytes are not a message of that type.
    #[error("cannot decode {expected}: {error}")]
    Decode {
        /// Full name of the message.
        expected: String,
        /// What prost says.
        error: DecodeError,
    },
}

/// Encodes a message, with the type URL `type.googleapis.com/<full name>`.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("{}{}", type_url::PREFIX, M::full_name()), value: message.encode_to_vec() }
}

/// Decodes the message of type `M`. As in Envoy, only what follows the last slash of the type URL is compared.
///
/// # Errors
/// The `Any` holds another type, or bytes that are not of that type.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    let expected = M::full_name();
    if type_url::message_name(&any.type_url) != Some(expected.as_str()) {
        return Err(UnpackError::Type { expected, found: any.type_url.clone() });
    }
    M::decode(any.value.as_slice()).map_err(|error| UnpackError::Decode { expected, error })
}

/// Whether the `Any` says that it holds an `M`.
pub fn is<M: Name>(any: &Any) -> bool {
    type_url::message_name(&any.type_url) == Some(M::full_name().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::cluster::v3::Cluster;
    use crate::envoy::config::listener::v3::Listener;

    #[test]
    fn round_trip_and_refusals() {
        let cluster = Cluster { name: "backend".into(), ..Default::default() };
        let mut any = pack(&cluster);
        assert_eq!(any.type_url, type_url::CLUSTER);
        assert!(is::<Cluster>(&any) && !is::<Listener>(&any));
        assert_eq!(unpack::<Cluster>(&any), Ok(cluster.clone()));
        let error = unpack::<Listener>(&any).expect_err("another type");
        assert_eq!(
            error.to_string(),
            format!("expected envoy.config.listener.v3.Listener, found {:?}", type_url::CLUSTER)
        );

        any.type_url = "example.org/some/envoy.config.cluster.v3.Cluster".into();
        assert_eq!(unpack::<Cluster>(&any), Ok(cluster));
        any.type_url = "envoy.config.cluster.v3.Cluster".into();
        assert!(matches!(unpack::<Cluster>(&any), Err(UnpackError::Type { .. })), "no slash: not a type URL");

        any = Any { type_url: type_url::CLUSTER.into(), value: vec![0x0a, 0x05, 0x01] };
        assert!(matches!(unpack::<Cluster>(&any), Err(UnpackError::Decode { .. })));
    }
}
