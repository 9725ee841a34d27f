//! The memory of calls: a budget of bytes for all of them and for each tenant.
//!
//! A limit on the number of calls does not bound their memory: a few hundred calls of `--max-body` each, or as many large answers that
//! their clients do not read, would fill any machine. A call is therefore charged for its body before the body is read, for the values
//! parsed from it, and for its answer until the answer is sent.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;

use super::error::ApiError;
use engine::{Tenant, TenantShare};
use telemetry::Pace;

/// Bytes of an answer that are not charged to the tenant; the number of concurrent calls bounds such answers.
const FREE_ANSWER: usize = 16 << 10;

/// Initial capacity of a buffer in bytes.
const LEAST_ROOM: usize = 8 << 10;

/// The byte budget of all calls. Clones share it.
#[derive(Debug, Clone)]
pub struct CallMemory(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    max: usize,
    /// Maximum bytes per tenant.
    share: usize,
    taken: Mutex<Taken>,
    pace: Pace,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<Tenant, usize>,
}

/// The bytes charged to one call, until the last clone is dropped. The default value has no budget and no limit.
#[derive(Debug, Clone, Default)]
pub struct Holding(Option<Arc<Held>>);

#[derive(Debug)]
struct Held {
    budget: Arc<Budget>,
    tenant: Tenant,
    bytes: Mutex<usize>,
}

impl CallMemory {
    /// Creates a budget; `pace` estimates how fast calls finish.
    pub fn new(max: usize, share: TenantShare, pace: Pace) -> Self {
        Self(Arc::new(Budget {
            max,
            share: share.of(max),
            taken: Mutex::default(),
            pace,
        }))
    }

    /// Creates a holding for a call, initially empty.
    pub fn open(&self, tenant: Tenant) -> Holding {
        Holding(Some(Arc::new(Held {
            budget: Arc::clone(&self.0),
            tenant,
            bytes: Mutex::default(),
        })))
    }
}

impl Budget {
    /// Locks the counts, which are consistent after every change.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, tenant: Tenant, held: usize, more: usize) -> Result<(), ApiError> {
        if held.saturating_add(more) > self.share {
            let message = format!(
                "the call needs more than the {} bytes of memory that one tenant may hold",
                self.share
            );
            return Err(ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "call_too_large",
                message,
            ));
        }
        let mut taken = self.taken();
        let own = taken.by_tenant.get(&tenant).copied().unwrap_or(0);
        let full = match () {
            () if taken.all.saturating_add(more) > self.max => {
                "the memory for bodies and answers of calls is exhausted"
            }
            () if own.saturating_add(more) > self.share => {
                "your share of the memory for bodies and answers of calls is exhausted"
            }
            () => {
                taken.all += more;
                *taken.by_tenant.entry(tenant).or_default() += more;
                return Ok(());
            }
        };
        drop(taken);
        Err(ApiError::overloaded(full, self.pace.retry_after()))
    }

    fn give_back(&self, tenant: Tenant, bytes: usize) {
        let mut taken = self.taken();
        taken.all -= bytes;
        if let Some(own) = taken.by_tenant.get_mut(&tenant) {
            *own -= bytes;
            if *own == 0 {
                taken.by_tenant.remove(&tenant);
            }
        }
    }
}

impl Holding {
    /// Charges `more` bytes.
    ///
    /// # Errors
    /// 429 `overloaded` if the tenant's share or the total has no room at present, and 413 `call_too_large` if the request exceeds the
    /// whole share.
    pub fn grow(&self, more: usize) -> Result<(), ApiError> {
        let Some(held) = self.0.as_deref().filter(|_| more > 0) else {
            return Ok(());
        };
        let mut bytes = held.bytes();
        held.budget.take(held.tenant, *bytes, more)?;
        *bytes += more;
        Ok(())
    }

    /// Releases `less` bytes, or all if fewer are held.
    pub fn shrink(&self, less: usize) {
        let Some(held) = self.0.as_deref() else {
            return;
        };
        let mut bytes = held.bytes();
        let less = less.min(*bytes);
        held.budget.give_back(held.tenant, less);
        *bytes -= less;
    }

    /// Sets the charge to that of a whole answer with this many bytes, and releases everything else.
    ///
    /// # Errors
    /// Errors as [`Self::grow`].
    pub fn only_answer(&self, answer: usize) -> Result<(), ApiError> {
        let answer = if answer <= FREE_ANSWER { 0 } else { answer };
        let held = self.bytes();
        match answer.checked_sub(held) {
            Some(more) => self.grow(more),
            None => {
                self.shrink(held - answer);
                Ok(())
            }
        }
    }

    /// Returns the number of bytes charged at present.
    pub fn bytes(&self) -> usize {
        self.0.as_deref().map_or(0, |held| *held.bytes())
    }
}

