//! Files with the token and the control plane's CA: looked at now and then, and used again when they have changed.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use shika_proto::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{Secret, secret},
};

/// What the control plane's certificate is checked with, by this name in Kuma's bootstrap.
const CA_SECRET: &str = "cp_validation_ctx";

/// What tells one content of a file from another without reading it: device, inode, size, time of change.
type Stamp = (u64, u64, u64, i64, i64);

/// A file that may be replaced.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    stamp: Option<Stamp>,
}

impl Watched {
    /// As it is now.
    pub fn new(path: PathBuf) -> Watched {
        let stamp = stamp(&path);
        Watched { path, stamp }
    }

    /// It is another since the last call. While it is missing it counts as unchanged: it is being replaced.
    pub fn changed(&mut self) -> bool {
        let now = stamp(&self.path);
        now.is_some() && std::mem::replace(&mut self.stamp, now) != now
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

/// The bootstrap's secret with this CA in place of its own; `None` if the bootstrap has no such secret.
pub fn with_ca(secrets: &[Secret], pem: Vec<u8>) -> Option<Secret> {
    let mut secret = secrets.iter().find(|secret| secret.name == CA_SECRET)?.clone();
    match &mut secret.r#type {
        Some(secret::Type::ValidationContext(context)) => {
            context.trusted_ca =
                Some(DataSource { specifier: Some(Specifier::InlineBytes(pem)), ..DataSource::default() });
            Some(secret)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_changes_when_it_is_replaced_or_rewritten() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        fs::write(&path, "one").expect("a file");
        let mut watched = Watched::new(path.clone());
        assert!(!watched.changed());
        fs::write(&path, "three").expect("a file");
        assert!(watched.changed() && !watched.changed());
        fs::remove_file(&path).expect("removed");
        assert!(!watched.changed());
        let other = directory.path().join("other");
        fs::write(&other, "three").expect("a file");
        fs::rename(&other, &path).expect("moved");
        assert!(watched.changed() && !watched.changed());
    }

    #[test]
    fn only_the_control_planes_ca_is_replaced() {
        let context = |name: &str| Secret {
            name: name.into(),
            r#type: Some(secret::Type::ValidationContext(Default::default())),
        };
        let replaced = with_ca(&[context("other"), context(CA_SECRET)], b"pem".to_vec()).expect("a secret");
        let Some(secret::Type::ValidationContext(context_now)) = replaced.r#type else { unreachable!("as above") };
        assert_eq!(
            context_now.trusted_ca.and_then(|source| source.specifier),
            Some(Specifier::InlineBytes(b"pem".to_vec()))
        );
        assert!(with_ca(&[context("other")], Vec::new()).is_none());
    }
}
