//! What a thread is to a team.

use std::cell::Cell;

use super::Team;

#[derive(Clone, Copy)]
pub enum Role {
    /// Computes loops in rayon's pool.
    Free,
    /// Computes loops with this team.
    Leader(*const Team),
    /// Runs inside a task: a nested loop is computed on this thread.
    Within,
}

#[cfg(not(all(test, loom)))]
thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Free) };
}

#[cfg(all(test, loom))]
loom::thread_local! {
    static ROLE: Cell<Role> = Cell::new(Role::Free);
}

impl Role {
    /// Returns the role of this thread.
    pub fn current() -> Self {
        ROLE.with(Cell::get)
    }

    /// Sets the role of this thread, and restores the previous one when the guard is dropped.
    pub fn begin(self) -> RoleGuard {
        RoleGuard(ROLE.with(|role| role.replace(self)))
    }
}

/// Restores the thread's previous role.
pub struct RoleGuard(Role);

impl Drop for RoleGuard {
    fn drop(&mut self) {
        ROLE.with(|role| role.set(self.0));
    }
}
