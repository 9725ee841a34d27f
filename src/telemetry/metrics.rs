//! All metrics that the server exports, in one table.
//!
//! Names, definitions and bucket edges are vLLM's under our prefix where vLLM has the metric, so that its dashboards can be
//! moved over by renaming. Latency histograms have finer buckets below vLLM's first edge, for small models. The judge's metrics are our
//! own.
//! Times are of one process' monotonic clock, in seconds.

use std::cell::RefCell;
use std::sync::Arc;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// A server's metrics. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    names: Arc<[String]>,
    pub engine: EngineMetrics,
    pub judge: JudgeMetrics,
    pub http: HttpMetrics,
    pub log: LogMetrics,
    pub learn: LearnMetrics,
}

/// The reasons for which the engine does not finish an accepted request.
const FAILURES: [&str; 3] = ["aborted", "deadline", "error"];

/// The reasons for which the engine's requests finish.
const FINISHES: [&str; 2] = ["stop", "length"];

/// Error codes that concern the server's state rather than a single call.
const REFUSALS: [&str; 6] = [
    "overloaded",
    "rate_limited",
    "invalid_api_key",
    "log_full",
    "log_unavailable",
    "untrained_judge",
];

/// The reasons for which a record is not written to the traffic log.
const LOG_DROPS: [&str; 7] = [
    "queue_full",
    "unavailable",
    "redaction",
    "record_too_large",
    "invalid",
    "quota",
    "other",
];

/// The kinds of feedback.
const FEEDBACK: [&str; 4] = ["thumbs_up", "thumbs_down", "preferred", "edited"];

/// The metrics of the engine thread.
#[derive(Debug, Clone)]
pub struct EngineMetrics {
    pub requests_running: IntGauge,
    pub requests_waiting: IntGauge,
    pub requests_by_weights: IntGaugeVec,
    pub kv_cache_usage: Gauge,
    pub weights_bytes: IntGaugeVec,
    pub prompt_tokens: IntCounter,
    pub generation_tokens: IntCounter,
    pub prefix_cache_queries: IntCounter,
    pub prefix_cache_hits: IntCounter,
    pub preemptions: IntCounter,
    pub drafts: IntCounter,
    pub accepted_drafts: IntCounter,
    pub requests_finished: IntCounterVec,
    pub requests_failed: IntCounterVec,
    pub time_to_first_token: Histogram,
    pub inter_token_latency: Histogram,
    pub e2e_latency: Histogram,
    pub queue_time: Histogram,
    pub prefill_time: Histogram,
    pub decode_time: Histogram,
    pub request_prompt_tokens: Histogram,
    pub request_generation_tokens: Histogram,
    pub step_tokens: Histogram,
}

/// The metrics of judging.
#[derive(Debug, Clone)]
pub struct JudgeMetrics {
    pub comparisons: IntCounter,
    pub flips: IntCounter,
    pub ties: IntCounter,
    pub label_mass: Histogram,
    pub self_test: GaugeVec,
    pub reliable: IntGaugeVec,
    pub prompt_tokens: IntCounter,
    pub cached_tokens: IntCounter,
    pub tournament_candidates: Histogram,
    pub tournament_comparisons: Histogram,
    pub tournament_seconds: Histogram,
}

/// The metrics of the HTTP layer.
#[derive(Debug, Clone)]
pub struct HttpMetrics {
    pub requests: IntCounterVec,
    pub rejected: IntCounterVec,
}

/// The metrics of the traffic log.
#[derive(Debug, Clone)]
pub struct LogMetrics {
    pub commits: IntCounter,
    pub unlogged: IntCounterVec,
    pub feedback: IntCounterVec,
    pub lag: Histogram,
    pub queue_depth: IntGauge,
    pub records: IntGauge,
    pub healthy: IntGauge,
    pub commit_lag: Gauge,
}

