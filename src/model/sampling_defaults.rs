//! The sampling parameters that a checkpoint recommends.

use super::ModelError;
use super::config::Fields;

/// The sampling parameters of `generation_config.json`, which apply where a call sets none. vLLM reads the same ones; like it, this
/// program does not read `do_sample`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SamplingDefaults {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// Reads the parameters of `generation_config.json`.
    ///
    /// # Errors
    /// Errors with the field's name for a wrong type or a value out of range.
    pub(super) fn from_fields(fields: &Fields) -> Result<Self, ModelError> {
        let number = |name: &str, fits: fn(f64) -> bool, range: &str| match fields.number(name)? {
            Some(value) if !fits(value) => {
                Err(fields.error(format!("{name} is {value}, but must be {range}")))
            }
            value => Ok(value.map(|value| value as f32)),
        };
        Ok(Self {
            temperature: number(
                "temperature",
                |t| (0.0..=100.0).contains(&t),
                "from 0 to 100",
            )?,
            top_k: fields.optional_count("top_k", u32::MAX as usize)?,
            top_p: number("top_p", |p| p > 0.0 && p <= 1.0, "above 0 and at most 1")?,
            min_p: number("min_p", |p| (0.0..=1.0).contains(&p), "from 0 to 1")?,
            repetition_penalty: number("repetition_penalty", |p| p > 0.0, "above 0")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str) -> Result<SamplingDefaults, ModelError> {
        let path = Path::new("generation_config.json");
        SamplingDefaults::from_fields(&Fields::parse(path, text)?)
    }

    #[test]
    fn the_recommended_parameters_are_read() {
        let qwen = r#"{"do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "eos_token_id": 1}"#;
        let defaults = read(qwen).unwrap();
        assert_eq!(
            defaults,
            SamplingDefaults {
                temperature: Some(0.7),
                top_k: Some(20),
                top_p: Some(0.8),
                min_p: None,
                repetition_penalty: Some(1.05),
            }
        );
        let nothing = read(r#"{"temperature": null, "max_new_tokens": 64}"#).unwrap();
        assert_eq!(nothing, SamplingDefaults::default());
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_name() {
        for (text, named) in [
            (r#"{"temperature": -1}"#, "temperature"),
            (r#"{"temperature": "hot"}"#, "temperature"),
            (r#"{"top_k": -3}"#, "top_k"),
            (r#"{"top_p": 0}"#, "top_p"),
            (r#"{"min_p": 1.5}"#, "min_p"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(
                error.contains(named) && error.contains("generation_config.json"),
                "{error}"
            );
        }
    }
}
