//! A run of one variant under one seed: traffic is replayed and learned from, and the served versions are measured.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::measure::{Measured, measure};
use super::offline::train_offline;
use super::variant::Variant;
use super::{ClaimsError, ClaimsOptions, Yardstick};
use crate::world::{Dice, Split, Task};
use engine::EngineConfig;
use judge::PrincipleTable;
use model::WeightsLease;
use selfjudge::{
    app::{
        App, AppConfig, DataDir, LearnOptions, ModelFiles, OnDeath, PromptOptions, TrafficOptions,
    },
    http::{HttpConfig, JudgingPolicy},
    learn::{LearnConfig, LearnControl, LearnState},
    service::{OnLogFailure, Permitted},
};
use traffic_log::{Consent, PairSource, Prompt, Scope, StageOutcome, TrafficLog};

/// The actor of the learner's switch in the audit trail.
const ACTOR: &str = "claims";
/// Concurrent calls of the replay.
const CONCURRENCY: usize = 32;
/// Timeout of a variant.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The result of a variant under a seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunResult {
    pub variant: Variant,
    pub seed: u64,
    pub settings: LearnConfig,
    pub yardstick: Yardstick,
    /// The initial model, and the served version after each stage.
    pub generations: Vec<GenerationResult>,
    /// Pairs that were trained on, and how many of them the checker can decide and agrees with.
    pub pairs: PairTruth,
    pub seconds: f64,
}

/// One served version with its measurements.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GenerationResult {
    pub name: String,
    /// The outcome of its stage. None for the initial model.
    pub outcome: Option<StageOutcome>,
    pub measured: Measured,
}

/// A comparison of pairs with the checker's grades.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PairTruth {
    pub pairs: usize,
    /// Pairs of which exactly one answer is correct.
    pub decidable: usize,
    /// Of these, pairs whose chosen answer is the correct one.
    pub right: usize,
}

impl PairTruth {
    /// Returns the share of all pairs whose chosen answer alone is correct.
    pub fn of_all(&self) -> f64 {
        self.right as f64 / self.pairs.max(1) as f64
    }

    /// Returns the share of the decidable pairs whose chosen answer is correct.
    pub fn of_decidable(&self) -> f64 {
        self.right as f64 / self.decidable.max(1) as f64
    }
}

