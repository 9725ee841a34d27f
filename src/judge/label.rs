//! The two label tokens, from whose probabilities a verdict is read.

use serde::{Deserialize, Serialize};

use super::{JudgeError, JudgeTemplate};
use text::{ChatTemplate, Message, Rendered, Role, Tokenizer};

/// The ids of the two labels, resolved at their position: right after the lead-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelTokens {
    /// The ids; the first label means "the candidate shown first".
    pub ids: [u32; 2],
}

impl LabelTokens {
    /// Resolves the labels of `template` for a tokenizer.
    ///
    /// # Errors
    /// If a label is not exactly one token after the lead-in, changes the tokens of the lead-in, or both labels are the
    /// same token.
    pub fn resolve(
        tokenizer: &Tokenizer,
        chat: &ChatTemplate,
        template: &JudgeTemplate,
    ) -> Result<Self, JudgeError> {
        let question = [Message::new(Role::User, "?")];
        let prompt = template.render(chat, &question, "1", "2", &[])?.rendered;
        let before = tokenizer.encode_rendered(&prompt)?.ids;
        let resolve = |label: &str| {
            let mut with: Rendered = prompt.clone();
            with.push_trusted(label);
            let ids = tokenizer.encode_rendered(&with)?.ids;
            match ids.strip_prefix(before.as_slice()) {
                Some([id]) => Ok(*id),
                rest => {
                    // The tokens of the label: everything that differs from the prompt alone.
                    let shared = ids.iter().zip(&before).take_while(|(a, b)| a == b).count();
                    let names = ids[shared..].iter().map(|id| {
                        let name = tokenizer.id_to_token(*id).unwrap_or_default();
                        format!("{name:?} ({id})")
                    });
                    Err(JudgeError::LabelNotOneToken {
                        label: label.to_owned(),
                        lead_in: template.lead_in().to_owned(),
                        tokens: names.collect::<Vec<_>>().join(", "),
                        seam: rest.is_none(),
                    })
                }
            }
        };
        let ids = [
            resolve(&template.labels()[0])?,
            resolve(&template.labels()[1])?,
        ];
        if ids[0] == ids[1] {
            return Err(JudgeError::LabelsEqual {
                labels: template.labels().clone(),
                id: ids[0],
            });
        }
        Ok(Self { ids })
    }

    /// Resolves the labels as [`Self::resolve`]; if that fails, tries the template with bare labels after a parenthesis (` A` after
    /// `Assistant` becomes `A` after `Assistant (`, SALMON's form), which small vocabularies need. Returns the template that resolved:
    /// train with it and store it beside the weights.
    ///
    /// # Errors
    /// The first error, if both attempts fail.
    pub fn resolve_or_bare(
        tokenizer: &Tokenizer,
        chat: &ChatTemplate,
        template: JudgeTemplate,
    ) -> Result<(Self, JudgeTemplate), JudgeError> {
        let refused = match Self::resolve(tokenizer, chat, &template) {
            Ok(labels) => return Ok((labels, template)),
            Err(error) => error,
        };
        let Some(bare) = template.with_bare_labels() else {
            return Err(refused);
        };
        match Self::resolve(tokenizer, chat, &bare) {
            Ok(labels) => Ok((labels, bare)),
            Err(_) => Err(refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use std::path::Path;
    use test_support::{data, shared_data};
    use text::SpecialTokens;

    fn resolve(labels: &str) -> Result<LabelTokens, JudgeError> {
        let toml = fixtures::TEMPLATE.replace("[\" A\", \" B\"]", labels);
        let template = JudgeTemplate::from_toml(&toml).unwrap();
        LabelTokens::resolve(&fixtures::tokenizer(), &fixtures::chat(), &template)
    }

    #[test]
    fn one_token_labels_resolve() {
        assert_eq!(resolve("[\" A\", \" B\"]").unwrap().ids, fixtures::LABELS);
        assert_ne!(resolve("[\"1\", \"2\"]").unwrap().ids, fixtures::LABELS);
    }

    #[test]
    fn labels_of_several_tokens_are_refused_with_their_tokens() {
        let error = resolve("[\" A\", \" C\"]").unwrap_err().to_string();
        assert!(
            error.contains("\" C\"") && error.contains("\"C\""),
            "{error}"
        );
        assert!(
            error.contains("2 tokens") || error.contains("became"),
            "{error}"
        );
    }

    #[test]
    fn a_label_that_merges_into_the_lead_in_is_refused() {
        let toml = fixtures::TEMPLATE
            .replace("I say", "I say ")
            .replace("[\" A\", \" B\"]", "[\"A\", \"B\"]");
        let template = JudgeTemplate::from_toml(&toml).unwrap();
        let error =
            LabelTokens::resolve(&fixtures::tokenizer(), &fixtures::chat(), &template).unwrap_err();
        assert!(
            matches!(error, JudgeError::LabelNotOneToken { seam: true, .. }),
            "{error}"
        );
    }

    #[test]
    fn labels_are_bared_only_where_they_must_be() {
        let (tokenizer, chat) = (fixtures::tokenizer(), fixtures::chat());
        let kept = LabelTokens::resolve_or_bare(&tokenizer, &chat, fixtures::template()).unwrap();
        assert_eq!(kept.1, fixtures::template());
        let spaced = fixtures::TEMPLATE.replace("[\" A\", \" B\"]", "[\" C\", \" D\"]");
        let spaced = JudgeTemplate::from_toml(&spaced).unwrap();
        let (labels, bare) = LabelTokens::resolve_or_bare(&tokenizer, &chat, spaced).unwrap();
        assert_eq!(bare.lead_in(), "I say (");
        assert_eq!(bare.labels(), &["C", "D"]);
        assert_eq!(fixtures::decode(&labels.ids), "CD");
        let words = fixtures::TEMPLATE.replace("[\" A\", \" B\"]", "[\" one\", \" two\"]");
        let words = JudgeTemplate::from_toml(&words).unwrap();
        let error = LabelTokens::resolve_or_bare(&tokenizer, &chat, words)
            .err()
            .unwrap();
        assert!(error.to_string().contains("\" one\""), "{error}");
    }

    #[test]
    fn the_built_in_templates_resolve_for_real_tokenizers() {
        // Of 512 tokens, " B" is one and " A" is not.
        assert_resolve(&data("tokenizers/minimind"), false);
        assert_resolve(&data("stories260k"), true);
    }

    #[test]
    #[cfg_attr(not(has_data), ignore = "needs ../shared/data")]
    fn the_built_in_templates_resolve_for_larger_vocabularies() {
        for name in ["gpt2", "gpt-neox-20b"] {
            assert_resolve(&shared_data("tokenizers").join(name), false);
        }
    }

    /// Asserts that the labels of the built-in templates resolve, by their bare letters or as they are.
    fn assert_resolve(dir: &Path, bared: bool) {
        let chat = ChatTemplate::from_source(
            "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}[assistant]\n",
            SpecialTokens::default(),
        )
        .unwrap();
        let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json")).unwrap();
        for template in [JudgeTemplate::hh(), JudgeTemplate::ultrafeedback()] {
            let resolved = LabelTokens::resolve_or_bare(&tokenizer, &chat, template.clone());
            let (_, resolved) = resolved.unwrap_or_else(|error| panic!("{dir:?}: {error}"));
            assert_eq!(resolved != template, bared, "{dir:?} {}", template.name());
        }
    }
}