impl Held {
    fn bytes(&self) -> MutexGuard<'_, usize> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = *self.bytes();
        self.budget.give_back(self.tenant, bytes);
    }
}

/// A buffer whose growth is charged in advance.
#[derive(Debug, Default)]
pub struct Gathered {
    bytes: Vec<u8>,
    holding: Holding,
    refused: Option<ApiError>,
}

impl Gathered {
    /// Creates a buffer with room for `expected` bytes.
    ///
    /// # Errors
    /// Errors as [`Holding::grow`].
    pub fn begin(holding: Holding, expected: usize) -> Result<Self, ApiError> {
        holding.grow(expected)?;
        Ok(Self {
            bytes: Vec::with_capacity(expected),
            holding,
            refused: None,
        })
    }

    /// Appends a piece.
    ///
    /// # Errors
    /// Errors as [`Holding::grow`].
    pub fn push(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        let (length, capacity) = (self.bytes.len() + piece.len(), self.bytes.capacity());
        if length > capacity {
            // The capacity doubles, so that data are moved rarely; if the budget does not allow that, it grows only as needed.
            let doubled = length.max(2 * capacity).max(LEAST_ROOM);
            let wanted = match self.holding.grow(doubled - capacity) {
                Ok(()) => doubled,
                Err(_) => {
                    self.holding.grow(length - capacity)?;
                    length
                }
            };
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the gathered bytes, or the refusal that ended the gathering. The bytes stay charged.
    pub fn into_bytes(self) -> Result<Vec<u8>, ApiError> {
        match self.refused {
            None => Ok(self.bytes),
            Some(refused) => Err(refused),
        }
    }
}

/// Writes until the budget is exhausted; the refusal is kept for [`Gathered::into_bytes`].
impl io::Write for Gathered {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self.push(piece) {
            Ok(()) => Ok(piece.len()),
            Err(refused) => {
                self.refused = Some(refused);
                Err(io::ErrorKind::OutOfMemory.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axum::response::IntoResponse;

    use super::*;

    fn memory(max: usize) -> CallMemory {
        CallMemory::new(max, TenantShare::default(), Pace::default())
    }

    fn status(held: Result<(), ApiError>) -> u16 {
        match held {
            Ok(()) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[test]
    fn one_tenant_holds_its_share_and_all_hold_the_whole() {
        let memory = memory(1000);
        let [alice, bob, carol] = [1, 2, 3].map(|name| Tenant::of_key(&[name; 32]));
        let (first, second) = (memory.open(alice), memory.open(alice));
        assert_eq!(status(first.grow(400)), 200);
        assert_eq!(status(second.grow(100)), 200);
        // The share is full. A second call of 500 bytes alone would fit into it, one of 501 bytes would not.
        assert_eq!(status(second.grow(1)), 429);
        assert_eq!(status(second.grow(401)), 413);
        let bobs = memory.open(bob);
        assert_eq!(status(bobs.grow(499)), 200);
        let carols = memory.open(carol);
        assert_eq!(status(carols.grow(2)), 429, "all is taken");
        assert_eq!(status(carols.grow(1)), 200);
        first.shrink(300);
        assert_eq!(status(second.grow(300)), 200);
        assert_eq!((first.bytes(), second.bytes()), (100, 400));
        drop((first, second, bobs, carols));
        assert_eq!(memory.0.taken().all, 0);
        assert!(memory.0.taken().by_tenant.is_empty());
    }

    #[test]
    fn an_answer_takes_the_place_of_its_body() {
        let memory = memory(200_000);
        let tenant = Tenant::of_key(&[1; 32]);
        for (body, answer, then, expected) in [
            (50_000, 60_000, 60_000, 200),
            (50_000, 20_000, 20_000, 200),
            (50_000, FREE_ANSWER, 0, 200),
            (0, 100_000, 100_000, 200),
            (50_000, 100_001, 50_000, 413),
        ] {
            let holding = memory.open(tenant);
            holding.grow(body).unwrap();
            assert_eq!(
                status(holding.only_answer(answer)),
                expected,
                "{body} {answer}"
            );
            assert_eq!(holding.bytes(), then, "{body} {answer}");
        }
    }

    #[test]
    fn what_is_gathered_is_paid_for_as_it_grows() {
        let memory = memory(200_000);
        let holding = memory.open(Tenant::of_key(&[1; 32]));
        let mut gathered = Gathered::begin(holding.clone(), 1000).unwrap();
        assert_eq!(holding.bytes(), 1000);
        for _ in 0..100 {
            gathered.write_all(&[7; 1000]).unwrap();
            assert_eq!(holding.bytes(), gathered.bytes.capacity());
        }
        assert!(gathered.write_all(&[7]).is_err());
        assert!(gathered.into_bytes().is_err());
        let mut free = Gathered::default();
        free.write_all(&[7; 300_000]).unwrap();
        assert_eq!(free.into_bytes().unwrap().len(), 300_000);
    }
}
