//! Costs of a tournament, or of best-of-N from the question to the winner, beside clients that do the same through completions.
//!
//! Such a client sends the judge's own prompts, in both orders for every match, as one-token requests that ask for
//! log-probabilities. It sends them one after the other, as simple clients do, or all of a round at once. It draws candidates in
//! the same two ways. Every contender gets its own candidates, so that no contender finds another's prompts in a cache.

mod material;
mod rival;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use judge::{Bracket, Method};
use serde_json::json;

use crate::call::Usage;
use crate::client::Client;
use crate::scenario::Context;
use crate::server::Server;
use crate::summary::{OwnTable, Report};
use material::{Candidates, Material};
use rival::{Api, Rival, hold};

#[derive(Debug, Args)]
pub struct Judging {
    /// The model's directory, for its tokenizer and the judge's template.
    #[arg(long)]
    model: PathBuf,
    /// The URL of a server of the same model with --no-prefix-caching.
    #[arg(long)]
    uncached_url: Option<String>,
    /// The process id of that server, to read its processor time.
    #[arg(long)]
    uncached_pid: Option<u32>,
    /// The URL of llama.cpp's server of the same model.
    #[arg(long)]
    llama_url: Option<String>,
    /// The process id of llama.cpp's server.
    #[arg(long)]
    llama_pid: Option<u32>,
    /// The numbers of candidates, one measurement each.
    #[arg(long, value_delimiter = ',', default_value = "4,16,64")]
    candidates: Vec<usize>,
    /// The lengths of an answer in tokens.
    #[arg(long, value_delimiter = ',', default_value = "50,500")]
    answer_tokens: Vec<usize>,
    /// The lengths of a question in tokens.
    #[arg(long, value_delimiter = ',', default_value = "200")]
    question_tokens: Vec<usize>,
    /// The number of runs of each measurement. The report shows their median.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Measures only the tournament and the simple client without prefix caching.
    #[arg(long)]
    brief: bool,
    /// Draws the candidates first: measures best-of-N from the question to the winner.
    #[arg(long)]
    best_of: bool,
}

/// A side of the comparison: the client that plays the tournament, and the server that computes.
struct Contender {
    label: String,
    server: Server,
    /// The client that judges through completions. None where the server judges, by `POST /judge` or `POST /generate`.
    rival: Option<Rival>,
}

/// A tournament to play.
struct Task<'a> {
    material: &'a Material,
    /// The question and the candidates. The candidates are not used where `drawn` is set.
    candidates: Candidates,
    /// The length of drawn answers in tokens. None where the answers are given.
    drawn: Option<usize>,
    seed: u64,
}

/// The cost of one tournament.
#[derive(Debug, Clone, Copy)]
struct Cost {
    wall: f64,
    /// Seconds of processor time of the server, where its process is known.
    cpu: Option<f64>,
    usage: Usage,
}

