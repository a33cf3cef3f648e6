//! Resources in one SQLite file.
//!
//! Write-ahead logging with `synchronous = FULL`: what was acknowledged survives `kill -9` and a power cut.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Row, SqlitePool};
use std::sync::Arc;
use tokio::sync::{Mutex, broadcast};

use super::{Event, Expect, StoreError, WATCH_CAPACITY, next_version};
use crate::resource::{Kind, Meta, Resource, ResourceKey, set_status, spec_from_value, spec_to_value, status_to_value};

/// The schema, one entry for each version of it. Entries are only ever added.
const MIGRATIONS: [&str; 2] = [
    "CREATE TABLE resources (
    kind TEXT NOT NULL,
    mesh TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    labels TEXT NOT NULL,
    spec TEXT NOT NULL,
    creation_time TEXT NOT NULL,
    modification_time TEXT NOT NULL,
    PRIMARY KEY (kind, mesh, name)
) WITHOUT ROWID",
    // What the control plane found out; empty for kinds without a status.
    "ALTER TABLE resources ADD COLUMN status TEXT NOT NULL DEFAULT ''",
];

/// Resources in one SQLite file. Clones share it.
#[derive(Clone, Debug)]
pub struct Sqlite {
    pool: SqlitePool,
    // SQLite has one writer at a time; queueing here keeps writers from timing out on each other's lock and lets
    // changes be announced in the order in which they were committed.
    writer: Arc<Mutex<()>>,
    events: broadcast::Sender<Event>,
}

