//! The learning rate of each step: a pure function, so that a resumed run needs only the step.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::TrainError;

/// The shape of the schedule after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Constant,
    /// Linear decay to `min_lr_ratio`.
    Linear,
    /// Half a cosine down to `min_lr_ratio`.
    #[default]
    Cosine,
    /// Warm-up, stable, decay: constant, then linear decay to `min_lr_ratio` over the last `decay_ratio` of the steps.
    Wsd,
}

/// The settings of the learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The highest learning rate.
    pub learning_rate: f64,
    /// The shape after the warm-up: `constant`, `linear`, `cosine`, or `wsd` (constant, then a linear decay).
    pub lr_scheduler: ScheduleKind,
    /// Steps of linear warm-up; if absent, `warmup_ratio` of all steps, rounded up.
    pub warmup_steps: Option<u64>,
    /// The fraction of all steps over which the learning rate rises, unless `warmup_steps` is set.
    pub warmup_ratio: f64,
    /// The final learning rate as a fraction of the peak.
    pub min_lr_ratio: f64,
    /// The fraction of all steps over which `wsd` decays.
    pub decay_ratio: f64,
}

impl Default for ScheduleConfig {
    /// Returns the settings of SELF-JUDGE's JSFT: 2e-5, cosine, 3 % warm-up.
    fn default() -> Self {
        Self {
            learning_rate: 2e-5,
            lr_scheduler: ScheduleKind::Cosine,
            warmup_steps: None,
            warmup_ratio: 0.03,
            min_lr_ratio: 0.0,
            decay_ratio: 0.2,
        }
    }
}

/// The schedule of a run whose number of steps is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    kind: ScheduleKind,
    peak: f64,
    floor: f64,
    warmup: u64,
    total: u64,
    /// First step of `wsd`'s decay.
    decay_start: u64,
}

impl Schedule {
    /// Creates a schedule over `total_steps`.
    ///
    /// # Errors
    /// If a field is invalid; the message names the first.
    pub fn new(config: &ScheduleConfig, total_steps: u64) -> Result<Self, TrainError> {
        let bad = |name: &str, v: f64| Err(TrainError::Config(format!("`{name}` cannot be {v}")));
        if !(config.learning_rate.is_finite() && config.learning_rate > 0.0) {
            return Err(TrainError::Config(format!(
                "`learning_rate` must be positive, not {}",
                config.learning_rate
            )));
        }
        for (name, v) in [
            ("warmup_ratio", config.warmup_ratio),
            ("min_lr_ratio", config.min_lr_ratio),
            ("decay_ratio", config.decay_ratio),
        ] {
            if !(0.0..=1.0).contains(&v) {
                return bad(name, v);
            }
        }
        let share = |ratio: f64| (ratio * total_steps as f64).ceil() as u64;
        let warmup = config
            .warmup_steps
            .unwrap_or_else(|| share(config.warmup_ratio))
            .min(total_steps);
        Ok(Self {
            kind: config.lr_scheduler,
            peak: config.learning_rate,
            floor: config.learning_rate * config.min_lr_ratio,
            warmup,
            total: total_steps,
            decay_start: total_steps
                .saturating_sub(share(config.decay_ratio))
                .max(warmup),
        })
    }

    /// Returns the learning rate of step `step`, counted from 0: a run of `total` steps takes `0..total`.
    ///
    /// As in `transformers`: step 0 of a warm-up has rate 0, step `warmup` is the first at the peak, and the floor is the rate of step
    /// `total`. It stays at the floor beyond the end.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let kept = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => 1.0 - self.progress(step, self.warmup),
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * self.progress(step, self.warmup)).cos()),
            ScheduleKind::Wsd if step < self.decay_start => 1.0,
            ScheduleKind::Wsd => 1.0 - self.progress(step, self.decay_start),
        };
        self.floor + (self.peak - self.floor) * kept
    }

    /// Returns the fraction of the way from `start` to the end that is done at `step`.
    fn progress(&self, step: u64, start: u64) -> f64 {
        let (done, all) = (step - start, self.total.saturating_sub(start));
        if done >= all {
            1.0
        } else {
            done as f64 / all as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup: Option<u64>, floor: f64, total: u64) -> Schedule {
        let config = ScheduleConfig {
            learning_rate: 0.5,
            lr_scheduler: kind,
            warmup_steps: warmup,
            warmup_ratio: 0.03,
            min_lr_ratio: floor,
            decay_ratio: 0.2,
        };
        Schedule::new(&config, total).unwrap()
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} != {b}");
    }

    #[test]
    fn warms_up_linearly_from_zero_to_the_peak() {
        for kind in [
            ScheduleKind::Constant,
            ScheduleKind::Linear,
            ScheduleKind::Cosine,
            ScheduleKind::Wsd,
        ] {
            let s = schedule(kind, Some(4), 0.1, 20);
            for (step, expected) in [(0, 0.0), (1, 0.125), (2, 0.25), (3, 0.375), (4, 0.5)] {
                close(s.learning_rate(step), expected);
            }
        }
    }

    #[test]
    fn each_kind_follows_its_course() {
        let constant = schedule(ScheduleKind::Constant, Some(0), 0.1, 10);
        close(constant.learning_rate(0), 0.5);
        close(constant.learning_rate(9), 0.5);

        let linear = schedule(ScheduleKind::Linear, Some(0), 0.1, 10);
        close(linear.learning_rate(5), 0.05 + 0.45 * 0.5);
        close(linear.learning_rate(10), 0.05);
        close(linear.learning_rate(99), 0.05);

        let cosine = schedule(ScheduleKind::Cosine, Some(2), 0.1, 10);
        close(cosine.learning_rate(2), 0.5);
        close(cosine.learning_rate(6), 0.05 + 0.45 * 0.5);
        close(
            cosine.learning_rate(4),
            0.05 + 0.45 * 0.5 * (1.0 + 0.5f64.sqrt()),
        );
        close(cosine.learning_rate(10), 0.05);

        let wsd = schedule(ScheduleKind::Wsd, Some(2), 0.0, 20);
        close(wsd.learning_rate(16), 0.5);
        close(wsd.learning_rate(17), 0.375);
        close(wsd.learning_rate(19), 0.125);
        close(wsd.learning_rate(20), 0.0);
    }

    #[test]
    fn the_ratio_rounds_up_and_short_runs_stay_finite() {
        // 3 % of 100 steps are 3; of 10 steps, one.
        close(
            schedule(ScheduleKind::Linear, None, 0.0, 100).learning_rate(3),
            0.5,
        );
        close(
            schedule(ScheduleKind::Linear, None, 0.0, 10).learning_rate(1),
            0.5,
        );
        for total in 0..4 {
            for kind in [
                ScheduleKind::Linear,
                ScheduleKind::Cosine,
                ScheduleKind::Wsd,
            ] {
                for step in 0..6 {
                    let lr = schedule(kind, Some(9), 0.2, total).learning_rate(step);
                    assert!((0.0..=0.5).contains(&lr));
                }
            }
        }
    }

    #[test]
    fn refuses_nonsense() {
        for config in [
            ScheduleConfig {
                learning_rate: f64::NAN,
                ..ScheduleConfig::default()
            },
            ScheduleConfig {
                min_lr_ratio: 1.5,
                ..ScheduleConfig::default()
            },
        ] {
            assert!(Schedule::new(&config, 10).is_err());
        }
    }
}