impl Judging {
    /// Measures all contenders and returns the table.
    ///
    /// # Errors
    /// If a server cannot be reached or refuses a request, or the model's files are broken.
    pub async fn run(&self, context: &Context) -> anyhow::Result<Report> {
        let material = Material::load(&self.model)?;
        let contenders = self.contenders(&context.server)?;
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
                "cpu s",
                "judgments/s",
                "times ours",
                "times our cpu",
            ],
            rows: Vec::new(),
        };
        let mut seed = context.seed;
        for &question in &self.question_tokens {
            for &answer in &self.answer_tokens {
                for &n in &self.candidates {
                    let mut costs = vec![Vec::new(); contenders.len()];
                    for _ in 0..self.repeats {
                        for (contender, costs) in contenders.iter().zip(&mut costs) {
                            seed = seed.wrapping_add(1);
                            let task = Task {
                                material: &material,
                                candidates: material.candidates(seed, n, question, answer)?,
                                drawn: self.best_of.then_some(answer),
                                seed,
                            };
                            costs.push(contender.carry_out(&task).await?);
                        }
                    }
                    let medians: Vec<Cost> = costs.into_iter().map(median).collect();
                    for (contender, cost) in contenders.iter().zip(&medians) {
                        let sizes = [n, answer, question];
                        table
                            .rows
                            .push(row(sizes, &contender.label, *cost, medians[0]));
                    }
                }
            }
        }
        Ok(Report {
            table: Some(table),
            ..Report::default()
        })
    }

    fn contenders(&self, ours: &Server) -> anyhow::Result<Vec<Contender>> {
        let at = |url: &str, pid| {
            let client = Client::new(url, Duration::from_secs(600))?;
            anyhow::Ok(Server::new(client, pid))
        };
        let own = match self.best_of {
            true => "POST /generate",
            false => "POST /judge",
        };
        let mut contenders = vec![Contender {
            label: own.to_owned(),
            server: ours.clone(),
            rival: None,
        }];
        let mut add = |server: &Server, api, who: &str, but: &str| {
            for (at_once, how) in [(false, "one at a time"), (true, "a round at once")] {
                if at_once && self.brief {
                    continue;
                }
                let client = server.client.clone();
                contenders.push(Contender {
                    label: format!("{who}, {how}{but}"),
                    server: server.clone(),
                    rival: Some(Rival {
                        client,
                        api,
                        at_once,
                    }),
                });
            }
        };
        if !self.brief {
            add(ours, Api::OpenAi, "completions", "");
        }
        if let Some(url) = &self.uncached_url {
            let uncached = at(url, self.uncached_pid)?;
            add(&uncached, Api::OpenAi, "completions", ", no prefix caching");
        }
        if let Some(url) = &self.llama_url {
            let llama = at(url, self.llama_pid)?;
            for (cache_prompt, but) in [(true, ""), (false, ", no cache_prompt")] {
                add(&llama, Api::LlamaCpp { cache_prompt }, "llama.cpp", but);
            }
        }
        Ok(contenders)
    }
}

impl Contender {
    async fn carry_out(&self, task: &Task<'_>) -> anyhow::Result<Cost> {
        let cpu = self.server.cpu_seconds()?;
        let begun = Instant::now();
        let usage = match &self.rival {
            Some(rival) => by_rival(rival, task).await?,
            None => by_server(&self.server.client, task).await?,
        };
        let wall = begun.elapsed().as_secs_f64();
        let taken = |after: f64| cpu.map(|before| after - before);
        Ok(Cost {
            wall,
            cpu: self.server.cpu_seconds()?.and_then(taken),
            usage,
        })
    }
}

async fn by_rival(rival: &Rival, task: &Task<'_>) -> anyhow::Result<Usage> {
    let mut candidates = task.candidates.clone();
    let n = candidates.answers.len();
    let mut usage = Usage::default();
    if let Some(tokens) = task.drawn {
        let drawn = rival
            .draw(&candidates.question, n, tokens, task.seed)
            .await?;
        (candidates.answers, usage) = drawn;
    }
    let bracket = Bracket::new(n, Method::Knockout, task.seed)?;
    usage.add(hold(rival, task.material, &candidates, bracket).await?);
    Ok(usage)
}

async fn by_server(client: &Client, task: &Task<'_>) -> anyhow::Result<Usage> {
    let Candidates { question, answers } = &task.candidates;
    let (path, body) = match task.drawn {
        Some(tokens) => (
            "/generate",
            json!({
                "prompt": question, "best_of": answers.len(), "max_tokens": tokens, "ignore_eos": true, "seed": task.seed,
            }),
        ),
        None => (
            "/judge",
            json!({
                "prompt": question, "candidates": answers, "method": "tournament", "seed": task.seed,
            }),
        ),
    };
    let answer = client.post(path, &body).await?;
    Usage::read(&answer["usage"]).with_context(|| format!("{path} gives no usage"))
}

/// Returns the cost whose wall time is the median.
fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    costs[costs.len() / 2]
}

fn row([n, answer, question]: [usize; 3], label: &str, cost: Cost, ours: Cost) -> Vec<String> {
    let Cost { wall, cpu, usage } = cost;
    let hits = 100.0 * usage.cached as f64 / usage.prompt.max(1) as f64;
    let cpu_times = cpu.zip(ours.cpu).map(|(cpu, ours)| cpu / ours);
    let known = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.2}"));
    vec![
        n.to_string(),
        answer.to_string(),
        question.to_string(),
        label.to_owned(),
        usage.prompt.to_string(),
        (usage.prompt - usage.cached).to_string(),
        format!("{hits:.1}"),
        format!("{wall:.3}"),
        known(cpu),
        format!("{:.2}", (n - 1) as f64 / wall),
        format!("{:.2}", wall / ours.wall),
        known(cpu_times),
    ]
}
