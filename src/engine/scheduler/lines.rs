//! Requests in their order, all of them and each tenant's.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use crate::engine::request::{Class, RequestId};
use crate::engine::tenant::Tenant;

/// A request's place in line: the background stands behind everybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub class: Class,
    pub rank: i64,
    pub id: RequestId,
    /// Names the line; requests have different ids, so it has no part in the order.
    pub tenant: Tenant,
}

/// Places in order.
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

    /// Removes a place; whether it was there.
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

    /// The tenants that have anything of `class` here.
    pub fn tenants(&self, class: Class) -> impl Iterator<Item = Tenant> {
        let has = move |(&tenant, line): (&Tenant, &BTreeSet<Place>)| {
            let mut ends = line.first().into_iter().chain(line.last());
            ends.any(|place| place.class == class).then_some(tenant)
        };
        self.by_tenant.iter().filter_map(has)
    }

    /// A tenant's places of `class`, in order.
    pub fn of(&self, tenant: Tenant, class: Class) -> impl DoubleEndedIterator<Item = &Place> {
        let line = self.by_tenant.get(&tenant);
        let places = line.into_iter().flat_map(BTreeSet::iter);
        places.filter(move |place| place.class == class)
    }

    /// The next place of the same tenant and class.
    pub fn after(&self, place: &Place) -> Option<Place> {
        let behind = (Bound::Excluded(*place), Bound::Unbounded);
        let next = self.by_tenant.get(&place.tenant)?.range(behind).next();
        next.copied().filter(|next| next.class == place.class)
    }
}
