//! The columns of tables: conversion of values to what a column stores, and back.

use sql::Row;

use super::{LogError, RecordId, Result};

/// Returns ids as a list for a statement.
pub(super) fn id_list(ids: &[RecordId]) -> Vec<String> {
    ids.iter().map(|id| id.as_str().to_owned()).collect()
}

/// Converts a count or an index to the type of integer columns.
pub(super) fn integer(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn sample_index(row: &Row, column: &str) -> Result<usize> {
    let place: i64 = row.get(column)?;
    usize::try_from(place).map_err(|_| LogError::Corrupt(format!("{column} is {place}")))
}

pub(super) fn probability(row: &Row, column: &str) -> Result<f32> {
    Ok(row.get::<f64>(column)? as f32)
}

pub(super) fn boolean(row: &Row, column: &str) -> Result<bool> {
    Ok(row.get::<i64>(column)? != 0)
}

pub(super) fn stored_id(id: String) -> Result<RecordId> {
    RecordId::try_from(id).map_err(LogError::Corrupt)
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| LogError::Invalid(error.to_string()))
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| LogError::Corrupt(error.to_string()))
}

/// Converts token ids to bytes: little-endian, four bytes each.
pub(super) fn bytes_of_ids(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

pub(super) fn ids_of_bytes(bytes: &[u8]) -> Result<Vec<u32>> {
    Ok(words(bytes)?.into_iter().map(u32::from_le_bytes).collect())
}

/// Converts log-probabilities to bytes: little-endian, four bytes each, so that every bit is preserved.
pub(super) fn bytes_of_logprobs(logprobs: &[f32]) -> Vec<u8> {
    logprobs.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub(super) fn logprobs_of_bytes(bytes: &[u8]) -> Result<Vec<f32>> {
    Ok(words(bytes)?.into_iter().map(f32::from_le_bytes).collect())
}

fn words(bytes: &[u8]) -> Result<Vec<[u8; 4]>> {
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(LogError::Corrupt(format!(
            "{} bytes are not a whole number of words",
            bytes.len()
        )));
    }
    Ok(words.to_vec())
}
