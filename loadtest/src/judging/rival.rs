//! A client that judges through completions.

use anyhow::Context;
use futures::future::try_join_all;
use judge::{Bracket, Match, Outcome, Winner, sigmoid};
use serde_json::{Value, json};

use super::material::{Candidates, Material};
use crate::call::Usage;
use crate::client::Client;

/// The number of the most likely tokens that the client asks for.
const TOP: usize = 20;

/// The API that the client uses.
#[derive(Debug, Clone, Copy)]
pub enum Api {
    /// The route `/v1/completions`.
    OpenAi,
    /// The route `/completion` of llama.cpp.
    LlamaCpp { cache_prompt: bool },
}

pub struct Rival {
    pub client: Client,
    pub api: Api,
    /// Whether the client sends all prompts of a round together, or one at a time.
    pub at_once: bool,
}

/// Plays the bracket to its end and returns the usage.
///
/// # Errors
/// If the server refuses a request, or the judge fails.
pub async fn hold(
    rival: &Rival,
    material: &Material,
    candidates: &Candidates,
    mut bracket: Bracket,
) -> anyhow::Result<Usage> {
    let mut usage = Usage::default();
    while !bracket.round().is_empty() {
        let matches: Vec<Match> = bracket.round().to_vec();
        let mut prompts = Vec::new();
        for Match { first, second } in &matches {
            prompts.extend(material.prompts(candidates, [*first, *second])?);
        }
        let reads = prompts.iter().map(|prompt| rival.read(material, prompt));
        let reads: Vec<(f32, Usage)> = rival.all(reads).await?;
        let outcomes: Vec<Outcome> = reads
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[(given, _), (turned, _)]| outcome((given + 1.0 - turned) / 2.0))
            .collect();
        for (_, spent) in reads {
            usage.add(spent);
        }
        bracket.record(&outcomes)?;
    }
    Ok(usage)
}

fn outcome(p: f32) -> Outcome {
    let winner = match p.total_cmp(&0.5) {
        std::cmp::Ordering::Greater => Winner::A,
        std::cmp::Ordering::Less => Winner::B,
        std::cmp::Ordering::Equal => Winner::Tie,
    };
    Outcome { winner, p }
}

impl Rival {
    /// Draws answers of `tokens` tokens each to a question, and returns them with the usage.
    ///
    /// # Errors
    /// If the server refuses a request.
    pub async fn draw(
        &self,
        question: &str,
        n: usize,
        tokens: usize,
        seed: u64,
    ) -> anyhow::Result<(Vec<String>, Usage)> {
        let answers = (0..n).map(|at| self.answer(question, tokens, seed.wrapping_add(at as u64)));
        let drawn: Vec<(String, Usage)> = self.all(answers).await?;
        let mut usage = Usage::default();
        let answers = drawn.into_iter().map(|(answer, spent)| {
            usage.add(spent);
            answer
        });
        Ok((answers.collect(), usage))
    }

    async fn answer(
        &self,
        question: &str,
        tokens: usize,
        seed: u64,
    ) -> anyhow::Result<(String, Usage)> {
        // Every server accepts a seed in this range.
        let seed = seed % (1 << 31);
        let (path, body) = match self.api {
            Api::OpenAi => (
                "/v1/completions",
                json!({"prompt": question, "max_tokens": tokens, "ignore_eos": true, "seed": seed}),
            ),
            Api::LlamaCpp { cache_prompt } => (
                "/completion",
                json!({
                    "prompt": question, "n_predict": tokens, "ignore_eos": true, "seed": seed, "cache_prompt": cache_prompt,
                }),
            ),
        };
        let answer = self.client.post(path, &body).await?;
        let (text, usage) = match self.api {
            Api::OpenAi => (
                &answer["choices"][0]["text"],
                Usage::read(&answer["usage"]).context("no usage")?,
            ),
            Api::LlamaCpp { .. } => {
                let count = |name: &str| {
                    let count = answer[name].as_u64().with_context(|| format!("no {name}"));
                    anyhow::Ok(count? as usize)
                };
                let prompt = count("tokens_evaluated")?;
                let usage = Usage {
                    completion: count("tokens_predicted")?,
                    ..llama_usage(&answer, prompt)?
                };
                (&answer["content"], usage)
            }
        };
        Ok((text.as_str().context("no text")?.to_owned(), usage))
    }

    /// Runs the requests together, or one after the other.
    async fn all<T>(
        &self,
        calls: impl Iterator<Item = impl Future<Output = anyhow::Result<T>>>,
    ) -> anyhow::Result<Vec<T>> {
        if self.at_once {
            return try_join_all(calls).await;
        }
        let mut done = Vec::new();
        for call in calls {
            done.push(call.await?);
        }
        Ok(done)
    }

    /// Returns the probability that the first answer shown is better. It is 0.5 where the labels are not among the most likely
    /// tokens, as with a model that was never trained to judge. The cost is the same.
    async fn read(&self, material: &Material, prompt: &[u32]) -> anyhow::Result<(f32, Usage)> {
        let (logprobs, usage) = match self.api {
            Api::OpenAi => {
                let body =
                    json!({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": TOP});
                let answer = self.client.post("/v1/completions", &body).await?;
                let usage = Usage::read(&answer["usage"]).context("no usage")?;
                let top = &answer["choices"][0]["logprobs"]["top_logprobs"][0];
                let labels = material.label_texts()?;
                (labels.map(|label| top[label].as_f64()), usage)
            }
            Api::LlamaCpp { cache_prompt } => {
                let body = json!({
                    "prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": TOP, "cache_prompt": cache_prompt,
                });
                let answer = self.client.post("/completion", &body).await?;
                let top = &answer["completion_probabilities"][0]["top_logprobs"];
                let labels = material.label_ids().map(|id| logprob_of(top, id));
                (labels, llama_usage(&answer, prompt.len())?)
            }
        };
        let p = match logprobs {
            [Some(a), Some(b)] => sigmoid((a - b) as f32),
            _ => 0.5,
        };
        Ok((p, usage))
    }
}

fn logprob_of(top: &Value, id: u32) -> Option<f64> {
    let mut tokens = top.as_array()?.iter();
    tokens.find(|token| token["id"] == id)?["logprob"].as_f64()
}

/// Reads the usage. llama.cpp reports how many prompt tokens it computed.
fn llama_usage(answer: &Value, prompt: usize) -> anyhow::Result<Usage> {
    let computed = answer["timings"]["prompt_n"].as_u64();
    let computed = computed.context("no timings.prompt_n")? as usize;
    Ok(Usage {
        prompt,
        completion: 1,
        cached: prompt.saturating_sub(computed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_id() {
        let top = json!([{"id": 4, "logprob": -1.5}, {"id": 7, "logprob": -0.5}]);
        assert_eq!(logprob_of(&top, 7), Some(-0.5));
        assert_eq!(logprob_of(&top, 5), None);
        let answer = json!({"timings": {"prompt_n": 30}});
        assert_eq!(llama_usage(&answer, 100).unwrap().cached, 70);
    }

    #[test]
    fn the_better_half_wins() {
        assert_eq!(outcome(0.7).winner, Winner::A);
        assert_eq!(outcome(0.2).winner, Winner::B);
        assert_eq!(outcome(0.5).winner, Winner::Tie);
    }
}
