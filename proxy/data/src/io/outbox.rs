//! What the connections of a worker write in one turn, sent together at its end.
//!
//! A send wakes the process that reads at the other end, and on the host of a sidecar that process has fallen asleep again by the time the next connection
//! is served. Sent one behind the other, what a turn writes is read in one go, and the code that receives and parses stays in the cache meanwhile. So a
//! small write only waits for the tasks that are ready to run now, and for no more than [`MOST`] other writes. Measured: benches/RESULTS.md.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::IoSlice,
    sync::Arc,
    task::{Poll, Waker},
};

use super::tcp::Shared;

/// A longer write goes out at once: it would be copied, and it wakes the other end for longer.
const SMALL: usize = 4 * 1024;
/// Writes that wait at most.
const MOST: usize = 16;
/// Bytes that wait at most, but for one more write.
const MOST_BYTES: usize = 64 * 1024;

thread_local! {
    static OUTBOX: RefCell<Outbox> = const {
        RefCell::new(Outbox { sender: None, waiting: Vec::new(), bytes: Vec::new() })
    };
}

struct Outbox {
    /// Wakes [`serve`]; `None`: there is no end of a turn on this thread, so nothing waits for it.
    sender: Option<Waker>,
    /// In the order of the writes, each with where its bytes end.
    waiting: Vec<(Arc<Shared>, usize)>,
    bytes: Vec<u8>,
}

/// Takes a write to be sent at the end of this turn, unless it should go out by itself, behind what was taken before.
pub(super) fn take(socket: &Arc<Shared>, pieces: &[IoSlice<'_>]) -> bool {
    let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
    let full = OUTBOX.try_with(|outbox| {
        let Ok(mut outbox) = outbox.try_borrow_mut() else { return None };
        let Outbox { sender, waiting, bytes } = &mut *outbox;
        let sender = sender.as_ref().filter(|_| (1..=SMALL).contains(&length))?;
        if waiting.is_empty() {
            sender.wake_by_ref();
        }
        for piece in pieces {
            bytes.extend_from_slice(piece);
        }
        socket.waits();
        match waiting.last_mut() {
            Some((last, end)) if Arc::ptr_eq(last, socket) => *end = bytes.len(),
            _ => waiting.push((socket.clone(), bytes.len())),
        }
        Some(waiting.len() >= MOST || bytes.len() >= MOST_BYTES)
    });
    let full = full.ok().flatten();
    if full == Some(true) {
        send();
    }
    full.is_some()
}

/// Sends all that waits.
pub(super) fn send() {
    // What is sent cannot come back here, but the thread may be at its end.
    let _ = OUTBOX.try_with(|outbox| {
        let Ok(mut outbox) = outbox.try_borrow_mut() else { return };
        let Outbox { waiting, bytes, .. } = &mut *outbox;
        let mut begin = 0;
        for (socket, end) in waiting.drain(..) {
            socket.send(bytes.get(begin..end).unwrap_or_default());
            begin = end;
        }
        bytes.clear();
    });
}

/// Lets what this thread writes wait for the end of its turns, for as long as this is polled: a task of its own, which is woken by the first write of a
/// turn and comes behind all that were ready to run then.
pub(crate) async fn serve() {
    /// Ends it.
    struct Closed;

    impl Drop for Closed {
        fn drop(&mut self) {
            send();
            let _ = OUTBOX.try_with(|outbox| outbox.try_borrow_mut().map(|mut outbox| outbox.sender = None));
        }
    }

    let _closed = Closed;
    poll_fn(|cx| {
        OUTBOX.with_borrow_mut(|outbox| outbox.sender.get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker()));
        send();
        Poll::Pending
    })
    .await
}
