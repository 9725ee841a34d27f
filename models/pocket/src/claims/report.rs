//! The claims, each with its numbers and whether the numbers support it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::ClaimsError;
use super::draw::{best_of_plot, generations_plot};
use super::run::{GenerationResult, PairTruth, RunResult};
use super::variant::Variant;

/// The results of all runs.
#[derive(Debug, Serialize)]
pub struct Report {
    pub runs: Vec<RunResult>,
    pub claims: Vec<Claim>,
}

/// One claim.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Claim {
    pub claim: &'static str,
    /// None if a variant that it needs was not run.
    pub holds: Option<bool>,
    /// The criterion with its numbers.
    pub evidence: String,
}

/// A number over several seeds: its mean and its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OverSeeds {
    pub mean: f64,
    /// Half the width of the 95 % interval of the mean (Student's t). It is 0 for one seed, which has no interval.
    pub half: f64,
    pub seeds: usize,
}

/// 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
const T: [f64; 9] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262,
];

impl OverSeeds {
    pub fn new(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n;
        let half = match values.len() {
            1 => 0.0,
            count => {
                let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
                T[(count - 2).min(T.len() - 1)] * (variance / n).sqrt()
            }
        };
        Some(Self {
            mean,
            half,
            seeds: values.len(),
        })
    }

    /// Returns whether the difference is significant: whether the whole interval is above zero.
    fn is_ahead(&self) -> bool {
        self.mean > self.half
    }
}

impl std::fmt::Display for OverSeeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.seeds {
            1 => write!(f, "{:.1} (one seed)", self.mean),
            _ => write!(f, "{:.1} ± {:.1}", self.mean, self.half),
        }
    }
}

/// Reads a percentage from a generation's result.
type Number = fn(&GenerationResult) -> f64;

fn correct(generation: &GenerationResult) -> f64 {
    100.0 * generation.measured.correct.mean
}

fn brief(generation: &GenerationResult) -> f64 {
    100.0 * generation.measured.brief.mean
}

fn polite(generation: &GenerationResult) -> f64 {
    100.0 * generation.measured.polite.mean
}

impl Report {
    pub fn new(runs: Vec<RunResult>) -> Self {
        let mut report = Self {
            runs,
            claims: Vec::new(),
        };
        report.claims = vec![
            report.improves(),
            report.on_policy(),
            report.own_judge(),
            report.stages(),
            report.principles(),
            report.contrast(),
        ];
        report
    }

    fn of(&self, variant: Variant) -> impl Iterator<Item = &RunResult> {
        self.runs.iter().filter(move |run| run.variant == variant)
    }

    /// Returns a number of the last generation, over seeds.
    fn last(&self, variant: Variant, number: Number) -> Option<OverSeeds> {
        let values: Vec<f64> = self
            .of(variant)
            .filter_map(|run| run.generations.last())
            .map(number)
            .collect();
        OverSeeds::new(&values)
    }

    /// Returns the difference between the last and the first generation, seed by seed.
    fn gain(&self, variant: Variant, number: Number) -> Option<OverSeeds> {
        let gains = self.of(variant).filter_map(|run| {
            let (first, last) = (run.generations.first()?, run.generations.last()?);
            Some(number(last) - number(first))
        });
        OverSeeds::new(&gains.collect::<Vec<_>>())
    }

    /// Returns the difference between two variants in a number of the last generation, seed by seed.
    fn lead(&self, ahead: Variant, behind: Variant, number: Number) -> Option<OverSeeds> {
        self.difference(ahead, behind, |run| Some(number(run.generations.last()?)))
    }

    /// Returns the difference between two variants in a number of the whole run, seed by seed.
    fn difference(
        &self,
        ahead: Variant,
        behind: Variant,
        number: impl Fn(&RunResult) -> Option<f64>,
    ) -> Option<OverSeeds> {
        let by_seed = |variant| -> BTreeMap<u64, f64> {
            let runs = self.of(variant);
            runs.filter_map(|run| Some((run.seed, number(run)?)))
                .collect()
        };
        let (ahead, behind) = (by_seed(ahead), by_seed(behind));
        let leads = ahead
            .iter()
            .filter_map(|(seed, value)| Some(value - behind.get(seed)?));
        OverSeeds::new(&leads.collect::<Vec<_>>())
    }

