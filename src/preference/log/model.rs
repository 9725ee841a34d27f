//! Which model a log belongs to: token ids mean nothing to another tokenizer.
//!
//! Every record is written with the digest of the tokenizer that made its token ids. Records of before had none; they belong to the
//! model that the log's settings name, which is the first that opened the log.

use serde::{Deserialize, Serialize};

use super::{LogError, Result, TrafficLog, rows};

/// Names a model by its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// Digest of the weights; none where they were not digested.
    pub base: Option<String>,
    /// Digest of the tokenizer's file.
    pub tokenizer: String,
}

/// The model of this process, as far as drawing rows depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bound {
    pub tokenizer: String,
    /// Whether records without a tokenizer are of this one.
    pub owns_unnamed: bool,
}

impl Bound {
    /// The digest and the flag as statements take them: no digest lets every row through.
    pub fn parameters(bound: Option<&Self>) -> (&str, i64) {
        bound.map_or(("", 1), |bound| {
            (&bound.tokenizer, i64::from(bound.owns_unnamed))
        })
    }
}

/// Rows of `trainable` whose token ids are of the tokenizer `$digest`, all of them where that is empty. `$unnamed` says whether
/// records without a tokenizer are. Imported records have no token ids.
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

impl TrafficLog {
    /// Binds this handle and its clones to a model: records are written with its tokenizer from now on, and only records of that
    /// tokenizer are drawn for training. The first model that opens a log owns the records without a tokenizer, unless the log has
    /// generations of other weights.
    ///
    /// # Errors
    /// The database's; settings that cannot be read.
    pub async fn bind(&self, model: &ModelIdentity) -> Result<()> {
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        let stored: Option<String> =
            sqlx::query_scalar("SELECT value FROM settings WHERE name = 'model'")
                .fetch_optional(&mut *connection)
                .await?;
        let owner = match stored {
            Some(stored) => rows::from_json::<ModelIdentity>(&stored)?,
            None => {
                let newest: Option<String> = sqlx::query_scalar(
                    "SELECT manifest FROM generations ORDER BY created_at DESC, id LIMIT 1",
                )
                .fetch_optional(&mut *connection)
                .await?;
                let owner = match other_base(newest.as_deref(), model)? {
                    Some(base) => ModelIdentity {
                        base: Some(base),
                        tokenizer: String::new(),
                    },
                    None => model.clone(),
                };
                sqlx::query(
                    "INSERT INTO settings (name, value) VALUES ('model', $1) ON CONFLICT (name) DO NOTHING",
                )
                .bind(rows::to_json(&owner)?)
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
        let known = self.shared.model.get_or_init(|| bound.clone());
        match *known == bound {
            true => Ok(()),
            false => Err(LogError::Invalid(
                "the log is bound to another model already".to_owned(),
            )),
        }
    }

    /// Whether records and stages that name no tokenizer are of the model this log is bound to.
    pub fn owns_unnamed(&self) -> bool {
        let bound = self.shared.model.get();
        bound.is_none_or(|bound| bound.owns_unnamed)
    }

    /// Returns how many records that may train are left out because their token ids are of another tokenizer.
    pub async fn of_other_tokenizers(&self) -> Result<u64> {
        let (digest, unnamed) = Bound::parameters(self.shared.model.get());
        let count: i64 = sqlx::query_scalar(concat!(
            "SELECT COUNT(*) FROM trainable WHERE NOT ",
            same_tokenizer!("$1", "$2")
        ))
        .bind(digest)
        .bind(unnamed)
        .fetch_one(self.database().readers())
        .await?;
        Ok(count.unsigned_abs())
    }
}

/// The base of the newest generation, if it is known to be another than the model's.
fn other_base(manifest: Option<&str>, model: &ModelIdentity) -> Result<Option<String>> {
    let (Some(manifest), Some(own)) = (manifest, &model.base) else {
        return Ok(None);
    };
    let manifest: serde_json::Value = rows::from_json(manifest)?;
    let base = manifest["base"].as_str();
    Ok(base.filter(|base| base != own).map(str::to_owned))
}
