//! The claims, each with its numbers and whether they bear it out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::ClaimsError;
use super::draw::{best_of_plot, generations_plot};
use super::run::{GenerationResult, PairTruth, RunResult};
use super::variant::Variant;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    pub runs: Vec<RunResult>,
    pub claims: Vec<Claim>,
}

/// One claim.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Claim {
    pub claim: &'static str,
    /// None where a variant it needs was not run.
    pub holds: Option<bool>,
    /// What it is judged by, in words and numbers.
    pub evidence: String,
}

/// A number over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct OverSeeds {
    pub mean: f64,
    /// Half the width of the 95 % interval of the mean (Student's t); 0 of one seed, which has none.
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
}

impl std::fmt::Display for OverSeeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.seeds {
            1 => write!(f, "{:.1} (one seed)", self.mean),
            _ => write!(f, "{:.1} ± {:.1}", self.mean, self.half),
        }
    }
}

/// A percentage of what a generation was measured at.
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

    /// A number of the last generation, over seeds.
    fn last(&self, variant: Variant, number: Number) -> Option<OverSeeds> {
        let values: Vec<f64> = self
            .of(variant)
            .filter_map(|run| run.generations.last())
            .map(number)
            .collect();
        OverSeeds::new(&values)
    }

    /// How far the last generation is from the first, seed by seed.
    fn gain(&self, variant: Variant, number: Number) -> Option<OverSeeds> {
        let gains = self.of(variant).filter_map(|run| {
            let (first, last) = (run.generations.first()?, run.generations.last()?);
            Some(number(last) - number(first))
        });
        OverSeeds::new(&gains.collect::<Vec<_>>())
    }

    /// How far one variant is before another, seed by seed.
    fn lead(&self, ahead: Variant, behind: Variant, number: Number) -> Option<OverSeeds> {
        let by_seed = |variant| -> BTreeMap<u64, f64> {
            let last = |run: &RunResult| Some((run.seed, number(run.generations.last()?)));
            self.of(variant).filter_map(last).collect()
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
                .map(|(a, b)| a.mean > a.half && b.mean > b.half),
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
                points.push(gain.mean);
            }
        }
        Claim {
            claim: "3. best of N with the trained policy as its own judge is above the start's curve, N = 1 to 16",
            holds: (!points.is_empty()).then(|| points.iter().all(|gain| *gain > 0.0)),
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
            holds: lead.map(|lead| lead.mean > lead.half),
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
        let moves = moved
            .iter()
            .flatten()
            .all(|gain| gain.mean > gain.half && gain.mean > 0.0);
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

    fn contrast(&self) -> Claim {
        let share = |variant| {
            let right = |truth: &PairTruth| 100.0 * truth.right as f64 / truth.pairs.max(1) as f64;
            OverSeeds::new(
                &self
                    .of(variant)
                    .map(|run| right(&run.pairs))
                    .collect::<Vec<_>>(),
            )
        };
        let decided = |variant| {
            let right =
                |truth: &PairTruth| 100.0 * truth.right as f64 / truth.decidable.max(1) as f64;
            OverSeeds::new(
                &self
                    .of(variant)
                    .map(|run| right(&run.pairs))
                    .collect::<Vec<_>>(),
            )
        };
        let (plain, opposed, generated) = (
            self.last(Variant::Plain, correct),
            self.last(Variant::Contrast, correct),
            self.last(Variant::ContrastGenerator, correct),
        );
        let best = |a: Option<OverSeeds>, b: Option<OverSeeds>| Some(a?.mean.max(b?.mean));
        let ahead = |opposed: Option<f64>, plain: Option<OverSeeds>| Some(opposed? > plain?.mean);
        let better = ahead(best(opposed, generated), plain);
        let truest = best(
            decided(Variant::Contrast),
            decided(Variant::ContrastGenerator),
        );
        let truer = ahead(truest, decided(Variant::Plain));
        Claim {
            claim: "6. SSO: opposed principles make truer pairs than judged samples, and a better policy",
            holds: better.zip(truer).map(|(better, truer)| better && truer),
            evidence: text(&[
                (
                    "chosen right and rejected wrong, of all judged pairs",
                    share(Variant::Plain),
                ),
                ("of the decidable", decided(Variant::Plain)),
                ("of all opposed pairs", share(Variant::Contrast)),
                ("of the decidable", decided(Variant::Contrast)),
                ("of a generator's", share(Variant::ContrastGenerator)),
                ("of the decidable", decided(Variant::ContrastGenerator)),
                ("accuracy after judged pairs", plain),
                ("after opposed pairs", opposed),
                ("after a generator's", generated),
            ]),
        }
    }

    /// For reading.
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

    /// `claims.json`, `claims.md` and the pictures.
    ///
    /// # Errors
    /// The file system's; the plotting library's.
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
mod tests {
    use super::*;

    #[test]
    fn three_seeds_have_students_interval() {
        let over = OverSeeds::new(&[10.0, 12.0, 14.0]).unwrap();
        assert!((over.mean - 12.0).abs() < 1e-12);
        // 4.303 * 2 / sqrt(3)
        assert!((over.half - 4.968).abs() < 0.01, "{}", over.half);
        assert_eq!(OverSeeds::new(&[3.0]).unwrap().half, 0.0);
        assert!(OverSeeds::new(&[]).is_none());
    }

    #[test]
    fn what_was_not_run_is_not_claimed() {
        let report = Report::new(Vec::new());
        assert_eq!(report.claims.len(), 6);
        assert!(report.claims.iter().all(|claim| claim.holds.is_none()));
        assert!(report.table().contains("not measured"));
    }
}