    fn improves(&self) -> Claim {
        let gain = self.gain(Variant::Stages, correct);
        Claim {
            claim: "1. the served policy gains at least 10 points of accuracy over the JSFT start",
            holds: gain.map(|gain| gain.mean - gain.half >= 10.0),
            evidence: text(&[
                ("gain", gain),
                ("reached", self.last(Variant::Stages, correct)),
            ]),
        }
    }

    fn on_policy(&self) -> Claim {
        let on_off = self.lead(Variant::AtOnce, Variant::OffPolicy, correct);
        let off_offline = self.lead(Variant::OffPolicy, Variant::Offline, correct);
        Claim {
            claim: "2. on-policy before off-policy before offline, at equal updates",
            holds: on_off
                .zip(off_offline)
                .map(|(a, b)| a.is_ahead() && b.is_ahead()),
            evidence: text(&[
                ("on-policy", self.last(Variant::AtOnce, correct)),
                ("off-policy", self.last(Variant::OffPolicy, correct)),
                ("offline", self.last(Variant::Offline, correct)),
                ("on before off", on_off),
                ("off before offline", off_offline),
            ]),
        }
    }

    fn own_judge(&self) -> Claim {
        let mut points = Vec::new();
        let mut evidence = String::new();
        let sizes = self.of(Variant::Stages).flat_map(|run| &run.generations);
        let sizes: Vec<usize> = match sizes.map(|g| &g.measured.best_of).next() {
            Some(rows) => rows.iter().map(|row| row.n).collect(),
            None => Vec::new(),
        };
        for (at, n) in sizes.iter().enumerate() {
            let value = |generation: &GenerationResult| {
                100.0 * generation.measured.best_of[at].correct.mean
            };
            let gains = self.of(Variant::Stages).filter_map(|run| {
                Some(value(run.generations.last()?) - value(run.generations.first()?))
            });
            if let Some(gain) = OverSeeds::new(&gains.collect::<Vec<_>>()) {
                let _ = write!(evidence, "N = {n}: {gain}; ");
                points.push(gain);
            }
        }
        Claim {
            claim: "3. best of N with the trained policy as its own judge is above the start's curve, N = 1 to 16",
            holds: (!points.is_empty()).then(|| points.iter().all(OverSeeds::is_ahead)),
            evidence: format!(
                "points above the start, {}",
                evidence.trim_end_matches("; ")
            ),
        }
    }

    fn stages(&self) -> Claim {
        let lead = self.lead(Variant::Stages, Variant::AtOnce, correct);
        Claim {
            claim: "4. sDPO: the data in stages before the same data at once",
            holds: lead.as_ref().map(OverSeeds::is_ahead),
            evidence: text(&[
                ("stages", self.last(Variant::Stages, correct)),
                ("at once", self.last(Variant::AtOnce, correct)),
                ("stages before at once", lead),
            ]),
        }
    }

    fn principles(&self) -> Claim {
        let moved = [
            self.gain(Variant::Brief, brief),
            self.gain(Variant::Polite, polite),
        ];
        let kept = [
            self.gain(Variant::Brief, correct),
            self.gain(Variant::Polite, correct),
        ];
        let all = moved.iter().chain(&kept).all(Option::is_some);
        let moves = moved.iter().flatten().all(OverSeeds::is_ahead);
        let keeps = kept
            .iter()
            .flatten()
            .all(|gain| gain.mean + gain.half >= 0.0);
        Claim {
            claim: "5. SALMON: a principle's weight moves the policy its way after one stage, correctness held",
            holds: all.then_some(moves && keeps),
            evidence: text(&[
                ("brief answers under `brief`", moved[0]),
                ("correct ones", kept[0]),
                ("polite answers under `polite`", moved[1]),
                ("correct ones", kept[1]),
            ]),
        }
    }

