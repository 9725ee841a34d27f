//! Fair division of a step's tokens between tenants.

use std::collections::HashMap;
use std::time::Duration;

use super::step_cost::{StepCost, Work};
use crate::tenant::Tenant;

/// The engine time for which a tenant without work still counts as likely to return.
const MEMORY: Duration = Duration::from_secs(1);

/// The maximum duration of a step, in steps of one token, while another tenant may arrive and would have to wait for its end.
const LONGEST_WAIT: f64 = 8.0;

/// The number of tenants above which those that have not been seen recently are removed.
const REMEMBERED: usize = 1024;

/// The measurements from which steps are divided.
#[derive(Debug, Default)]
pub struct FairShare {
    cost: StepCost,
    /// Time spent in steps so far.
    spent: Duration,
    /// The time at which each tenant last had work, on the clock of `spent`.
    seen: HashMap<Tenant, Duration>,
}

impl FairShare {
    /// Records the duration of a step.
    pub fn observe(&mut self, work: Work, took: Duration) {
        self.cost.observe(work, took);
        self.spent += took;
    }

    /// Returns the costs of steps, once a step has been measured.
    pub fn measured(&self) -> Option<&StepCost> {
        Some(&self.cost).filter(|cost| cost.is_measured())
    }

    /// Returns the tokens that each tenant gets in a step of at most `budget`, or `None` where all get their full demand.
    /// `demands` are the work that each could compute now, at least one token.
    ///
    /// With k tenants, the step is at most (k + 1) / 2 times as long as one with only the work of the tenant with the smallest demand, or
    /// has k times its tokens, whichever is more. The duration of a step depends on the contexts of its tokens too. So that tenant keeps a
    /// k-th of the pace that it has without the others, and more where tokens together cost less than each alone.
    /// Tokens are divided evenly; those that one tenant does not need go to the tenants with larger demands.
    pub fn shares(
        &mut self,
        demands: &[(Tenant, Work)],
        budget: usize,
    ) -> Option<HashMap<Tenant, usize>> {
        for &(tenant, _) in demands {
            self.seen.insert(tenant, self.spent);
        }
        let asking = demands.len();
        let total = match demands {
            [] => return None,
            [(only, own)] => match self.others_may_come(*only) {
                false => return None,
                true => {
                    let one = own.part(1);
                    self.cost.tokens_within(LONGEST_WAIT, one, *own, budget)
                }
            },
            // More tenants than tokens: tenants take turns, see the scheduler.
            _ if asking > budget => return None,
            _ => {
                let (at, &(_, least)) = (0..)
                    .zip(demands)
                    .min_by_key(|(_, (_, work))| work.tokens)?;
                let others = (0..).zip(demands).filter(|&(other, _)| other != at);
                let others = others.fold(Work::default(), |sum, (_, &(_, work))| sum + work);
                let times = (asking + 1) as f64 / 2.0;
                let within = self.cost.tokens_within(times, least, others, budget);
                within.max((asking * least.tokens).min(budget))
            }
        };
        let tokens = demands.iter().map(|&(tenant, work)| (tenant, work.tokens));
        let wanted: usize = tokens.clone().map(|(_, tokens)| tokens).sum();
        (wanted > total).then(|| max_min(tokens.collect(), total))
    }

    /// Returns whether a tenant other than this one had work recently.
    fn others_may_come(&mut self, tenant: Tenant) -> bool {
        let spent = self.spent;
        let lately = |seen: &Duration| spent.saturating_sub(*seen) < MEMORY;
        if self.seen.len() > REMEMBERED {
            self.seen.retain(|_, seen| lately(seen));
        }
        let mut seen = self.seen.iter();
        seen.any(|(&other, seen)| other != tenant && lately(seen))
    }
}

/// Divides `total` between demands so that the smallest are met first and no tenant gets more than another with an unmet demand (max-min).
fn max_min(mut demands: Vec<(Tenant, usize)>, total: usize) -> HashMap<Tenant, usize> {
    demands.sort_unstable_by_key(|&(tenant, tokens)| (tokens, tenant));
    let (mut left, mut asking) = (total, demands.len());
    let shares = demands.into_iter().map(|(tenant, tokens)| {
        let share = tokens.min(left / asking);
        left -= share;
        asking -= 1;
        (tenant, share)
    });
    shares.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: u8) -> Tenant {
        Tenant::of_key(&[name; 32])
    }

    /// Returns the work of tokens without contexts.
    fn bare(tokens: usize) -> Work {
        Work {
            tokens,
            positions: 0,
        }
    }

    /// Costs as measured on a CPU: a fixed part, and the same again for every three tokens.
    fn on_a_cpu() -> FairShare {
        let mut fair = FairShare::default();
        for _ in 0..10 {
            for tokens in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] {
                fair.observe(
                    bare(tokens),
                    Duration::from_micros(310 + 100 * tokens as u64),
                );
            }
        }
        fair
    }

    #[test]
    fn shares_are_even_and_what_is_not_needed_goes_to_others() {
        let shares = |demands: &[usize], total| {
            let demands: Vec<(Tenant, usize)> =
                (0..).map(tenant).zip(demands.iter().copied()).collect();
            let shares = max_min(demands.clone(), total);
            demands.iter().map(|(t, _)| shares[t]).collect::<Vec<_>>()
        };
        assert_eq!(shares(&[100, 100], 64), [32, 32]);
        assert_eq!(shares(&[100, 1], 64), [63, 1]);
        assert_eq!(shares(&[3, 100, 20], 30), [3, 14, 13]);
        assert_eq!(shares(&[5, 5, 5], 3), [1, 1, 1]);
        assert_eq!(shares(&[0, 9], 4), [0, 4]);
    }

    #[test]
    fn the_one_that_asks_least_keeps_its_part_of_the_pace() {
        let mut fair = on_a_cpu();
        let (alice, bob) = (tenant(1), tenant(2));
        let shares = fair
            .shares(&[(alice, bare(128)), (bob, bare(1))], 512)
            .unwrap();
        assert_eq!((shares[&bob], shares[&alice]), (1, 2));
        // Both have large demands: each gets as much as the other.
        let shares = fair
            .shares(&[(alice, bare(400)), (bob, bare(400))], 512)
            .unwrap();
        assert_eq!((shares[&bob], shares[&alice]), (256, 256));
        assert_eq!(fair.shares(&[(alice, bare(1)), (bob, bare(1))], 512), None);
        assert_eq!(fair.shares(&[(alice, bare(1)), (bob, bare(1))], 1), None);
    }

    #[test]
    fn a_lone_tenant_gets_everything_once_the_others_have_gone() {
        let mut fair = on_a_cpu();
        let (alice, bob) = (tenant(1), tenant(2));
        assert_eq!(fair.shares(&[(alice, bare(400))], 512), None);
        assert_eq!(fair.shares(&[(bob, bare(1))], 512), None);
        let beside = fair.shares(&[(alice, bare(400))], 512).unwrap()[&alice];
        assert!((16..64).contains(&beside), "{beside}");
        fair.observe(bare(1), MEMORY);
        assert_eq!(fair.shares(&[(alice, bare(400))], 512), None);
    }
}
