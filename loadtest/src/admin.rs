//! The server's other door: the learner, its generations and its audit events.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::client::Client;

/// How long the learner may take to stop where it is, or to go on.
const PATIENCE: Duration = Duration::from_secs(120);

/// The admin listener.
#[derive(Debug, Clone)]
pub struct Admin {
    client: Client,
}

/// What `GET /train` says.
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

    /// A count of what has been done, such as `updates`.
    ///
    /// # Errors
    /// If there is no such number.
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

    /// # Errors
    /// The connection's, or an answer of another shape.
    pub async fn train(&self) -> anyhow::Result<Progress> {
        Progress::read(self.get("/train").await?)
    }

    /// Stops the learner and waits until it has stopped.
    ///
    /// # Errors
    /// If it does not.
    pub async fn pause(&self) -> anyhow::Result<()> {
        self.client.post("/train/pause", &json!({})).await?;
        self.until(Progress::is_paused).await
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// If it does not.
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

    /// What `GET /generations` says of its pointers, where it contradicts itself.
    ///
    /// # Errors
    /// The connection's.
    pub async fn pointer_fault(&self) -> anyhow::Result<Option<String>> {
        Ok(pointer_fault(&self.get("/generations").await?))
    }

    /// What is wrong with the audit chain, if something is, and how many events it has.
    ///
    /// # Errors
    /// The connection's, or an answer of another shape.
    pub async fn events(&self) -> anyhow::Result<(usize, Option<String>)> {
        let answer = self.get("/events?verify=true").await?;
        let events = answer["events"].as_array();
        let count = events.context("GET /events has no events")?.len();
        let fault = (answer["valid"] != true)
            .then(|| format!("the audit chain of {count} events does not verify"));
        Ok((count, fault))
    }
}

/// Every pointer must name exactly one of the generations, or `base`: the model without an adapter.
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
