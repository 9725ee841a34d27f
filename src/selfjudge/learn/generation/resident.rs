//! The adapters of the last generations, in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use train::base::Adapter;

/// The adapters of a generation, which differ with ExPO only. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Adapters {
    pub served: Adapter,
    pub trained: Adapter,
}

/// A bounded number of generations' adapters. A generation is immutable, so an entry never becomes outdated.
#[derive(Debug, Clone, Default)]
pub(super) struct Resident {
    most: usize,
    /// The one that was used last comes last.
    adapters: Arc<Mutex<VecDeque<(String, Adapters)>>>,
}

impl Resident {
    pub fn of(most: usize) -> Self {
        Self {
            most,
            ..Self::default()
        }
    }

    pub fn get(&self, id: &str) -> Option<Adapters> {
        let mut all = self.lock();
        let at = all.iter().position(|(known, _)| known == id)?;
        let used = all.remove(at)?;
        let adapters = used.1.clone();
        all.push_back(used);
        Some(adapters)
    }

    /// Adds a generation, and drops the one that was not used for the longest time if there are too many.
    pub fn insert(&self, id: &str, adapters: Adapters) {
        let mut all = self.lock();
        all.retain(|(known, _)| known != id);
        all.push_back((id.to_owned(), adapters));
        let surplus = all.len().saturating_sub(self.most);
        all.drain(..surplus);
    }

    pub fn remove(&self, id: &str) {
        self.lock().retain(|(known, _)| known != id);
    }

    /// Locks the entries, which are whole after every change, so a panic elsewhere leaves them usable.
    fn lock(&self) -> MutexGuard<'_, VecDeque<(String, Adapters)>> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
