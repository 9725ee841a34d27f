//! The model of a log: token ids are meaningless to another tokenizer.
//!
//! Every record has the digest of the tokenizer that produced its token ids. Older records have none; they belong to the model named in
//! the log's settings, which is the first model that opened the log.

use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use sql::query;

use super::database::Database;
use super::{LogError, Result, columns};

/// The identity of a model, by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// The digest of the weights; none if they were not digested.
    pub base: Option<String>,
    /// The digest of the tokenizer's file.
    pub tokenizer: String,
}

/// The parts of this process's model that determine which rows can be drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bound {
    tokenizer: String,
    /// Whether records without a tokenizer belong to this model.
    owns_unnamed: bool,
}

/// An SQL condition for the rows of `trainable` whose token ids are by the tokenizer `$digest`, or for all rows if that is empty.
/// `$unnamed` decides about records without a tokenizer. Imported records have no token ids.
macro_rules! same_tokenizer {
    ($digest:literal, $unnamed:literal) => {
        concat!(
            "(",
            $digest,
            " = '' OR tokenizer = ",
            $digest,
            " OR kind = 'imported' OR (tokenizer = '' AND ",
            $unnamed,
            " = 1))"
        )
    };
}
pub(super) use same_tokenizer;

/// The model of this process, to which the log is bound.
#[derive(Debug)]
pub struct ModelBinding {
    database: Arc<Database>,
    /// None until [`ModelBinding::bind`].
    bound: OnceLock<Bound>,
}

impl ModelBinding {
    pub(super) fn none(database: Arc<Database>) -> Self {
        Self {
            database,
            bound: OnceLock::new(),
        }
    }

    /// Returns the digest of the tokenizer, if the log is bound.
    pub(super) fn tokenizer(&self) -> Option<String> {
        self.bound.get().map(|bound| bound.tokenizer.clone())
    }

    /// Returns the digest, and whether records without a tokenizer belong to the model, as parameters of SQL statements: an empty digest
    /// selects every row.
    pub(super) fn parameters(&self) -> (&str, i64) {
        self.bound.get().map_or(("", 1), |bound| {
            (&bound.tokenizer, i64::from(bound.owns_unnamed))
        })
    }

    /// Binds this handle and its clones to a model: from now on records are written with its tokenizer, and only records of that
    /// tokenizer are drawn for training. The first model that opens a log owns the records without a tokenizer, unless the log has
    /// generations of other weights.
    ///
    /// # Errors
    /// Errors if the database fails, the settings are invalid, or the log is bound to another model.
    pub async fn bind(&self, model: &ModelIdentity) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        let connection = transaction.connection();
        let stored: Option<String> = query("SELECT value FROM settings WHERE name = 'model'")
            .fetch_optional_value(connection)
            .await?;
        let owner = match stored {
            Some(stored) => columns::from_json::<ModelIdentity>(&stored)?,
            None => {
                let newest: Option<String> =
                    query("SELECT manifest FROM generations ORDER BY created_at DESC, id LIMIT 1")
                        .fetch_optional_value(connection)
                        .await?;
                let owner = match other_base(newest.as_deref(), model)? {
                    Some(base) => ModelIdentity {
                        base: Some(base),
                        tokenizer: String::new(),
                    },
                    None => model.clone(),
                };
                query(
                    "INSERT INTO settings (name, value) VALUES ('model', $1) ON CONFLICT (name) DO NOTHING",
                )
                .bind(columns::to_json(&owner)?)
                .execute(connection)
                .await?;
                owner
            }
        };
        transaction.commit().await?;
        let bound = Bound {
            owns_unnamed: owner.tokenizer == model.tokenizer,
            tokenizer: model.tokenizer.clone(),
        };
        let known = self.bound.get_or_init(|| bound.clone());
        match *known == bound {
            true => Ok(()),
            false => Err(LogError::Invalid(
                "the log is bound to another model already".to_owned(),
            )),
        }
    }

    /// Returns whether records and stages without a tokenizer belong to the model of this log handle.
    pub fn owns_unnamed(&self) -> bool {
        let bound = self.bound.get();
        bound.is_none_or(|bound| bound.owns_unnamed)
    }

    /// Returns the number of records with consent to training that are left out because their token ids are by another tokenizer.
    pub async fn of_other_tokenizers(&self) -> Result<u64> {
        let (digest, unnamed) = self.parameters();
        let count: i64 = query(concat!(
            "SELECT COUNT(*) FROM trainable WHERE NOT ",
            same_tokenizer!("$1", "$2")
        ))
        .bind(digest)
        .bind(unnamed)
        .fetch_value(&mut self.database.reader().await?)
        .await?;
        Ok(count.unsigned_abs())
    }
}

/// Returns the base of the newest generation, if it is known and differs from the model's.
fn other_base(manifest: Option<&str>, model: &ModelIdentity) -> Result<Option<String>> {
    let (Some(manifest), Some(own)) = (manifest, &model.base) else {
        return Ok(None);
    };
    let manifest: serde_json::Value = columns::from_json(manifest)?;
    let base = manifest["base"].as_str();
    Ok(base.filter(|base| base != own).map(str::to_owned))
}