impl Sqlite {
    pub(super) async fn open(path: &Path) -> Result<Sqlite, StoreError> {
        let describe = |e: sqlx::Error| {
            StoreError::Database(format!(
                "cannot open {}: {e}; check that the directory exists and is writable",
                path.display()
            ))
        };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|e| describe(sqlx::Error::Io(e)))?;
        }
        // CA keys will be in it: for its owner alone. SQLite gives the files beside it the same permissions.
        let mut file = std::fs::OpenOptions::new();
        file.create(true).append(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut file, 0o600);
        file.open(path).map_err(|e| describe(sqlx::Error::Io(e)))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await.map_err(describe)?;
        let store = Sqlite { pool, writer: Arc::default(), events: broadcast::Sender::new(WATCH_CAPACITY) };
        store.migrate(path).await?;
        Ok(store)
    }

    /// Brings the schema to this version; `user_version` counts the migrations that were made.
    async fn migrate(&self, path: &Path) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(database)?;
        let row = sqlx::query("PRAGMA user_version").fetch_one(&mut *transaction).await.map_err(database)?;
        let found: i64 = row.try_get(0).map_err(database)?;
        let found = usize::try_from(found).unwrap_or(usize::MAX);
        if found > MIGRATIONS.len() {
            return Err(StoreError::Database(format!(
                "{} was written by a newer version of shika-cp (schema {found}, this one knows {}); use that version",
                path.display(),
                MIGRATIONS.len()
            )));
        }
        for (done, migration) in MIGRATIONS.iter().enumerate().skip(found) {
            sqlx::raw_sql(*migration).execute(&mut *transaction).await.map_err(database)?;
            let pragma = format!("PRAGMA user_version = {}", done + 1);
            sqlx::raw_sql(sqlx::AssertSqlSafe(pragma)).execute(&mut *transaction).await.map_err(database)?;
        }
        transaction.commit().await.map_err(database)
    }

    pub(super) async fn get(&self, key: &ResourceKey) -> Result<Option<Resource>, StoreError> {
        let row = sqlx::query("SELECT * FROM resources WHERE kind = ? AND mesh = ? AND name = ?")
            .bind(key.kind.name())
            .bind(&key.mesh)
            .bind(&key.name)
            .fetch_optional(&self.pool)
            .await
            .map_err(database)?;
        row.as_ref().map(read).transpose()
    }

    pub(super) async fn list(&self, kind: Kind, mesh: Option<&str>) -> Result<Vec<Resource>, StoreError> {
        let rows = match mesh {
            Some(mesh) => sqlx::query("SELECT * FROM resources WHERE kind = ? AND mesh = ? ORDER BY name")
                .bind(kind.name())
                .bind(mesh)
                .fetch_all(&self.pool),
            None => sqlx::query("SELECT * FROM resources WHERE kind = ? ORDER BY mesh, name")
                .bind(kind.name())
                .fetch_all(&self.pool),
        };
        rows.await.map_err(database)?.iter().map(read).collect()
    }

    /// Runs in a task of its own: a caller that goes away halfway must not leave a change that nobody was told of.
    pub(super) async fn put(&self, resource: Resource, expect: Expect) -> Result<Resource, StoreError> {
        let store = self.clone();
        finish(tokio::spawn(async move { store.write(resource, expect).await })).await
    }

    /// As [`Sqlite::put`], in a task of its own.
    pub(super) async fn delete(&self, key: &ResourceKey) -> Result<(), StoreError> {
        let (store, key) = (self.clone(), key.clone());
        finish(tokio::spawn(async move { store.remove(&key).await })).await
    }

    async fn write(&self, mut resource: Resource, expect: Expect) -> Result<Resource, StoreError> {
        let key = resource.key();
        let _turn = self.writer.lock().await;
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(database)?;
        if key.kind.in_mesh() {
            let mesh = sqlx::query("SELECT 1 FROM resources WHERE kind = 'Mesh' AND mesh = '' AND name = ?")
                .bind(&key.mesh)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(database)?;
            if mesh.is_none() {
                return Err(StoreError::NoMesh { mesh: key.mesh.clone(), key });
            }
        }
        let found =
            sqlx::query("SELECT version, creation_time FROM resources WHERE kind = ? AND mesh = ? AND name = ?")
                .bind(key.kind.name())
                .bind(&key.mesh)
                .bind(&key.name)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(database)?;
        let found = match &found {
            None => None,
            Some(row) => Some((version(row)?, moment(row, "creation_time")?)),
        };
        let now = Utc::now().trunc_subsecs(6);
        resource.meta.version = next_version(&key, found.map(|(version, _)| version), expect)?;
        resource.meta.creation_time = found.map(|(_, created)| created).unwrap_or(now);
        resource.meta.modification_time = now;
        let labels = serde_json::to_string(&resource.meta.labels).map_err(|e| StoreError::Database(e.to_string()))?;
        sqlx::query(
            "INSERT INTO resources (kind, mesh, name, version, labels, spec, status, creation_time, modification_time)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (kind, mesh, name) DO UPDATE SET version = excluded.version, labels = excluded.labels,
             spec = excluded.spec, status = excluded.status, modification_time = excluded.modification_time",
        )
        .bind(key.kind.name())
        .bind(&key.mesh)
        .bind(&key.name)
        .bind(i64::try_from(resource.meta.version).unwrap_or(i64::MAX))
        .bind(labels)
        .bind(spec_to_value(&resource.spec).to_string())
        .bind(status_to_value(&resource.spec).map(|status| status.to_string()).unwrap_or_default())
        .bind(resource.meta.creation_time.to_rfc3339())
        .bind(resource.meta.modification_time.to_rfc3339())
        .execute(&mut *transaction)
        .await
        .map_err(database)?;
        transaction.commit().await.map_err(database)?;
        let _ = self.events.send(Event::Changed(key));
        Ok(resource)
    }

    async fn remove(&self, key: &ResourceKey) -> Result<(), StoreError> {
        let _turn = self.writer.lock().await;
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(database)?;
        let deleted = sqlx::query("DELETE FROM resources WHERE kind = ? AND mesh = ? AND name = ?")
            .bind(key.kind.name())
            .bind(&key.mesh)
            .bind(&key.name)
            .execute(&mut *transaction)
            .await
            .map_err(database)?;
        if deleted.rows_affected() == 0 {
            return Err(StoreError::NotFound(key.clone()));
        }
        // The same rule as `owns`, in the database's own terms.
        let owned = match key.kind {
            Kind::Mesh => sqlx::query("DELETE FROM resources WHERE mesh = ? RETURNING kind, mesh, name")
                .bind(&key.name)
                .fetch_all(&mut *transaction)
                .await
                .map_err(database)?,
            kind => match kind.insight() {
                Some(insight) => sqlx::query(
                    "DELETE FROM resources WHERE kind = ? AND mesh = ? AND name = ? RETURNING kind, mesh, name",
                )
                .bind(insight.name())
                .bind(&key.mesh)
                .bind(&key.name)
                .fetch_all(&mut *transaction)
                .await
                .map_err(database)?,
                None => Vec::new(),
            },
        };
        let owned: Vec<ResourceKey> = owned.iter().map(key_of).collect::<Result<_, _>>()?;
        transaction.commit().await.map_err(database)?;
        for owned in owned {
            let _ = self.events.send(Event::Deleted(owned));
        }
        let _ = self.events.send(Event::Deleted(key.clone()));
        Ok(())
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

async fn finish<T>(task: tokio::task::JoinHandle<Result<T, StoreError>>) -> Result<T, StoreError> {
    match task.await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Database(format!("the write did not finish: {error}"))),
    }
}

