#![allow(clippy::unwrap_used)]

use std::{io::Read, process::Command};

use shika_data::stats::{Registry, Scope};
use tokio::task::LocalSet;

use super::*;

fn stats() -> FilesystemStats {
    FilesystemStats::new(&Registry::new(1), Scope::default())
}

fn start(set: &LocalSet, stats: &FilesystemStats) -> AccessLogs {
    let (logs, commands) = AccessLogs::new(None);
    set.spawn_local(run(commands, Flush { interval: Duration::from_millis(10), min_size: 64 * 1024 }, stats.clone()));
    logs
}

#[tokio::test(flavor = "current_thread")]
async fn whole_lines_survive_a_rotation() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let moved = directory.path().join("access.log.1");
    let set = LocalSet::new();
    let stats = stats();
    let logs = start(&set, &stats);
    set.run_until(async {
        let sink = logs.sink(path.to_str().unwrap());
        sink.write(Bytes::from_static(b"one\n"));
        logs.flush(Duration::from_secs(5)).await;
        std::fs::rename(&path, &moved).unwrap();
        logs.reopen();
        // Lines that are queued with the order to reopen may go to either file.
        logs.flush(Duration::from_secs(5)).await;
        sink.write(Bytes::from_static(b"two\n"));
        logs.flush(Duration::from_secs(5)).await;
    })
    .await;
    assert_eq!(std::fs::read_to_string(&moved).unwrap(), "one\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
    assert_eq!(stats.write_completed().total(), 2);
    assert_eq!(stats.write_total_buffered().value(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_fifo_without_reader_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let set = LocalSet::new();
    let stats = stats();
    let logs = start(&set, &stats);
    set.run_until(async {
        let sink = logs.sink(path.to_str().unwrap());
        sink.write(Bytes::from_static(b"kept\n"));
        logs.flush(Duration::from_secs(5)).await;
        assert_eq!(stats.write_completed().total(), 0);
        assert!(stats.reopen_failed().total() > 0);
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        logs.flush(Duration::from_secs(5)).await;
        let mut text = [0; 16];
        let count = reader.read(&mut text).unwrap();
        assert_eq!(&text[..count], b"kept\n");
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_full_queue_drops_and_counts() {
    let (logs, _commands) = AccessLogs::new(None);
    let sink = logs.sink("/nowhere/access.log");
    for _ in 0..QUEUE_LINES + 3 {
        sink.write(Bytes::from_static(b"x\n"));
    }
    assert_eq!(logs.dropped(), 3);
}

#[tokio::test(flavor = "current_thread")]
async fn one_path_has_one_writer_and_goes_with_its_last_user() {
    let (logs, _commands) = AccessLogs::new(None);
    let first = logs.sink("/tmp/a");
    let second = logs.sink("/tmp/a");
    assert!(Arc::ptr_eq(&first.path, &second.path));
    drop((first, second));
    let _other = logs.sink("/tmp/b");
    assert_eq!(logs.sinks.lock().keys().map(|path| path.to_string()).collect::<Vec<_>>(), ["/tmp/b"]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_full_disk_is_counted_and_logged_once() {
    let set = LocalSet::new();
    let stats = stats();
    let logs = start(&set, &stats);
    set.run_until(async {
        let sink = logs.sink("/dev/full");
        sink.write(Bytes::from_static(b"lost\n"));
        logs.flush(Duration::from_secs(5)).await;
        logs.flush(Duration::from_secs(5)).await;
    })
    .await;
    assert!(stats.write_failed().total() >= 2);
    assert_eq!(stats.write_completed().total(), 0);
}