/// The metrics of learning.
#[derive(Debug, Clone)]
pub struct LearnMetrics {
    pub updates: IntCounter,
    pub pairs: IntCounter,
    pub dropped: IntCounterVec,
    pub stages: IntCounterVec,
    pub step_seconds: Histogram,
    pub last: GaugeVec,
    pub gates: GaugeVec,
    pub gates_passed: IntGaugeVec,
    pub state: IntGaugeVec,
    pub paused: IntGauge,
    pub stage: IntGauge,
    pub waiting: IntGaugeVec,
    pub deaths: IntCounter,
    pub of_other_tokenizers: IntGauge,
    pub tasks_restarted: IntCounterVec,
    pub unattended: IntGauge,
    pub prompts_waiting: IntGauge,
    pub swaps: IntCounter,
    pub swap_seconds: Histogram,
    pub degraded: IntGauge,
    pub generation: IntGaugeVec,
    pub canary: GaugeVec,
    pub canaries_withdrawn: IntCounterVec,
}

const LATENCY: [f64; 25] = [
    0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0,
    50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN: [f64; 26] = [
    0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const STEP_TOKENS: [f64; 13] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
const SWAP: [f64; 8] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0];
const MASS: [f64; 8] = [0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999];

/// Returns 1, 2, 5, 10, … up to a million.
fn one_two_five() -> Vec<f64> {
    (0..7)
        .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
        .filter(|&edge| edge <= 1e6)
        .collect()
}

/// The version, processor and profile of this build.
const BUILD: [&str; 3] = [
    env!("CARGO_PKG_VERSION"),
    std::env::consts::ARCH,
    match cfg!(debug_assertions) {
        true => "debug",
        false => "release",
    },
];

/// Creates metrics and adds them to a registry.
struct Table {
    registry: Registry,
    names: RefCell<Vec<String>>,
}

impl Table {
    fn add<M: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: prometheus::Result<M>,
    ) -> M {
        let metric = metric.expect("the table's names are valid; this is a bug");
        let names = metric.desc().into_iter().map(|desc| desc.fq_name.clone());
        self.names.borrow_mut().extend(names);
        self.registry
            .register(Box::new(metric.clone()))
            .expect("the table's names differ; this is a bug");
        metric
    }

    /// Adds `process_*`: processor time, memory, open files and start time, under the names that all exporters use.
    fn process(&self) {
        let process = ProcessCollector::for_self();
        self.registry
            .register(Box::new(process))
            .expect("no other metric begins with process_; this is a bug");
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(format!("selfjudge:{name}_total"), help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let options = Opts::new(format!("selfjudge:{name}_total"), help);
        self.add(IntCounterVec::new(options, labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(format!("selfjudge:{name}"), help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        let options = Opts::new(format!("selfjudge:{name}"), help);
        self.add(IntGaugeVec::new(options, labels))
    }

    fn fraction(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(format!("selfjudge:{name}"), help))
    }

    fn fractions(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        let options = Opts::new(format!("selfjudge:{name}"), help);
        self.add(GaugeVec::new(options, labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(format!("selfjudge:{name}"), help);
        self.add(Histogram::with_opts(options.buckets(buckets.to_vec())))
    }
}

impl Metrics {
    /// Creates all metrics, labelled with the model's name.
    pub fn new(model_name: &str) -> Self {
        let labels = [("model_name".to_owned(), model_name.to_owned())];
        let registry = Registry::new_custom(None, Some(labels.into_iter().collect()))
            .expect("the label's name is valid; this is a bug");
        let table = Table {
            registry,
            names: RefCell::default(),
        };
        let engine = EngineMetrics::new(&table);
        let judge = JudgeMetrics::new(&table);
        let http = HttpMetrics::new(&table);
        let log = LogMetrics::new(&table);
        let learn = LearnMetrics::new(&table);
        let build = table.gauges(
            "build_info",
            "Always 1; the labels name the program's version, target and build profile.",
            &["version", "target", "profile"],
        );
        build.with_label_values(&BUILD).set(1);
        // Series are created at the start, because a monitor cannot watch a series that does not exist before its first event.
        for (counters, values) in [
            (&engine.requests_failed, &FAILURES[..]),
            (&engine.requests_finished, &FINISHES),
            (&http.rejected, &REFUSALS),
            (&log.unlogged, &LOG_DROPS),
            (&log.feedback, &FEEDBACK),
        ] {
            for value in values {
                counters.with_label_values(&[value]).reset();
            }
        }
        table.process();
        Self {
            registry: table.registry,
            names: table.names.into_inner().into(),
            engine,
            judge,
            http,
            log,
            learn,
        }
    }

    /// Returns the names of all metrics, including those without a value yet.
    pub fn names(&self) -> Vec<String> {
        self.names.to_vec()
    }

    /// Renders the metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory succeeds; this is a bug");
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl EngineMetrics {
    #[rustfmt::skip] // a table
    fn new(table: &Table) -> Self {
        let tokens = one_two_five();
        Self {
            requests_running: table.gauge("num_requests_running", "Sequences in the running batch."),
            requests_waiting: table.gauge("num_requests_waiting", "Requests waiting to be scheduled."),
            weights_bytes: table.gauges("weights_bytes", "Bytes of the base's weight matrices in memory, by their type.", &["type"]),
            requests_by_weights: table.gauges("num_requests_by_weights", "Waiting and running sequences, by weights.", &["weights"]),
            kv_cache_usage: table.fraction("kv_cache_usage_perc", "Share of KV cache blocks in use, 0 to 1."),
            prompt_tokens: table.counter("prompt_tokens", "Prompt tokens of scheduled requests, including cached tokens."),
            generation_tokens: table.counter("generation_tokens", "Generated tokens."),
            prefix_cache_queries: table.counter("prefix_cache_queries", "Tokens looked up in the prefix cache."),
            prefix_cache_hits: table.counter("prefix_cache_hits", "Tokens found in the prefix cache."),
            preemptions: table.counter("num_preemptions", "Times a running request was preempted by an earlier one."),
            drafts: table.counter("spec_decode_num_draft_tokens", "Tokens proposed ahead of a sequence that ran alone."),
            accepted_drafts: table.counter("spec_decode_num_accepted_tokens", "Proposed tokens that were drawn."),
            requests_finished: table.counters("request_success", "Finished requests, by reason.", &["finished_reason"]),
            requests_failed: table.counters("request_failure", "Accepted requests that did not finish, by reason: aborted, deadline or error.", &["reason"]),
            time_to_first_token: table.histogram("time_to_first_token_seconds", "Time from arrival to the first token.", &FIRST_TOKEN),
            inter_token_latency: table.histogram("inter_token_latency_seconds", "Time between two tokens of a sequence.", &INTER_TOKEN),
            e2e_latency: table.histogram("e2e_request_latency_seconds", "Time from arrival to the last token.", &LATENCY),
            queue_time: table.histogram("request_queue_time_seconds", "Time from arrival at the engine to the first scheduling.", &LATENCY),
            prefill_time: table.histogram("request_prefill_time_seconds", "Time from the first scheduling to the first token.", &LATENCY),
            decode_time: table.histogram("request_decode_time_seconds", "Time from the first token to the last.", &LATENCY),
            request_prompt_tokens: table.histogram("request_prompt_tokens", "Prompt tokens of a request.", &tokens),
            request_generation_tokens: table.histogram("request_generation_tokens", "Generated tokens of a sequence.", &tokens),
            step_tokens: table.histogram("iteration_tokens_total", "Tokens computed in a step.", &STEP_TOKENS),
        }
    }
}

impl JudgeMetrics {
    #[rustfmt::skip] // a table
    fn new(table: &Table) -> Self {
        let counts = one_two_five();
        Self {
            comparisons: table.counter("judge_comparisons", "Judged pairs, including pairs of equal answers, which tie without a model call."),
            flips: table.counter("judge_flips", "Pairs for which the two orders gave different winners."),
            ties: table.counter("judge_ties", "Pairs without a winner, including pairs of equal answers."),
            label_mass: table.histogram("judge_label_mass", "Probability mass on the two labels, per comparison that the model judged.", &MASS),
            self_test: table.fractions("judge_self_test", "The judge's newest self-test: the number of pairs, the shares in which the orders agree and in which the better answer wins, and the mean label_mass.", &["number"]),
            reliable: table.gauges("judge_reliable", "1 if the judge passed its newest self-test, 0 if it failed; absent before the first.", &[]),
            prompt_tokens: table.counter("judge_prompt_tokens", "Tokens of judge prompts."),
            cached_tokens: table.counter("judge_cached_tokens", "Tokens of judge prompts found in the prefix cache."),
            tournament_candidates: table.histogram("tournament_candidates", "Candidates of a tournament.", &counts),
            tournament_comparisons: table.histogram("tournament_comparisons", "Comparisons of a tournament.", &counts),
            tournament_seconds: table.histogram("tournament_seconds", "Duration of a tournament.", &LATENCY),
        }
    }
}

impl HttpMetrics {
    #[rustfmt::skip] // a table
    fn new(table: &Table) -> Self {
        Self {
            requests: table.counters("http_requests", "HTTP requests, by route and status.", &["route", "status"]),
            rejected: table.counters("http_rejected", "Rejected requests (4xx and 503), by error code.", &["reason"]),
        }
    }
}

impl LogMetrics {
    #[rustfmt::skip] // a table
    fn new(table: &Table) -> Self {
        Self {
            commits: table.counter("log_commits", "Calls whose record was committed before their answer."),
            unlogged: table.counters("log_dropped", "Records that could not be written to the log, by reason.", &["reason"]),
            feedback: table.counters("log_feedback", "Accepted feedback, by kind: thumbs_up, thumbs_down, preferred, edited.", &["kind"]),
            lag: table.histogram("log_commit_seconds", "Time a call waited for the commit of its record.", &FIRST_TOKEN),
            queue_depth: table.gauge("log_queue_depth", "Records waiting for the log's writer."),
            records: table.gauge("log_records", "Records in the log."),
            healthy: table.gauge("log_healthy", "1 if the log's last commit succeeded, otherwise 0."),
            commit_lag: table.fraction("log_commit_lag_seconds", "Time from queue to commit of the slowest record in the last batch."),
        }
    }
}

impl LearnMetrics {
    #[rustfmt::skip] // a table
    fn new(table: &Table) -> Self {
        Self {
            updates: table.counter("train_updates", "Optimizer steps on logged traffic."),
            pairs: table.counter("train_pairs", "Preference pairs used for training."),
            dropped: table.counters("train_pairs_dropped", "Prompts that produced no preference pair, by reason.", &["reason"]),
            stages: table.counters("train_stages", "Ended stages, by outcome.", &["outcome"]),
            step_seconds: table.histogram("train_step_seconds", "Duration of an optimizer step, including waits for serving.", &LATENCY),
            last: table.fractions("train_last", "Values of the last update, under TRL's names; entropy is exact, kl/anchor is estimated on the policy's own answers, staleness is the age of the policies that wrote the pairs.", &["number"]),
            gates: table.fractions("train_gate", "Values of the last candidate, by gate.", &["gate"]),
            gates_passed: table.gauges("train_gate_passed", "1 for the gates that the last candidate passed, 0 for the others.", &["gate"]),
            state: table.gauges("train_state", "1 for the learner's current state, 0 for all others.", &["state"]),
            paused: table.gauge("train_paused", "1 while learning is paused or is about to be."),
            stage: table.gauge("train_stage", "Number of the running stage, or of the last one."),
            waiting: table.gauges("train_waiting", "1 for the reason that currently blocks learning, 0 for all others.", &["reason"]),
            deaths: table.counter("train_deaths", "Times the learner failed and was restarted."),
            of_other_tokenizers: table.gauge("train_records_other_tokenizer", "Records excluded from learning because another tokenizer made their token ids."),
            tasks_restarted: table.counters("tasks_restarted", "Times a background task failed and was restarted, by task.", &["task"]),
            unattended: table.gauge("train_unattended_stages", "Stages that passed their gates since learning was last resumed."),
            prompts_waiting: table.gauge("train_prompts_waiting", "Prompts waiting for a stage."),
            swaps: table.counter("weights_swaps", "Times the served weights were replaced."),
            swap_seconds: table.histogram("weights_swap_seconds", "Duration of a swap of the served weights, without loading.", &SWAP),
            degraded: table.gauge("weights_degraded", "1 if the served weights differ from the generation pointers."),
            canary: table.fractions("canary", "Values of the canary and of the live weights since the canary began: the shares of failed and truncated answers, and the mean length in tokens.", &["version", "number"]),
            generation: table.gauges("generation_info", "1 for the weights that serve in each role: policy, judge and canary.", &["id", "role"]),
            canaries_withdrawn: table.counters("canaries_withdrawn", "Canaries that were withdrawn, by the value that left its allowed range.", &["number"]),
        }
    }
}

#[cfg(test)]
mod tests;