/// Runs the variant from the initial model to its measurements.
pub async fn run(
    options: &ClaimsOptions,
    variant: Variant,
    seed: u64,
) -> Result<RunResult, ClaimsError> {
    let begun = Instant::now();
    let settings = variant.config(options, seed);
    let work = options.out.join(format!("{}-{seed}.data", variant.name()));
    remove(&work)?;
    let app = start(options, settings.clone(), &work).await?;
    let learned = learn(options, variant, seed, &settings, &app).await;
    app.stop().await.join();
    remove(&work)?;
    let (generations, pairs) = learned?;
    Ok(RunResult {
        variant,
        seed,
        settings,
        yardstick: options.yardstick,
        generations,
        pairs,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

fn remove(dir: &Path) -> Result<(), ClaimsError> {
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(ClaimsError::Io {
            path: dir.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

async fn start(
    options: &ClaimsOptions,
    config: LearnConfig,
    work: &Path,
) -> Result<App, ClaimsError> {
    let data_dir = DataDir::open(work).map_err(|source| ClaimsError::Io {
        path: work.to_owned(),
        source,
    })?;
    let app = App::start(AppConfig {
        model_name: "pocket".to_owned(),
        model: ModelFiles::pocket().map_err(selfjudge::app::AppError::from)?,
        format: None,
        adapter: None,
        prompts: PromptOptions::default(),
        device: options.device.clone(),
        engine: EngineConfig::default(),
        kv_cache_memory: None,
        http: HttpConfig {
            judging: JudgingPolicy {
                allow_untrained: true,
                ..JudgingPolicy::default()
            },
            ..HttpConfig::default()
        },
        data_dir: Some(data_dir),
        traffic: TrafficOptions {
            log: None,
            default: Consent::default(),
            allowed: Permitted::default(),
            strangers: Permitted::default(),
            on_failure: OnLogFailure::Refuse,
            trust_user: false,
        },
        learn: Some(LearnOptions {
            config,
            threads: options.threads,
            // Only the learner waits for answers in this run.
            min_share: 1.0,
            canary_share: 0.0,
            on_death: OnDeath::Restart,
        }),
        // The claims measure the pocket model's judge.
        self_test: false,
        memory_check: true,
    });
    Ok(app.await?)
}

async fn learn(
    options: &ClaimsOptions,
    variant: Variant,
    seed: u64,
    settings: &LearnConfig,
    app: &App,
) -> Result<(Vec<GenerationResult>, PairTruth), ClaimsError> {
    let missing = || ClaimsError::Failed("the program was started without learning".to_owned());
    let (control, log) = (
        app.control.as_ref().ok_or_else(missing)?,
        app.log.as_ref().ok_or_else(missing)?,
    );
    let publisher = app.publisher.as_ref().ok_or_else(missing)?;
    let base = publisher.weights("base").await?;
    let mut generations = vec![GenerationResult {
        name: "base".to_owned(),
        outcome: None,
        measured: measure(options, &app.service, &base).await?,
    }];
    if variant == Variant::Offline {
        let adapter = train_offline(options, settings, seed, &app.service, app.model_dir()).await?;
        let weights = publisher.register("offline", &adapter)?;
        generations.push(measured(options, app, "offline", &weights, None).await?);
        return Ok((generations, PairTruth::default()));
    }
    log.switch.pause(ACTOR).await?;
    control.follow(log.switch.get().await?);
    if let Some((principle, weight)) = variant.raised() {
        raise(
            &app.admin_router,
            app.service.judge().table(),
            principle.name(),
            weight,
        )
        .await?;
    }
    let tasks = replay(&app.router, settings, variant.stages(), seed).await?;
    for stage in 1..=variant.stages() {
        log.switch.resume(ACTOR).await?;
        control.follow(log.switch.get().await?);
        finished(control, log, stage).await?;
        log.switch.pause(ACTOR).await?;
        let number = stage as i64;
        let stages = log.stages.all().await?;
        // The next stage may have begun already.
        let outcome = stages
            .iter()
            .find(|stage| stage.id.0 == number)
            .and_then(|stage| stage.outcome);
        let policy = log.generations.pointers().await?.policy;
        let weights = publisher.weights(policy.as_str()).await?;
        generations.push(measured(options, app, policy.as_str(), &weights, outcome).await?);
    }
    Ok((generations, truth(log, &tasks).await?))
}

async fn measured(
    options: &ClaimsOptions,
    app: &App,
    name: &str,
    weights: &WeightsLease,
    outcome: Option<StageOutcome>,
) -> Result<GenerationResult, ClaimsError> {
    Ok(GenerationResult {
        name: name.to_owned(),
        outcome,
        measured: measure(options, &app.service, weights).await?,
    })
}

/// Waits until `count` stages have ended.
async fn finished(
    control: &LearnControl,
    log: &TrafficLog,
    count: usize,
) -> Result<(), ClaimsError> {
    let begun = Instant::now();
    loop {
        let ended = log
            .stages
            .all()
            .await?
            .iter()
            .filter(|stage| stage.outcome.is_some())
            .count();
        if ended >= count {
            return Ok(());
        }
        let status = control.status();
        if begun.elapsed() > PATIENCE || status.state == LearnState::Failed {
            let error = status
                .error
                .unwrap_or_else(|| "it takes too long".to_owned());
            return Err(ClaimsError::Failed(format!(
                "stage {}: {error}",
                status.stage
            )));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Sends enough traffic for all stages: training instructions, each answered and logged. Returns the tasks by their text.
async fn replay(
    router: &Router,
    settings: &LearnConfig,
    stages: usize,
    seed: u64,
) -> Result<HashMap<String, Task>, ClaimsError> {
    // The ids of the records decide which are held out, so the number of calls is a tenth higher. Both sides then have enough.
    let train = (settings.stage.prompts * stages) as f64 / (1.0 - settings.stage.held_out);
    let gates = settings.gates.prompts as f64 / settings.stage.held_out;
    let calls = (1.1 * train.max(gates)) as u64 + 50;
    let tasks: Vec<Task> = (0..calls)
        .map(|call| Task::sample(Split::Train, &mut Dice::new(seed ^ 0x7265_706c, call)))
        .collect();
    stream::iter(&tasks)
        .map(|task| {
            let body = json!({
                "messages": [{"role": "user", "content": task.prompt}],
                "max_tokens": 64,
                "log": {"retain": true, "train": true},
            });
            call(router, "POST /generate", Method::POST, "/generate", body)
        })
        .buffer_unordered(CONCURRENCY)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    Ok(tasks
        .into_iter()
        .map(|task| (task.prompt.clone(), task))
        .collect())
}

/// Changes the weight of a principle in the table through the operators' route. `correct` has weight 1.
async fn raise(
    router: &Router,
    table: &PrincipleTable,
    name: &str,
    weight: f64,
) -> Result<(), ClaimsError> {
    let current = call(
        router,
        "GET /principles",
        Method::GET,
        "/principles",
        Value::Null,
    )
    .await?;
    let principles: Vec<Value> = table
        .iter()
        .map(|principle| {
            let weight = match principle.id.as_str() {
                "correct" => 1.0,
                id if id == name => weight,
                _ => 0.0,
            };
            json!({"id": principle.id, "text": principle.text, "weight": weight})
        })
        .collect();
    let body = json!({"version": current["version"], "principles": principles});
    call(router, "PUT /principles", Method::PUT, "/principles", body).await?;
    Ok(())
}

async fn call(
    router: &Router,
    name: &'static str,
    method: Method,
    path: &str,
    body: Value,
) -> Result<Value, ClaimsError> {
    let body = if body.is_null() {
        Body::empty()
    } else {
        Body::from(body.to_string())
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| ClaimsError::Failed(error.to_string()))?;
    let answer = match router.clone().oneshot(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    };
    let status = answer.status();
    let bytes = to_bytes(answer.into_body(), usize::MAX).await;
    let bytes = bytes.map_err(|error| ClaimsError::Failed(error.to_string()))?;
    if status != StatusCode::OK {
        return Err(ClaimsError::Refused {
            call: name,
            status: status.as_u16(),
            body: String::from_utf8_lossy(&bytes).into_owned(),
        });
    }
    serde_json::from_slice(&bytes).map_err(|error| ClaimsError::Failed(error.to_string()))
}

/// Compares the pairs of all stages with the checker's grades.
async fn truth(log: &TrafficLog, tasks: &HashMap<String, Task>) -> Result<PairTruth, ClaimsError> {
    let mut truth = PairTruth::default();
    for stage in log.stages.all().await? {
        let rows = stage.state["rows"].as_array().cloned().unwrap_or_default();
        for id in rows
            .iter()
            .filter_map(|id| traffic_log::RecordId::parse(id.as_str()?))
        {
            let Some(record) = log.records.get(&id, &Scope::All).await? else {
                continue;
            };
            let Prompt::Messages(messages) = &record.prompt else {
                continue;
            };
            let Some(task) = messages
                .last()
                .and_then(|message| tasks.get(&message.content))
            else {
                continue;
            };
            let learned = |source| matches!(source, PairSource::OnPolicy | PairSource::Contrast);
            for pair in record.pairs.iter().filter(|pair| learned(pair.source)) {
                let right = |at: usize| task.check(&record.samples[at].text).correct;
                let (chosen, rejected) = (right(pair.chosen), right(pair.rejected));
                truth.pairs += 1;
                truth.decidable += usize::from(chosen != rejected);
                truth.right += usize::from(chosen && !rejected);
            }
        }
    }
    Ok(truth)
}
