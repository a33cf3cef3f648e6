//! A bootstrap in its encoded form. A decoded message has some twenty times the size of its bytes, so that one with ten thousand static clusters is
//! never decoded whole: its frame is, and then each cluster when its turn comes.

use prost::{DecodeError, Message};

use crate::{
    envoy::config::{
        bootstrap::v3::Bootstrap,
        cluster::v3::{Cluster, cluster::EdsClusterConfig},
    },
    wire::{self, Reader, Wire},
};

/// `Bootstrap.static_resources`
const STATIC_RESOURCES: u32 = 2;
/// `Bootstrap.StaticResources.clusters`
const CLUSTERS: u32 = 2;

/// What of an `envoy.config.cluster.v3.Cluster` tells who it is and where its endpoints come from; all else is skipped.
#[derive(Clone, PartialEq, Message)]
pub struct ClusterHead {
    /// `name`
    #[prost(string, tag = "1")]
    pub name: String,
    /// `type`, a `Cluster.DiscoveryType`; `None` where it is not set or `cluster_type` is.
    #[prost(int32, optional, tag = "2")]
    pub kind: Option<i32>,
    /// `eds_cluster_config`
    #[prost(message, optional, tag = "3")]
    pub eds_cluster_config: Option<EdsClusterConfig>,
}

/// An encoded `envoy.config.bootstrap.v3.Bootstrap`, whose fields of one message may come in several pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedBootstrap {
    bytes: Vec<u8>,
}

impl EncodedBootstrap {
    /// The bytes as they are; whether they are a bootstrap shows in [`Self::frame`] and [`Self::clusters`].
    pub fn new(bytes: Vec<u8>) -> Self {
        EncodedBootstrap { bytes }
    }

    /// Protobuf's merge: set fields replace, messages are merged, lists are appended.
    pub fn merge(&mut self, more: &[u8]) {
        // That is what concatenation means: https://protobuf.dev/programming-guides/encoding/#last-one-wins
        self.bytes.extend_from_slice(more);
    }

    /// Everything at once.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Everything but the static clusters.
    ///
    /// # Errors
    /// The bytes are no bootstrap.
    pub fn frame(&self) -> Result<Bootstrap, DecodeError> {
        let mut frame = Vec::new();
        let mut fields = Reader(&self.bytes);
        let mut rest = fields.0;
        while let Ok(Some((number, value))) = fields.next() {
            let (whole, after) = rest.split_at(rest.len() - fields.0.len());
            rest = after;
            match (number, value) {
                (STATIC_RESOURCES, Wire::Len(resources)) => {
                    wire::put_bytes(&mut frame, STATIC_RESOURCES, &without_clusters(resources));
                }
                _ => frame.extend_from_slice(whole),
            }
        }
        // What cannot be read is for the decoder to name.
        frame.extend_from_slice(rest);
        Bootstrap::decode(frame.as_slice())
    }

    /// The static clusters, each decoded when it is asked for. Ends where the bytes cannot be read, which [`Self::frame`] has told before.
    pub fn clusters(&self) -> impl Iterator<Item = Result<Cluster, DecodeError>> {
        self.encoded_clusters().map(Cluster::decode)
    }

    /// What the static clusters are called and where their endpoints come from, at a fraction of the cost of [`Self::clusters`].
    pub fn cluster_heads(&self) -> impl Iterator<Item = Result<ClusterHead, DecodeError>> {
        self.encoded_clusters().map(ClusterHead::decode)
    }

    fn encoded_clusters(&self) -> impl Iterator<Item = &[u8]> {
        let resources = of_number(&self.bytes, STATIC_RESOURCES);
        resources.flat_map(|resources| of_number(resources, CLUSTERS))
    }
}

impl From<&Bootstrap> for EncodedBootstrap {
    fn from(bootstrap: &Bootstrap) -> Self {
        EncodedBootstrap::new(bootstrap.encode_to_vec())
    }
}

/// Static resources as they are, clusters left out.
fn without_clusters(resources: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut fields = Reader(resources);
    let mut rest = fields.0;
    while let Ok(Some((number, value))) = fields.next() {
        let (whole, after) = rest.split_at(rest.len() - fields.0.len());
        rest = after;
        if !matches!((number, value), (CLUSTERS, Wire::Len(_))) {
            kept.extend_from_slice(whole);
        }
    }
    kept.extend_from_slice(rest);
    kept
}

