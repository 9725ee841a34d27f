//! Reading of little-endian numbers and strings from a file's bytes, each checked against their end before it is used.

use std::ops::Range;

/// A position in the bytes of a file.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, at: 0 }
    }

    /// Returns the position, in bytes from the start of the file.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Returns the range of the next `count` bytes, and moves behind it.
    ///
    /// # Errors
    /// Errors if the file ends before; the message names `what`.
    pub(super) fn skip(&mut self, count: u64, what: &str) -> Result<Range<usize>, String> {
        let left = self.file.len() - self.at;
        let count = usize::try_from(count)
            .ok()
            .filter(|&count| count <= left)
            .ok_or_else(|| {
                format!("truncated: {what} takes {count} bytes, and {left} bytes are left")
            })?;
        let start = self.at;
        self.at += count;
        Ok(start..self.at)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let range = self.skip(N as u64, what)?;
        let (bytes, _) = self.file[range]
            .split_first_chunk::<N>()
            .expect("the range has N bytes; this is a bug");
        Ok(*bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Returns the range of a string: a length of 8 bytes, then that many bytes.
    ///
    /// # Errors
    /// Errors if it is longer than `most` bytes or than the rest of the file.
    pub(super) fn string(&mut self, most: u64, what: &str) -> Result<Range<usize>, String> {
        let length = self.u64(what)?;
        if length > most {
            return Err(format!(
                "{what} has {length} bytes; the limit is {most} bytes"
            ));
        }
        self.skip(length, what)
    }

    /// Returns a string that must be UTF-8; otherwise as [`Self::string`].
    pub(super) fn text(&mut self, most: u64, what: &str) -> Result<&'a str, String> {
        let range = self.string(most, what)?;
        std::str::from_utf8(&self.file[range]).map_err(|_| format!("{what} is not UTF-8"))
    }
}
