//! Ordered queues of requests: one of all requests, and one per tenant.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use crate::request::{Class, RequestId};
use crate::tenant::Tenant;

/// A request's position in a queue: the background is behind all foreground requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub class: Class,
    pub rank: i64,
    pub id: RequestId,
    /// The tenant's queue. Requests have different ids, so it does not affect the order.
    pub tenant: Tenant,
}

/// Ordered queues of positions.
#[derive(Debug, Default)]
pub struct Lines {
    all: BTreeSet<Place>,
    by_tenant: HashMap<Tenant, BTreeSet<Place>>,
}

impl Lines {
    pub fn insert(&mut self, place: Place) {
        self.all.insert(place);
        self.by_tenant
            .entry(place.tenant)
            .or_default()
            .insert(place);
    }

    /// Removes a position and returns whether it was there.
    pub fn remove(&mut self, place: &Place) -> bool {
        let there = self.all.remove(place);
        if there && let Some(line) = self.by_tenant.get_mut(&place.tenant) {
            line.remove(place);
            if line.is_empty() {
                self.by_tenant.remove(&place.tenant);
            }
        }
        there
    }

    pub fn contains(&self, place: &Place) -> bool {
        self.all.contains(place)
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Place> {
        self.all.iter()
    }

    pub fn first(&self) -> Option<&Place> {
        self.all.first()
    }

    pub fn last(&self) -> Option<&Place> {
        self.all.last()
    }

    /// Returns the tenants that have a request of `class` here.
    pub fn tenants(&self, class: Class) -> impl Iterator<Item = Tenant> {
        let has = move |(&tenant, line): (&Tenant, &BTreeSet<Place>)| {
            let mut ends = line.first().into_iter().chain(line.last());
            ends.any(|place| place.class == class).then_some(tenant)
        };
        self.by_tenant.iter().filter_map(has)
    }

    /// Returns a tenant's positions of `class`, in order.
    pub fn of(&self, tenant: Tenant, class: Class) -> impl DoubleEndedIterator<Item = &Place> {
        let line = self.by_tenant.get(&tenant);
        let places = line.into_iter().flat_map(BTreeSet::iter);
        places.filter(move |place| place.class == class)
    }

    /// Returns the next position of the same tenant and class.
    pub fn after(&self, place: &Place) -> Option<Place> {
        let behind = (Bound::Excluded(*place), Bound::Unbounded);
        let next = self.by_tenant.get(&place.tenant)?.range(behind).next();
        next.copied().filter(|next| next.class == place.class)
    }
}
