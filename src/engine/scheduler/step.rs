//! A step under construction: the remaining tokens of its budget and of each tenant's share.

use std::collections::HashMap;

use super::SchedulerOutput;
use crate::tenant::Tenant;

/// A step under construction.
pub(super) struct Step {
    pub output: SchedulerOutput,
    pub budget: usize,
    /// The number of places that siblings get with it.
    pub forks: usize,
    /// The remaining tokens of each tenant's share, where the budget is shared.
    pub shares: Option<HashMap<Tenant, usize>>,
}

impl Step {
    /// Returns the number of tokens that a tenant can still compute in this step.
    pub fn left(&self, tenant: Tenant) -> usize {
        let share = |shares: &HashMap<Tenant, usize>| shares.get(&tenant).copied().unwrap_or(0);
        self.budget
            .min(self.shares.as_ref().map_or(usize::MAX, share))
    }

    pub fn take(&mut self, tenant: Tenant, tokens: usize) {
        self.budget -= tokens;
        if let Some(left) = self
            .shares
            .as_mut()
            .and_then(|shares| shares.get_mut(&tenant))
        {
            *left -= tokens;
        }
    }

    /// Adds tokens to the remaining share of a tenant.
    pub fn give(&mut self, tenant: Tenant, tokens: usize) {
        if let Some(left) = self
            .shares
            .as_mut()
            .and_then(|shares| shares.get_mut(&tenant))
        {
            *left += tokens;
        }
    }
}
