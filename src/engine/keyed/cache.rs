//! Sizes that were counted, for as long as the trees are as they were: who asks for all containers again and again (`docker
//! ps -s`, `system df`, a kubelet) is told at once of those that nobody has touched.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::backend::TreeState;

/// By the tree: its state, and what it has beyond what it is compared with.
#[derive(Debug)]
pub(in crate::engine) struct Counted<T>(Mutex<HashMap<Uuid, (TreeState, T)>>);

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Copy> Counted<T> {
    pub(in crate::engine) fn get(&self, tree: Uuid, state: TreeState) -> Option<T> {
        let sizes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.get(&tree).filter(|(then, _)| *then == state).map(|(_, size)| *size)
    }

    pub(in crate::engine) fn put(&self, tree: Uuid, state: TreeState, size: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(tree, (state, size));
    }

    pub(in crate::engine) fn forget(&self, tree: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&tree);
    }
}
