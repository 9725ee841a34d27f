//! Computation outside the threads that serve connections: templates and tokenizers can be slow on long texts.
//!
//! A tenant may run as many pieces of work at once as there are cores; one more place is for other tenants, because a piece cannot be
//! interrupted and must not block all other tenants. Waiting pieces start in turn, one per tenant.

use std::sync::{Arc, LazyLock, Weak};
use std::time::Instant;

use super::{CallError, threads};
use engine::{Admission, QueueLimits, QueueLoad, RequestFailure, SubmitError, Tenant, TenantShare};

/// The maximum number of waiting pieces per tenant.
const MAX_WAITING: usize = 4096;

tokio::task_local! {
    static TENANT: Tenant;
}

/// Runs `work` so that its pieces wait in the queue of `tenant`. Pieces without a tenant count as the server's own.
pub async fn on_behalf_of<F: Future>(tenant: Tenant, work: F) -> F::Output {
    TENANT.scope(tenant, work).await
}

/// A handle by which work of many pieces checks whether its result is still wanted: a thread cannot be stopped from outside.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    deadline: Option<Instant>,
    /// Has a strong reference as long as the caller waits.
    caller: Weak<()>,
}

impl Watch {
    /// Returns an error if the work should stop.
    ///
    /// # Errors
    /// Errors with [`RequestFailure::DeadlineExceeded`] after the deadline, or once the caller is gone (which does not receive it).
    pub(crate) fn check(&self) -> Result<(), CallError> {
        let late = self
            .deadline
            .is_some_and(|deadline| deadline <= Instant::now());
        match late || self.caller.strong_count() == 0 {
            true => Err(RequestFailure::DeadlineExceeded.into()),
            false => Ok(()),
        }
    }
}

/// Runs `work` as one piece.
pub(crate) async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    spawn_blocking_until(None, |_| work()).await
}

/// Runs `work`, which must check its watch between pieces: it ends soon after `deadline`, or after this future is dropped.
pub(crate) async fn spawn_blocking_until<T: Send + 'static>(
    deadline: Option<Instant>,
    work: impl FnOnce(&Watch) -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    /// Hardly more than there are cores: the work is computation, and each further thread would hold memory of its own.
    static PLACES: LazyLock<Admission> = LazyLock::new(|| {
        let places = QueueLimits {
            max_requests: threads::count(),
            max_tokens: 1,
        };
        // All places but one.
        let share = 1.0 - 0.5 / threads::count() as f64;
        Admission::new(places, TenantShare::new(share).unwrap_or_default())
    });
    let tenant = TENANT
        .try_with(|tenant| *tenant)
        .unwrap_or(Tenant::server());
    if PLACES.num_waiting(tenant) >= MAX_WAITING {
        let load = QueueLoad {
            requests: MAX_WAITING,
            ..PLACES.load()
        };
        return Err(SubmitError::Overloaded(load).into());
    }
    let waiting = Arc::new(());
    let watch = Watch {
        deadline,
        caller: Arc::downgrade(&waiting),
    };
    let place = PLACES.enter(tenant, 0).await;
    let work = move || {
        let _place = place;
        work(&watch)
    };
    let done = threads::run(work).await;
    drop(waiting);
    done.unwrap_or_else(|| Err(RequestFailure::ShuttingDown.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Works until its watch returns an error, then reports its end.
    fn endless(
        begun: mpsc::Sender<()>,
        ended: mpsc::Sender<()>,
    ) -> impl FnOnce(&Watch) -> Result<(), CallError> + Send + 'static {
        move |watch| {
            begun.send(()).unwrap();
            loop {
                if let Err(error) = watch.check() {
                    ended.send(()).unwrap();
                    return Err(error);
                }
                std::thread::yield_now();
            }
        }
    }

    #[tokio::test]
    async fn work_ends_with_its_caller() {
        let (begun, has_begun) = mpsc::channel();
        let (ended, has_ended) = mpsc::channel();
        let caller = tokio::spawn(spawn_blocking_until(None, endless(begun, ended)));
        tokio::task::spawn_blocking(move || has_begun.recv().unwrap())
            .await
            .unwrap();
        caller.abort();
        tokio::task::spawn_blocking(move || has_ended.recv().unwrap())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn work_ends_at_its_deadline() {
        let (begun, _begun) = mpsc::channel();
        let (ended, _ended) = mpsc::channel();
        let error = spawn_blocking_until(Some(Instant::now()), endless(begun, ended)).await;
        assert!(matches!(
            error,
            Err(CallError::Failed(RequestFailure::DeadlineExceeded))
        ));
        let kept = spawn_blocking_until(None, |watch| watch.check()).await;
        assert!(kept.is_ok());
    }
}
