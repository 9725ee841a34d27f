//! TensorBoard event files: protobuf `Event` messages in TFRecord frames, scalars only.
//!
//! A frame is `length: u64 | masked crc32c of length | data | masked crc32c of data`, little-endian. The few fields
//! used of `tensorflow.Event`: `wall_time = 1` (double), `step = 2` (int64), `file_version = 3`, `summary = 5` (whose
//! `value = 1` has `tag = 1`, `simple_value = 2` (float)), `session_log = 7` (whose `status = 1` is START).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::TrainError;

/// A writer that appends to one event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Creates a new event file in `dir`. After a resume it makes TensorBoard discard the steps beyond `resumed_step` that an earlier
    /// file of the same directory may hold.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(dir: &Path, resumed_step: u64) -> Result<Self, TrainError> {
        let now = wall_time();
        // TensorBoard reads a directory's files in the order of their names.
        let (path, file) = (0..)
            .find_map(|n| {
                let name = format!("events.out.tfevents.{:010}.selfjudge.{n}", now as u64);
                let path = dir.join(name);
                match File::create_new(&path) {
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => None,
                    file => Some((path, file)),
                }
            })
            .expect("an unbounded count has a free number; this is a bug");
        let file = file.map_err(TrainError::io("cannot create", &path))?;
        let mut writer = Self { file, path };
        writer.event(0, |event| bytes_field(event, 3, b"brain.Event:2"))?;
        if resumed_step > 0 {
            writer.event(resumed_step + 1, |event| {
                let mut session = Vec::new();
                varint_field(&mut session, 1, 1);
                bytes_field(event, 7, &session);
            })?;
        }
        Ok(writer)
    }

    /// Appends one event with all `values` of a step.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), TrainError> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            bytes_field(&mut entry, 1, tag.as_bytes());
            key(&mut entry, 2, 5);
            entry.extend((*value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &entry);
        }
        self.event(step, |event| bytes_field(event, 5, &summary))
    }

    fn event(&mut self, step: u64, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), TrainError> {
        let mut event = Vec::new();
        key(&mut event, 1, 1);
        event.extend(wall_time().to_le_bytes());
        varint_field(&mut event, 2, step);
        fill(&mut event);
        self.file
            .write_all(&frame(&event))
            .map_err(TrainError::io("cannot write", &self.path))
    }
}

/// Returns the seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(data.len() + 16);
    frame.extend(length);
    frame.extend(masked_crc(&length).to_le_bytes());
    frame.extend(data);
    frame.extend(masked_crc(data).to_le_bytes());
    frame
}

/// Returns TFRecord's masked checksum: rotated and offset, so that a checksum of data that contains checksums stays meaningful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a field's key. Wire types: 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes.
fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint_field(out: &mut Vec<u8>, field: u64, value: u64) {
    key(out, field, 0);
    varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Field<'a> {
        Varint(u64),
        Fixed(&'a [u8]),
        Bytes(&'a [u8]),
    }

    fn take_varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    fn take<'a>(data: &mut &'a [u8], n: usize) -> &'a [u8] {
        let (head, tail) = data.split_at(n);
        *data = tail;
        head
    }

    /// Parses a protobuf message into (field number, value), written from the format's specification and not from the writer.
    fn parse(mut data: &[u8]) -> Vec<(u64, Field<'_>)> {
        let mut fields = Vec::new();
        while !data.is_empty() {
            let key = take_varint(&mut data);
            let value = match key & 7 {
                0 => Field::Varint(take_varint(&mut data)),
                1 => Field::Fixed(take(&mut data, 8)),
                5 => Field::Fixed(take(&mut data, 4)),
                2 => {
                    let n = take_varint(&mut data) as usize;
                    Field::Bytes(take(&mut data, n))
                }
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, value));
        }
        fields
    }

    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let crc = |data: &[u8]| {
            let crc = crc32c::crc32c(data);
            crc.rotate_left(17).wrapping_add(0xa282_ead8)
        };
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        let mut records = Vec::new();
        while !file.is_empty() {
            let length = take(&mut file, 8);
            assert_eq!(word(take(&mut file, 4)), crc(length));
            let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let data = take(&mut file, n);
            assert_eq!(word(take(&mut file, 4)), crc(data));
            records.push(data.to_vec());
        }
        records
    }

    #[test]
    fn a_known_crc() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
    }

    #[test]
    fn events_parse_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), 0).unwrap();
        writer
            .scalars(300, &[("loss", 0.5), ("judge/accuracy", -1.25)])
            .unwrap();
        let records = records(&std::fs::read(&writer.path).unwrap());
        assert_eq!(records.len(), 2);
        let version = parse(&records[0]);
        assert_eq!(version[2], (3, Field::Bytes(b"brain.Event:2")));

        let event = parse(&records[1]);
        assert_eq!(event[1], (2, Field::Varint(300)));
        let (5, Field::Bytes(summary)) = event[2] else {
            panic!("no summary: {event:?}")
        };
        let values: Vec<_> = parse(summary)
            .into_iter()
            .map(|(field, value)| {
                assert_eq!(field, 1);
                let Field::Bytes(value) = value else {
                    panic!("{value:?}")
                };
                let fields = parse(value);
                let (Field::Bytes(tag), Field::Fixed(v)) = (&fields[0].1, &fields[1].1) else {
                    panic!("{fields:?}")
                };
                let tag = String::from_utf8(tag.to_vec()).unwrap();
                (tag, f32::from_le_bytes((*v).try_into().unwrap()))
            })
            .collect();
        assert_eq!(
            values,
            [
                ("loss".to_owned(), 0.5),
                ("judge/accuracy".to_owned(), -1.25)
            ]
        );
    }

    #[test]
    fn a_resume_gets_its_own_file_and_purges_what_follows() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventWriter::create(dir.path(), 0).unwrap();
        let second = EventWriter::create(dir.path(), 7).unwrap();
        assert!(first.path < second.path);
        let records = records(&std::fs::read(&second.path).unwrap());
        let start = parse(&records[1]);
        assert_eq!(start[1], (2, Field::Varint(8)));
        assert_eq!(start[2], (7, Field::Bytes(&[0x08, 0x01])));
    }
}
