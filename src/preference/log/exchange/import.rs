//! Pairs in: each becomes a record of its own, with two given samples.

use std::path::Path;
use std::time::Duration;

use futures::future::try_join_all;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::export::blocking;
use super::{PairFormat, parquet_rows};
use crate::preference::log::{
    Consent, IdempotencyKey, LogError, LoggedPair, NewRecord, PairSource, Principal, Prompt,
    RecordKind, Result, Sample, TrafficLog, id,
};
use crate::preference::{
    Format, OnMismatch, PreferencePair, RankedDraw, Record, RecordReader, shapes,
};

/// Records appended at the same time, so that they share commits.
const TOGETHER: usize = 64;

/// How long to wait for a full queue.
const PAUSE: Duration = Duration::from_millis(20);

impl TrafficLog {
    /// Reads a preference file, each pair a record of `principal`. Returns how many pairs were read.
    ///
    /// A pair's idempotency key is its digest: a file that failed halfway can be read again, and makes no record twice.
    ///
    /// # Errors
    /// [`LogError::File`] naming the file and the line; what stands before it was imported.
    pub async fn import_pairs(
        &self,
        format: PairFormat,
        file: &Path,
        principal: &Principal,
        consent: Consent,
    ) -> Result<u64> {
        // The reader waits until what it read before was appended.
        let (sender, mut pairs) = mpsc::channel(TOGETHER);
        let file = file.to_owned();
        let reading = tokio::spawn(blocking(move || read(format, &file, &sender)));
        let mut imported = 0;
        let mut batch = Vec::with_capacity(TOGETHER);
        while pairs.recv_many(&mut batch, TOGETHER).await > 0 {
            imported += batch.len() as u64;
            let records = batch.drain(..).map(|pair| record(pair, principal, consent));
            try_join_all(records.map(|record| self.append_waiting(record))).await?;
        }
        reading
            .await
            .unwrap_or_else(|error| Err(LogError::File(error.to_string())))?;
        Ok(imported)
    }

    /// Appends, waiting where serving would be refused: nobody waits for an import.
    async fn append_waiting(&self, record: NewRecord) -> Result<()> {
        loop {
            match self.append(record.clone()).await {
                Err(LogError::Overloaded) => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
    }
}

fn read(format: PairFormat, file: &Path, pairs: &mpsc::Sender<PreferencePair>) -> Result<()> {
    let mut place = 0;
    let mut send = |record: Record| {
        for pair in record.into_pairs(false, RankedDraw::default(), place) {
            pairs
                .blocking_send(pair)
                .map_err(|_| LogError::File("the import was given up".to_owned()))?;
        }
        place += 1;
        Ok(())
    };
    match format {
        PairFormat::Jsonl => {
            let failed = |error: crate::preference::RecordError| LogError::File(error.to_string());
            for record in
                RecordReader::open(file, Format::Auto, OnMismatch::Fail).map_err(failed)?
            {
                send(record.map_err(failed)?)?;
            }
            Ok(())
        }
        PairFormat::Parquet => parquet_rows::read(file, |value| {
            let record = shapes::read(value, Format::Auto)
                .map_err(|error| LogError::File(format!("{}: {error}", file.display())))?;
            send(record)
        }),
    }
}

fn record(pair: PreferencePair, principal: &Principal, consent: Consent) -> NewRecord {
    let mut digest = Sha256::new();
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
        prompt: Prompt::Messages(pair.messages),
        prompt_token_ids: Vec::new(),
        version: "imported".to_owned(),
        samples: vec![Sample::given(pair.chosen), Sample::given(pair.rejected)],
        verdicts: Vec::new(),
        pairs: vec![LoggedPair {
            chosen: 0,
            rejected: 1,
            margin: 1.0,
            source: PairSource::Imported,
            principles: pair.principles,
        }],
    }
}
