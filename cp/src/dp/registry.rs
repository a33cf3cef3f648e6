//! Which proxies have a stream, so that an old stream's end does not delete the Dataplane that a newer stream brought.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::resource::ResourceKey;

/// Streams by the resource that describes their proxy.
#[derive(Debug, Default)]
pub(super) struct Registry {
    streams: Mutex<HashMap<ResourceKey, u64>>,
    /// How many streams there are.
    live: watch::Sender<usize>,
}

impl Registry {
    /// Notes that stream `stream` now speaks for the proxy.
    pub(super) fn connected(&self, proxy: &ResourceKey, stream: u64) {
        self.streams.lock().insert(proxy.clone(), stream);
        self.live.send_modify(|live| *live += 1);
    }

    /// Notes that a stream has ended.
    pub(super) fn ended(&self) {
        self.live.send_modify(|live| *live = live.saturating_sub(1));
    }

    /// How many streams there are.
    pub(super) fn live(&self) -> watch::Receiver<usize> {
        self.live.subscribe()
    }

    /// Forgets the proxy if `stream` is still its newest; true if it was.
    pub(super) fn forget(&self, proxy: &ResourceKey, stream: u64) -> bool {
        let mut streams = self.streams.lock();
        let newest = streams.get(proxy) == Some(&stream);
        if newest {
            streams.remove(proxy);
        }
        newest
    }
}
