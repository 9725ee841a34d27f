//! Additions to records: the samples, verdicts and pairs of a stage's updates.

use std::sync::atomic::Ordering;

use sql::Connection;

use super::record_write::{self, Requester};
use super::redact::Redactor;
use super::writer::Counters;
use super::{Addition, FeedbackTrust, RecordId, Result, columns, feedback};

/// An addition to a record, and whether redaction changed it.
#[derive(Debug)]
pub(super) struct Redacted {
    id: RecordId,
    addition: Addition,
    changed: bool,
}

/// Redacts additions. One that cannot be redacted is left out: a single text on which redaction fails must not end a stage.
pub(super) async fn redact(
    redactor: &Redactor,
    counters: &Counters,
    additions: &[(RecordId, Addition)],
) -> Result<Vec<Redacted>> {
    let mut redacted = Vec::with_capacity(additions.len());
    for (id, addition) in additions {
        addition.check()?;
        let (id, mut addition) = (id.clone(), addition.clone());
        match redactor.redact_addition(&mut addition).await {
            Ok(changed) => redacted.push(Redacted {
                id,
                addition,
                changed,
            }),
            Err(error) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("the update's additions to record {id} are not stored: {error}");
            }
        }
    }
    Ok(redacted)
}

/// Writes an update's additions record by record; see [`TrainerLease::record_update`](super::TrainerLease::record_update). Returns the
/// number of additions written.
pub(super) async fn append(
    connection: &mut Connection,
    additions: &[Redacted],
    trust: FeedbackTrust,
) -> Result<usize> {
    let mut written = 0;
    for Redacted {
        id,
        addition,
        changed,
    } in additions
    {
        if record_write::lock(connection, id, *changed).await? != Some(true) {
            continue;
        }
        let [samples, verdicts, pairs] = record_write::free_places(connection, id).await?;
        record_write::insert_samples(connection, id, samples, &addition.samples).await?;
        let places = [verdicts, samples];
        record_write::insert_verdicts(
            connection,
            id,
            places,
            Requester::Learner,
            &addition.verdicts,
        )
        .await?;
        record_write::insert_pairs(connection, id, pairs, samples, &addition.pairs).await?;
        if !addition.corroborating.is_empty() {
            let next = verdicts + columns::integer(addition.verdicts.len());
            let read = &addition.corroborating;
            record_write::insert_verdicts(connection, id, [next, 0], Requester::Learner, read)
                .await?;
            feedback::derive_pairs(connection, id, trust).await?;
        }
        written += 1;
    }
    Ok(written)
}
