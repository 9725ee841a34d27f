//! The fields, and the values for which they have no effect.

use super::Neutral::{Any, At};
use super::{Kind, Neutral, Row};

/// OpenAI's fields in a body that generates.
pub const BODY: &[Row] = &[
    ("audio", At(&[])),
    ("echo", At(&["false"])),
    ("function_call", At(&["\"none\"", "\"auto\""])),
    ("functions", At(&["[]"])),
    ("metadata", Any(Kind::Object)),
    ("modalities", At(&["[\"text\"]"])),
    ("moderation", At(&[])),
    // A predicted answer: it may only make the answer faster.
    ("prediction", Any(Kind::Object)),
    ("prompt_cache_key", Any(Kind::Text)),
    ("prompt_cache_options", Any(Kind::Object)),
    ("prompt_cache_retention", Any(Kind::Text)),
    ("reasoning_effort", At(&["\"none\"", "\"medium\""])),
    ("safety_identifier", Any(Kind::Text)),
    ("service_tier", At(&["\"auto\"", "\"default\""])),
    // `true` requests a conversation that can be fetched later. Here `log` controls what is kept of a call.
    ("store", At(&["false"])),
    ("suffix", At(&["\"\""])),
    ("tools", At(&["[]"])),
    ("verbosity", At(&["\"medium\""])),
    ("web_search_options", At(&[])),
];

/// vLLM's fields in a body that generates.
pub const VLLM: &[Row] = &[
    ("allowed_token_ids", At(&[])),
    ("bad_words", At(&["[]"])),
    ("documents", At(&["[]"])),
    ("early_stopping", At(&["false"])),
    ("ec_transfer_params", At(&["{}"])),
    ("guided_choice", At(&[])),
    ("guided_decoding_backend", At(&[])),
    ("guided_grammar", At(&[])),
    ("guided_json", At(&[])),
    ("guided_json_object", At(&["false"])),
    ("guided_regex", At(&[])),
    ("guided_whitespace_pattern", At(&[])),
    ("include_reasoning", At(&["true"])),
    ("kv_transfer_params", At(&["{}"])),
    ("length_penalty", At(&["1"])),
    ("logits_processors", At(&["[]"])),
    ("media_io_kwargs", At(&["{}"])),
    ("mm_processor_kwargs", At(&["{}"])),
    ("prompt_embeds", At(&[])),
    ("prompt_logprobs", At(&[])),
    ("repetition_detection", At(&[])),
    // The id of the call is in the header `X-Request-Id`.
    ("request_id", At(&[])),
    ("return_token_ids", At(&["false"])),
    ("return_tokens_as_token_ids", At(&["false"])),
    ("seed", At(&["-1"])),
    ("skip_special_tokens", At(&["true"])),
    ("spaces_between_special_tokens", At(&["true"])),
    ("thinking_token_budget", At(&[])),
    ("top_k", At(&["-1"])),
    ("truncate_prompt_tokens", At(&[])),
    ("truncation_side", At(&[])),
    ("use_beam_search", At(&["false"])),
    ("vllm_xargs", At(&["{}"])),
];

/// Fields of a body that offers no tools.
pub const NO_TOOLS: &[Row] = &[
    ("parallel_tool_calls", Any(Kind::Bool)),
    ("tool_choice", At(&["\"none\"", "\"auto\""])),
];

/// Fields of a body that has `messages`.
pub const CHAT: &[Row] = &[
    // The chat template has written the special tokens already.
    ("add_special_tokens", At(&["false"])),
    ("chat_template", At(&[])),
    ("chat_template_kwargs", At(&["{}"])),
];

/// Fields of a body without messages.
pub const COMPLETION: &[Row] = &[("add_special_tokens", At(&["true"]))];

/// Fields of a body of `/v1/decisions`, in addition to those of chats.
pub const DECISIONS: &[Row] = &[
    ("add_generation_prompt", At(&["true"])),
    ("continue_final_message", At(&["false"])),
    ("log", At(&["{}"])),
    ("n", At(&["1"])),
    ("stream", At(&["false"])),
    // Such a call is not recorded.
    ("user", Any(Kind::Text)),
];