fn database(error: sqlx::Error) -> StoreError {
    StoreError::Database(error.to_string())
}

fn text<'r>(row: &'r SqliteRow, column: &str) -> Result<&'r str, StoreError> {
    row.try_get(column).map_err(database)
}

fn version(row: &SqliteRow) -> Result<u64, StoreError> {
    let version: i64 = row.try_get("version").map_err(database)?;
    u64::try_from(version).map_err(|_| StoreError::Database(format!("negative version {version}")))
}

fn moment(row: &SqliteRow, column: &str) -> Result<DateTime<Utc>, StoreError> {
    let text = text(row, column)?;
    DateTime::<Utc>::from_str(text).map_err(|e| StoreError::Database(format!("{column} {text:?}: {e}")))
}

fn key_of(row: &SqliteRow) -> Result<ResourceKey, StoreError> {
    let kind = text(row, "kind")?;
    let kind = Kind::from_name(kind)
        .ok_or_else(|| StoreError::Database(format!("resource of kind {kind:?}, which this version does not know")))?;
    Ok(ResourceKey::new(kind, text(row, "mesh")?, text(row, "name")?))
}

fn read(row: &SqliteRow) -> Result<Resource, StoreError> {
    let key = key_of(row)?;
    let damaged = |what: &dyn std::fmt::Display| StoreError::Database(format!("{key} cannot be read: {what}"));
    let spec = serde_json::from_str(text(row, "spec")?).map_err(|e| damaged(&e))?;
    let mut spec = spec_from_value(key.kind, spec, "", &mut Vec::new()).map_err(|e| damaged(&e))?;
    let status = text(row, "status")?;
    if !status.is_empty() {
        set_status(&mut spec, serde_json::from_str(status).map_err(|e| damaged(&e))?).map_err(|e| damaged(&e))?;
    }
    let meta = Meta {
        labels: serde_json::from_str(text(row, "labels")?).map_err(|e| damaged(&e))?,
        creation_time: moment(row, "creation_time")?,
        modification_time: moment(row, "modification_time")?,
        version: version(row)?,
        mesh: key.mesh,
        name: key.name,
    };
    Ok(Resource::new(meta, spec))
}

#[cfg(test)]
impl Sqlite {
    /// Pretends that another version wrote the file.
    pub(super) async fn set_schema_version(&self, version: u32) {
        let pragma = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {version}"));
        sqlx::raw_sql(pragma).execute(&self.pool).await.expect("the database was just opened");
    }
}
