//! A model's vocabulary in the form that grammars need, and grammars compiled for it.

use std::collections::HashMap;
use std::sync::Arc;

use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use super::matcher::{GrammarMatcher, TokenMask};
use super::words::plain;
use super::{GrammarError, GrammarSpec};
use crate::Tokenizer;
use crate::token_bytes::Speller;

/// Length limit of a token in bytes, longer than any text needs; the trie has a limit of about this.
const LONGEST_TOKEN: usize = 1000;

/// Stack size of the compiler, which follows rules and schemas recursively; only the used part becomes memory.
const COMPILER_STACK: usize = 256 << 20;

/// A model's vocabulary in the form that grammars need. Clones share it.
#[derive(Clone)]
pub struct GrammarEnv(Arc<Vocabulary>);

/// The tokens in llguidance's numbering: the model's `0..size`; then `size`, for the end of the text, whichever ids end it; then entries
/// without an id in the model, for tokens whose bytes at the start of a text differ and are not another token's.
pub(super) struct Vocabulary {
    pub size: usize,
    /// For each token of the model the one that stands for it at the start of a text; none if it adds no bytes there.
    pub first: Vec<Option<u32>>,
    factory: ParserFactory,
}

/// A compiled grammar. Clones share it.
#[derive(Clone)]
pub struct Grammar {
    start: Arc<Start>,
    /// Whether the text continues another one.
    continues: bool,
}

/// The initial state of every text.
struct Start {
    vocabulary: Arc<Vocabulary>,
    matcher: Matcher,
    /// The tokens allowed at the start of a text.
    first: TokenMask,
    /// The tokens allowed first after another text.
    later: TokenMask,
    warnings: Vec<String>,
}

impl GrammarEnv {
    /// Reads the bytes of all tokens of a model whose logits have `vocab_size` values.
    ///
    /// # Errors
    /// If the tokenizer's tokens do not each stand for bytes of their own.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self, GrammarError> {
        let speller = Speller::new(tokenizer).ok_or(GrammarError::UnsupportedTokenizer)?;
        let mut words: Vec<Vec<u8>> = Vec::with_capacity(vocab_size + 1);
        let mut firsts = Vec::with_capacity(vocab_size);
        for id in 0..vocab_size as u32 {
            let spelling = speller.spell(id);
            let (later, first) = match spelling {
                Some(spelling) => (text_bytes(spelling.later), text_bytes(spelling.first)),
                // A grammar may name a control token; no text encodes to one.
                None if tokenizer.is_control(id) => {
                    let name = tokenizer.id_to_token(id).unwrap_or_default();
                    let word = control_word(&name);
                    (word.clone(), word)
                }
                None => (Vec::new(), Vec::new()),
            };
            words.push(later);
            firsts.push(first);
        }
        // The name has a space, so that no grammar can refer to it.
        words.push(control_word("<the end>"));
        let mut ids: HashMap<Vec<u8>, u32> = HashMap::new();
        for (word, id) in words.iter().zip(0..) {
            ids.entry(word.clone()).or_insert(id);
        }
        let first = firsts
            .into_iter()
            .zip(0..)
            .map(|(first, id)| {
                if first == words[id as usize] {
                    return Some(id);
                }
                (!first.is_empty()).then(|| {
                    *ids.entry(first).or_insert_with_key(|word| {
                        words.push(word.clone());
                        words.len() as u32 - 1
                    })
                })
            })
            .collect();
        let trie = TokTrie::from(
            &TokRxInfo::new(words.len() as u32, vocab_size as u32),
            &words,
        );
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(GrammarError::failed)?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self(Arc::new(Vocabulary {
            size: vocab_size,
            first,
            factory,
        })))
    }

    /// Compiles a specification. The time is bounded, but may be tens of milliseconds.
    ///
    /// # Errors
    /// If the specification is invalid or too large.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar, GrammarError> {
        // A schema that is fully supported is compiled in full.
        if let Some(whole) = spec.whole() {
            let whole = self.compile_once(&whole);
            if !matches!(whole, Err(GrammarError::Invalid(_))) {
                return whole;
            }
        }
        self.compile_once(spec)
    }

    fn compile_once(&self, spec: &GrammarSpec) -> Result<Grammar, GrammarError> {
        let grammar = spec.to_llguidance()?;
        let compiler = std::thread::Builder::new()
            .name("grammar".into())
            .stack_size(COMPILER_STACK);
        let compiled = std::thread::scope(|scope| {
            compiler
                .spawn_scoped(scope, || self.start(grammar))
                .map_err(GrammarError::failed)?
                .join()
                .unwrap_or_else(|_| Err(GrammarError::Failed("the compiler panicked".into())))
        });
        let own = matches!(spec, GrammarSpec::Lark(_));
        compiled.map_err(|error| match error {
            GrammarError::Invalid(message) => GrammarError::Invalid(plain(&message, own)),
            other => other,
        })
    }

    fn start(&self, grammar: llguidance::api::TopLevelGrammar) -> Result<Grammar, GrammarError> {
        let vocabulary = Arc::clone(&self.0);
        let parser = vocabulary.factory.create_parser(grammar);
        let mut matcher = Matcher::new(Ok(parser.map_err(GrammarError::invalid)?));
        let tokens = matcher
            .compute_mask_or_eos()
            .map_err(GrammarError::failed)?;
        let first = TokenMask::at_the_start(&tokens, &vocabulary);
        let later = TokenMask::new(&tokens, &vocabulary);
        for allowed in [&first, &later] {
            if !allowed.has_tokens() {
                return Err(match allowed.may_end() {
                    true => GrammarError::OnlyEmpty,
                    false => GrammarError::DeadEnd,
                });
            }
        }
        let warnings = matcher.grammar_warnings();
        Ok(Grammar {
            start: Arc::new(Start {
                vocabulary,
                matcher,
                first,
                later,
                warnings: warnings
                    .iter()
                    .map(|warning| plain_warning(warning))
                    .collect(),
            }),
            continues: false,
        })
    }
}