    /// Checks the claim about SSO. The paper's method trains a generator for its pairs; the variant without one is shown too.
    fn contrast(&self) -> Claim {
        let share = |variant, number: fn(&PairTruth) -> f64| {
            let shares: Vec<f64> = self
                .of(variant)
                .map(|run| 100.0 * number(&run.pairs))
                .collect();
            OverSeeds::new(&shares)
        };
        let truer = self.difference(Variant::ContrastGenerator, Variant::Plain, |run| {
            Some(100.0 * run.pairs.of_decidable())
        });
        let better = self.lead(Variant::ContrastGenerator, Variant::Plain, correct);
        let ways = [
            ("judged pairs", Variant::Plain),
            ("opposed pairs", Variant::Contrast),
            ("a generator's", Variant::ContrastGenerator),
        ];
        let evidence = ways.map(|(name, variant)| {
            let numbers = text(&[
                (
                    "chosen right and rejected wrong",
                    share(variant, PairTruth::of_all),
                ),
                ("of the decidable", share(variant, PairTruth::of_decidable)),
                ("accuracy after", self.last(variant, correct)),
            ]);
            format!("{name}: {numbers}")
        });
        let leads = text(&[
            ("a generator's truer than judged", truer),
            ("policy better", better),
        ]);
        Claim {
            claim: "6. SSO: opposed principles make truer pairs than judged samples, and a better policy",
            holds: better
                .zip(truer)
                .map(|(better, truer)| better.is_ahead() && truer.is_ahead()),
            evidence: format!("{}; {leads}", evidence.join("; ")),
        }
    }

    /// Returns the report as a table.
    pub fn table(&self) -> String {
        let mut table = String::from(
            "| variant | seed | generation | outcome | correct | brief | polite | tokens | pairs | right of decidable | s |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for run in &self.runs {
            for (at, generation) in run.generations.iter().enumerate() {
                let outcome = generation.outcome.map_or("", |outcome| outcome.as_str());
                let _ = writeln!(
                    table,
                    "| {} | {} | {at} | {outcome} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {}/{} | {:.0} |",
                    run.variant.name(),
                    run.seed,
                    correct(generation),
                    brief(generation),
                    polite(generation),
                    generation.measured.tokens,
                    run.pairs.pairs,
                    run.pairs.right,
                    run.pairs.decidable,
                    run.seconds,
                );
            }
        }
        table.push('\n');
        for claim in &self.claims {
            let said = match claim.holds {
                Some(true) => "holds",
                Some(false) => "does not hold",
                None => "not measured",
            };
            let _ = writeln!(table, "{}: **{said}**. {}.\n", claim.claim, claim.evidence);
        }
        table
    }

    /// Writes `claims.json`, `claims.md` and the plots.
    ///
    /// # Errors
    /// Returns errors of the file system and of the plotting library.
    pub fn write(&self, dir: &Path) -> Result<(), ClaimsError> {
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| ClaimsError::Failed(error.to_string()))?;
        let pictures = [
            ("accuracy.svg", generations_plot(&self.runs)),
            ("best_of_n.svg", best_of_plot(&self.runs)),
        ];
        let mut files = vec![("claims.json", json), ("claims.md", self.table())];
        for (name, picture) in pictures {
            files.push((
                name,
                picture.map_err(|error| ClaimsError::Failed(error.to_string()))?,
            ));
        }
        for (name, text) in files {
            let path = dir.join(name);
            std::fs::write(&path, text).map_err(|source| ClaimsError::Io { path, source })?;
        }
        Ok(())
    }
}

fn text(numbers: &[(&str, Option<OverSeeds>)]) -> String {
    let said = numbers
        .iter()
        .filter_map(|(name, number)| Some(format!("{name} {}", (*number)?)));
    said.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
