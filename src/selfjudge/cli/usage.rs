//! Errors in arguments, with messages that suggest the right form.

use std::error::Error as _;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command, Parser};

use super::needs;

/// Flags of other servers, and the equivalent flags here.
const KNOWN_ELSEWHERE: [(&str, &str); 10] = [
    ("--port", "--listen"),
    ("--host", "--listen"),
    ("--bind", "--listen"),
    ("--address", "--listen"),
    ("--api-key", "--api-key-file"),
    ("--admin-key", "--admin-key-file"),
    ("--served-model-name", "--model-name"),
    ("--max-num-seqs", "--max-concurrent"),
    ("--max-num-batched-tokens", "--max-batch-tokens"),
    ("--lora-modules", "--adapter"),
];

/// The standard library's messages about texts that are not numbers, and clearer replacements.
const WORDS: [(&str, &str); 6] = [
    (
        "invalid digit found in string",
        "it is not a whole number of 0 or more",
    ),
    ("cannot parse integer from empty string", "it is empty"),
    (
        "number too large to fit in target type",
        "the number is too large",
    ),
    (
        "number would be zero for non-zero type",
        "it must be at least 1",
    ),
    ("invalid float literal", "it is not a number"),
    ("cannot parse float from empty string", "it is empty"),
];

/// Parses words as a command line.
///
/// # Errors
/// A mistake in them, in plain words.
pub fn parse_command_line<P, I, T>(words: I) -> Result<P, clap::Error>
where
    P: Parser,
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let mut command = taking_negative_numbers(P::command());
    command
        .try_get_matches_from_mut(words)
        .and_then(|matches| {
            needs::check(&command, &matches)?;
            P::from_arg_matches(&matches)
        })
        .map_err(|error| explained(error, &command))
}

/// Accepts values that begin with a minus; the flag's own parser decides whether they are valid.
fn taking_negative_numbers(command: Command) -> Command {
    let takes_a_value = |action: &ArgAction| matches!(action, ArgAction::Set | ArgAction::Append);
    command
        .mut_args(|arg| match takes_a_value(arg.get_action()) {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
        .mut_subcommands(taking_negative_numbers)
}

fn explained(mut error: clap::Error, command: &Command) -> clap::Error {
    let text = |error: &clap::Error, kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let said = text(&error, ContextKind::InvalidArg).unwrap_or_default();
            let known = KNOWN_ELSEWHERE.iter().find(|(theirs, _)| *theirs == said);
            if let Some((_, ours)) = known.filter(|(_, ours)| has(command, ours)) {
                let ours = ContextValue::String((*ours).to_owned());
                error.insert(ContextKind::SuggestedArg, ours);
            }
            error
        }
        ErrorKind::ValueValidation => {
            let why = error.source().map(ToString::to_string).unwrap_or_default();
            let Some((_, meant)) = WORDS.iter().find(|(said, _)| *said == why) else {
                return error;
            };
            let value = text(&error, ContextKind::InvalidValue).unwrap_or_default();
            let flag = text(&error, ContextKind::InvalidArg).unwrap_or_default();
            let message = format!("invalid value '{value}' for '{flag}': {meant}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        }
        _ => error,
    }
}

/// Returns whether any command has the flag.
fn has(command: &Command, flag: &str) -> bool {
    let own = command.get_arguments().any(|arg| {
        arg.get_long()
            .is_some_and(|long| flag == format!("--{long}"))
    });
    own || command.get_subcommands().any(|inner| has(inner, flag))
}

#[cfg(test)]
mod tests {
    use super::super::Cli;
    use super::*;

    fn refused(words: &[&str]) -> String {
        let words = [&["selfjudge"][..], words].concat();
        parse_command_line::<Cli, _, _>(words)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_value_that_cannot_be_is_refused_in_plain_words() {
        for (words, said) in [
            (
                &["serve", "--retention-days", "0.5"][..],
                "not a whole number",
            ),
            (&["serve", "--max-requests", "-1"], "not a whole number"),
            (&["serve", "--max-requests", "0"], "at least 1"),
            (&["serve", "--max-connections", "0"], "at least 1"),
            (&["serve", "--max-concurrent", "0"], "at least 1"),
            (&["serve", "--max-batch-tokens", "0"], "at least 1"),
            (&["serve", "--block-size", "0"], "at least 1"),
            (&["serve", "--max-queued-requests", "0"], "at least 1"),
            (&["serve", "--max-queued-tokens", "0"], "at least 1"),
            (&["serve", "--max-body", "0"], "at least 1"),
            (&["serve", "--max-record", "0"], "at least 1"),
            (&["serve", "--rate-limit", "0"], "at least 1"),
            (&["serve", "--max-call-tokens", "0"], "at least 1"),
            (&["serve", "--trainer-threads", "0"], "at least 1"),
            (&["serve", "--rate-limit", "99999999999"], "too large"),
            (&["serve", "--drain-timeout", ""], "is empty"),
            (
                &["serve", "--trusted-proxy", "10.0.0.0/8"],
                "range of addresses",
            ),
            (&["serve", "--canary-share", "2"], "from 0 to 1"),
            (&["serve", "--canary-share", "nan"], "from 0 to 1"),
            (&["serve", "--trainer-share", "-0.5"], "from 0 to 1"),
            (&["serve", "--model-name", ""], "at least one character"),
            (&["train", "dpo", "--learning-rate", "fast"], "not a number"),
            (&["train", "dpo", "--max-steps", "-1"], "not a whole number"),
            (&["train", "dpo", "--max-steps", "0"], "at least 1"),
            (&["train", "jsft", "--batch-size", "0"], "at least 1"),
            (
                &["train", "jsft", "--micro-batch-tokens", "0"],
                "at least 1",
            ),
            (&["train", "jsft", "--max-length", "0"], "at least 1"),
            (&["train", "jsft", "--lora-rank", "0"], "at least 1"),
            (&["train", "jsft", "--log-every", "0"], "at least 1"),
            (&["train", "jsft", "--stop-after", "0"], "at least 1"),
            (&["serve", "--retention-days", "0"], "at least 1"),
            (
                &[
                    "eval", "judge", "--model", "x", "--data", "x", "--limit", "0",
                ],
                "at least 1",
            ),
            (
                &[
                    "eval",
                    "judge",
                    "--model",
                    "x",
                    "--data",
                    "x",
                    "--tie-margin",
                    "2",
                ],
                "from 0 to 0.5",
            ),
        ] {
            let error = refused(words);
            assert!(error.contains(said), "{words:?}: {error}");
            let flag = words[words.len() - 2];
            assert!(error.contains(flag), "{words:?}: {error}");
            for rust in ["digit found", "non-zero type", "target type", "literal"] {
                assert!(!error.contains(rust), "{error}");
            }
        }
    }

    #[test]
    fn a_flag_of_another_server_is_answered_with_ours() {
        for (theirs, ours) in KNOWN_ELSEWHERE {
            let error = refused(&["serve", theirs, "1"]);
            assert!(error.contains(&format!("'{ours}'")), "{error}");
        }
        let error = refused(&["serve", "--listne", "1"]);
        assert!(error.contains("'--listen'"), "{error}");
    }

    #[test]
    fn a_negative_number_is_a_value() {
        let error = refused(&["serve", "--max-concurrent", "-1"]);
        assert!(error.contains("invalid value '-1'"), "{error}");
        let words = ["selfjudge", "train", "dpo", "--learning-rate", "-1"];
        parse_command_line::<Cli, _, _>(words).unwrap();
    }
}
