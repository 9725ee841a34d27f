//! What people say of answers, and when it is believed.
//!
//! Whoever may give feedback can poison with it, so by default it is only kept. Under [`FeedbackTrust::Corroborated`] a preference
//! becomes a pair once a verdict of the record says the same in both orders: one that a call asked for (`/judge`, `best_of`), or that
//! of a stage's pinned judge, which reads what [`TrafficLog::draw_preferences`] hands to a stage.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::AnyConnection;

use super::rows::{self, index};
use super::{
    Feedback, FeedbackOutcome, FeedbackTrust, LogError, LoggedFeedback, LoggedPair, LoggedVerdict,
    PairSource, Principal, RecordId, Result, Sample, TrafficLog, now,
};

impl TrafficLog {
    /// Stores feedback and derives the pairs that the trust policy allows. A principal that says something else of the same answer
    /// takes back what it said before.
    ///
    /// # Errors
    /// [`LogError::NotFound`] for an unknown record, [`LogError::Invalid`] for a sample it does not have, [`LogError::PrincipalQuota`] and
    /// [`LogError::Full`] for an edit for which there is no room.
    pub async fn add_feedback(
        &self,
        record: &RecordId,
        principal: &Principal,
        mut feedback: Feedback,
    ) -> Result<FeedbackOutcome> {
        let mut redacted = false;
        if let Feedback::Edited { text, .. } = &mut feedback {
            redacted = self.shared.redactor.redact_text(text).await?;
        }
        let mut transaction = self.database().begin().await?;
        let connection = transaction.connection();
        // Even where it changes nothing, the update keeps the record from being deleted meanwhile.
        let there = sqlx::query(
            "UPDATE records SET redacted = CASE WHEN $1 = 1 THEN 1 ELSE redacted END WHERE id = $2",
        )
        .bind(i64::from(redacted))
        .bind(record.as_str())
        .execute(&mut *connection)
        .await?;
        if there.rows_affected() == 0 {
            return Err(LogError::NotFound {
                what: "record",
                id: record.to_string(),
            });
        }
        let more = store(connection, record, principal, &feedback).await?;
        if more > 0 {
            let quotas = &self.shared.quotas;
            let bytes = more.unsigned_abs();
            if let Some(refusal) = quotas.refusal(connection, principal, bytes).await? {
                return Err(refusal);
            }
            quotas.add(principal, bytes);
        }
        if more != 0 {
            sqlx::query("UPDATE records SET bytes = bytes + $1 WHERE id = $2")
                .bind(more)
                .bind(record.as_str())
                .execute(&mut *connection)
                .await?;
        }
        let pairs = derive_again(connection, record, self.shared.trust).await?;
        transaction.commit().await?;
        if more < 0 {
            self.shared.quotas.forget();
        }
        if matches!(feedback, Feedback::Edited { .. }) {
            // An edit before it is gone.
            self.database().scrub_file().await;
        }
        Ok(FeedbackOutcome { pairs })
    }
}

/// What a record's principals prefer, whether it is believed or not: the pairs of a policy that always trusts.
pub(super) async fn held(
    connection: &mut AnyConnection,
    record: &RecordId,
) -> Result<Vec<LoggedPair>> {
    let said = rows::read_feedback(connection, record).await?;
    let shown = usize::try_from(shown(connection, record).await?).unwrap_or(0);
    Ok(derive(&said, &[], shown, FeedbackTrust::Always))
}

/// Stores feedback in place of what the principal said before of the same. Returns the bytes by which the record grows.
async fn store(
    connection: &mut AnyConnection,
    record: &RecordId,
    principal: &Principal,
    feedback: &Feedback,
) -> Result<i64> {
    let (kind, slot, sample) = match feedback {
        Feedback::Thumbs { sample, .. } => ("thumbs", index(*sample), *sample),
        Feedback::Preferred { sample } => ("preferred", -1, *sample),
        Feedback::Edited { sample, .. } => ("edited", index(*sample), *sample),
    };
    if index(sample) >= shown(connection, record).await? {
        return Err(LogError::Invalid(format!(
            "the record has no sample {sample}"
        )));
    }
    let mut written: Option<i64> = None;
    let mut more = 0;
    if let Feedback::Edited { text, .. } = feedback {
        let before: Option<Option<i64>> = sqlx::query_scalar(
            "SELECT written FROM feedback WHERE record_id = $1 AND principal = $2 AND kind = $3 AND slot = $4",
        )
        .bind(record.as_str())
        .bind(principal.as_str())
        .bind(kind)
        .bind(slot)
        .fetch_optional(&mut *connection)
        .await?;
        written = before.flatten();
        let length = sqlx::query_scalar(
            "SELECT CAST(octet_length(text) AS BIGINT) FROM samples WHERE record_id = $1 AND place = $2",
        );
        let length = length.bind(record.as_str()).bind(written.unwrap_or(-1));
        let length: Option<i64> = length.fetch_optional(&mut *connection).await?;
        // It is kept as the answer it became and as it was said.
        more = 2 * (index(text.len()) - length.unwrap_or(0));
        match written {
            Some(place) => write_over(connection, record, place, text).await?,
            None => {
                let [free, ..] = rows::free_places(connection, record).await?;
                let edited = [Sample::given(text.as_str())];
                rows::insert_samples(connection, record, free, &edited).await?;
                written = Some(free);
            }
        }
    }
    sqlx::query(
        "INSERT INTO feedback (record_id, principal, kind, slot, body, written, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (record_id, principal, kind, slot) \
         DO UPDATE SET body = excluded.body, written = excluded.written, created_at = excluded.created_at",
    )
    .bind(record.as_str())
    .bind(principal.as_str())
    .bind(kind)
    .bind(slot)
    .bind(rows::to_json(feedback)?)
    .bind(written)
    .bind(now())
    .execute(connection)
    .await?;
    Ok(more)
}

