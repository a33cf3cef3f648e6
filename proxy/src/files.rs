//! The control loop's end of `path_config_source`: files that are watched and read again.

use std::collections::BTreeMap;

use shika_xds::{
    Update,
    bootstrap::Source,
    files::{self, Watch},
};
use tokio::sync::mpsc;
use tracing::warn;

/// Changes that may wait for the loop. More than one of a file are one.
const QUEUE: usize = 1024;

/// Type and path of a file.
type Key = (String, String);

/// The files that are watched.
pub struct Files {
    watched: BTreeMap<Key, (Source, Option<Watch>)>,
    changes: mpsc::Sender<Key>,
    received: mpsc::Receiver<Key>,
}

impl Files {
    /// None yet.
    pub fn new() -> Files {
        let (changes, received) = mpsc::channel(QUEUE);
        Files { watched: BTreeMap::new(), changes, received }
    }

    /// Watches exactly these from now on; new ones are read at once.
    pub fn watch(&mut self, wanted: Vec<(String, Source)>) {
        let mut watched = BTreeMap::new();
        for (type_url, source) in wanted {
            let Source::File { path, watched_directory, .. } = &source else { continue };
            let key = (type_url, path.clone());
            let entry = match self.watched.remove(&key) {
                Some((known, watch)) if known == source => (known, watch),
                _ => {
                    let watch = self.start(&key, watched_directory.as_deref());
                    (source, watch)
                }
            };
            watched.insert(key, entry);
        }
        self.watched = watched;
    }

    fn start(&self, key: &Key, directory: Option<&str>) -> Option<Watch> {
        let changed = {
            let (changes, key) = (self.changes.clone(), key.clone());
            move || {
                // A full queue holds so many changes that one of this file is among them or follows.
                let _ = changes.try_send(key.clone());
            }
        };
        changed();
        files::watch(&key.1, directory, changed)
            .inspect_err(|error| warn!("{}: cannot be watched, changes will not be seen: {error}", key.1))
            .ok()
    }

    /// The content of the next file that is new or has changed.
    pub async fn next(&mut self) -> Option<Update> {
        loop {
            let key = self.received.recv().await?;
            if !self.watched.contains_key(&key) {
                continue;
            }
            match files::read(&key.1, &key.0) {
                Ok(update) => return Some(update),
                Err(error) => warn!("file config rejected: {error}"),
            }
        }
    }
}
