//! A step's work while it is chosen: what is left of its tokens, of all and of each tenant's.

use std::collections::HashMap;

use super::SchedulerOutput;
use crate::engine::tenant::Tenant;

/// A step in the making.
pub(super) struct Step {
    pub output: SchedulerOutput,
    pub budget: usize,
    /// Places that siblings get with it.
    pub forks: usize,
    /// What is left of each tenant's share of the budget, where it is shared.
    pub shares: Option<HashMap<Tenant, usize>>,
}

impl Step {
    /// The tokens that a tenant may still compute in it.
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

    /// Adds to what is left of a tenant's share.
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
