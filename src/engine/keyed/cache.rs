//! Sizes that were counted, for as long as the trees are as they were: who asks for all containers again and again (`docker
//! ps -s`, `system df`) is told at once of those that nobody has touched.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::backend::TreeState;

/// By the tree: its state, and what it has beyond its init layer or parent.
#[derive(Debug, Default)]
pub(in crate::engine) struct DiffSizes(Mutex<HashMap<Uuid, (TreeState, u64)>>);

impl DiffSizes {
    pub(super) fn get(&self, tree: Uuid, state: TreeState) -> Option<u64> {
        let sizes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.get(&tree).filter(|(then, _)| *then == state).map(|(_, size)| *size)
    }

    pub(super) fn put(&self, tree: Uuid, state: TreeState, size: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(tree, (state, size));
    }

    pub(in crate::engine) fn forget(&self, tree: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&tree);
    }
}
