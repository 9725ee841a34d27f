//! A client of the operators' listener: the state of the learner, its generations and its audit trail.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::client::Client;

/// The longest time in which the learner has to pause or to resume.
const PATIENCE: Duration = Duration::from_secs(120);

/// A client of the operators' listener.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

/// The answer of `GET /train`.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub state: String,
    document: Value,
}

impl Progress {
    fn read(document: Value) -> anyhow::Result<Self> {
        let state = document["state"].as_str();
        let state = state.with_context(|| format!("GET /train has no state: {document}"))?;
        Ok(Self {
            state: state.to_owned(),
            document,
        })
    }

    pub fn is_paused(&self) -> bool {
        self.state.eq_ignore_ascii_case("paused")
    }

    /// Returns whether the learner waits for more prompts than the log has.
    ///
    /// # Errors
    /// If the answer has no number of prompts that the learner needs.
    pub fn is_starved(&self) -> anyhow::Result<bool> {
        let lacks = self.count("prompts_waiting")? < self.count("prompts_needed")?;
        Ok(lacks && self.state.eq_ignore_ascii_case("waiting"))
    }

    /// Returns a counter of the answer, such as `updates`.
    ///
    /// # Errors
    /// If the answer has no number of that name.
    pub fn count(&self, name: &str) -> anyhow::Result<f64> {
        let count = self.document[name].as_f64();
        count.with_context(|| format!("GET /train has no number `{name}`: {}", self.document))
    }
}

impl Admin {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.client.get(path).await?)?)
    }

    /// Reads the state of the learner.
    ///
    /// # Errors
    /// If the request fails, or the answer has another shape.
    pub async fn train(&self) -> anyhow::Result<Progress> {
        Progress::read(self.get("/train").await?)
    }

    /// Pauses the learner and waits until it is paused.
    ///
    /// # Errors
    /// If a request fails, or the learner is not paused in time.
    pub async fn pause(&self) -> anyhow::Result<()> {
        self.client.post("/train/pause", &json!({})).await?;
        self.until(Progress::is_paused).await
    }

    /// Resumes the learner and waits until it is no longer paused.
    ///
    /// # Errors
    /// If a request fails, or the learner stays paused.
    pub async fn resume(&self) -> anyhow::Result<()> {
        self.client.post("/train/resume", &json!({})).await?;
        self.until(|progress| !progress.is_paused()).await
    }

    async fn until(&self, wanted: impl Fn(&Progress) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let progress = self.train().await?;
            if wanted(&progress) {
                return Ok(());
            }
            let state = progress.state;
            anyhow::ensure!(begun.elapsed() < PATIENCE, "the learner stays `{state}`");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Returns the version that the pointer `policy` names, and the newest generation that was ever promoted.
    ///
    /// # Errors
    /// If the request fails, or the answer has another shape.
    pub async fn policy(&self) -> anyhow::Result<(String, Option<String>)> {
        let answer = self.get("/generations").await?;
        let policy = answer["pointers"]["policy"].as_str();
        let policy = policy.with_context(|| format!("GET /generations answers {answer}"))?;
        Ok((policy.to_owned(), newest_promoted(&answer)))
    }

    /// Moves the pointer `policy` from the expected version to another generation, or to `base`.
    ///
    /// # Errors
    /// If the request fails, or the server refuses the move.
    pub async fn move_policy(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let way = if to == "base" { "rollback" } else { "promote" };
        let path = format!("/generations/{to}/{way}");
        self.client.post(&path, &json!({"expected": from})).await?;
        Ok(())
    }

    /// Reads the audit trail to its end.
    ///
    /// # Errors
    /// If a request fails, or an answer has another shape.
    pub async fn trail(&self) -> anyhow::Result<Trail> {
        let mut trail = Trail {
            verifies: self.get("/events?verify=true&limit=1").await?["valid"] == true,
            ..Trail::default()
        };
        loop {
            let path = format!("/events?limit=1000&after={}", trail.last);
            let answer = self.get(&path).await?;
            let events = answer["events"].as_array();
            let events = events.context("GET /events has no events")?;
            if events.is_empty() {
                return Ok(trail);
            }
            for event in events {
                trail.add(event)?;
            }
        }
    }

    /// Compares the pointers of `GET /generations` with its generations and with the audit trail, and returns a contradiction.
    ///
    /// # Errors
    /// If a request fails.
    pub async fn pointer_fault(&self) -> anyhow::Result<Option<String>> {
        let mut fault = None;
        // The learner may move a pointer between the two requests.
        for _ in 0..3 {
            let answer = self.get("/generations").await?;
            fault = pointer_fault(&answer).or(self.trail().await?.contradicts(&answer));
            if fault.is_none() {
                break;
            }
        }
        Ok(fault)
    }
}

/// The contents of the audit trail.
#[derive(Debug, Default)]
pub struct Trail {
    /// The number of the last event; events are counted from 1.
    pub last: u64,
    /// Whether the hash of every event is right.
    pub verifies: bool,
    /// The last target of each pointer that was ever moved.
    moved: BTreeMap<String, String>,
}