impl Grammar {
    /// Returns the same grammar for texts that continue another one: their first token keeps the space that a text's first token may
    /// lose.
    pub fn continuing(self) -> Self {
        Self {
            continues: true,
            ..self
        }
    }

    /// Returns the parts of the requested schema that are ignored, in full sentences.
    pub fn warnings(&self) -> &[String] {
        &self.start.warnings
    }

    /// Creates a matcher for a new text.
    pub fn matcher(&self) -> GrammarMatcher {
        let Start {
            vocabulary,
            matcher,
            first,
            later,
            ..
        } = &*self.start;
        // A deep clone: the lexer states built for one text must not count towards the limits of another.
        GrammarMatcher::new(
            Arc::clone(vocabulary),
            matcher.deep_clone(),
            if self.continues { later } else { first }.clone(),
            self.continues,
        )
    }

    /// Returns the number of the model's tokens.
    pub fn vocab_size(&self) -> usize {
        self.start.vocabulary.size
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

/// Returns limits for llguidance: compiling, and the mask of one token, take at most some tens of milliseconds, and a text's lexer some
/// tens of megabytes. Real schemas take a small part of that.
fn limits() -> ParserLimits {
    ParserLimits {
        step_lexer_fuel: 100_000,
        step_max_items: 20_000,
        max_lexer_states: 20_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Returns a warning of llguidance as a sentence about the schema.
fn plain_warning(warning: &str) -> String {
    if let Some(keys) = warning.strip_prefix("Unimplemented keys: ") {
        return format!(
            "The schema's keywords {keys} are not supported and are ignored: answers may violate them."
        );
    }
    if let Some(format) = warning.strip_prefix("Unknown format: ") {
        return format!(
            "The schema's format \"{format}\" is not supported and is ignored: answers may violate it."
        );
    }
    match warning.starts_with("oneOf ") {
        true => {
            "The schema's \"oneOf\" is treated as \"anyOf\": answers may match several of its schemas."
                .to_owned()
        }
        false => format!("The schema is applied only in part: {warning}."),
    }
}

/// Returns the bytes of a text token, or none if they begin with the byte that marks control tokens: no UTF-8 text contains it.
fn text_bytes(bytes: Vec<u8>) -> Vec<u8> {
    match bytes.first() {
        Some(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
        _ if bytes.len() > LONGEST_TOKEN => Vec::new(),
        _ => bytes,
    }
}

fn control_word(name: &str) -> Vec<u8> {
    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    word.extend(name.bytes().take(LONGEST_TOKEN));
    word
}