async fn write_over(
    connection: &mut AnyConnection,
    record: &RecordId,
    place: i64,
    text: &str,
) -> Result<()> {
    sqlx::query("UPDATE samples SET text = $3 WHERE record_id = $1 AND place = $2")
        .bind(record.as_str())
        .bind(place)
        .bind(text)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes back all a principal said of somebody else's record. What it wrote is emptied and not removed: the indices of the samples
/// behind it must not move.
pub(super) async fn forget(
    connection: &mut AnyConnection,
    record: &RecordId,
    principal: &Principal,
    trust: FeedbackTrust,
) -> Result<()> {
    let written: Vec<i64> = sqlx::query_scalar(
        "SELECT written FROM feedback WHERE record_id = $1 AND principal = $2 AND written IS NOT NULL",
    )
    .bind(record.as_str())
    .bind(principal.as_str())
    .fetch_all(&mut *connection)
    .await?;
    for place in written {
        write_over(connection, record, place, "").await?;
    }
    sqlx::query("DELETE FROM feedback WHERE record_id = $1 AND principal = $2")
        .bind(record.as_str())
        .bind(principal.as_str())
        .execute(&mut *connection)
        .await?;
    derive_again(connection, record, trust).await?;
    Ok(())
}

/// Replaces a record's pairs from feedback by those that follow from what is said now. Returns how many.
pub(super) async fn derive_again(
    connection: &mut AnyConnection,
    record: &RecordId,
    trust: FeedbackTrust,
) -> Result<usize> {
    sqlx::query("DELETE FROM pairs WHERE record_id = $1 AND source = $2")
        .bind(record.as_str())
        .bind(PairSource::Feedback.as_str())
        .execute(&mut *connection)
        .await?;
    let said = rows::read_feedback(connection, record).await?;
    let verdicts = rows::read_corroborating(connection, record).await?;
    let shown = usize::try_from(shown(connection, record).await?).unwrap_or(0);
    let derived = derive(&said, &verdicts, shown, trust);
    let [_, _, pairs] = rows::free_places(connection, record).await?;
    rows::insert_pairs(connection, record, pairs, 0, &derived).await?;
    Ok(derived.len())
}

/// How many samples the answer had.
async fn shown(connection: &mut AnyConnection, record: &RecordId) -> Result<i64> {
    let shown = sqlx::query_scalar("SELECT shown FROM records WHERE id = $1")
        .bind(record.as_str())
        .fetch_one(connection)
        .await?;
    Ok(shown)
}

/// A preference: the first sample over the second.
type Preference = (usize, usize);

/// The pairs that follow from feedback, each with the share of its principals that hold it.
fn derive(
    said: &[(LoggedFeedback, Option<usize>)],
    verdicts: &[LoggedVerdict],
    shown: usize,
    trust: FeedbackTrust,
) -> Vec<LoggedPair> {
    let mut held: BTreeMap<Preference, BTreeSet<&Principal>> = BTreeMap::new();
    for (principal, preference) in preferences(said, shown) {
        held.entry(preference).or_default().insert(principal);
    }
    let count = |preference: Preference| held.get(&preference).map_or(0, BTreeSet::len);
    let mut pairs = Vec::new();
    for &(chosen, rejected) in held.keys() {
        let (pro, contra) = (count((chosen, rejected)), count((rejected, chosen)));
        let judged = verdicts
            .iter()
            .filter(|verdict| verdict.consistent)
            .filter_map(|verdict| verdict.pair(PairSource::Feedback))
            .any(|pair| (pair.chosen, pair.rejected) == (chosen, rejected));
        let believed = match trust {
            FeedbackTrust::Never => false,
            FeedbackTrust::Corroborated => judged,
            FeedbackTrust::Always => true,
        };
        if believed && pro > contra {
            pairs.push(LoggedPair {
                chosen,
                rejected,
                margin: pro as f32 / (pro + contra) as f32,
                source: PairSource::Feedback,
                principles: Vec::new(),
            });
        }
    }
    pairs
}

/// What each principal prefers. A thumb up and a thumb down are a preference together, alone neither is; an edit is preferred to
/// what it was made of.
fn preferences(
    said: &[(LoggedFeedback, Option<usize>)],
    shown: usize,
) -> Vec<(&Principal, Preference)> {
    let mut found = Vec::new();
    for (one, written) in said {
        match &one.feedback {
            Feedback::Preferred { sample } => found.extend(
                (0..shown)
                    .filter(|other| other != sample)
                    .map(|other| (&one.principal, (*sample, other))),
            ),
            Feedback::Edited { sample, text } => {
                // Two principals who write the same say the same: the edit that came first stands for both.
                let same = said.iter().find_map(|(other, written)| {
                    let Feedback::Edited { sample: s, text: t } = &other.feedback else {
                        return None;
                    };
                    (s == sample && t == text).then_some(*written).flatten()
                });
                if let Some(written) = same.or(*written) {
                    found.push((&one.principal, (written, *sample)));
                }
            }
            Feedback::Thumbs { sample, up: true } => {
                let down = said.iter().filter_map(|(other, _)| match other.feedback {
                    Feedback::Thumbs { sample, up: false } => {
                        (other.principal == one.principal).then_some(sample)
                    }
                    _ => None,
                });
                found.extend(down.map(|down| (&one.principal, (*sample, down))));
            }
            Feedback::Thumbs { up: false, .. } => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(principal: &str, feedback: Feedback) -> (LoggedFeedback, Option<usize>) {
        let principal = Principal::of_key(principal);
        let one = LoggedFeedback {
            principal,
            created_at: 0,
            feedback,
        };
        (one, None)
    }

    fn derived(
        said: &[(LoggedFeedback, Option<usize>)],
        verdicts: &[LoggedVerdict],
        trust: FeedbackTrust,
    ) -> Vec<Preference> {
        derive(said, verdicts, 2, trust)
            .iter()
            .map(|pair| (pair.chosen, pair.rejected))
            .collect()
    }

    #[test]
    fn a_single_voice_is_believed_only_if_the_policy_says_so() {
        let one = [said("a", Feedback::Preferred { sample: 1 })];
        assert_eq!(derived(&one, &[], FeedbackTrust::Never), []);
        assert_eq!(derived(&one, &[], FeedbackTrust::Corroborated), []);
        assert_eq!(derived(&one, &[], FeedbackTrust::Always), [(1, 0)]);
    }

    #[test]
    fn a_principal_has_one_voice_however_often_it_speaks() {
        let thumbs = |sample, up| said("a", Feedback::Thumbs { sample, up });
        let mut all = vec![
            said("a", Feedback::Preferred { sample: 1 }),
            thumbs(1, true),
            thumbs(0, false),
            said("b", Feedback::Preferred { sample: 0 }),
        ];
        assert_eq!(derived(&all, &[], FeedbackTrust::Always), []);
        all.truncate(3);
        assert_eq!(derived(&all, &[], FeedbackTrust::Always), [(1, 0)]);
    }

    #[test]
    fn as_many_against_as_for_is_no_preference() {
        let split = [
            said("a", Feedback::Preferred { sample: 1 }),
            said("b", Feedback::Preferred { sample: 0 }),
        ];
        assert_eq!(derived(&split, &[], FeedbackTrust::Always), []);
        let mut tipped = split.to_vec();
        tipped.push(said("c", Feedback::Preferred { sample: 0 }));
        let pairs = derive(&tipped, &[], 2, FeedbackTrust::Always);
        assert_eq!((pairs[0].chosen, pairs[0].rejected), (0, 1));
        assert!((pairs[0].margin - 2.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn the_judge_corroborates_in_both_orders_or_not_at_all() {
        let one = [said("a", Feedback::Preferred { sample: 0 })];
        let verdict = |p: f32, consistent| LoggedVerdict {
            a: 0,
            b: 1,
            orders: [p, p],
            p,
            consistent,
            label_mass: 1.0,
            principles: Vec::new(),
            version: "base".to_owned(),
        };
        let corroborated = |verdict| derived(&one, &[verdict], FeedbackTrust::Corroborated);
        assert_eq!(corroborated(verdict(0.9, true)), [(0, 1)]);
        assert_eq!(corroborated(verdict(0.9, false)), []);
        assert_eq!(corroborated(verdict(0.1, true)), []);
    }

    #[test]
    fn an_edit_is_preferred_to_what_it_was_made_of() {
        let edit = |principal, written| {
            let text = "better".to_owned();
            let (one, _) = said(principal, Feedback::Edited { sample: 0, text });
            (one, Some(written))
        };
        let pairs = |said: &[_], trust| derive(said, &[], 2, trust);
        let found = pairs(&[edit("a", 2)], FeedbackTrust::Always);
        assert_eq!((found[0].chosen, found[0].rejected), (2, 0));
        assert!(pairs(&[edit("a", 2)], FeedbackTrust::Corroborated).is_empty());
        // The same words of two principals are one answer with two voices.
        let found = pairs(&[edit("a", 2), edit("b", 3)], FeedbackTrust::Always);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].chosen, found[0].rejected), (2, 0));
    }
}
