//! Which proxies have a stream, so that an old stream's end does not delete the Dataplane that a newer stream brought.

use std::collections::HashMap;

use parking_lot::Mutex;

/// Streams by proxy.
#[derive(Debug, Default)]
pub(super) struct Registry {
    streams: Mutex<HashMap<(String, String), u64>>,
}

impl Registry {
    /// Notes that stream `stream` now speaks for the proxy.
    pub(super) fn connected(&self, mesh: &str, name: &str, stream: u64) {
        self.streams.lock().insert((mesh.to_owned(), name.to_owned()), stream);
    }

    /// Forgets the proxy if `stream` is still its newest; true if it was.
    pub(super) fn forget(&self, mesh: &str, name: &str, stream: u64) -> bool {
        let mut streams = self.streams.lock();
        let key = (mesh.to_owned(), name.to_owned());
        let newest = streams.get(&key) == Some(&stream);
        if newest {
            streams.remove(&key);
        }
        newest
    }
}
