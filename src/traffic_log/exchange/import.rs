//! Import of pairs: each becomes a record of its own, with two given samples.

use std::path::Path;
use std::time::Duration;

use futures::future::try_join_all;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::PairFormat;
use super::export::blocking;
use crate::{
    Consent, IdempotencyKey, LogError, LoggedPair, NewRecord, PairSource, Principal, Prompt,
    RecordKind, Result, Sample, TrafficLog, id,
};
use judge::{
    FileKind, Format, OnUnusable, PlainText, PreferencePair, RankedDraw, RecordError, RecordReader,
    Skipped,
};

/// The number of records that are appended concurrently, so that they share commits.
const TOGETHER: usize = 64;

/// The pause before another attempt if the queue is full.
const PAUSE: Duration = Duration::from_millis(20);

/// The result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// The pairs that were added.
    pub new: u64,
    /// The pairs that the owner has already.
    pub known: u64,
    /// The records that could not be used.
    pub skipped: Skipped,
}

/// Imports a preference file, each pair as a record of `principal`. `plain` decides whether a plain pair keeps the text of its prompt
/// or becomes a chat. Without a `format` the file's first bytes determine it. Records that cannot be used are left out and counted.
///
/// The idempotency key of a pair is its digest: after a failure the file can be imported again, and no pair is stored twice.
///
/// # Errors
/// Errors with [`LogError::File`] that names the file and the place of the damage; the records before it have been imported.
pub async fn import_pairs(
    log: &TrafficLog,
    format: Option<PairFormat>,
    plain: PlainText,
    file: &Path,
    principal: &Principal,
    consent: Consent,
) -> Result<Imported> {
    // The bounded channel makes the reader wait until earlier pairs have been appended.
    let (sender, mut pairs) = mpsc::channel(TOGETHER);
    let file = file.to_owned();
    let reading = tokio::spawn(blocking(move || read(format, plain, &file, &sender)));
    let (mut new, mut known) = (0, 0);
    let mut batch = Vec::with_capacity(TOGETHER);
    while pairs.recv_many(&mut batch, TOGETHER).await > 0 {
        let records = batch.drain(..).map(|pair| record(pair, principal, consent));
        for is_new in try_join_all(records.map(|record| append_waiting(log, record))).await? {
            match is_new {
                true => new += 1,
                false => known += 1,
            }
        }
    }
    let skipped = reading
        .await
        .unwrap_or_else(|error| Err(LogError::File(error.to_string())))?;
    Ok(Imported {
        new,
        known,
        skipped,
    })
}

/// Appends a record, and waits while the queue is full: unlike serving, an import can wait. Returns whether the record is new.
async fn append_waiting(log: &TrafficLog, record: NewRecord) -> Result<bool> {
    loop {
        match log.records.append_or_find(record.clone()).await {
            Err(LogError::Overloaded) => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error),
            Ok(appended) => return Ok(appended.is_new),
        }
    }
}

fn read(
    format: Option<PairFormat>,
    plain: PlainText,
    file: &Path,
    pairs: &mpsc::Sender<PreferencePair>,
) -> Result<Skipped> {
    let failed = |error: RecordError| LogError::File(error.to_string());
    let mut reader = RecordReader::open(file, Format::Auto, OnUnusable::Skip).map_err(failed)?;
    let wanted = format.map(|format| match format {
        PairFormat::Jsonl => FileKind::JsonLines,
        PairFormat::Json => FileKind::JsonArray,
        PairFormat::Parquet => FileKind::Parquet,
    });
    if wanted.is_some_and(|wanted| wanted != reader.kind()) {
        return Err(LogError::File(format!(
            "{}: the file does not have the given format: omit `--format` to detect the format",
            file.display()
        )));
    }
    let mut place = 0;
    let mut improbable = Skipped::default();
    for record in reader.by_ref() {
        let record = record.map_err(failed)?;
        for pair in record.into_pairs(false, RankedDraw::default(), place) {
            let pair = match plain {
                PlainText::Raw => pair,
                PlainText::Chat => pair.into_chat(),
            };
            if let (Some(_), Some(margin)) = (own_source(&pair), pair.margin)
                && !(0.5..=1.0).contains(&margin)
            {
                improbable.add(&Skipped {
                    count: 1,
                    first: Some(format!(
                        "{}: pair {}: the margin {margin} is not a probability from 0.5 to 1",
                        file.display(),
                        place + 1
                    )),
                });
                continue;
            }
            pairs
                .blocking_send(pair)
                .map_err(|_| LogError::File("the import was cancelled".to_owned()))?;
        }
        place += 1;
    }
    improbable.add(reader.skipped());
    Ok(improbable)
}

/// Returns the source of a pair that this program exported. Other sets use `source` and `margin` for other things.
fn own_source(pair: &PreferencePair) -> Option<PairSource> {
    PairSource::stored(pair.source.as_deref()?).ok()
}

fn record(pair: PreferencePair, principal: &Principal, consent: Consent) -> NewRecord {
    let own = own_source(&pair);
    let margin = pair.margin.filter(|_| own.is_some());
    let mut digest = Sha256::new();
    if pair.plain {
        digest.update([2]);
    }
    for message in &pair.messages {
        digest.update(message.role.as_str());
        digest.update([0]);
        digest.update(&message.content);
        digest.update([0]);
    }
    for side in [&pair.chosen, &pair.rejected] {
        digest.update([1]);
        digest.update(side);
    }
    let request: [u8; 32] = digest.finalize().into();
    NewRecord {
        kind: RecordKind::Imported,
        principal: principal.clone(),
        consent,
        idempotency_key: Some(IdempotencyKey {
            name: format!("import:{}", id::hex(&request)),
            request,
        }),
        prompt: match pair.plain {
            true => Prompt::Text(pair.messages.into_iter().map(|m| m.content).collect()),
            false => Prompt::Messages(pair.messages),
        },
        prompt_token_ids: Vec::new(),
        version: "imported".to_owned(),
        samples: vec![Sample::given(pair.chosen), Sample::given(pair.rejected)],
        verdicts: Vec::new(),
        pairs: vec![LoggedPair {
            chosen: 0,
            rejected: 1,
            margin: margin.map_or(1.0, |margin| margin as f32),
            source: own.unwrap_or(PairSource::Imported),
            principles: pair.principles,
        }],
    }
}