impl Trail {
    fn add(&mut self, event: &Value) -> anyhow::Result<()> {
        let number = event["sequence"].as_u64();
        self.last = number.with_context(|| format!("an event without a number: {event}"))?;
        if event["action"] == "pointers.moved" {
            for one in event["detail"]["moves"].as_array().into_iter().flatten() {
                if let (Some(pointer), Some(to)) = (one["pointer"].as_str(), one["to"].as_str()) {
                    self.moved.insert(pointer.to_owned(), to.to_owned());
                }
            }
        }
        Ok(())
    }

    /// Returns a pointer that is not at its last target. A move and its event are one transaction.
    fn contradicts(&self, generations: &Value) -> Option<String> {
        let mut moved = self.moved.iter();
        moved.find_map(|(name, to)| {
            let at = &generations["pointers"][name];
            (at != to).then(|| format!("pointer `{name}` is at {at}, and was moved to {to}"))
        })
    }
}

/// Returns the id of the newest generation that was ever promoted.
fn newest_promoted(answer: &Value) -> Option<String> {
    let generations = answer["generations"].as_array()?.iter();
    let served = generations.filter(|generation| {
        ["promoted", "rolled_back"]
            .iter()
            .any(|state| generation["state"] == *state)
    });
    let newest = served.max_by_key(|generation| generation["created_at"].as_i64())?;
    newest["id"].as_str().map(str::to_owned)
}

/// Returns a pointer that names neither `base`, the model without an adapter, nor exactly one generation.
fn pointer_fault(answer: &Value) -> Option<String> {
    let (Some(pointers), Some(generations)) = (
        answer["pointers"].as_object(),
        answer["generations"].as_array(),
    ) else {
        return Some(format!("GET /generations answers {answer}"));
    };
    if !pointers.contains_key("policy") {
        return Some("there is no pointer `policy`".into());
    }
    pointers.iter().find_map(|(name, target)| {
        if target == "base" {
            return None;
        }
        let named = generations
            .iter()
            .filter(|generation| generation["id"] == *target);
        match named.count() {
            1 => None,
            count => Some(format!(
                "pointer `{name}` at {target} names {count} generations"
            )),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_by_name() {
        let progress = Progress::read(json!({"state": "paused", "updates": 12})).unwrap();
        assert!(progress.is_paused());
        assert_eq!(progress.count("updates").unwrap(), 12.0);
        assert!(progress.count("pairs").is_err());
        assert!(Progress::read(json!({})).is_err());
        assert!(progress.is_starved().is_err());
    }

    #[test]
    fn a_learner_that_waits_for_prompts_is_starved() {
        let starved = |state: &str, waiting: u64| {
            let counts = json!({"state": state, "prompts_waiting": waiting, "prompts_needed": 100});
            Progress::read(counts).unwrap().is_starved().unwrap()
        };
        assert!(starved("waiting", 99));
        assert!(!starved("waiting", 100) && !starved("gating", 99));
    }

    #[test]
    fn the_trail_knows_where_pointers_are() {
        let moved = |sequence: u64, to: &str| {
            let moves = json!([{"pointer": "policy", "from": "?", "to": to}]);
            json!({"sequence": sequence, "action": "pointers.moved", "detail": {"moves": moves}})
        };
        let mut trail = Trail::default();
        for event in [
            moved(1, "a"),
            json!({"sequence": 2, "action": "other"}),
            moved(3, "b"),
        ] {
            trail.add(&event).unwrap();
        }
        assert_eq!(trail.last, 3);
        let at = |policy: &str| json!({"pointers": {"policy": policy, "judge": "base"}});
        assert_eq!(trail.contradicts(&at("b")), None);
        assert!(trail.contradicts(&at("a")).is_some());
        assert!(trail.add(&json!({})).is_err());
    }

    #[test]
    fn the_newest_generation_that_served_is_found() {
        let one =
            |id: &str, state: &str, at: i64| json!({"id": id, "state": state, "created_at": at});
        let answer = json!({"generations": [
            one("a", "promoted", 1), one("b", "rolled_back", 2), one("c", "rejected", 3)
        ]});
        assert_eq!(newest_promoted(&answer).as_deref(), Some("b"));
        assert_eq!(newest_promoted(&json!({"generations": []})), None);
    }

    #[test]
    fn a_pointer_names_one_generation() {
        let answer = |policy: Value| {
            json!({
                "pointers": {"policy": policy, "judge": "base"},
                "generations": [{"id": "a"}, {"id": "b"}, {"id": "b"}],
            })
        };
        for fine in [json!("a"), json!("base")] {
            assert_eq!(pointer_fault(&answer(fine)), None);
        }
        for wrong in [
            json!("b"),
            json!("c"),
            json!(1),
            json!({"id": "c"}),
            json!({}),
        ] {
            assert!(pointer_fault(&answer(wrong.clone())).is_some(), "{wrong}");
        }
        assert!(pointer_fault(&json!({"pointers": {}, "generations": []})).is_some());
        assert!(pointer_fault(&json!({})).is_some());
    }
}
