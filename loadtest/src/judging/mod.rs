//! What a tournament costs, beside clients that hold the same knockout by themselves through completions.
//!
//! Such a client sends the judge's own prompts, both orders of every match, as one-token requests that ask for log-probabilities:
//! one after the other, as simple clients do, or all of a round at once. Every contender gets candidates of its own, so that nobody
//! finds another's prompts in a cache.

mod material;
mod rival;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use selfjudge::judge::{Bracket, Method};
use serde_json::json;

use crate::call::Usage;
use crate::client::Client;
use crate::scenario::Context;
use crate::summary::{OwnTable, Report};
use material::{Candidates, Material};
use rival::{Api, Rival, hold};

#[derive(Debug, Args)]
pub struct Judging {
    /// The model's directory, for its tokenizer and the judge's template.
    #[arg(long)]
    model: PathBuf,
    /// The same model served with --no-prefix-caching.
    #[arg(long)]
    uncached_url: Option<String>,
    /// llama.cpp's server with the same model.
    #[arg(long)]
    llama_url: Option<String>,
    #[arg(long, value_delimiter = ',', default_value = "4,16,64")]
    candidates: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "50,500")]
    answer_tokens: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "200")]
    question_tokens: Vec<usize>,
    /// Times each is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Only the tournament and the simple client without prefix caching.
    #[arg(long)]
    brief: bool,
}

/// Who holds the tournament.
enum Contender {
    /// `POST /judge`.
    Server(Client),
    Client(Rival),
}

/// What one tournament took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wall: f64,
    usage: Usage,
}

impl Judging {
    /// # Errors
    /// If a server cannot be seen or refuses, or the model's files are broken.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        let material = Material::load(&self.model)?;
        let contenders = self.contenders(&context.server.client)?;
        anyhow::ensure!(self.repeats > 0, "--repeats must be at least 1");
        let mut table = OwnTable {
            header: vec![
                "N",
                "answer",
                "question",
                "who",
                "prompt tokens",
                "prefilled",
                "hit %",
                "wall s",
                "judgments/s",
                "times ours",
            ],
            rows: Vec::new(),
        };
        let mut seed = context.seed;
        for &question in &self.question_tokens {
            for &answer in &self.answer_tokens {
                for &n in &self.candidates {
                    let mut costs = vec![Vec::new(); contenders.len()];
                    for _ in 0..self.repeats {
                        for ((_, contender), costs) in contenders.iter().zip(&mut costs) {
                            seed = seed.wrapping_add(1);
                            let candidates = material.candidates(seed, n, question, answer)?;
                            costs.push(contender.hold(&material, &candidates, seed).await?);
                        }
                    }
                    let medians: Vec<Cost> = costs.into_iter().map(median).collect();
                    for ((label, _), cost) in contenders.iter().zip(&medians) {
                        table
                            .rows
                            .push(row([n, answer, question], label, *cost, medians[0].wall));
                    }
                }
            }
        }
        Ok(Report {
            table: Some(table),
            ..Report::default()
        })
    }

    fn contenders(&self, cached: &Client) -> anyhow::Result<Vec<(&'static str, Contender)>> {
        let at = |url: &str| Client::new(url, Duration::from_secs(600));
        let rival = |client: &Client, api, at_once| {
            Contender::Client(Rival {
                client: client.clone(),
                api,
                at_once,
            })
        };
        let mut contenders = vec![("POST /judge", Contender::Server(cached.clone()))];
        if !self.brief {
            contenders.push((
                "completions, one at a time",
                rival(cached, Api::OpenAi, false),
            ));
            contenders.push((
                "completions, a round at once",
                rival(cached, Api::OpenAi, true),
            ));
        }
        if let Some(url) = &self.uncached_url {
            let uncached = at(url)?;
            let label = "completions, one at a time, no prefix caching";
            contenders.push((label, rival(&uncached, Api::OpenAi, false)));
            if !self.brief {
                let label = "completions, a round at once, no prefix caching";
                contenders.push((label, rival(&uncached, Api::OpenAi, true)));
            }
        }
        if let Some(url) = &self.llama_url {
            let llama = at(url)?;
            for (cache_prompt, one, round) in [
                (
                    true,
                    "llama.cpp, one at a time",
                    "llama.cpp, a round at once",
                ),
                (
                    false,
                    "llama.cpp, one at a time, no cache_prompt",
                    "llama.cpp, a round at once, no cache_prompt",
                ),
            ] {
                let api = Api::LlamaCpp { cache_prompt };
                contenders.push((one, rival(&llama, api, false)));
                if !self.brief {
                    contenders.push((round, rival(&llama, api, true)));
                }
            }
        }
        Ok(contenders)
    }
}

impl Contender {
    async fn hold(
        &self,
        material: &Material,
        candidates: &Candidates,
        seed: u64,
    ) -> anyhow::Result<Cost> {
        let begun = Instant::now();
        let usage = match self {
            Self::Client(rival) => {
                let bracket = Bracket::new(candidates.answers.len(), Method::Knockout, seed)?;
                hold(rival, material, candidates, bracket).await?
            }
            Self::Server(client) => {
                let body = json!({
                    "prompt": candidates.question,
                    "candidates": candidates.answers,
                    "method": "tournament",
                    "seed": seed,
                });
                let answer = client.post("/judge", &body).await?;
                Usage::read(&answer["usage"]).context("/judge gives no usage")?
            }
        };
        Ok(Cost {
            wall: begun.elapsed().as_secs_f64(),
            usage,
        })
    }
}

/// The one in the middle by wall time.
fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    costs[costs.len() / 2]
}

fn row([n, answer, question]: [usize; 3], label: &str, cost: Cost, ours: f64) -> Vec<String> {
    let Cost { wall, usage } = cost;
    let hits = 100.0 * usage.cached as f64 / usage.prompt.max(1) as f64;
    vec![
        n.to_string(),
        answer.to_string(),
        question.to_string(),
        label.to_owned(),
        usage.prompt.to_string(),
        (usage.prompt - usage.cached).to_string(),
        format!("{hits:.1}"),
        format!("{wall:.3}"),
        format!("{:.2}", (n - 1) as f64 / wall),
        format!("{:.2}", wall / ours),
    ]
}