/// Fields of `stream_options`.
pub const STREAM_OPTIONS: &[Row] = &[
    ("continuous_usage_stats", At(&["false"])),
    // Padding against observers of packet lengths; here events are never padded.
    ("include_obfuscation", Any(Kind::Bool)),
    ("include_usage", At(&["false"])),
];

/// Fields of `structured_outputs`.
pub const STRUCTURED: &[Row] = &[
    ("choice", At(&[])),
    ("disable_additional_properties", At(&["false"])),
    ("disable_any_whitespace", At(&["false"])),
    ("disable_fallback", At(&["false"])),
    ("grammar", At(&[])),
    ("json", At(&[])),
    ("json_object", At(&["false"])),
    ("regex", At(&[])),
    ("structural_tag", At(&[])),
    ("whitespace_pattern", At(&[])),
];

/// Fields of a message.
pub const MESSAGE: &[Row] = &[
    ("annotations", At(&["[]"])),
    ("audio", At(&[])),
    // A hint for prefix caches; here the cache works without hints.
    ("cache_control", Any(Kind::Object)),
    ("function_call", At(&[])),
    ("id", Any(Kind::Text)),
    ("images", At(&["[]"])),
    ("name", At(&["\"\""])),
    // The content as parsed by openai-python.
    ("parsed", Any(Kind::Value)),
    ("prefix", At(&["false"])),
    ("provider_specific_fields", At(&["{}"])),
    ("reasoning", At(&["\"\""])),
    ("reasoning_content", At(&["\"\""])),
    ("reasoning_details", At(&["[]"])),
    ("refusal", At(&["\"\""])),
    ("thinking_blocks", At(&["[]"])),
    ("tool_call_id", At(&["\"\""])),
    ("tool_calls", At(&["[]"])),
];

/// Fields of a message that is not a tool's result.
pub const SPEAKER: &[Row] = &[
    // The name of one of several speakers; chat templates receive roles only.
    ("name", Any(Kind::Text)),
];

/// Fields of a call in a message.
pub const CALL: &[Row] = &[
    // Clients copy this field from a stream.
    ("index", Any(Kind::Value)),
];

/// Fields of the function of a call in a message.
pub const CALLED: &[Row] = &[
    // The arguments as parsed by openai-python.
    ("parsed_arguments", Any(Kind::Value)),
];

/// Fields of a part of a message.
pub const PART: &[Row] = &[
    ("annotations", At(&["[]"])),
    ("cache_control", Any(Kind::Object)),
    ("id", Any(Kind::Text)),
    ("logprobs", At(&["[]"])),
    ("prompt_cache_breakpoint", Any(Kind::Object)),
];

/// The tables of a body.
#[derive(Debug, Clone, Copy)]
pub struct Tables {
    /// Those of its own fields.
    pub top: &'static [&'static [Row]],
    /// Those of the objects in it.
    pub inner: &'static [&'static [Row]],
}

impl Tables {
    pub const NONE: Self = Self {
        top: &[],
        inner: &[],
    };

    /// Those of a body that may have messages.
    pub const MESSAGES: Self = Self {
        top: &[],
        inner: &[MESSAGE, SPEAKER, CALL, CALLED, PART],
    };

    /// Those of a body that generates.
    pub const GENERATING: Self = Self {
        top: &[BODY, VLLM, NO_TOOLS, CHAT, COMPLETION],
        inner: &[
            MESSAGE,
            SPEAKER,
            CALL,
            CALLED,
            PART,
            STREAM_OPTIONS,
            STRUCTURED,
        ],
    };

    /// Those of a body of `/v1/decisions`.
    pub const DECISIONS: Self = Self {
        top: &[BODY, VLLM, NO_TOOLS, CHAT, DECISIONS],
        inner: &[MESSAGE, SPEAKER, PART],
    };

    /// Returns the rule of a field; `top` if it is one of the body's own.
    pub fn rule(self, field: &str, top: bool) -> Option<Neutral> {
        let tables = if top { self.top } else { self.inner };
        let mut rows = tables.iter().copied().flatten();
        rows.find(|(name, _)| *name == field)
            .map(|(_, neutral)| *neutral)
    }
}
