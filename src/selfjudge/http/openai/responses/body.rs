//! The request body.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::input::InputBody;
use super::neutral;
use crate::http::beside::{Shared, properties};
use crate::http::error::ApiError;
use crate::http::format::FormatKind;
use crate::http::neutral::Tables;
use crate::http::sampling::SamplingBody;
use crate::service::Ending;
use engine::MAX_LOGPROBS;
use text::{GrammarSpec, Message, Role, Variables};

/// Maximum number of `metadata` entries, and maximum characters of their keys and values.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);

/// The value of `include` that requests log-probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// The other values of `include`, which concern items that answers here do not have.
const OF_OTHER_ITEMS: [&str; 7] = [
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
];

/// The body. Unknown fields are refused.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponsesBody {
    /// The name of the served model; optional.
    pub model: Option<String>,
    /// The input: a text of the user, or the items of a conversation.
    input: InputBody,
    /// A system message before those of `input`.
    pub instructions: Option<String>,
    /// Maximum tokens per answer; by default as many as fit into the context.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<usize>,
    /// The format of the answer.
    pub text: Option<TextBody>,
    /// Up to 16 texts of at most 512 characters, by keys of at most 64. They are returned with the answer and have no other effect.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Additional data in the answer: `message.output_text.logprobs` requests log-probabilities. The other values of
    /// OpenAI's API are accepted and have no effect, because answers here do not have the items that they concern.
    include: Option<Vec<String>>,
    /// The number of most probable tokens returned with each token; by default 0. It needs `message.output_text.logprobs` in
    /// `include`.
    #[schema(maximum = 20, default = 0)]
    pub top_logprobs: Option<usize>,
    /// No response is stored, so the answer has `false`. `true` is answered with a warning; `log` controls what is kept of a call.
    store: Option<bool>,
    /// Has no effect without tools; it is returned with the answer.
    #[schema(default = true)]
    pub parallel_tool_calls: Option<bool>,
    /// `auto` or `none`: there are no tools on this route.
    #[schema(value_type = Option<String>, default = "auto")]
    pub tool_choice: Option<Value>,
    /// Must be empty or absent.
    #[schema(value_type = Option<Vec<Object>>, max_items = 0)]
    tools: Option<Value>,
    /// Must be null or absent: responses are not stored.
    #[schema(value_type = Option<Value>)]
    previous_response_id: Option<Value>,
    /// Must be null or absent: conversations are not stored.
    #[schema(value_type = Option<Value>)]
    conversation: Option<Value>,
    /// Must be false, null or absent: calls are answered synchronously.
    #[schema(value_type = Option<Value>)]
    background: Option<Value>,
    /// Must be null or absent: stored prompts are a service of OpenAI.
    #[schema(value_type = Option<Value>)]
    prompt: Option<Value>,
    /// Must have no effect: null, an empty object, or the effort `none` or `medium`.
    #[schema(value_type = Option<Value>)]
    reasoning: Option<Value>,
    /// `disabled`, the default: an input that is longer than the context is refused, and never cut.
    #[schema(value_type = Option<String>, default = "disabled")]
    truncation: Option<Value>,
    /// Has no effect; it is returned with the answer.
    pub safety_identifier: Option<String>,
    /// Has no effect, because the prefix cache needs no key; it is returned with the answer.
    pub prompt_cache_key: Option<String>,
    /// Variables of the chat template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Variables>,
}

/// The format of the answer.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextBody {
    /// The format of the text; by default unconstrained.
    pub format: Option<TextFormat>,
}

/// The format of an answer's text.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    kind: FormatKind,
    /// With the type `json_schema`: the name of the schema. It has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// With the type `json_schema`: a description for people. The model does not see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// With the type `json_schema`: the JSON schema of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<Value>,
    /// With the type `json_schema`: `true` refuses a schema that cannot be enforced completely. Otherwise constraints that cannot be
    /// enforced are ignored, and listed in `warnings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

impl Default for TextFormat {
    fn default() -> Self {
        Self {
            kind: FormatKind::Text,
            name: None,
            description: None,
            schema: None,
            strict: None,
        }
    }
}

impl TextFormat {
    /// Returns the grammar that the format requests.
    ///
    /// # Errors
    /// Fails if a schema is missing, or if a field does not belong to the type.
    fn grammar(&self) -> Result<Option<GrammarSpec>, ApiError> {
        if self.kind == FormatKind::JsonSchema {
            let schema = self
                .schema
                .clone()
                .ok_or_else(|| ApiError::invalid("text.format.schema", "must be given"))?;
            return Ok(Some(match self.strict {
                Some(true) => GrammarSpec::JsonSchema(schema),
                _ => GrammarSpec::LooseJsonSchema(schema),
            }));
        }
        let meaningless = [
            ("text.format.schema", self.schema.is_some()),
            ("text.format.name", self.name.is_some()),
            ("text.format.description", self.description.is_some()),
            ("text.format.strict", self.strict.is_some()),
        ];
        match meaningless.into_iter().find(|(_, given)| *given) {
            Some((param, _)) => Err(ApiError::invalid(
                param,
                "has no meaning without the type json_schema",
            )),
            None if self.kind == FormatKind::JsonObject => Ok(Some(GrammarSpec::JsonObject)),
            None => Ok(None),
        }
    }
}

