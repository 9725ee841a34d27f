//! The fuel of a rendering. minijinja charges for instructions and for the data made by its own operators and filters; this module
//! charges for data made by methods that minijinja does not have, before it is made.

use std::fmt::{self, Write};
use std::io;

use minijinja::{Error, ErrorKind, State, Value};

/// Bytes of data per unit of fuel: minijinja's rate.
const BYTES_OF_FUEL: u64 = 64;

/// Returns the fuel of a rendering: for instructions, for each message, and for 32 times the bytes of its input. Real templates take a
/// few thousand instructions and read each content a few times. Fuel bounds memory: 64 bytes per unit.
pub(super) fn of_rendering(messages: usize, content_bytes: usize) -> u64 {
    let (messages, bytes) = (messages as u64, content_bytes as u64);
    300_000 + 1000 * messages + bytes / 2
}

/// Charges fuel for `bytes` that are about to be made or read.
///
/// # Errors
/// If the fuel is not enough.
pub(super) fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / BYTES_OF_FUEL + 1)
}

/// Charges fuel for a value written as text, however deeply its lists are nested.
///
/// # Errors
/// If the fuel is not enough.
pub(super) fn charge_for_text(state: &State, value: &Value) -> Result<(), Error> {
    let mut meter = Meter::of(state);
    match write!(meter, "{value}") {
        Ok(()) => charge(state, meter.written),
        Err(_) => Err(Error::from(ErrorKind::OutOfFuel)),
    }
}

/// Charges fuel for a value written as JSON. Walking a value takes longer than copying bytes, so each byte costs as much as 16.
///
/// # Errors
/// If the fuel is not enough, or the value is not JSON.
pub(super) fn charge_for_json(state: &State, value: &Value) -> Result<(), Error> {
    let mut meter = Meter::of(state);
    match serde_json::to_writer(&mut meter, value) {
        Ok(()) => charge(state, meter.written.saturating_mul(16)),
        Err(error) if error.is_io() => Err(Error::from(ErrorKind::OutOfFuel)),
        Err(error) => Err(Error::new(ErrorKind::BadSerialization, error.to_string())),
    }
}

/// A writer that counts bytes and discards them; it fails where the fuel would run out.
struct Meter {
    written: usize,
    most: usize,
}

impl Meter {
    fn of(state: &State) -> Self {
        let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
        Self {
            written: 0,
            most: usize::try_from(left.saturating_mul(BYTES_OF_FUEL)).unwrap_or(usize::MAX),
        }
    }

    fn take(&mut self, bytes: usize) -> bool {
        self.written = self.written.saturating_add(bytes);
        self.written <= self.most
    }
}

impl fmt::Write for Meter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.take(text.len()) {
            true => Ok(()),
            false => Err(fmt::Error),
        }
    }
}

impl io::Write for Meter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.take(bytes.len()) {
            true => Ok(bytes.len()),
            false => Err(io::Error::from(io::ErrorKind::StorageFull)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
