//! The set of tokens that end a request.

use std::collections::HashSet;
use std::sync::Arc;

/// Tokens that end a request. A lookup takes constant time; clones share the set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopIds(Arc<HashSet<u32>>);

impl StopIds {
    pub fn contains(&self, id: u32) -> bool {
        self.0.contains(&id)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the ids, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// Returns the ids in ascending order.
    pub fn sorted(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.iter().collect();
        ids.sort_unstable();
        ids
    }
}

impl FromIterator<u32> for StopIds {
    fn from_iter<T: IntoIterator<Item = u32>>(ids: T) -> Self {
        Self(Arc::new(ids.into_iter().collect()))
    }
}

impl From<Vec<u32>> for StopIds {
    fn from(ids: Vec<u32>) -> Self {
        ids.into_iter().collect()
    }
}

impl From<&[u32]> for StopIds {
    fn from(ids: &[u32]) -> Self {
        ids.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_given_often_is_kept_once() {
        let ids = StopIds::from(vec![7, 3, 7, 7, 5]);
        assert_eq!(ids.sorted(), [3, 5, 7]);
        assert!(ids.contains(5) && !ids.contains(4));
        assert!(StopIds::default().is_empty());
    }

    #[test]
    fn clones_share_the_set() {
        let ids: StopIds = (0..1000).collect();
        assert!(Arc::ptr_eq(&ids.0, &ids.clone().0));
    }
}