/// The messages in the fields of this number.
fn of_number(message: &[u8], wanted: u32) -> impl Iterator<Item = &[u8]> {
    let mut fields = Reader(message);
    std::iter::from_fn(move || {
        while let Ok(Some((number, value))) = fields.next() {
            if let (true, Wire::Len(bytes)) = (number == wanted, value) {
                return Some(bytes);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{envoy::config::cluster::v3::cluster::ClusterDiscoveryType, json};

    const TEXT: &str = "
node: { id: node }
static_resources:
  listeners: [{ name: l }]
  clusters: [{ name: a, connect_timeout: 1s }, { name: b }]
  secrets: [{ name: s }]
admin: { address: { pipe: { path: /a } } }
";

    fn names(encoded: &EncodedBootstrap) -> Vec<String> {
        encoded.clusters().map(|cluster| cluster.expect("a cluster").name).collect()
    }

    #[test]
    fn a_bootstrap_is_its_frame_and_its_clusters() {
        let whole: Bootstrap = json::from_yaml(TEXT).expect("good");
        let encoded = EncodedBootstrap::from(&whole);
        let mut joined = encoded.frame().expect("a frame");
        let resources = joined.static_resources.as_mut().expect("listeners and secrets");
        assert!(resources.clusters.is_empty());
        resources.clusters = encoded.clusters().collect::<Result<_, _>>().expect("clusters");
        assert_eq!(joined, whole);
    }

    #[test]
    fn heads_are_those_of_the_clusters() {
        let text = "static_resources: { clusters: [
            { name: a, connect_timeout: 1s, type: EDS, eds_cluster_config: { service_name: s, eds_config: { ads: {} } } },
            { name: b, cluster_type: { name: x } }, { name: c, type: STATIC }, { name: d }] }";
        let encoded = EncodedBootstrap::from(&json::from_yaml::<Bootstrap>(text).expect("good"));
        for (cluster, head) in encoded.clusters().zip(encoded.cluster_heads()) {
            let (cluster, head) = (cluster.expect("a cluster"), head.expect("its head"));
            let kind = match cluster.cluster_discovery_type {
                Some(ClusterDiscoveryType::Type(kind)) => Some(kind),
                Some(ClusterDiscoveryType::ClusterType(_)) | None => None,
            };
            assert_eq!(
                (cluster.name, kind, cluster.eds_cluster_config),
                (head.name, head.kind, head.eds_cluster_config)
            );
        }
        assert_eq!(encoded.cluster_heads().count(), 4);
    }

    #[test]
    fn merged_pieces_are_read_as_one() {
        let mut encoded = EncodedBootstrap::from(&json::from_yaml::<Bootstrap>(TEXT).expect("good"));
        let more: Bootstrap =
            json::from_yaml("{ node: { cluster: c }, static_resources: { clusters: [{ name: d }] } }").expect("good");
        encoded.merge(&more.encode_to_vec());
        assert_eq!(names(&encoded), ["a", "b", "d"]);
        let frame = encoded.frame().expect("a frame");
        let node = frame.node.expect("a node");
        assert_eq!((node.id.as_str(), node.cluster.as_str()), ("node", "c"));
        let whole = Bootstrap::decode(encoded.bytes()).expect("a bootstrap");
        assert_eq!(whole.static_resources.expect("resources").clusters.len(), 3);
    }

    #[test]
    fn what_is_no_bootstrap_is_an_error() {
        let whole = EncodedBootstrap::from(&json::from_yaml::<Bootstrap>(TEXT).expect("good"));
        for cut in 1..whole.bytes().len() {
            let encoded = EncodedBootstrap::new(whole.bytes()[..cut].to_vec());
            let pieces = encoded.frame().is_ok() && encoded.clusters().all(|cluster| cluster.is_ok());
            assert_eq!(pieces, Bootstrap::decode(encoded.bytes()).is_ok(), "cut at {cut}");
        }
        assert!(EncodedBootstrap::new(b"\x7f\x7f".to_vec()).frame().is_err());
        // A cluster that is none.
        assert!(EncodedBootstrap::new(vec![0x12, 3, 0x12, 1, 0xff]).clusters().any(|cluster| cluster.is_err()));
    }
}
