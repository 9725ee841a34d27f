//! The writer: commits waiting records in batches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::database::Database;
use super::quota::Quotas;
use super::record_write::{self, Inserted, NewRow};
use super::records::Appended;
use super::{LogError, Result, locked};

/// The maximum number of records per commit.
const BATCH: usize = 256;

/// The time that the first record of a commit waits for others.
const GATHER: Duration = Duration::from_millis(5);

/// A record that waits for its commit.
#[derive(Debug)]
pub(super) struct Job {
    pub row: NewRow,
    pub queued: Instant,
    /// The record's share of the queue's limit in bytes.
    pub _waiting: OwnedSemaphorePermit,
    pub reply: oneshot::Sender<Result<Appended>>,
}

/// The counters of the writer and its callers.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub records: AtomicU64,
    pub appended: AtomicU64,
    pub overloaded: AtomicU64,
    pub failed: AtomicU64,
    pub commits: AtomicU64,
    pub lag_micros: AtomicU64,
    pub broken: AtomicBool,
}

impl Counters {
    /// Subtracts deleted records from the count. It saturates, because other servers on the same database may have added them.
    pub fn forget(&self, deleted: u64) {
        let less = |records: u64| Some(records.saturating_sub(deleted));
        let _ = self
            .records
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// The handle on the writer's task, which ends after the last clone of the queue is dropped and all queued records are written.
#[derive(Debug)]
pub(super) struct Writer {
    /// None after [`Writer::close`].
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the writer, a task of the current tokio runtime, with a queue of `queue` records.
    pub fn start(
        database: Arc<Database>,
        queue: usize,
        quotas: Arc<Quotas>,
        counters: Arc<Counters>,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(queue);
        let task = tokio::spawn(run(database, waiting, quotas, counters));
        Self {
            queue: Mutex::new(Some(queue)),
            task: Mutex::new(Some(task)),
        }
    }

    /// Returns the queue; none after [`Self::close`].
    pub fn queue(&self) -> Option<mpsc::Sender<Job>> {
        locked(&self.queue).clone()
    }

    /// Returns the number of waiting records, and whether the writer takes further ones.
    pub fn load(&self) -> (usize, bool) {
        let queue = locked(&self.queue);
        let queue = queue.as_ref();
        (
            queue.map_or(0, |queue| queue.max_capacity() - queue.capacity()),
            queue.is_some_and(|queue| !queue.is_closed()),
        )
    }

    /// Writes the queued records and ends the task.
    pub async fn close(&self) {
        drop(locked(&self.queue).take());
        let task = locked(&self.task).take();
        if let Some(task) = task {
            // A writer that panicked has nothing more to write.
            let _ = task.await;
        }
    }

    #[cfg(test)]
    pub async fn kill(&self) {
        let task = locked(&self.task).take();
        if let Some(task) = task {
            task.abort();
            assert!(task.await.is_err());
        }
    }
}

/// Commits records until all senders are gone.
async fn run(
    database: Arc<Database>,
    mut queue: mpsc::Receiver<Job>,
    quotas: Arc<Quotas>,
    counters: Arc<Counters>,
) {
    while let Some(first) = queue.recv().await {
        let batch = gather(first, &mut queue).await;
        let written = database
            .with_timeout(commit(&database, &quotas, &batch))
            .await;
        counters.broken.store(written.is_err(), Ordering::Relaxed);
        if written.is_err() {
            // Counted records may not have been written.
            quotas.forget();
        }
        match written {
            Ok(ids) => acknowledge(batch, ids, &counters),
            Err(_) if batch.len() > 1 && !database.lost().await => {
                // The database works, so one of the records cannot be stored. The others are committed one by one.
                for job in batch {
                    let batch = vec![job];
                    match database
                        .with_timeout(commit(&database, &quotas, &batch))
                        .await
                    {
                        Ok(ids) => {
                            counters.broken.store(false, Ordering::Relaxed);
                            acknowledge(batch, ids, &counters);
                        }
                        Err(error) => refuse(batch, &error, &counters),
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, records = batch.len(), "the traffic log cannot write");
                refuse(batch, &error, &counters);
                // Records behind them would wait as long for the same error.
                while let Ok(job) = queue.try_recv() {
                    refuse(vec![job], &error, &counters);
                }
            }
        }
    }
}

/// Returns the first record and those that arrive within [`GATHER`].
async fn gather(first: Job, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut batch = vec![first];
    let deadline = tokio::time::Instant::now() + GATHER;
    while batch.len() < BATCH {
        match tokio::time::timeout_at(deadline, queue.recv()).await {
            Ok(Some(job)) => batch.push(job),
            Ok(None) | Err(_) => break,
        }
    }
    batch
}

/// Writes a batch in one transaction. Returns the result for each record.
async fn commit(database: &Database, quotas: &Quotas, batch: &[Job]) -> Result<Vec<Inserted>> {
    let mut transaction = database.begin().await?;
    let mut ids = Vec::with_capacity(batch.len());
    for job in batch {
        ids.push(record_write::insert_record(transaction.connection(), &job.row, quotas).await?);
    }
    fault::point("log.before_commit");
    transaction.commit().await?;
    fault::point("log.after_commit");
    Ok(ids)
}

fn acknowledge(batch: Vec<Job>, ids: Vec<Inserted>, counters: &Counters) {
    counters.commits.fetch_add(1, Ordering::Relaxed);
    let oldest = batch.iter().map(|job| job.queued.elapsed()).max();
    let lag = oldest.map_or(0, |lag| u64::try_from(lag.as_micros()).unwrap_or(u64::MAX));
    counters.lag_micros.store(lag, Ordering::Relaxed);
    for (job, inserted) in batch.into_iter().zip(ids) {
        let id = match inserted {
            Inserted::New(id) => {
                counters.records.fetch_add(1, Ordering::Relaxed);
                counters.appended.fetch_add(1, Ordering::Relaxed);
                Ok(Appended { id, is_new: true })
            }
            Inserted::Known(id) => Ok(Appended { id, is_new: false }),
            Inserted::Refused(error) => Err(error),
        };
        // A caller that has gone does not wait for the id; the record stays committed.
        let _ = job.reply.send(id);
    }
}

fn refuse(batch: Vec<Job>, error: &LogError, counters: &Counters) {
    for job in batch {
        counters.failed.fetch_add(1, Ordering::Relaxed);
        let _ = job
            .reply
            .send(Err(LogError::Unavailable(error.to_string())));
    }
}