impl ResponsesBody {
    /// Refuses, by name, fields that need state or services that the server does not have.
    pub fn refuse_what_is_not_served(&self) -> Result<(), ApiError> {
        const STATELESS: &str = "cannot be given: responses are not stored, so the whole conversation must be in `input`";
        for (param, given, why) in [
            (
                "tools",
                &self.tools,
                "must be empty: this route answers with text or JSON; /v1/chat/completions has tools",
            ),
            (
                "previous_response_id",
                &self.previous_response_id,
                STATELESS,
            ),
            ("conversation", &self.conversation, STATELESS),
            (
                "background",
                &self.background,
                "must be false: calls are answered synchronously or streamed",
            ),
            (
                "prompt",
                &self.prompt,
                "cannot be given: there are no stored prompts; the texts belong in `instructions` and `input`",
            ),
            (
                "reasoning",
                &self.reasoning,
                "must have no effect: the model has no adjustable reasoning",
            ),
            (
                "truncation",
                &self.truncation,
                "must be \"disabled\": an input that is too long is refused, and never cut",
            ),
        ] {
            if given.is_some() {
                return Err(ApiError::invalid(param, why));
            }
        }
        let choice = self.tool_choice.as_ref();
        if choice.is_some_and(|choice| choice != "auto" && choice != "none") {
            return Err(ApiError::invalid(
                "tool_choice",
                "must be \"auto\" or \"none\": this route has no tools",
            ));
        }
        self.check_metadata()
    }

    fn check_metadata(&self) -> Result<(), ApiError> {
        let Some(metadata) = &self.metadata else {
            return Ok(());
        };
        let (pairs, key, value) = MAX_METADATA;
        let fits = |(name, text): (&String, &String)| {
            name.chars().count() <= key && text.chars().count() <= value
        };
        match metadata.len() <= pairs && metadata.iter().all(fits) {
            true => Ok(()),
            false => Err(ApiError::invalid(
                "metadata",
                format!(
                    "must be at most {pairs} pairs, with names of at most {key} characters and texts of at most {value}"
                ),
            )),
        }
    }

    /// Returns how many most probable tokens are returned with every token; none if log-probabilities were not requested.
    ///
    /// # Errors
    /// Fails for an unknown value of `include`, or for `top_logprobs` without it.
    pub fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        let include = self.include.as_deref().unwrap_or_default();
        let unknown =
            |value: &&String| *value != LOGPROBS && !OF_OTHER_ITEMS.contains(&value.as_str());
        if let Some(at) = include.iter().position(|value| unknown(&value)) {
            return Err(ApiError::invalid(
                format!("include[{at}]"),
                format!(
                    "must be one of the values of OpenAI's API, of which `{LOGPROBS}` has an effect"
                ),
            ));
        }
        let top = self.top_logprobs.unwrap_or(0);
        if top > MAX_LOGPROBS {
            let message = format!("must be at most {MAX_LOGPROBS}");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        match include.iter().any(|value| value == LOGPROBS) {
            true => Ok(Some(top)),
            false if top > 0 => Err(ApiError::invalid(
                "top_logprobs",
                format!("has no meaning without `\"include\": [\"{LOGPROBS}\"]`"),
            )),
            false => Ok(None),
        }
    }

    /// Returns the conversation, and the ending of its prompt if the answer continues the last message.
    ///
    /// # Errors
    /// Fails for an input without a message.
    pub fn conversation(&mut self) -> Result<(Vec<Message>, Option<Ending>), ApiError> {
        let input = std::mem::take(&mut self.input);
        let (messages, ending) = input.into_messages()?;
        let instructions = self.instructions.as_ref();
        let instructions = instructions.filter(|text| !text.is_empty());
        let first = instructions.map(|text| Message::new(Role::System, text.clone()));
        Ok((first.into_iter().chain(messages).collect(), ending))
    }

    /// Returns the grammar that `text` requests, and the parameter that requests it.
    ///
    /// # Errors
    /// Fails for an invalid format.
    pub fn grammar(&self) -> Result<Option<(&'static str, GrammarSpec)>, ApiError> {
        let format = self.text.as_ref().and_then(|text| text.format.as_ref());
        let spec = format.map_or(Ok(None), TextFormat::grammar)?;
        Ok(spec.map(|spec| ("text.format", spec)))
    }

    /// Returns the warning for a caller that requests a stored response. Many clients send `true`, which is OpenAI's default, and never
    /// fetch the response.
    pub fn store_warning(&self) -> Option<String> {
        let asked = self.store == Some(true);
        asked.then(|| {
            "store: responses are not stored, and this one cannot be fetched later".to_owned()
        })
    }
}

/// The sampling parameters without those for which the route has its own form.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct ResponsesSampling(SamplingBody);

/// The parameters left out of [`ResponsesSampling`]: there is one answer, and `text` sets its format.
const OTHERWISE: [&str; 2] = ["n", "response_format"];

impl ResponsesSampling {
    /// Returns the sampling parameters.
    ///
    /// # Errors
    /// Fails for stream options that the route's events do not have.
    pub fn into_sampling(self) -> Result<SamplingBody, ApiError> {
        match self.0.wants_continuous_usage() {
            true => Err(ApiError::invalid(
                "stream_options.continuous_usage_stats",
                "cannot be asked for: the usage is in the last event",
            )),
            false => Ok(self.0),
        }
    }
}

impl PartialSchema for ResponsesSampling {
    fn schema() -> RefOr<Schema> {
        let RefOr::T(Schema::Object(mut object)) = SamplingBody::schema() else {
            unreachable!("a struct's schema is an object; this is a bug")
        };
        object
            .properties
            .retain(|name, _| !OTHERWISE.contains(&name.as_str()));
        object.into()
    }
}

impl ToSchema for ResponsesSampling {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        SamplingBody::schemas(schemas);
    }
}

impl Shared for ResponsesSampling {
    const UNSUPPORTED: Tables = neutral::ALL;

    fn names() -> &'static BTreeSet<String> {
        static NAMES: LazyLock<BTreeSet<String>> =
            LazyLock::new(|| properties(ResponsesSampling::schema()));
        &NAMES
    }

    fn strip(body: &mut Map<String, Value>) {
        neutral::strip_body(body);
    }
}
