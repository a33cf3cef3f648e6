#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::resource::{Dataplane, DataplaneInsight, Mesh, Meta, Secret, Spec};

fn mesh(name: &str) -> Resource {
    Resource::new(Meta::new("", name), Spec::Mesh(Arc::new(Mesh::default())))
}

fn secret(mesh: &str, name: &str, data: &str) -> Resource {
    Resource::new(Meta::new(mesh, name), Spec::Secret(Arc::new(Secret::new(data))))
}

/// Runs the same test on every kind of store.
async fn on_each<F: Future<Output = ()>>(test: impl Fn(Store) -> F) {
    test(Store::memory()).await;
    let directory = tempfile::tempdir().unwrap();
    test(Store::sqlite(&directory.path().join("shika.db")).await.unwrap()).await;
}

#[tokio::test]
async fn versions_count_and_conflicts_are_refused() {
    on_each(async |store| {
        let created = store.put(mesh("m"), Expect::Absent).await.unwrap();
        assert_eq!(created.meta.version, 1);
        assert_eq!(created.meta.creation_time, created.meta.modification_time);
        assert!(matches!(store.put(mesh("m"), Expect::Absent).await, Err(StoreError::Exists(_))));
        let updated = store.put(mesh("m"), Expect::Version(1)).await.unwrap();
        assert_eq!((updated.meta.version, updated.meta.creation_time), (2, created.meta.creation_time));
        let conflict = store.put(mesh("m"), Expect::Version(1)).await.unwrap_err();
        assert_eq!(
            conflict.to_string(),
            "Mesh \"m\" was changed by somebody else: version 1 expected, 2 found; read it again and retry"
        );
        assert_eq!(store.put(mesh("m"), Expect::Any).await.unwrap().meta.version, 3);
        assert!(matches!(store.put(mesh("n"), Expect::Version(1)).await, Err(StoreError::NotFound(_))));
        let error = store.put(secret("n", "s", ""), Expect::Absent).await.unwrap_err();
        assert_eq!(error.to_string(), "mesh \"n\" of Secret \"s\" in mesh \"n\" not found; create the mesh first");
        assert_eq!(store.get(&mesh("m").key()).await.unwrap().unwrap().meta.version, 3);
        assert_eq!(store.get(&mesh("n").key()).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn lists_are_by_kind_and_mesh_in_order() {
    on_each(async |store| {
        for name in ["b", "a"] {
            store.put(mesh(name), Expect::Absent).await.unwrap();
            for secret_name in ["2", "1"] {
                store.put(secret(name, secret_name, "x"), Expect::Absent).await.unwrap();
            }
        }
        let names = async |kind, mesh| {
            let list = store.list(kind, mesh).await.unwrap();
            list.into_iter().map(|r| format!("{}/{}", r.meta.mesh, r.meta.name)).collect::<Vec<_>>()
        };
        assert_eq!(names(Kind::Mesh, None).await, ["/a", "/b"]);
        assert_eq!(names(Kind::Secret, Some("b")).await, ["b/1", "b/2"]);
        assert_eq!(names(Kind::Secret, None).await, ["a/1", "a/2", "b/1", "b/2"]);
        assert!(names(Kind::Secret, Some("c")).await.is_empty());
        assert!(names(Kind::Dataplane, None).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn owners_take_what_they_own_with_them_and_watchers_see_it() {
    on_each(async |store| {
        let mut watch = store.watch();
        let dataplane = Resource::new(Meta::new("m", "d"), Spec::Dataplane(Arc::new(Dataplane::default())));
        let insight = Resource::new(Meta::new("m", "d"), Spec::DataplaneInsight(Arc::new(DataplaneInsight::default())));
        for resource in [
            mesh("m"),
            mesh("other"),
            dataplane.clone(),
            insight.clone(),
            secret("m", "s", "x"),
            secret("other", "s", "x"),
        ] {
            store.put(resource.clone(), Expect::Absent).await.unwrap();
            assert_eq!(watch.next().await, Some(Event::Changed(resource.key())));
        }
        store.delete(&dataplane.key()).await.unwrap();
        assert_eq!(watch.next().await, Some(Event::Deleted(insight.key())));
        assert_eq!(watch.next().await, Some(Event::Deleted(dataplane.key())));
        store.delete(&mesh("m").key()).await.unwrap();
        assert_eq!(watch.next().await, Some(Event::Deleted(secret("m", "s", "").key())));
        assert_eq!(watch.next().await, Some(Event::Deleted(mesh("m").key())));
        assert!(matches!(store.delete(&mesh("m").key()).await, Err(StoreError::NotFound(_))));
        assert_eq!(store.list(Kind::Secret, None).await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_slow_watcher_is_told_to_read_again() {
    let store = Store::memory();
    let mut watch = store.watch();
    for _ in 0..=WATCH_CAPACITY {
        store.put(mesh("m"), Expect::Any).await.unwrap();
    }
    assert_eq!(watch.next().await, Some(Event::Resync));
    assert_eq!(watch.next().await, Some(Event::Changed(mesh("m").key())));
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("deep/down/shika.db");
    let mut labelled = mesh("m");
    labelled.meta.labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
    let store = Store::sqlite(&file).await.unwrap();
    let stored = store.put(labelled, Expect::Absent).await.unwrap();
    let kept = store.put(secret("m", "s", "bytes"), Expect::Absent).await.unwrap();
    drop(store);
    let store = Store::sqlite(&file).await.unwrap();
    assert_eq!(store.get(&stored.key()).await.unwrap(), Some(stored));
    assert_eq!(store.get(&kept.key()).await.unwrap(), Some(kept));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "keys are in it");
}

#[tokio::test]
async fn writers_at_the_same_time_all_succeed() {
    on_each(async |store| {
        store.put(mesh("m"), Expect::Absent).await.unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..20 {
            let store = store.clone();
            writers.spawn(async move {
                for number in 0..5 {
                    store.put(secret("m", &format!("{writer}-{number}"), "x"), Expect::Absent).await.unwrap();
                    store.put(mesh("m"), Expect::Any).await.unwrap();
                }
            });
        }
        writers.join_all().await;
        assert_eq!(store.list(Kind::Secret, Some("m")).await.unwrap().len(), 100);
        assert_eq!(store.get(&mesh("m").key()).await.unwrap().unwrap().meta.version, 101);
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_no_database_or_from_the_future_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text");
    std::fs::write(&text, "this is no database, and long enough to be sure of that".repeat(20)).unwrap();
    let error = Store::sqlite(&text).await.unwrap_err().to_string();
    assert!(error.contains("not a database"), "{error}");
    let error = Store::sqlite(Path::new("/proc/nowhere/shika.db")).await.unwrap_err().to_string();
    assert!(error.starts_with("store: cannot open /proc/nowhere/shika.db"), "{error}");
    let future = directory.path().join("future.db");
    let Store::Sqlite(store) = Store::sqlite(&future).await.unwrap() else { panic!("a SQLite store was opened") };
    store.set_schema_version(99).await;
    let error = Store::sqlite(&future).await.unwrap_err().to_string();
    assert!(error.contains("written by a newer version of shika-cp (schema 99"), "{error}");
}

/// Lets a future take its first step.
async fn step(mut future: std::pin::Pin<&mut impl Future>) {
    std::future::poll_fn(|context| {
        let _ = future.as_mut().poll(context);
        std::task::Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn a_write_that_was_begun_is_finished_and_announced() {
    on_each(async |store| {
        let mut watch = store.watch();
        let mut put = Box::pin(store.put(mesh("m"), Expect::Absent));
        // The caller goes away after the first step.
        step(put.as_mut()).await;
        drop(put);
        assert_eq!(watch.next().await, Some(Event::Changed(mesh("m").key())));
        let key = mesh("m").key();
        let mut delete = Box::pin(store.delete(&key));
        step(delete.as_mut()).await;
        drop(delete);
        assert_eq!(watch.next().await, Some(Event::Deleted(mesh("m").key())));
        assert_eq!(store.get(&key).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_status_is_kept_and_goes_with_its_resource() {
    on_each(async |store| {
        store.put(mesh("m"), Expect::Absent).await.unwrap();
        let mut service = crate::resource::MeshService::default();
        service.status.vips.push(crate::resource::Vip { ip: "241.0.0.1".to_owned() });
        let service = Resource::new(Meta::new("m", "web"), Spec::MeshService(Arc::new(service)));
        let stored = store.put(service, Expect::Absent).await.unwrap();
        assert_eq!(store.get(&stored.key()).await.unwrap(), Some(stored.clone()));
        // An insight goes with what it is about.
        for spec in [Spec::ZoneIngress(Arc::default()), Spec::ZoneIngressInsight(Arc::default())] {
            store.put(Resource::new(Meta::new("", "zi"), spec), Expect::Absent).await.unwrap();
        }
        store.delete(&ResourceKey::global(Kind::ZoneIngress, "zi")).await.unwrap();
        assert_eq!(store.list(Kind::ZoneIngressInsight, None).await.unwrap(), []);
        store.delete(&mesh("m").key()).await.unwrap();
        assert_eq!(store.get(&stored.key()).await.unwrap(), None);
    })
    .await;
}
